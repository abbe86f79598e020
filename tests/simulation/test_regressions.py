"""Found by killing, cutting and damaging at random; each by itself, made small."""

from __future__ import annotations

import random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES
from gfs.protocol.messages import SetLength
from gfs.testing import SimCluster

from .promises import content, sound
from .seeds import over_seeds


def holders(cluster: SimCluster) -> list[str]:
    return [name for name in cluster.chunkservers if cluster.chunk_files(name)]


@pytest.mark.parametrize("size", [2000, 20_000])
@over_seeds(1)
async def test_a_replica_unreadable_at_start_is_collected(
    seed: int, chance: random.Random, size: int
) -> None:
    """It had no version to be named by in an order to delete it, and stayed."""
    data = content(chance, 300_000)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        victim = chance.choice(holders(cluster))
        await cluster.crash(victim)
        cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], size)
        await trio.sleep(30)
        await cluster.start(victim)
        await cluster.wait_until(lambda: len(holders(cluster)) == 3, 100)
        assert await sound(fs)


@over_seeds(1)
async def test_a_damaged_replica_of_a_deleted_file_is_collected(
    seed: int, chance: random.Random
) -> None:
    """It is in no report of good replicas, and was in nobody's list of garbage."""
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(content(chance, 300_000), "/file")
        victim = chance.choice(cluster.chunkservers)
        await cluster.crash("master")
        cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], 20_000)
        await trio.sleep(11)  # found by the scan
        for name in cluster.chunkservers:
            if name != victim:
                cluster.network.partition([victim], [name])
        await cluster.start("master")
        await fs.delete("/file")
        await cluster.wait_until(lambda: not holders(cluster), 300, every=5)


@over_seeds(1)
async def test_a_damaged_replica_that_is_also_stale_is_collected(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(content(chance, 300_000), "/file")
        victim = chance.choice(holders(cluster))
        cluster.network.partition([victim], [*cluster.names, "client0"])
        cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], 20_000)
        await trio.sleep(30)
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(0, b"a newer version")
        cluster.network.heal()
        await cluster.wait_until(lambda: len(holders(cluster)) == 3, 100)
        assert await sound(fs)


@pytest.mark.parametrize("length", [100, 65_536 + 100, 2_000_100])
@over_seeds(1)
async def test_a_file_is_readable_whose_writer_died_before_its_new_length_was_known(
    seed: int, chance: random.Random, length: int
) -> None:
    """The replicas are longer than the file then; its end is inside a block."""
    data = content(chance, length)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        async with cluster.client("writer") as writer:
            ask = writer._core.master.ask

            async def die_first(request: object, *rest: object) -> object:
                if isinstance(request, SetLength):
                    await cluster.crash("writer")
                return await ask(request, *rest)  # type: ignore[arg-type]

            writer._core.master.ask = die_first  # type: ignore[method-assign,assignment]
            async with await writer.open("/file", "r+") as file:
                await file.pwrite(length, b"not acknowledged")
        assert await fs.get("/file") == data
        async with await fs.open("/file") as file:
            assert await file.read() == data
            assert await file.pread(length - 50, CHUNK_BYTES) == data[-50:]
        assert await sound(fs)


@over_seeds(4)
async def test_stale_replicas_stay_until_enough_current_ones_are_there(
    seed: int, chance: random.Random
) -> None:
    """One current replica is not enough to delete what is left of the others."""
    data = bytearray(content(chance, 300_000))
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(bytes(data), "/file")
        behind = holders(cluster)[1:]
        for name in behind:
            cluster.network.partition([name], ["master"])
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(0, b"missed by two")
        data[:13] = b"missed by two"
        (chunk,) = (await fs.locate("/file")).chunks
        assert len(chunk.replicas) < 3
        cluster.network.heal()
        with trio.fail_after(60):
            while len((await fs.locate("/file")).chunks[0].replicas) < 3:
                assert len(holders(cluster)) >= 3
                await trio.sleep(0.05)
        assert await fs.get("/file") == data
        await cluster.wait_until(lambda: len(holders(cluster)) == 3, 60)
        assert await sound(fs)
