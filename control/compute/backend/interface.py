"""What runs containers: the one seam between compute and Kubernetes or Podman.

A backend gets the desired state of a container (a :class:`Spec`) and reports what it
sees (:class:`Sighting`). It keeps nothing that matters: all of it can be found
again by the labels on what it made, and every call may be repeated. So it is
driven by level, not by edge: whoever drives it (:mod:`control.compute.reconcile.driver`)
compares desired states with sightings after every restart, and calls again.

Errors: :class:`BackendUnavailable` when it does not answer (to be tried again),
:class:`Impossible` when it never will do this (the container fails, with the
reason), both below.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec
import trio

from gfs.errors import GfsError, Retryable

Phase = Literal["pending", "initializing", "running", "stopped", "failed"]

#: The size of a terminal until its client sets another.
COLUMNS = 80
ROWS = 24
TERM = "xterm-256color"

#: Labels on everything a backend makes. The first is also what its watch selects by.
LABEL_MANAGED = "gfs.control/managed"  # "true"
LABEL_CONTAINER = "gfs.control/container"  # the id
LABEL_USER = "gfs.control/user"  # the user's id
LABEL_CLUSTER = "gfs.control/cluster"  # whose records these are: Installation.id


class BackendUnavailable(Retryable):
    """The backend does not answer now."""

    code = "backend_unavailable"


class Impossible(GfsError):
    """The backend cannot do this, however often it is asked. ``str()`` is shown to the user."""

    code = "impossible"


class Port(msgspec.Struct, frozen=True, array_like=True):
    """An ingress rule: ``port`` outside leads to ``target_port`` in the container."""

    port: int
    target_port: int


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of a container. Made of a row; everything in it was checked."""

    id: str  # 8 hex digits
    user_id: str  # 6 of [0-9A-Za-z]: two ids may differ in case alone
    name: str  # for people: any text of 1 to 64 characters
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
    #: Grows with every start and change of mounts: a run of an older one is replaced.
    generation: int
    #: Where it was last seen to be reached; "": not known, or it does not run.
    external_ip: str = ""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend sees of one container."""

    id: str
    user_id: str
    phase: Phase
    #: The generation of the run that was seen; 0: not known.
    generation: int = 0
    #: Why it failed, or what it waits for: one line for people.
    reason: str = ""
    external_ip: str = ""


class Usage(msgspec.Struct, frozen=True):
    """What a running container takes; None where it is not known."""

    memory_mb: int | None = None
    storage_gb: float | None = None


class Room(msgspec.Struct, frozen=True):
    """What all containers may have together: of memory those that run, of disk all."""

    memory_mb: int
    storage_gb: int


class Terminal(Protocol):
    """A command with a PTY. Closing the context manager it came from ends it."""

    async def receive(self) -> bytes:
        """The next output; b"" when the command has ended. The backend reads no
        further ahead than a few hundred KiB: a slow reader slows the command."""

    async def send(self, data: bytes) -> None:
        """Input. Returns when it was taken."""

    async def resize(self, columns: int, rows: int) -> None: ...

    @property
    def exit_code(self) -> int | None:
        """After the end, if it is known."""


class Watch(Protocol):
    """Receives what a backend observes. Called on the loop's thread; never waits."""

    def seen(self, sighting: Sighting) -> None:
        """A container is new or changed."""

    def gone(self, container_id: str) -> None:
        """Nothing of it is left, as far as the backend can see."""

    def exposure_lost(self, container_id: str) -> None:
        """Something that :meth:`Backend.expose` makes is gone; perhaps because it was asked for."""

    def synced(self, present: set[str]) -> None:
        """All that exist have been reported; after every new start of the watch. What is
        not in ``present`` does not exist."""


class Backend(Protocol):
    """See the module. Every call is idempotent and may be cancelled at any time.

    Raises BackendUnavailable or Impossible.
    """

    name: str  # "kubernetes" | "podman" | "none"

    async def check(self) -> None:
        """Raise BackendUnavailable, in words that say what to install or configure,
        unless containers can be created now."""

    async def room(self) -> Room | None:
        """What there is for containers, those that are there included. None: the backend
        finds room itself, and a container waits until there is some."""

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch for ever: one watch for all containers, no polling of each. Survives
        the backend's restarts and missed events by listing again. Started after the
        first ``synced``."""

    async def create(self, spec: Spec) -> None:
        """Make everything that outlives a run: volumes, keys, addresses, limits."""

    async def start(self, spec: Spec) -> None:
        """Run it, as ``spec`` says; a run of an older generation is ended first. Makes
        again what is missing. Returns when the backend has taken it over: how it goes
        on is reported to the watch."""

    async def stop(self, spec: Spec) -> None:
        """End its run; what is under the mount paths stays."""

    async def delete(self, container_id: str, user_id: str) -> None:
        """Leave nothing of it. Returns when nothing is left, or nothing can be seen."""

    async def expose(self, spec: Spec) -> None:
        """Let SSH (if enabled), by the keys of ``spec``, and the ports in, and nothing else;
        live: a key that is not in ``spec`` any more lets nobody in. Called from time
        to time, too, to put right what no sighting shows, should somebody have changed it:
        whoever is connected must not notice."""

    def port_refusal(self, port: int) -> str:
        """Why no container can have this port outside; "" if one can, as far as is known."""

    async def usage(self, spec: Spec) -> Usage:
        """Of a running container."""

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        """``command`` with a PTY in the running container."""

    def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        """Its last ``tail`` lines, each with a timestamp in front, then, if ``follow``,
        those to come. Leave it early only inside ``contextlib.aclosing``."""

    def ssh_command(self, spec: Spec) -> str:
        """What truly opens a shell in it, for the user's terminal."""

    def hostname(self, spec: Spec) -> str: ...


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What all backends are made with."""

    #: Random, made once for a state directory: several may share a Kubernetes or Podman.
    id: str
    domain: str
    image: str
    #: A directory of the module's own below the state directory.
    directory: str


Make = Callable[[Installation], Backend]
