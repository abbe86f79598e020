"""With ``durability = "fsync"``, what was acknowledged survives a power cut of all."""

from __future__ import annotations

import random

from gfs.config import ChunkserverSettings
from gfs.testing import SimCluster

from .seeds import over_seeds


@over_seeds(6)
async def test_a_power_cut_of_everything_loses_nothing_synced(
    seed: int, chance: random.Random
) -> None:
    files = {
        "/small": chance.randbytes(10),
        "/deep/down/file": chance.randbytes(3_000_000 + chance.randrange(100_000)),
        "/block": chance.randbytes(64 * 1024),
    }
    settings = ChunkserverSettings(durability="fsync")
    async with SimCluster(seed, chunkservers=3, chunkserver=settings) as cluster:
        async with cluster.client() as fs:
            for path, data in files.items():
                await fs.put(data, path)
        await cluster.crash_all()
        for name in cluster.chunkservers:
            cluster.machine(name).disk.power_cut(random.Random(seed) if seed else None)
        await cluster.start_all()
        async with cluster.client() as fs:
            for path, data in files.items():
                assert await fs.get(path) == data
