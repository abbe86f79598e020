"""The master dies at any moment, or everything at once: what was acknowledged is
there, whole, and nothing else is there in part."""

from __future__ import annotations

from random import Random

import pytest
import trio

from gfs.client import Client
from gfs.errors import NotFound
from gfs.testing import SimCluster

from .packs import handles_on
from .promises import content, wait_settled
from .seeds import over_seeds


class Acknowledged:
    """Writers of many small files, and what they were told."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.sent: dict[str, bytes] = {}
        self.done: dict[str, bytes | None] = {}
        #: Names whose last operation has no answer: either state is right.
        self.unsure: set[str] = set()
        #: Seconds that a writer rests at most before each file.
        self.pause = 0.0

    async def write(self, fs: Client, name: str) -> None:
        for number in range(1000):
            if self.pause:
                await trio.sleep(self.chance.uniform(0, self.pause))
            path = f"/{name}/{number % 7}/{number}"
            data = content(self.chance, self.chance.choice([0, 1, 5000, 70_000, 300_000]))
            self.sent[path] = data
            self.unsure.add(path)
            await fs.put(data, path)
            self.unsure.discard(path)
            self.done[path] = data
            if number % 5 == 4:
                await self._rename(fs, path)
            if number % 7 == 6:
                await self._delete(fs, path)

    async def _rename(self, fs: Client, path: str) -> None:
        target = f"{path}-moved"
        self.sent[target] = self.sent[path]
        self.unsure |= {path, target}
        await fs.rename(path, target)
        self.unsure -= {path, target}
        self.done[target] = self.done[path]
        self.done[path] = None

    async def _delete(self, fs: Client, path: str) -> None:
        if self.done[path] is None:
            return
        self.unsure.add(path)
        await fs.delete(path)
        self.unsure.discard(path)
        self.done[path] = None

    async def check(self, fs: Client) -> None:
        assert self.done
        for path, wanted in self.done.items():
            if path in self.unsure:
                continue
            if wanted is None:
                with pytest.raises(NotFound):
                    await fs.get(path)
            else:
                assert await fs.get(path) == wanted, path
        for path in sorted(self.unsure):
            try:
                assert await fs.get(path) == self.sent[path], path
            except NotFound:
                continue
        files = [entry.path async for entry in fs.walk("/") if entry.kind == "file"]
        known = {path for path, data in self.done.items() if data is not None} | self.unsure
        assert set(files) <= known
        assert {p for p, d in self.done.items() if d is not None and p not in self.unsure} <= set(
            files
        )


@over_seeds(6)
async def test_the_master_dies_and_comes_back(chance: Random, cluster: SimCluster) -> None:
    """Clients carry on by themselves; nothing acknowledged is lost."""
    work = Acknowledged(chance)
    async with cluster.client() as one, cluster.client() as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.write, one, "one")
            nursery.start_soon(work.write, other, "other")
            for _ in range(3):
                await trio.sleep(chance.uniform(0, 0.1))
                await cluster.crash("master")
                await trio.sleep(chance.choice([0, 0.5, 5]))
                await cluster.start("master")
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        await work.check(one)
        await wait_settled(cluster, one, 90)


@over_seeds(6)
async def test_everything_dies_at_once(chance: Random, cluster: SimCluster) -> None:
    work = Acknowledged(chance)

    async def write(name: str) -> None:
        async with cluster.client(name) as fs:
            await work.write(fs, name)

    for turn in range(2):
        clients = [f"one{turn}", f"other{turn}"]
        async with trio.open_nursery() as nursery:
            for name in clients:
                nursery.start_soon(write, name)
            await trio.sleep(chance.uniform(0.02, 0.2))
            for name in clients:
                cluster.kill(name)
            await cluster.crash_all()
        await cluster.start_all()
        async with cluster.client() as fs:
            await work.check(fs)
    async with cluster.client() as fs:
        await wait_settled(cluster, fs, 90)
        wanted = (await fs.status()).totals.chunks

        def no_garbage() -> bool:
            return all(len(handles_on(cluster, s)) == wanted for s in cluster.chunkservers)

        await cluster.wait_until(no_garbage, 300, f"{wanted} chunks each", every=5)
