"""The backend by itself: calls, and what its watch reports."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from backend_seen import USER, Seen, spec
from limits import HANG_SECONDS, wait_for, wait_until
from podman_here import left_of, remove, remove_fence, service_in, unmount_disks
from podman_image import RUNTIME, image

from control.compute.backend import (
    LABEL_CLUSTER,
    BackendUnavailable,
    Installation,
    Spec,
)
from control.compute.podman import Podman
from control.compute.settings import ComputeSettings
from control.identity.secretfiles import make_private_directory

T = TypeVar("T")


class Stage:
    def __init__(self, backend: Podman, seen: Seen, cluster: str, directory: Path) -> None:
        self.backend = backend
        self.seen = seen
        self.cluster = cluster
        self.directory = directory
        #: The ids of all that was asked for here.
        self.given: set[str] = set()

    def spec(self, **changes: object) -> Spec:
        made = spec(**{"image": image(), **changes})
        self.given.add(made.id)
        return made

    async def run(self, **changes: object) -> Spec:
        """A container that runs."""
        spec = self.spec(**changes)
        await self.backend.create(spec)
        await self.backend.start(spec)
        await self.seen.phase(spec, "running")
        return spec

    async def shell(self, spec: Spec, command: str) -> str:
        """What ``command`` prints in the container; it must end with 0."""
        output, code = await self.execute(spec, ["/bin/sh", "-c", command])
        assert code == 0, output
        return output

    async def execute(self, spec: Spec, command: list[str]) -> tuple[str, int | None]:
        output = b""
        with trio.fail_after(HANG_SECONDS):
            async with self.backend.exec(spec, command) as terminal:
                while piece := await terminal.receive():
                    output += piece
        return output.decode().replace("\r\n", "\n"), terminal.exit_code

    async def service(self) -> int:
        """The process id of Podman's service, which may just be started again."""
        return await until(lambda: service_in(self.directory), "service of Podman's")


async def until(condition: Callable[[], T], what: str) -> T:
    """As :func:`limits.wait_for`, while the backend goes on."""

    async def look() -> T:
        return condition()

    return await wait_until(look, what)


async def until_done(call: Callable[..., Awaitable[object]], *arguments: object) -> set[str]:
    """Call, as the driver does, until it is done: what looks after a run cleans up as well, and
    one is too late. What was said meanwhile."""
    said: set[str] = set()
    with trio.fail_after(HANG_SECONDS):
        while True:
            try:
                await call(*arguments)
                return said
            except BackendUnavailable as error:
                said.add(str(error))
            await trio.sleep(0.05)


@asynccontextmanager
async def stage(
    directory: Path, cluster: str = "", installed: str = "", **settings: object
) -> AsyncIterator[Stage]:
    """A backend whose watch runs. Nothing of it is left, whatever happens.

    ``installed``: the image that all containers ought to have, if not the tests'.
    """
    cluster = cluster or secrets.token_hex(8)
    make_private_directory(directory)
    installation = Installation(
        id=cluster, domain="compute.test", image=installed or image(), directory=str(directory)
    )
    values: dict[str, Any] = {"backend": "podman", "podman_runtime": RUNTIME, **settings}
    chosen = ComputeSettings(**values)
    backend, seen = Podman(installation, chosen), Seen()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run, seen)
            made = Stage(backend, seen, cluster, directory)
            try:
                yield made
                for container_id in made.given | set(seen.now):
                    await until_done(backend.delete, container_id, USER)
                assert not seen.lost_exposure, "there is nothing of it that can be lost"
            finally:
                nursery.cancel_scope.cancel()
    except BaseException:
        remove(left_of(LABEL_CLUSTER, cluster))
        remove_fence(cluster)
        unmount_disks(directory)
        raise
    left = left_of(LABEL_CLUSTER, cluster)
    remove(left)
    remove_fence(cluster)
    left += unmount_disks(directory)
    assert not left, f"left behind: {left}"
    wait_for(lambda: not service_in(directory), "end of Podman's service")
