"""Damage on a disk: never a wrong byte to a reader, and repaired."""

from __future__ import annotations

import random

import pytest
import trio

from gfs.blocks import MIB
from gfs.config import ChunkserverSettings, ClientSettings
from gfs.errors import GfsError
from gfs.testing import SimCluster

from .promises import (
    REPAIR_SECONDS,
    assert_sound,
    content,
    sound,
    wait_for_goal,
)
from .seeds import over_seeds


def harm(cluster: SimCluster, server: str, path: str, how: str, chance: random.Random) -> None:
    disk = cluster.machine(server).disk
    size = len(disk.read(path))
    if how == "flip":
        disk.flip_bit(path, chance.randrange(8 * size))
    elif how == "flip in the head":
        disk.flip_bit(path, chance.randrange(8 * min(size, 16 * 1024)))
    elif how == "truncate":
        disk.truncate(path, chance.randrange(size))
    else:
        disk.delete(path)


HARMS = ["flip", "flip in the head", "truncate", "delete"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("restarted", [False, True])
@over_seeds(3)
async def test_a_damaged_replica_is_never_served_and_is_repaired(
    seed: int, chance: random.Random, how: str, restarted: bool
) -> None:
    data = content(chance, chance.choice([100, 65_536, 300_000, 2 * MIB + 17]))
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        victim = chance.choice(cluster.chunkservers)
        if restarted:
            await cluster.crash(victim)
        (path,) = cluster.chunk_files(victim)
        harm(cluster, victim, path, how, chance)
        if restarted:
            await cluster.start(victim)

        async def read() -> None:
            assert await fs.get("/file") == data
            start = chance.randrange(len(data))
            length = chance.randint(1, 1000)
            async with await fs.open("/file") as file:
                assert await file.pread(start, length) == data[start : start + length]

        for _ in range(10):
            await read()
        await fs.fsck()

        async def repaired() -> bool:
            await read()
            return await sound(fs)

        await cluster.wait_until(repaired, REPAIR_SECONDS, every=0.5)
        await wait_for_goal(cluster, fs, "/file", 3)
        for server in cluster.chunkservers:
            await cluster.restart(server)
        assert await fs.get("/file") == data
        await assert_sound(fs)


@pytest.mark.parametrize("how", HARMS)
@over_seeds(1)
async def test_damage_is_found_and_repaired_without_a_reader(
    seed: int, chance: random.Random, how: str
) -> None:
    data = content(chance, 300_000)
    settings = ChunkserverSettings(scan_seconds=5, scrub_seconds=60)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        victim = chance.choice(cluster.chunkservers)
        disk = cluster.machine(victim).disk
        (path,) = cluster.chunk_files(victim)
        before = disk.read(path)
        harm(cluster, victim, path, how, chance)

        def whole() -> bool:
            files = cluster.chunk_files(victim)
            return bool(files) and disk.read(files[0])[-len(data) :] == before[-len(data) :]

        await cluster.wait_until(whole, 150, "repaired", every=1)
        await wait_for_goal(cluster, fs, "/file", 3)
        await assert_sound(fs)


@over_seeds(3)
async def test_one_good_replica_is_enough(seed: int, chance: random.Random) -> None:
    data = content(chance, MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        servers = cluster.chunkservers[:]
        chance.shuffle(servers)
        for server in servers[:2]:
            harm(cluster, server, cluster.chunk_files(server)[0], chance.choice(HARMS), chance)
        assert await fs.get("/file") == data

        async def repaired() -> bool:
            assert await fs.get("/file") == data
            return await sound(fs)

        await cluster.wait_until(repaired, 2 * REPAIR_SECONDS, every=0.5)


@over_seeds(2)
async def test_no_good_replica_is_an_error_and_never_wrong_bytes(
    seed: int, chance: random.Random
) -> None:
    data = content(chance, 200_000)
    settings = ClientSettings(retry_seconds=5)
    async with SimCluster(seed) as cluster, cluster.client(settings=settings) as fs:
        await fs.put(data, "/file")
        for server in cluster.chunkservers:
            (path,) = cluster.chunk_files(server)
            cluster.machine(server).disk.flip_bit(path, 8 * (16 * 1024 + 70_000))
        async with await fs.open("/file") as file:
            assert await file.pread(0, 1000) == data[:1000]
        with pytest.raises(GfsError) as caught:
            await fs.get("/file")
        assert caught.value.code in ("chunk_unavailable", "corrupt_replica")
        # Nobody threw the last copies away: most of the bytes are still there.
        await trio.sleep(200)
        assert [len(cluster.chunk_files(s)) for s in cluster.chunkservers] == [1, 1, 1]


@over_seeds(2)
async def test_a_full_disk_is_an_error_and_damages_nothing(
    seed: int, chance: random.Random
) -> None:
    data = content(chance, 3 * MIB)
    settings = ChunkserverSettings(reserve_bytes=0)
    hasty = ClientSettings(retry_seconds=3)
    cluster = SimCluster(seed, chunkserver=settings)
    async with cluster, cluster.client(settings=hasty) as fs:
        await fs.put(data, "/file")
        for server in cluster.chunkservers:
            disk = cluster.machine(server).disk
            used = disk.space("/disk0").total_bytes - disk.space("/disk0").free_bytes
            disk.mount("/", used + 2 * MIB)
        with pytest.raises(GfsError) as caught:
            await fs.put(data, "/second")
        assert caught.value.code in ("disk_full", "not_enough_chunkservers")
        assert not await fs.exists("/second")
        assert await fs.get("/file") == data
        for server in cluster.chunkservers:
            cluster.machine(server).disk.mount("/", 1 << 40)
        await trio.sleep(30)
        await fs.put(data, "/second")
        assert await fs.get("/second") == data
        await assert_sound(fs)
