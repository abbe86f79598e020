"""Replicas move to new racks and emptier disks, and no chunk is ever below its goal."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
import trio
from msgspec.structs import replace

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.chunkserver.disks import Disk
from gfs.chunkserver.packs import Made
from gfs.chunkserver.replicas import ChunkStore
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import GfsError, Retryable
from gfs.master.tables.repair_queue import BACKOFF_SECONDS_MAX, Clone
from gfs.master.upkeep import copies
from gfs.protocol.rpc import Rpc
from gfs.testing import SimCluster

from .packs import handles_on, stored
from .promises import assert_sound, content, replicas
from .seeds import over_seeds

SETTINGS = MasterSettings(
    map_bytes=1 << 28, sync=False, dead_seconds=6.0, lease_seconds=12.0, lease_margin_seconds=1.0,
    balance_share=0.05,
)  # fmt: skip
SMALL = ChunkserverSettings(reserve_bytes=16 * BLOCK_BYTES)
CAPACITY_BYTES = 256 * MIB


def cluster_of(seed: int, racks: list[str], master: MasterSettings = SETTINGS) -> SimCluster:
    """Not started."""
    return SimCluster(
        seed, chunkservers=len(racks), racks=racks, master=master, chunkserver=SMALL, start=False
    )


async def start_all_but(cluster: SimCluster, *later: str) -> None:
    for name in cluster.chunkservers:
        for directory in cluster.disks:
            cluster.machine(name).disk.mount(directory, CAPACITY_BYTES)
    for name in cluster.names:
        if name not in later:
            cluster.begin(name)
    for name in cluster.names:
        if name not in later:
            await cluster.ready(name)


async def never_below(cluster: SimCluster, fs: Client, paths: list[str], goal: int) -> None:
    """Looks all the time while files come and go on the disks, and for a while after."""
    files: list[list[str]] = []
    until = 0.0
    while True:
        now = [handles_on(cluster, name) for name in cluster.chunkservers]
        if now != files:
            files, until = now, trio.current_time() + 2
        if trio.current_time() < until:
            for path in paths:
                assert await replicas(fs, path) >= goal, path
        await trio.sleep(0.05)


async def racks_of(fs: Client, path: str) -> Counter[str]:
    [chunk] = (await fs.locate(path)).chunks
    return Counter(server.rack for server in chunk.replicas)


@over_seeds(2)
async def test_a_new_rack_gets_one_replica_of_each_chunk(seed: int, chance: Random) -> None:
    async with cluster_of(seed, ["a", "a", "a", "b"]) as cluster:
        await start_all_but(cluster, "chunkserver3")
        async with cluster.client() as fs, trio.open_nursery() as nursery:
            files = {f"/f{n}": content(chance, MIB) for n in range(12)}
            for path, data in files.items():
                await fs.put(data, path)
            nursery.start_soon(never_below, cluster, fs, list(files), 3)
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


@pytest.mark.costly
@over_seeds(2)
async def test_a_new_server_fills_up_to_the_others(seed: int, chance: Random) -> None:
    async with cluster_of(seed, ["a", "a", "a", "a"]) as cluster:
        await start_all_but(cluster, "chunkserver3")
        async with cluster.client() as fs, trio.open_nursery() as nursery:
            files = {f"/f{n}": content(chance, 2 * MIB) for n in range(20)}
            for path, data in files.items():
                await fs.put(data, path)
            nursery.start_soon(never_below, cluster, fs, list(files), 3)
            await cluster.start("chunkserver3")

            def is_even() -> bool:
                counts = [len(handles_on(cluster, name)) for name in cluster.chunkservers]
                assert counts[3] <= 15, "the new server got more than its share"
                return sum(counts) == 60 and max(counts) - min(counts) <= 7

            # One move at a time: each might be of a whole chunk, a quarter of a disk.
            await cluster.wait_until(is_even, 300)

            async def ends() -> bool:
                before = [handles_on(cluster, name) for name in cluster.chunkservers]
                await trio.sleep(40)
                return before == [handles_on(cluster, name) for name in cluster.chunkservers]

            await cluster.wait_until(ends, 300)
            assert is_even()
            nursery.cancel_scope.cancel()
        async with cluster.client() as fs:
            await assert_sound(fs)
            assert (await fs.status()).totals.moves_active == 0
            for path, data in files.items():
                assert await fs.get(path) == data


@over_seeds(2)
async def test_a_chunk_that_is_larger_than_the_master_knows_is_not_moved_to_and_fro(
    seed: int, chance: Random
) -> None:
    """Its writer died before it said how long the file is. What it takes makes whatever server
    it is on the fuller one."""
    settings = replace(SETTINGS, balance_share=1e-6)
    async with cluster_of(seed, ["a", "a"], settings) as cluster:
        await start_all_but(cluster)
        async with cluster.client() as fs:
            for number in range(10):
                await fs.put(content(chance, 100), f"/f{number}", replication=1)
            await fs.put(b"", "/large", replication=1)
        async with cluster.client("writer") as fs:
            file = await fs.open("/large", "r+")
            await file.pwrite(0, b"x")
            with trio.move_on_after(0.01):
                await file.pwrite(1, content(chance, 20 * MIB))
            cluster.kill("writer")
        async with cluster.client() as fs:
            places: list[list[str]] = []
            [chunk] = (await fs.locate("/large")).chunks
            for _ in range(600):
                now = [
                    name
                    for name in cluster.chunkservers
                    if chunk.handle in handles_on(cluster, name)
                ]
                if len(now) == 1 and places[-1:] != [now]:
                    places.append(now)
                await trio.sleep(0.1)
            assert len(places) <= 5, f"in a minute it was at {places}"


@over_seeds(1)
async def test_a_chunk_that_could_not_be_moved_rests(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same moves began again in every pass, for as long as they failed."""
    begun: dict[int, list[float]] = {}

    async def refused(rpc: Rpc, order: list[Clone], seconds: int) -> dict[int, Exception]:
        (clone,) = order
        assert clone.moves
        begun.setdefault(clone.handle, []).append(trio.current_time())
        await trio.sleep(0.1)
        raise Retryable("not now")

    monkeypatch.setattr(copies, "_copy_all", refused)
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


@over_seeds(2)
async def test_a_disk_that_fails_while_others_of_its_order_are_copied_loses_nothing(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replicas that it had got by then were reported as made, after they were reported as
    gone: so those at the old place were deleted, the only ones."""
    install_new = ChunkStore.install_new
    failed: list[Disk] = []

    async def fails_after_the_first(
        store: ChunkStore, disk: Disk, made: list[Made]
    ) -> dict[int, GfsError]:
        refused = await install_new(store, disk, made)
        if not failed and not refused and len(made) > 1:
            failed.append(disk)
            disk.fail("failed", "as in the test")
            await trio.sleep(3)  # the others of the order take so long
        return refused

    monkeypatch.setattr(ChunkStore, "install_new", fails_after_the_first)
    cluster = SimCluster(
        seed, chunkservers=2, disks=2, master=replace(SETTINGS, balance_share=1e-6),
        chunkserver=SMALL, start=False,
    )  # fmt: skip
    async with cluster:
        await start_all_but(cluster, "chunkserver1")
        async with cluster.client() as fs:
            files = {f"/f{number}": content(chance, 2000) for number in range(200)}
            await fs.put_many(files.items(), replication=1)
            await cluster.start("chunkserver1")
            await cluster.wait_until(lambda: bool(failed), 60)
            await trio.sleep(30)
            await assert_sound(fs)
            assert await fs.get_many(files) == list(files.values())
