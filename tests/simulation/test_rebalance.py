"""Replicas move to new racks and emptier disks, and no chunk is ever below its goal."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import Retryable
from gfs.master.replicas.rereplication import BACKOFF_SECONDS_MAX, Clone
from gfs.master.service import background
from gfs.protocol.rpc import Rpc
from gfs.testing import SimCluster

from .promises import assert_sound, content, replicas
from .seeds import over_seeds

SETTINGS = MasterSettings(
    map_bytes=1 << 28, sync=False, dead_seconds=6.0, lease_seconds=12.0, lease_margin_seconds=1.0,
    balance_share=0.05,
)  # fmt: skip
SMALL = ChunkserverSettings(reserve_bytes=16 * BLOCK_BYTES)
CAPACITY_BYTES = 256 * MIB


def cluster_of(seed: int, racks: list[str]) -> SimCluster:
    """Not started."""
    return SimCluster(
        seed,
        chunkservers=len(racks),
        racks=racks,
        master=SETTINGS,
        chunkserver=SMALL,
        start=False,
    )


async def start_all_but(cluster: SimCluster, *later: str) -> None:
    for name in cluster.chunkservers:
        cluster.machine(name).disk.mount(cluster.disks[0], CAPACITY_BYTES)
    for name in cluster.names:
        if name not in later:
            cluster.begin(name)
    for name in cluster.names:
        if name not in later:
            await cluster.ready(name)


async def never_below(fs: Client, paths: list[str], goal: int) -> None:
    while True:
        for path in paths:
            assert await replicas(fs, path) >= goal, path
        await trio.sleep(0.05)


async def racks_of(fs: Client, path: str) -> Counter[str]:
    [chunk] = (await fs.locate(path)).chunks
    return Counter(server.rack for server in chunk.replicas)


@over_seeds(2)
async def test_a_new_rack_gets_one_replica_of_each_chunk(seed: int, chance: random.Random) -> None:
    async with cluster_of(seed, ["a", "a", "a", "b"]) as cluster:
        await start_all_but(cluster, "chunkserver3")
        async with cluster.client() as fs, trio.open_nursery() as nursery:
            files = {f"/f{n}": content(chance, MIB) for n in range(12)}
            for path, data in files.items():
                await fs.put(data, path)
            nursery.start_soon(never_below, fs, list(files), 3)
            await cluster.start("chunkserver3")

            async def spread() -> bool:
                return all([await racks_of(fs, path) == {"a": 2, "b": 1} for path in files])

            await cluster.wait_until(spread, 120)
            nursery.cancel_scope.cancel()
        async with cluster.client() as fs:
            await cluster.wait_until(lambda: stored(cluster) == 36, 60)
            await assert_sound(fs)
            for path, data in files.items():
                assert await fs.get(path) == data


@over_seeds(2)
async def test_a_new_server_fills_up_to_the_others(seed: int, chance: random.Random) -> None:
    async with cluster_of(seed, ["a", "a", "a", "a"]) as cluster:
        await start_all_but(cluster, "chunkserver3")
        async with cluster.client() as fs, trio.open_nursery() as nursery:
            files = {f"/f{n}": content(chance, 2 * MIB) for n in range(20)}
            for path, data in files.items():
                await fs.put(data, path)
            nursery.start_soon(never_below, fs, list(files), 3)
            await cluster.start("chunkserver3")

            def is_even() -> bool:
                counts = [len(cluster.chunk_files(name)) for name in cluster.chunkservers]
                assert counts[3] <= 15, "the new server got more than its share"
                return sum(counts) == 60 and max(counts) - min(counts) <= 7

            # One move at a time: each might be of a whole chunk, a quarter of a disk.
            await cluster.wait_until(is_even, 300)

            async def ends() -> bool:
                before = [cluster.chunk_files(name) for name in cluster.chunkservers]
                await trio.sleep(40)
                return before == [cluster.chunk_files(name) for name in cluster.chunkservers]

            await cluster.wait_until(ends, 300)
            assert is_even()
            nursery.cancel_scope.cancel()
        async with cluster.client() as fs:
            await assert_sound(fs)
            assert (await fs.status()).totals.moves_active == 0
            for path, data in files.items():
                assert await fs.get(path) == data


@over_seeds(1)
async def test_a_chunk_that_could_not_be_moved_rests(
    seed: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same moves began again in every pass, for as long as they failed."""
    begun: dict[int, list[float]] = {}

    async def refused(rpc: Rpc, clone: Clone, seconds: int) -> None:
        assert clone.moves
        begun.setdefault(clone.handle, []).append(trio.current_time())
        await trio.sleep(0.1)
        raise Retryable("not now")

    monkeypatch.setattr(background, "_copy_one", refused)
    async with cluster_of(seed, ["a", "a", "a", "b"]) as cluster:
        await start_all_but(cluster, "chunkserver3")
        async with cluster.client() as fs:
            for number in range(6):
                await fs.put(content(chance, MIB), f"/f{number}")
        await cluster.start("chunkserver3")
        await cluster.wait_until(lambda: len(begun) == 6, 60)
        await trio.sleep(60)
    for times in begun.values():
        assert len(times) >= 3
        assert min(after - before for before, after in pairwise(times)) >= BACKOFF_SECONDS_MAX


def stored(cluster: SimCluster) -> int:
    return sum(len(cluster.chunk_files(name)) for name in cluster.chunkservers)
