"""One chunkserver dies, falls silent or comes back, at any moment."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
import trio

from gfs.blocks import KIB, MIB
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.errors import GfsError
from gfs.testing import SimCluster
from gfs.testing.inode import Hang

from .promises import (
    LARGE_BYTES,
    REPAIR_SECONDS,
    STALL_SECONDS,
    assert_sound,
    content,
    later,
    replicas,
    settled,
    sound,
    wait_for_goal,
)
from .seeds import over_seeds

Load = Callable[[Client], Awaitable[None]]


@over_seeds(8, chunkservers=5)
async def test_a_chunkserver_dies_while_a_file_is_put(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, LARGE_BYTES)
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


@over_seeds(6, chunkservers=4)
async def test_a_chunkserver_dies_while_a_file_is_fetched(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, LARGE_BYTES)
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


#: How one of three servers stops answering.
SILENCES: dict[str, Callable[[SimCluster, str], object]] = {
    "stopped": lambda cluster, name: cluster.network.partition(
        [name], {*cluster.names, "user"} - {name}
    ),
    "its disk hangs": lambda cluster, name: cluster.machine(name).disk.hang(
        cluster.disks[0], Hang(1.0, (60.0, 60.0))
    ),
}


@pytest.mark.parametrize("how", SILENCES)
@over_seeds(6, user="user")
async def test_no_call_waits_long_for_a_server_that_says_nothing(
    chance: Random, cluster: SimCluster, fs: Client, how: str
) -> None:
    """Whichever of the chain it is, and whatever is called; the others go on."""
    data = content(chance, 3 * MIB)
    await fs.put(data, "/file")
    await fs.append("/log", b"first")
    victim = chance.choice(cluster.chunkservers)
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, data[:100])
        SILENCES[how](cluster, victim)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: file.pwrite(0, data[:100]),
            lambda: fs.put(data, "/new", overwrite=True),
            lambda: fs.append("/log", b"record"),
            lambda: fs.get("/file"),
        ]
        for call in chance.sample(calls, len(calls)):
            began = trio.current_time()
            await call()
            assert trio.current_time() - began < STALL_SECONDS
    assert await fs.get("/file") == await fs.get("/new") == data


@over_seeds(6)
async def test_servers_that_are_only_slow_keep_their_replicas(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """All of them: each call to a disk takes up to a second and more."""
    data = content(chance, 3 * MIB)
    for name in cluster.chunkservers:
        cluster.machine(name).blocking_seconds = (0.0, chance.choice([0.9, 1.4]))
    await fs.put(data, "/file")
    async with await fs.open("/file", "r+") as file:
        for offset in range(0, 10 * MIB, MIB):
            await file.pwrite(offset, data[:100_000])
    for _ in range(5):
        await fs.append("/log", data[:20_000])
    assert await replicas(fs, "/file") == await replicas(fs, "/log") == 3
    assert [chunk.version for chunk in (await fs.locate("/file")).chunks] == [2]


@over_seeds(5)
async def test_the_third_of_three_dies_and_comes_back(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Two of three replicas are enough to write; the third is made when it can be."""
    data, other = content(chance, 3 * MIB), content(chance, 2 * MIB)
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


@pytest.mark.parametrize("length", [1000, 3 * MIB])
@over_seeds(3, user="user")
async def test_two_of_three_that_failed_a_client_are_used_when_they_are_back(
    chance: Random, cluster: SimCluster, fs: Client, length: int
) -> None:
    """It avoids them for longer, but there are not enough others."""
    await fs.put(content(chance, length), "/before")
    for server in chance.sample(cluster.chunkservers, 2):
        cluster.network.partition(["user"], [server])
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(fs.put, content(chance, length), f"/{number}")
        await trio.sleep(5)
        cluster.network.heal()
        began = trio.current_time()
    assert trio.current_time() - began < 4
    began = trio.current_time()
    await fs.put(data := content(chance, length), "/file")
    assert trio.current_time() - began < 1
    assert await fs.get("/file") == data


@over_seeds(3)
async def test_one_comes_back_with_an_empty_disk(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 2 * MIB)
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


@over_seeds(3, chunkservers=4)
async def test_a_chunkserver_falls_silent(chance: Random, cluster: SimCluster, fs: Client) -> None:
    """Cut off from everyone, it is taken for dead; back again, it is put to use."""
    data = content(chance, LARGE_BYTES)
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


#: All that other servers copy from one, and all that it copies, while it serves clients.
SLOW_BACKGROUND = ChunkserverSettings(
    background_bytes_per_second=128 * KIB, reserve_bytes=4 * MIB, scan_seconds=2.0, idle_seconds=8.0
)


async def copies_of_a_dead_server(
    cluster: SimCluster,
    fs: Client,
    load: Load | None = None,
    files: int = 20,
    size: int = MIB,
    every: float = 0.05,
) -> float:
    """Seconds until all is at its goal again, after one of five is taken for dead; exact to
    ``every``."""
    data = bytes(size)
    for number in range(files):
        await fs.put(data, f"/{number}")
    await trio.sleep(5)  # nobody counts as a client any more
    async with trio.open_nursery() as nursery:
        if load is not None:
            nursery.start_soon(load, fs)
        await cluster.crash(cluster.chunkservers[0])
        await cluster.wait_until(partial(is_one_dead, fs), 60, every=0.01)
        began = trio.current_time()
        # Not by fsck: verifying replicas is work for a client.
        await cluster.wait_until(lambda: settled(fs), 3000, every=every)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    await assert_sound(fs)
    return took


async def is_one_dead(fs: Client) -> bool:
    return "dead" in [server.state for server in (await fs.status()).servers]


async def read_all_the_time(fs: Client) -> None:
    """Of every server within ``BUSY_SECONDS``."""
    for number in itertools.cycle(range(20)):
        with contextlib.suppress(GfsError):
            await fs.get(f"/{number}")
        await trio.sleep(0.02)


@over_seeds(2, chunkservers=5, chunkserver=SLOW_BACKGROUND)
async def test_copies_from_a_server_are_no_clients_of_it(cluster: SimCluster, fs: Client) -> None:
    """They hold its own copies up no more than the scrubber does."""
    # Were they paced, the four that are left would take 12 MiB at 128 KiB/s each.
    assert await copies_of_a_dead_server(cluster, fs) < 5


@pytest.mark.costly
@over_seeds(1, chunkservers=5, chunkserver=SLOW_BACKGROUND)
async def test_copies_give_way_to_clients(cluster: SimCluster, fs: Client) -> None:
    assert await copies_of_a_dead_server(cluster, fs, read_all_the_time, every=1) > 11


@over_seeds(2, chunkservers=5)
async def test_a_slot_that_becomes_free_is_used_at_once(cluster: SimCluster, fs: Client) -> None:
    # At half a second for each time when no chunk fits the free slots: several.
    assert await copies_of_a_dead_server(cluster, fs, files=200, size=100) < 1
