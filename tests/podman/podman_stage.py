"""The backend by itself: calls, and what its watch reports."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from limits import HANG_SECONDS, wait_until
from podman_here import SECONDS, left_of, remove, remove_fence, service_in, unmount_disks
from podman_image import RUNTIME, image

from control.compute.backend import (
    LABEL_CLUSTER,
    BackendUnavailable,
    Installation,
    Sighting,
    Spec,
)
from control.compute.podman import Podman
from control.compute.settings import ComputeSettings
from control.identity.secretfiles import make_private_directory

USER = "aZ09bY"


class Seen:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.sightings: dict[str, Sighting] = {}
        self.story: list[Sighting] = []
        self.times_synced = 0
        self._changed = trio.Event()

    def seen(self, sighting: Sighting) -> None:
        self.sightings[sighting.id] = sighting
        self.story.append(sighting)
        self._wake()

    def gone(self, container_id: str) -> None:
        self.sightings.pop(container_id, None)
        self._wake()

    def exposure_lost(self, container_id: str) -> None:
        raise AssertionError("nothing of it can be lost")

    def synced(self, present: set[str]) -> None:
        self.sightings = {id_: each for id_, each in self.sightings.items() if id_ in present}
        self.times_synced += 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(SECONDS):
            while not condition():
                await self._changed.wait()
            return
        raise AssertionError(f"not within {SECONDS:g} s: {what}; seen: {self.story[-10:]}")

    async def phase(self, spec: Spec, phase: str) -> Sighting:
        """Until the run that ``spec`` wishes is seen in this phase."""

        def is_it() -> bool:
            found = self.sightings.get(spec.id)
            if found is None or found.phase != phase:
                return False
            return found.generation in (spec.generation, 0)

        await self.until(is_it, f"{spec.id} is {phase}")
        return self.sightings[spec.id]


class Stage:
    def __init__(self, backend: Podman, seen: Seen, cluster: str, directory: Path) -> None:
        self.backend = backend
        self.seen = seen
        self.cluster = cluster
        self.directory = directory
        #: The ids of all that was asked for here.
        self.given: set[str] = set()

    def spec(self, **changes: object) -> Spec:
        values: dict[str, object] = {
            "id": secrets.token_hex(4),
            "user_id": USER,
            "name": "test",
            "image": image(),
            "architecture": "amd64",
            "cpus": 0.5,
            "memory_mb": 256,
            "storage_gb": 1,
            "ssh_keys": (),
            "ssh_enabled": False,
            "mount_paths": ("/root",),
            "ports": (),
            "generation": 1,
        }
        spec = Spec(**(values | changes))  # type: ignore[arg-type]
        self.given.add(spec.id)
        return spec

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
        found: list[int] = []

        async def runs() -> bool:
            found[:] = [service_in(self.directory)]
            return found != [0]

        await wait_until(runs, "service of Podman's")
        return found[0]


async def _delete(backend: Podman, container_id: str) -> None:
    """As the driver does: what looks after a run cleans up as well, and one is too late."""
    with trio.fail_after(HANG_SECONDS):
        while True:
            with contextlib.suppress(BackendUnavailable):
                return await backend.delete(container_id, USER)
            await trio.sleep(0.1)


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
                for container_id in made.given | set(seen.sightings):
                    await _delete(backend, container_id)
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
    assert not service_in(directory), "Podman's service still runs"
