"""A backend whose world is a directory: it outlives every process that works on it.

``GFS_COMPUTE_BACKEND=outside:make`` takes it, ``TEST_WORLD`` says where. A test looks
into the directory, or changes it, with a :class:`World` of its own. Each call has three
places where it can be held up: ``before`` it does anything, when it has done ``half``,
and ``after`` it has done all, when the caller does not know it yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import scripted
import trio
from scripted import Shell

from control.compute.backend import (
    BackendUnavailable,
    Impossible,
    Installation,
    Phase,
    Sighting,
    Spec,
    Terminal,
    Usage,
    Watch,
)

#: How often files are looked at by whoever waits for one.
LOOK_SECONDS = 0.01
SURELY_SEEN_NS = 1_000_000_000
#: As for tests (limits.HANG_SECONDS), which this is no part of: a control plane imports it.
WAIT_SECONDS = 300.0
PLACES = ("before", "half", "after")
IP = "192.0.2.7"


def make(installation: Installation, settings: Any) -> Outside:
    return Outside(World(Path(os.environ["TEST_WORLD"])), installation.domain)


@dataclass(kw_only=True)
class Thing(scripted.Thing):
    #: Made of two parts; a creation that was cut off leaves one.
    parts: int = 0


class World:
    """The directory; see the module."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.things_directory = directory / "things"
        self.things_directory.mkdir(parents=True, exist_ok=True)
        self._calls = directory / "calls"

    # --- what is there ------------------------------------------------------------------

    def things(self) -> dict[str, Thing]:
        found: dict[str, Thing] = {}
        for name in os.listdir(self.things_directory):
            thing = self.thing(name.removesuffix(".json")) if name.endswith(".json") else None
            if thing is not None:
                found[thing.spec.id] = thing
        return found

    def thing(self, container_id: str) -> Thing | None:
        try:
            data = (self.things_directory / f"{container_id}.json").read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(data, type=Thing)

    def phase(self, container_id: str) -> str:
        thing = self.thing(container_id)
        return thing.phase if thing is not None else "gone"

    def put(self, thing: Thing) -> None:
        path = self.things_directory / f"{thing.spec.id}.json"
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(thing))
        part.replace(path)

    def remove(self, container_id: str) -> None:
        (self.things_directory / f"{container_id}.json").unlink(missing_ok=True)

    def move(self, container_id: str, phase: Phase, reason: str = "", ip: str = "") -> None:
        """Something happens to a container by itself."""
        thing = self.thing(container_id)
        assert thing is not None
        thing.phase, thing.reason, thing.external_ip = phase, reason, ip
        self.put(thing)

    # --- holding up calls ---------------------------------------------------------------

    def hold(self, place: str) -> None:
        """Let the next call that comes to ``create-half``, say, stay there."""
        (self.directory / f"hold-{place}").touch()

    def let_go(self, place: str) -> None:
        (self.directory / f"hold-{place}").unlink(missing_ok=True)
        (self.directory / f"held-{place}").unlink(missing_ok=True)

    def wait_held(self, place: str) -> int:
        """Wait until a call is there; the id of its process."""
        held = self.directory / f"held-{place}"
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, ValueError):
                return int(held.read_text())
            time.sleep(LOOK_SECONDS)
        raise AssertionError(f"no call came to {place}: {self.calls()}")

    def fail(self, call: str, how: str) -> None:
        """Let this call fail from now on: "unavailable", "impossible" or "bug"."""
        (self.directory / f"fail-{call}").write_text(how)

    def work(self, call: str) -> None:
        (self.directory / f"fail-{call}").unlink(missing_ok=True)

    def calls(self) -> list[tuple[str, str, int]]:
        """Of every call that began: its name, the container, the process."""
        try:
            lines = self._calls.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(name, id_, int(pid)) for name, id_, pid in map(str.split, lines)]

    def note(self, call: str, container_id: str) -> None:
        with open(self._calls, "a") as file:
            file.write(f"{call} {container_id} {os.getpid()}\n")

    def raise_if_failing(self, call: str) -> None:
        file = self.directory / f"fail-{call}"
        match file.read_text() if file.exists() else "":
            case "":
                return
            case "unavailable":
                raise BackendUnavailable("the world is down")
            case "impossible":
                raise Impossible("no such thing can be in this world")
        raise LookupError("a bug")

    async def pass_by(self, place: str) -> None:
        """Stay here if the test holds calls up."""
        if (self.directory / f"hold-{place}").exists():
            held = self.directory / f"held-{place}"
            part = held.with_suffix(f".{os.getpid()}")
            part.write_text(str(os.getpid()))
            part.replace(held)
            while (self.directory / f"hold-{place}").exists():  # noqa: ASYNC110
                await trio.sleep(LOOK_SECONDS)


class Outside(scripted.Answers):
    name = "outside"

    def __init__(self, world: World, domain: str) -> None:
        self.world = world
        self._domain = domain

    async def check(self) -> None:
        self.world.raise_if_failing("check")

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        known: dict[str, Sighting] = {}
        is_first = True
        changed_ns = 0
        while True:
            # Reading hundreds of files a hundred times a second would be all that this
            # machine does. Within one tick of the kernel's clock a change may not be seen.
            last_ns, changed_ns = changed_ns, os.stat(self.world.things_directory).st_mtime_ns
            if changed_ns == last_ns and time.time_ns() > changed_ns + SURELY_SEEN_NS:
                await trio.sleep(LOOK_SECONDS)
                continue
            now = {id_: thing.sighting for id_, thing in self.world.things().items()}
            for id_, sighting in now.items():
                if known.get(id_) != sighting:
                    watch.seen(sighting)
            for id_ in known.keys() - now.keys():
                watch.gone(id_)
            known = now
            if is_first:
                is_first = False
                watch.synced(set(now))
                task_status.started()
            await trio.sleep(LOOK_SECONDS)

    async def create(self, spec: Spec) -> None:
        async with self._call("create", spec.id):
            thing = self.world.thing(spec.id) or Thing(spec=spec)
            self.world.put(replace(thing, parts=max(thing.parts, 1)))
            await self.world.pass_by("create-half")
            self.world.put(replace(thing, parts=2))

    async def start(self, spec: Spec) -> None:
        async with self._call("start", spec.id):
            thing = self.world.thing(spec.id) or Thing(spec=spec)
            thing.parts = 2
            if thing.generation != spec.generation or thing.phase == "stopped":
                thing.spec, thing.generation, thing.phase = spec, spec.generation, "pending"
                self.world.put(thing)
            await self.world.pass_by("start-half")
            thing.phase, thing.external_ip = "running", IP
            self.world.put(thing)

    async def stop(self, spec: Spec) -> None:
        async with self._call("stop", spec.id):
            thing = self.world.thing(spec.id)
            if thing is None:
                return
            thing.exposed = None
            self.world.put(thing)
            await self.world.pass_by("stop-half")
            thing.phase, thing.external_ip = "stopped", ""
            self.world.put(thing)

    async def delete(self, container_id: str, user_id: str) -> None:
        async with self._call("delete", container_id):
            thing = self.world.thing(container_id)
            if thing is not None:
                self.world.put(replace(thing, parts=1, phase="stopped", generation=0))
            await self.world.pass_by("delete-half")
            self.world.remove(container_id)

    async def expose(self, spec: Spec) -> None:
        async with self._call("expose", spec.id):
            thing = self.world.thing(spec.id)
            if thing is not None:
                await self.world.pass_by("expose-half")
                thing.exposed = spec
                self.world.put(thing)

    @asynccontextmanager
    async def _call(self, name: str, container_id: str) -> AsyncIterator[None]:
        self.world.note(name, container_id)
        self.world.raise_if_failing(name)
        await self.world.pass_by(f"{name}-before")
        yield
        await self.world.pass_by(f"{name}-after")

    async def usage(self, spec: Spec) -> Usage:
        self.world.raise_if_failing("usage")
        return await super().usage(spec)

    @asynccontextmanager
    async def _shell(self, columns: int, rows: int) -> AsyncIterator[Terminal]:
        self.world.raise_if_failing("exec")
        yield Shell(columns, rows)

    async def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        self.world.raise_if_failing("logs")
        path = self.world.directory / "logs"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[max(0, len(lines) - tail) :]:
            yield line
        reported = len(lines)
        while follow:
            await trio.sleep(LOOK_SECONDS)
            for line in path.read_text().splitlines()[reported:]:
                reported += 1
                yield line
