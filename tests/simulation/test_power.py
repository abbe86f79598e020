"""With ``durability = "fsync"``, what was acknowledged survives a power cut of all."""

from __future__ import annotations

from random import Random

import trio

from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import read_records
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.testing import SimCluster
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Onlooker

from .losses import handle_of, journal_of
from .seeds import over_seeds


@over_seeds(6, chunkservers=3, chunkserver=ChunkserverSettings(durability="fsync"))
async def test_a_power_cut_of_everything_loses_nothing_synced(
    seed: int, chance: Random, cluster: SimCluster
) -> None:
    files = {
        "/small": chance.randbytes(10),
        "/deep/down/file": chance.randbytes(3_000_000 + chance.randrange(100_000)),
        "/block": chance.randbytes(64 * 1024),
    }
    async with cluster.client() as fs:
        for path, data in files.items():
            await fs.put(data, path)
    await cluster.crash_all()
    for name in cluster.chunkservers:
        cluster.machine(name).disk.power_cut(Random(seed) if seed else None)
    await cluster.start_all()
    async with cluster.client() as fs:
        for path, data in files.items():
            assert await fs.get(path) == data


@over_seeds(1, chunkserver=ChunkserverSettings(durability="fsync", mark_seconds=5.0))
async def test_what_was_left_alone_is_in_the_chunk_files(cluster: SimCluster, fs: Client) -> None:
    """Where the scrubber reads it, and no damage to the redo journal takes it away."""
    await fs.put(b"a small file", "/file")
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(2, b"SMALL")
    disks = [SimFileSystem(cluster.machine(n).disk, Onlooker()) for n in cluster.chunkservers]
    assert all(read_records(disk, cluster.disks[0]).by_handle for disk in disks)
    await trio.sleep(12)
    for name, disk in zip(cluster.chunkservers, disks, strict=True):
        assert not read_records(disk, cluster.disks[0]).by_handle
        (path,) = cluster.chunk_files(name)
        chunk = ChunkFile.open(disk, path, handle_of(path), journal_of(disk, path))
        assert chunk.read_verified(0, 12) == b"a SMALL file"
        chunk.close()
