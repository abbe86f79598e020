"""A disk that refused what was to be written back, and looks well again: what it lost is
never taken to be there."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
import trio

from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFailed
from gfs.testing import SimCluster
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Onlooker

from .losses import handle_of, journal_of, records_of
from .promises import content, wait_for_goal
from .seeds import over_seeds

VICTIM = "chunkserver1"


class Worst(Random):
    """Whatever can be lost is."""

    def random(self) -> float:
        return 0.0


def replicas(cluster: SimCluster) -> list[bytes]:
    """What there is of the one chunk, straight from the disks."""
    found = []
    for name in cluster.chunkservers:
        disk = cluster.machine(name).disk
        files = SimFileSystem(disk, Onlooker())
        for path in cluster.chunk_files(name):
            journal, records = journal_of(files, path), records_of(disk, path)
            try:
                chunk = ChunkFile.open(files, path, handle_of(path), journal, records)
                found.append(chunk.read_verified(0, chunk.length))
            except CorruptReplica:
                found.append(b"damaged")
    return found


@over_seeds(1)
@pytest.mark.parametrize("how", ["retry", "restart"])
@pytest.mark.parametrize("fate", ["written back", "pulled"])
@pytest.mark.parametrize("durability", ["replicated", "fsync"])
async def test_the_replicas_of_a_disk_that_lost_writes_do_not_count(
    seed: int, chance: Random, how: str, fate: str, durability: str
) -> None:
    data, new = content(chance, 300_000), content(chance, 100_000)
    settings = ChunkserverSettings(durability=durability, mark_seconds=5.0)
    async with SimCluster(seed, disks=2, chunkserver=settings) as cluster, cluster.client() as fs:
        disk = cluster.machine(VICTIM).disk
        disk.mount("/disk1", 1 << 20)  # no room there for what the other one has lost
        await trio.sleep(3)
        await fs.put(data, "/file")
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(65_536, data[:100_000])
            disk.write_back(Random(1))  # its version is on the platter, at least
            await file.pwrite(65_536, new)
        expected = data[:65_536] + new + data[165_536:]
        (path,) = cluster.chunk_files(VICTIM)
        directory = path.partition("/chunks/")[0]
        if fate == "pulled":
            volume = disk.pull(directory)
        else:
            disk.fail(directory, what=["sync"])
            disk.write_back(Worst())
            disk.fail(directory, 0)

        async def has_failed() -> bool:
            disks = [disk for server in (await fs.status()).servers for disk in server.disks]
            return any(disk.state in ("failed", "missing") for disk in disks)

        with suppress(TimeoutError):  # with "fsync" it may hear of it as late as at a start
            await cluster.wait_until(has_failed, 30)
        if fate == "pulled":
            disk.plug(directory, volume)
        server = next(s for s in (await fs.status()).servers if VICTIM in s.address)
        await trio.sleep(1)
        if how == "restart":
            await cluster.restart(VICTIM)
        for _ in range(3):  # it may hear of what was lost as late as now
            if how == "retry" or await has_failed():
                with suppress(DiskFailed):
                    await fs.order_disk(server.id, directory, "retry")
            await trio.sleep(settings.mark_seconds * 3)
        for each in disk.paths():
            disk.inode(each).evict()
        assert await fs.get("/file") == expected
        await wait_for_goal(cluster, fs, "/file", 3)
        with suppress(TimeoutError):
            await cluster.wait_until(lambda: replicas(cluster) == [expected] * 3, 300)
        assert replicas(cluster) == [expected] * 3


@over_seeds(1, chunkserver=ChunkserverSettings(durability="fsync"))
async def test_failures_that_were_never_reported_cost_one_start(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Each file's is told once, to whoever syncs it next: the disk must not fail at one start
    after another, as often as it has such files."""
    files = {f"/{number}": content(chance, 70_000) for number in range(6)}
    for path, data in files.items():
        await fs.put(data, path)
    disk = cluster.machine(VICTIM).disk
    for path, data in files.items():
        async with await fs.open(path, "r+") as file:
            await file.pwrite(0, data[::-1][:1000])
        files[path] = data[::-1][:1000] + data[1000:]
    await cluster.crash(VICTIM)
    directory = f"{cluster.disks[0]}/chunks"
    disk.fail(directory, what=["sync"])
    disk.write_back(Worst())
    disk.fail(directory, 0)

    await cluster.start(VICTIM)
    await trio.sleep(5)
    servers = [server for server in (await fs.status()).servers if VICTIM in server.address]
    assert [disk.state for server in servers for disk in server.disks] == ["ok"]
    for path, data in files.items():
        await wait_for_goal(cluster, fs, path, 3)
        assert await fs.get(path) == data
