"""Simulated clusters of three masters, and an engine that elects one of them, kind or not."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
from msgspec import structs

from gfs.chunkserver import run_chunkserver
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.io import World
from gfs.master import run_master
from gfs.master.election import Claim, EngineAway, View
from gfs.testing import SimCluster
from gfs.testing.cluster import MASTER_PORT

from .metadata import position_of
from .shadowed import MASTER, ShadowedCluster, address

T = TypeVar("T")

HOLD_SECONDS = 3.0


@dataclass
class Unkindness:
    """What an engine does that it should not, or may."""

    #: Seconds that a request or an answer takes at most.
    late: float = 0.01
    #: The share of the requests, and of the answers, that get lost.
    lost: float = 0.0
    #: After this share of its time a hold is given to another process as well: a lie.
    early: float = 1.0


class SimEngine:
    """The engine itself: what it has recorded, in true time."""

    def __init__(
        self, chance: random.Random, nursery: trio.Nursery, hold_seconds: float = HOLD_SECONDS
    ) -> None:
        self.chance = chance
        self.nursery = nursery
        self.unkind = Unkindness()
        self.hold_seconds = hold_seconds
        #: The machines that cannot reach it.
        self.away: set[str] = set()
        self._cluster = ""
        self._claim: Claim | None = None
        self._version = 0
        self._until = 0.0
        #: How often the hold was taken.
        self.taken = 0

    def view(self) -> View:
        if self._claim is not None and trio.current_time() >= self._until:
            self._set(None)
        return View(self._claim, self._cluster, self._version if self._claim else 0)

    def _set(self, claim: Claim | None) -> None:
        self._claim = claim
        self._version += 1

    def take(self, claim: Claim, seen: View) -> object | None:
        if self.view().version != seen.version:
            return None
        self._set(claim)
        self.taken += 1
        self._extend()
        return self._version

    def renew(self, hold: object) -> bool:
        if self.view().version != hold:
            return False
        self._extend()
        return True

    def _extend(self) -> None:
        self._until = trio.current_time() + self.hold_seconds * self.unkind.early

    def offer(self, hold: object, claim: Claim) -> None:
        if self.view().version == hold:
            self._set(claim)

    def release(self, hold: object) -> None:
        if self.view().version == hold:
            self._set(None)

    def record(self, cluster: str) -> str:
        self._cluster = self._cluster or cluster
        return self._cluster


class SimDoor:
    """The engine as one machine reaches it: a :class:`gfs.master.election.Engine`."""

    name = "the engine"

    def __init__(self, engine: SimEngine, machine: str) -> None:
        self._engine = engine
        self._machine = machine

    async def _call(self, work: Callable[[], T]) -> T:
        engine = self._engine
        unkind, chance = engine.unkind, engine.chance
        if self._machine in engine.away or chance.random() < unkind.lost:
            await trio.sleep_forever()
        answer: list[T] = []
        done = trio.Event()

        async def carry_out() -> None:
            await trio.sleep(chance.uniform(0, unkind.late))
            answer.append(work())
            await trio.sleep(chance.uniform(0, unkind.late))
            done.set()

        # It is carried out also if the process gives up meanwhile, or dies.
        engine.nursery.start_soon(carry_out)
        await done.wait()
        if self._machine in engine.away or chance.random() < unkind.lost:
            raise EngineAway("the answer was lost")
        return answer[0]

    async def view(self) -> View:
        return await self._call(self._engine.view)

    async def take(self, claim: Claim, seen: View) -> object | None:
        return await self._call(lambda: self._engine.take(claim, seen))

    async def renew(self, hold: object) -> bool:
        return await self._call(lambda: self._engine.renew(hold))

    async def offer(self, hold: object, claim: Claim) -> None:
        await self._call(lambda: self._engine.offer(hold, replace(claim)))

    async def release(self, hold: object) -> None:
        await self._call(lambda: self._engine.release(hold))

    async def record(self, cluster: str) -> str:
        return await self._call(lambda: self._engine.record(cluster))


class WithEngine(SimCluster):
    hold_seconds = HOLD_SECONDS

    async def __aenter__(self) -> Self:
        self._engine_manager = trio.open_nursery()
        nursery = await self._engine_manager.__aenter__()
        self.engine = SimEngine(self.universe.generator("engine"), nursery, self.hold_seconds)
        try:
            await super().__aenter__()
        except BaseException as error:
            nursery.cancel_scope.cancel()
            await self._engine_manager.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return await super().__aexit__(kind, error, traceback)
        finally:
            self.engine.nursery.cancel_scope.cancel()
            await self._engine_manager.__aexit__(None, None, None)


class ElectedMasters(WithEngine):
    """As SimCluster, with ``master``, ``master1`` and ``master2``, for the general workload."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.masters = [MASTER, "master1", "master2"]

    def _make_nodes(self) -> None:
        super()._make_nodes()
        for name in self.masters:
            self._add(name, self._main_of(name))

    def _main_of(self, name: str) -> Callable[..., Awaitable[None]]:
        async def main(world: World, task_status: trio.TaskStatus[Any]) -> None:
            settings = structs.replace(
                self._master_settings, address=f"{name}:{MASTER_PORT}", elect="the engine"
            )
            await run_master(
                world,
                settings,
                os.path.join(self._directory, name),
                self.key,
                engine=SimDoor(self.engine, name),
                task_status=task_status,
            )

        return main

    @property
    def present_master(self) -> str:
        claim = self.engine.view().claim
        return self.masters[0] if claim is None else claim.address.partition(":")[0]

    @property
    def directory(self) -> str:
        """That of the master which has most: nothing is acknowledged that is not in there."""
        present = self.present_master
        places = {name: os.path.join(self._directory, name) for name in self.masters}
        # Of those that have all, the master's own: handles are given out from its range.
        return places[max(places, key=lambda name: (position_of(places[name]), name == present))]


class ElectedCluster(WithEngine, ShadowedCluster):
    """``master``, ``shadow0`` and ``shadow1``, all with the same settings; the names say
    nothing."""

    def __init__(self, seed: int, **settings: Any) -> None:
        settings = {"hold_seconds": HOLD_SECONDS, **settings}
        super().__init__(seed, shadows=2, replicas_before_ack=1, master=settings)
        self.hold_seconds = settings["hold_seconds"]

    def _master_main(self, name: str) -> Callable[..., Awaitable[None]]:
        async def main(world: World, task_status: trio.TaskStatus[Any]) -> None:
            settings = MasterSettings(
                address=address(name),
                elect="the engine",
                **self.settings,
            )
            await run_master(
                world,
                settings,
                self.metadata(name),
                self.key,
                engine=SimDoor(self.engine, name),
                task_status=task_status,
            )

        return main

    def _server_main(self, name: str, rack: str) -> Callable[..., Awaitable[None]]:
        async def main(world: World, task_status: trio.TaskStatus[Any]) -> None:
            masters = ",".join(address(each) for each in self.masters)
            settings = ChunkserverSettings(address=f"{name}:9500", master=masters, rack=rack)
            await run_chunkserver(world, settings, self.disks, self.key, task_status=task_status)

        return main

    async def serving(self) -> list[str]:
        """Those that serve as the master: one, or none; for a moment of an engine's lie, two."""
        found = []
        for name in self.masters:
            status = await self.status_of(name) if self.node(name).running else None
            if status is not None and status.role == "master":
                found.append(name)
        return found

    async def holder(self, seconds: float = 60.0) -> str:
        """The one that serves as the master."""
        found: list[str] = []

        async def serves() -> bool:
            found[:] = await self.serving()
            return bool(found)

        await self.wait_until(serves, seconds, "a master")
        return found[0]

    async def followed(self, count: int = 2, seconds: float = 60.0) -> str:
        """Wait until so many shadow masters follow and have everything; the master's name."""
        name = ""

        async def is_followed() -> bool:
            nonlocal name
            name = await self.holder()
            status = await self.status_of(name)
            if status is None or status.role != "master":
                return False
            level = [s for s in status.shadows if s.sequence == status.sequence]
            return sum(shadow.state == "following" for shadow in level) >= count

        await self.wait_until(is_followed, seconds, "shadow masters that follow")
        return name


__all__ = [
    "HOLD_SECONDS",
    "MASTER",
    "ElectedCluster",
    "ElectedMasters",
    "SimDoor",
    "SimEngine",
    "Unkindness",
    "address",
]
