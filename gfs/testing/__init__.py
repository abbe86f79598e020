"""The test kit of the file system, also for programs that build on it.

A cluster in one process and in virtual time, on simulated machines whose network,
disks, clocks and random numbers follow from one seed::

    from gfs.testing import SimCluster, run_simulated

    async def scenario(seed: int) -> None:
        async with SimCluster(seed, chunkservers=3) as cluster:
            async with cluster.client() as fs:
                await fs.put(b"bytes", "/file")
                await cluster.crash("chunkserver1")
                ...

    run_simulated(7, scenario, 7)

Nothing in ``gfs`` outside this package imports it.
"""

from gfs.testing.cluster import SimCluster
from gfs.testing.determinism import deterministic_scheduling, run_simulated
from gfs.testing.life import Crashed
from gfs.testing.world import Machine, Process, Universe

__all__ = [
    "Crashed",
    "Machine",
    "Process",
    "SimCluster",
    "Universe",
    "deterministic_scheduling",
    "run_simulated",
]
