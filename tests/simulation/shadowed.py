"""A simulated cluster whose master has shadows, which may take its place."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from gfs.chunkserver import run_chunkserver
from gfs.client import Client, connect
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import Deposed, GfsError
from gfs.io import World
from gfs.master import run_master
from gfs.protocol.messages import PromoteReply, StatusReply
from gfs.testing import SimCluster

MASTER = "master"
PORT = 9400


def address(name: str) -> str:
    return f"{name}:{PORT}"


class ShadowedCluster(SimCluster):
    """``master``, ``shadow0`` …, ``chunkserver0`` …; clients know all masters.

    A master whose term is over ends; here it is noted in ``deposed``, and its
    process does nothing more until it is started again.
    """

    def __init__(
        self,
        seed: int,
        *,
        shadows: int = 1,
        late: int = 0,
        replicas_before_ack: int = 0,
        chunkservers: int = 3,
        master: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(seed, chunkservers=chunkservers)
        self.shadows = [f"shadow{n}" for n in range(shadows)]
        self.masters = [MASTER, *self.shadows]
        #: These are not there from the beginning.
        self._late = self.shadows[shadows - late :]
        self.deposed: set[str] = set()
        #: Whose shadow each is started as.
        self.shadow_of = dict.fromkeys(self.shadows, MASTER)
        #: Of all masters and shadows, from their next start on.
        self.settings: dict[str, Any] = {
            "map_bytes": 1 << 28,
            "replicas_before_ack": replicas_before_ack,
            **(master or {}),
        }

    @property
    def names(self) -> list[str]:
        return [name for name in [*self.masters, *self.chunkservers] if name not in self._late]

    def metadata(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _make_nodes(self) -> None:
        for name in self.masters:
            self._add(name, self._master_main(name))
        for name in self.chunkservers:
            self._add(name, self._server_main(name, self.racks[name]))

    def _master_main(self, name: str) -> Callable[..., Awaitable[None]]:
        async def main(world: World, task_status: trio.TaskStatus[Any]) -> None:
            settings = MasterSettings(
                address=address(name),
                shadow_of=address(self.shadow_of[name]) if name in self.shadow_of else "",
                **self.settings,
            )
            try:
                await run_master(
                    world, settings, self.metadata(name), self.key, task_status=task_status
                )
            except Deposed:
                self.deposed.add(name)
                if not self.node(name).ready.is_set():
                    task_status.started()
                await trio.sleep_forever()

        return main

    def _server_main(self, name: str, rack: str) -> Callable[..., Awaitable[None]]:
        async def main(world: World, task_status: trio.TaskStatus[Any]) -> None:
            # It is told of the master alone: of shadows it learns.
            settings = ChunkserverSettings(
                address=f"{name}:9500", master=address(MASTER), rack=rack
            )
            await run_chunkserver(world, settings, self.disks, self.key, task_status=task_status)

        return main

    @asynccontextmanager
    async def at(self, name: str, settings: ClientSettings | None = None) -> AsyncIterator[Client]:
        """A client of one master or shadow alone, on the operator's machine."""
        async with self._connected([name], f"operator{self._clients}", settings) as fs:
            yield fs

    @asynccontextmanager
    async def client(
        self, name: str | None = None, settings: ClientSettings | None = None
    ) -> AsyncIterator[Client]:
        async with self._connected(self.masters, name, settings) as fs:
            yield fs

    @asynccontextmanager
    async def _connected(
        self, masters: list[str], name: str | None, settings: ClientSettings | None
    ) -> AsyncIterator[Client]:
        name = name or f"client{self._clients}"
        self._clients += 1
        process = self.universe.machine(name).start_process()
        try:
            async with connect(
                [address(each) for each in masters],
                key=self.key,
                settings=settings or self.client_settings,
                world=process.world,
            ) as fs:
                yield fs
        finally:
            process.kill()

    async def promote(self, name: str, *, force: bool = False) -> PromoteReply:
        async with self.at(name) as fs:
            return await fs.promote(force=force)

    async def status_of(self, name: str) -> StatusReply | None:
        """What a master or shadow says of itself; None if it does not answer."""
        try:
            async with self.at(name, ClientSettings(retry_seconds=1.0)) as fs:
                return await fs.status()
        except (GfsError, OSError):
            return None

    async def level(self, *names: str) -> None:
        """Wait until shadows follow and have everything, and hear from all chunkservers: they
        know where they are."""

        async def is_level(name: str) -> bool:
            status = await self.status_of(name)
            return (
                status is not None
                and status.role == "shadow"
                and status.behind_operations == 0
                and status.behind_ms < 2500
                and len(status.servers) == len(self.chunkservers)
                and all(server.state == "live" for server in status.servers)
            )

        for name in names:
            await self.wait_until(partial(is_level, name), 30, f"{name} level with its master")
