"""One chunkserver dies, falls silent or comes back, at any moment."""

from __future__ import annotations

import random

import trio

from gfs.blocks import MIB
from gfs.testing import SimCluster

from .promises import (
    LARGE_BYTES,
    REPAIR_SECONDS,
    STALL_SECONDS,
    assert_sound,
    content,
    later,
    sound,
    wait_for_goal,
)
from .seeds import over_seeds


@over_seeds(8)
async def test_a_chunkserver_dies_while_a_file_is_put(seed: int, chance: random.Random) -> None:
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=5) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        start = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.3), cluster.kill, victim)
            await fs.put(data, "/dir/file")
            taken = trio.current_time() - start
        assert taken < STALL_SECONDS + 1
        assert await fs.get("/dir/file") == data
        await wait_for_goal(cluster, fs, "/dir/file", 3, without=[victim])
        await assert_sound(fs)


@over_seeds(6)
async def test_a_chunkserver_dies_while_a_file_is_fetched(seed: int, chance: random.Random) -> None:
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        located = await fs.locate("/file")
        victim = chance.choice(located.chunks[0].replicas).address.partition(":")[0]
        start = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.1), cluster.kill, victim)
            assert await fs.get("/file") == data
            taken = trio.current_time() - start
        assert taken < STALL_SECONDS + 1
        await wait_for_goal(cluster, fs, "/file", 3, without=[victim])
        await assert_sound(fs)


@over_seeds(5)
async def test_the_third_of_three_dies_and_comes_back(seed: int, chance: random.Random) -> None:
    """Two of three replicas are enough to write; the third is made when it can be."""
    data, other = content(chance, 3 * MIB), content(chance, 2 * MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(other, "/before")
        victim = chance.choice(cluster.chunkservers)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.02), cluster.crash, victim)
            await fs.put(data, "/file")
        await fs.put(other, "/after")
        await trio.sleep(chance.choice([0, 10, 60]))
        await cluster.start(victim)
        for path in ("/before", "/file", "/after"):
            await wait_for_goal(cluster, fs, path, 3, timeout=REPAIR_SECONDS + 15)
        for path, wanted in (("/before", other), ("/file", data), ("/after", other)):
            assert await fs.get(path) == wanted
        await assert_sound(fs)


@over_seeds(3)
async def test_one_comes_back_with_an_empty_disk(seed: int, chance: random.Random) -> None:
    data = content(chance, 2 * MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        for number in range(5):
            await fs.put(data[number:], f"/{number}")
        victim = chance.choice(cluster.chunkservers)
        await cluster.crash(victim)
        cluster.machine(victim).disk.wipe()
        await cluster.start(victim)
        # Until the server that was there before counts as dead, it is counted.
        await cluster.wait_until(lambda: sound(fs), 60, every=2)
        for number in range(5):
            assert await fs.get(f"/{number}") == data[number:]


@over_seeds(3)
async def test_a_chunkserver_falls_silent(seed: int, chance: random.Random) -> None:
    """Cut off from everyone, it is taken for dead; back again, it is put to use."""
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)

        others = [*cluster.names, "client0"]
        async with trio.open_nursery() as nursery:
            silence = cluster.network.partition
            nursery.start_soon(later, chance.uniform(0, 0.3), silence, [victim], others)
            await fs.put(data, "/file")
            assert await fs.get("/file") == data
        await wait_for_goal(cluster, fs, "/file", 3, without=[victim], timeout=60)
        cluster.network.heal()
        await trio.sleep(30)
        status = await fs.status()
        assert [s.state for s in status.servers] == ["live"] * 4
        assert await fs.get("/file") == data
        await assert_sound(fs)
