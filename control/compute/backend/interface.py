"""Backends: the one interface between compute and Kubernetes or Podman.

A backend gets the desired state of a container (a :class:`Spec`) and reports the observed
one (:class:`Sighting`). It has no state of its own: it finds its objects by their labels,
and every call may be repeated. So it is level-triggered, not edge-triggered: the driver
(:mod:`control.compute.reconcile.driver`) compares desired states with sightings after
every restart, and calls again.

Errors: :class:`BackendUnavailable` if the backend does not answer (to be tried again),
:class:`Impossible` if it never can do this (then the container fails, with the
reason), both below.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec
import trio

from control.api.internals import Proxies
from gfs.errors import GfsError, Retryable

Phase = Literal["pending", "initializing", "running", "stopped", "failed"]

#: The size of a terminal until its client sets another.
COLUMNS = 80
ROWS = 24
TERM = "xterm-256color"

#: Labels on every object of a backend. Its watch selects by the first.
LABEL_MANAGED = "gfs.control/managed"  # "true"
LABEL_CONTAINER = "gfs.control/container"  # the id
LABEL_USER = "gfs.control/user"  # the user's id
LABEL_CLUSTER = "gfs.control/cluster"  # the installation: Installation.id


class BackendUnavailable(Retryable):
    """The backend does not answer now."""

    code = "backend_unavailable"


class Impossible(GfsError):
    """The backend can never do this. ``str()`` is shown to the user."""

    code = "impossible"


class Port(msgspec.Struct, frozen=True, array_like=True):
    """An ingress rule: forwards ``port`` outside to ``target_port`` in the container."""

    port: int
    target_port: int


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of a container, from its row; all values were checked."""

    id: str  # 8 hex digits
    user_id: str  # 6 of [0-9A-Za-z]: two ids may differ in case alone
    name: str  # any text of 1 to 64 characters
    image: str
    architecture: Literal["amd64", "arm64"]
    cpus: float
    memory_mb: int
    storage_gb: int
    #: Lines for authorized_keys.
    ssh_keys: tuple[str, ...]
    ssh_enabled: bool
    #: Absolute, normalised, without repeats or nesting, in the user's order.
    mount_paths: tuple[str, ...]
    ports: tuple[Port, ...]
    #: Grows with every start and change of mounts: a run of an older generation is replaced.
    generation: int
    #: Its last observed address; "": it is not known, or the container does not run.
    external_ip: str = ""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one container, as its backend observed it."""

    id: str
    user_id: str
    phase: Phase
    #: The generation of the run that was seen; 0: not known.
    generation: int = 0
    #: Why it failed, or what it waits for, in one line.
    reason: str = ""
    external_ip: str = ""


class Usage(msgspec.Struct, frozen=True):
    """The memory and disk that a running container uses; None where that is not known."""

    memory_mb: int | None = None
    storage_gb: float | None = None


class Room(msgspec.Struct, frozen=True):
    """What all containers may have together: memory for the running ones, disk for all."""

    memory_mb: int
    storage_gb: int


class Terminal(Protocol):
    """A command with a PTY. Leaving the context manager that returned it ends it."""

    async def receive(self) -> bytes:
        """The next output; b"" when the command has ended. The backend reads no
        further ahead than a few hundred KiB: a slow reader slows the command."""

    async def send(self, data: bytes) -> None:
        """Send input. Returns when the backend has accepted it."""

    async def resize(self, columns: int, rows: int) -> None: ...

    @property
    def exit_code(self) -> int | None:
        """The exit code after the end, if it is known."""


class Watch(Protocol):
    """Receives the reports of a backend. Called on the loop's thread; never waits."""

    def seen(self, sighting: Sighting) -> None:
        """Report a container that is new or has changed."""

    def gone(self, container_id: str) -> None:
        """Report that nothing of it is left, as far as the backend can see."""

    def exposure_lost(self, container_id: str) -> None:
        """Report that an object of :meth:`Backend.expose` is gone, perhaps by our own call."""

    def synced(self, present: set[str]) -> None:
        """Report, after every start of the watch, that all containers that exist were
        reported. A container that is not in ``present`` does not exist."""


class Backend(Protocol):
    """See the module. Every call is idempotent and may be cancelled at any time.

    Raises BackendUnavailable or Impossible.
    """

    name: str  # "kubernetes" | "podman" | "none"

    async def check(self) -> None:
        """Raise BackendUnavailable, which says what to install or configure, unless
        containers can be created now."""

    async def room(self) -> Room | None:
        """The room for all containers, including existing ones. None: the backend schedules
        them itself, and a container waits until there is room."""

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled: one watch for all containers, no polling of each. Survives
        the backend's restarts and missed events by listing again. Started after the
        first ``synced``."""

    async def create(self, spec: Spec) -> None:
        """Create everything that outlives a run: volumes, keys, addresses, limits."""

    async def start(self, spec: Spec) -> None:
        """Run it as ``spec`` says; a run of an older generation is ended first, and missing
        objects are created again. Returns when the backend has accepted it; the watch
        reports the rest."""

    async def stop(self, spec: Spec) -> None:
        """End its run; the files under the mount paths stay."""

    async def delete(self, container_id: str, user_id: str) -> None:
        """Delete all of its objects. Returns when none is left or can be seen."""

    async def expose(self, spec: Spec) -> None:
        """Open SSH (if enabled) to the keys of ``spec``, and its ports, and close all others,
        while it runs: a key that is not in ``spec`` allows no login any more. This is also
        called from time to time, to undo changes by others that no sighting shows; open
        connections must not notice it."""

    def port_refusal(self, port: int) -> str:
        """Why no container can get this port; "" if one can, as far as is known."""

    async def usage(self, spec: Spec) -> Usage:
        """The usage of a running container."""

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        """Run ``command`` with a PTY in the running container."""

    def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        """Its last ``tail`` lines, each with a timestamp in front, then, if ``follow``,
        those to come. Leave it early only inside ``contextlib.aclosing``."""

    def ssh_command(self, spec: Spec) -> str:
        """The command that opens a shell in it, for the user's terminal."""

    def hostname(self, spec: Spec) -> str: ...


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """The installation that a backend is created for."""

    #: Random, one for each state directory: several may share a Kubernetes or Podman.
    id: str
    domain: str
    image: str
    #: The module's own directory below the state directory.
    directory: str
    #: How many open files and sockets the process has for connections to containers.
    descriptors: int = 16 * 1024
    #: Those whose connections are of many clients.
    proxies: Proxies = Proxies()
