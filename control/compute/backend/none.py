"""No backend: keys and lists work, nothing can be created.

It observes nothing, so it never reports that a container is gone: containers of another
backend keep their last state, until that backend is chosen again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

import trio

from control.compute.backend.interface import (
    COLUMNS,
    ROWS,
    BackendUnavailable,
    Installation,
    Spec,
    Terminal,
    Usage,
    Watch,
)

HOW = (
    "as root install Podman (apt install podman) and set GFS_COMPUTE_BACKEND=podman, or point "
    "GFS_COMPUTE_KUBECONFIG at a cluster; then start the server again"
)


class Refusing:
    """What all backends without containers have in common."""

    def __init__(self, installation: Installation, why: str) -> None:
        self._domain = installation.domain
        self._why = why

    async def room(self) -> None:
        return None

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def create(self, spec: Spec) -> None:
        raise self._refusal()

    async def start(self, spec: Spec) -> None:
        raise self._refusal()

    async def stop(self, spec: Spec) -> None:
        raise self._refusal()

    async def delete(self, container_id: str, user_id: str) -> None:
        raise self._refusal()

    def port_refusal(self, port: int) -> str:
        return ""

    async def expose(self, spec: Spec) -> None:
        raise self._refusal()

    async def usage(self, spec: Spec) -> Usage:
        raise self._refusal()

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        raise self._refusal()

    async def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        raise self._refusal()
        yield ""  # this makes it a generator

    def hostname(self, spec: Spec) -> str:
        return f"{spec.id}.{self._domain}"

    def _refusal(self) -> BackendUnavailable:
        return BackendUnavailable(self._why)


class NoBackend(Refusing):
    name = "none"

    def __init__(self, installation: Installation, why: str = "") -> None:
        """``why`` is added to the refusal of a new container."""
        because = f" ({why})" if why else ""
        super().__init__(installation, f"no containers can run here{because}: {HOW}")

    async def check(self) -> None:
        raise self._refusal()

    def ssh_command(self, spec: Spec) -> str:
        return f"ssh root@{self.hostname(spec)}"
