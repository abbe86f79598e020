"""A backend without containers, which does and says what a test wants.

What it holds is a :class:`World`, which outlives the backends and drivers that work on
it, as a cluster outlives the control plane. ``GFS_COMPUTE_BACKEND=scripted:make`` takes
it where an application is made; the test finds it in :data:`worlds`, under the directory
that the module has for itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from control.compute.backend import (
    COLUMNS,
    ROWS,
    BackendUnavailable,
    Installation,
    Phase,
    Room,
    Sighting,
    Spec,
    Terminal,
    Usage,
    Watch,
)

worlds: dict[str, World] = {}
PIECE = 64 * 1024


def make(installation: Installation, settings: Any) -> Scripted:
    world = worlds.setdefault(installation.directory, World())
    return Scripted(world, installation.domain)


@dataclass
class Thing:
    """One container, as the world has it."""

    spec: Spec
    phase: Phase = "stopped"
    generation: int = 0
    reason: str = ""
    external_ip: str = ""
    exposed: Spec | None = None

    @property
    def sighting(self) -> Sighting:
        return Sighting(
            id=self.spec.id,
            user_id=self.spec.user_id,
            phase=self.phase,
            generation=self.generation,
            reason=self.reason,
            external_ip=self.external_ip,
        )


@dataclass
class World:
    things: dict[str, Thing] = field(default_factory=dict)
    #: Who gets what happens here at once.
    watches: list[Watch] = field(default_factory=list)
    #: Every call, with the container's id.
    calls: list[tuple[str, str]] = field(default_factory=list)
    #: Asked before and after each call does its work; may raise.
    hooks: list[Callable[[str, str, str], None]] = field(default_factory=list)
    #: Calls under way, by container, and the most there were.
    under_way: dict[str, int] = field(default_factory=dict)
    overlaps: int = 0
    #: A start leads to a running container at once.
    is_quick: bool = True
    is_up: bool = True
    room: Room | None = None
    ports_refused: set[int] = field(default_factory=set)
    logs: list[str] = field(default_factory=list)
    #: Whether those who follow the logs wait for yet more.
    logs_go_on: bool = False
    terminals: list[Shell] = field(default_factory=list)
    gate: trio.Event | None = None

    def report(self, container_id: str) -> None:
        thing = self.things.get(container_id)
        for watch in list(self.watches):
            if thing is None:
                watch.gone(container_id)
            else:
                watch.seen(thing.sighting)

    def move(self, container_id: str, phase: Phase, reason: str = "", ip: str = "") -> None:
        """Something happens to a container, and all who watch get it."""
        thing = self.things[container_id]
        thing.phase, thing.reason, thing.external_ip = phase, reason, ip
        self.report(container_id)

    def lose(self, container_id: str) -> None:
        self.things.pop(container_id, None)
        self.report(container_id)


class Answers:
    """What backends of tests answer alike."""

    _domain = "test"

    async def room(self) -> Room | None:
        return None

    def port_refusal(self, port: int) -> str:
        return ""

    async def usage(self, spec: Spec) -> Usage:
        return Usage(memory_mb=128, storage_gb=1.2)

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        return self._shell(columns, rows)

    def _shell(self, columns: int, rows: int) -> AbstractAsyncContextManager[Terminal]:
        raise NotImplementedError

    def ssh_command(self, spec: Spec) -> str:
        return f"ssh root@{self.hostname(spec)}"

    def hostname(self, spec: Spec) -> str:
        return f"{spec.id}.{self._domain}"


class Scripted(Answers):
    name = "scripted"

    def __init__(self, world: World, domain: str = "example.org") -> None:
        self.world = world
        self._domain = domain

    async def check(self) -> None:
        if not self.world.is_up:
            raise BackendUnavailable("the world is down")

    async def room(self) -> Room | None:
        return self.world.room

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        world = self.world
        for thing in world.things.values():
            watch.seen(thing.sighting)
        watch.synced(set(world.things))
        world.watches.append(watch)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            world.watches.remove(watch)

    async def create(self, spec: Spec) -> None:
        async with self._call("create", spec.id):
            self.world.things.setdefault(spec.id, Thing(spec))

    async def start(self, spec: Spec) -> None:
        world = self.world
        async with self._call("start", spec.id):
            thing = world.things.setdefault(spec.id, Thing(spec))
            if thing.generation == spec.generation and thing.phase != "stopped":
                return
            thing.spec, thing.generation = spec, spec.generation
            world.move(spec.id, "pending")
            if world.is_quick:
                world.move(spec.id, "initializing")
                world.move(spec.id, "running", ip="192.0.2.7")

    async def stop(self, spec: Spec) -> None:
        async with self._call("stop", spec.id):
            if spec.id in self.world.things:
                self.world.move(spec.id, "stopped")

    async def delete(self, container_id: str, user_id: str) -> None:
        async with self._call("delete", container_id):
            self.world.lose(container_id)

    def port_refusal(self, port: int) -> str:
        return "somebody has it" if port in self.world.ports_refused else ""

    async def expose(self, spec: Spec) -> None:
        async with self._call("expose", spec.id):
            if spec.id in self.world.things:
                self.world.things[spec.id].exposed = spec

    @asynccontextmanager
    async def _call(self, name: str, container_id: str) -> AsyncIterator[None]:
        world = self.world
        world.calls.append((name, container_id))
        world.under_way[container_id] = world.under_way.get(container_id, 0) + 1
        world.overlaps = max(world.overlaps, world.under_way[container_id])
        try:
            await trio.lowlevel.checkpoint()
            if world.gate is not None:
                await world.gate.wait()
            if not world.is_up:
                raise BackendUnavailable("the world is down")
            for hook in world.hooks:
                hook("before", name, container_id)
            yield
            for hook in world.hooks:
                hook("after", name, container_id)
            await trio.lowlevel.checkpoint()
        finally:
            world.under_way[container_id] -= 1

    @asynccontextmanager
    async def _shell(self, columns: int, rows: int) -> AsyncIterator[Terminal]:
        await self.check()
        shell = Shell(columns, rows)
        self.world.terminals.append(shell)
        try:
            yield shell
        finally:
            shell.closed.set()

    async def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        await self.check()
        for line in self.world.logs[max(0, len(self.world.logs) - tail) :]:
            yield line
        if follow:
            for line in ("more", "and more"):
                await trio.lowlevel.checkpoint()
                yield line
            if self.world.logs_go_on:
                await trio.sleep_forever()


class Shell:
    """It says what was typed. ``flood N`` prints N bytes, ``size`` its size, ``exit N`` ends
    with that code or 0, ``vanish`` without one, ``break`` loses the connection to it, ``bug``
    is one of the backend's."""

    def __init__(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)
        self.given = 0  # bytes of output taken from here
        self.closed = trio.Event()
        self.exit_code: int | None = None
        self._left = 0
        self._send, self._output = trio.open_memory_channel[bytes](64)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._left:
            piece = await self._output.receive()
            if piece == b"\0break":
                raise BackendUnavailable("the connection to the container is lost")
            if piece == b"\0bug":
                raise LookupError("a bug")
            if not piece.startswith(b"\0flood"):
                self.given += len(piece)
                return piece
            self._left = int(piece[6:])
        size = min(self._left, PIECE)
        self._left -= size
        self.given += size
        return b"x" * size

    async def send(self, data: bytes) -> None:
        word, _, number = data.strip().partition(b" ")
        if word in (b"exit", b"vanish"):
            self.exit_code = int(number or 0) if word == b"exit" else None
            await self._send.send(b"")
        elif word == b"flood":
            await self._send.send(b"\0flood" + number)
        elif word in (b"break", b"bug"):
            await self._send.send(b"\0" + word)
        elif word == b"size":
            await self._send.send(b"%dx%d" % self.size)
        else:
            await self._send.send(data)

    async def resize(self, columns: int, rows: int) -> None:
        self.size = (columns, rows)
