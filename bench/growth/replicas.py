"""What a chunkserver takes, and how long it starts, with many small replicas.

    python -m bench.growth.replicas [--replicas 1000000] [--packed]

They are made through the real store, as many at a time as an order to copy names.
Then a master and the chunkserver are started as processes; the chunkserver serves when
it has registered with all its replicas. Their chunks are above all that the master ever
allocated, so it leaves them alone. Everything is in the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import trio

import gfs
from bench.cluster import cpu_seconds_of, interrupted_cleanly
from bench.memory import resident
from bench.recovery import SETTINGS, running
from bench.restart import seconds_until
from gfs.blocks import BLOCK_BYTES, block_sums
from gfs.chunkserver.node import Node
from gfs.chunkserver.replicas import Made
from gfs.config import ChunkserverSettings
from gfs.io import real_world

FIRST_HANDLE = 2**40
LENGTH = 1_024
PIECE = 256
START_SECONDS_MAX = 1_800.0

Figures = dict[str, float]


async def fill(directory: Path, count: int, packed_bytes_max: int) -> Figures:
    settings = ChunkserverSettings(packed_bytes_max=packed_bytes_max)
    node = Node(real_world(), settings, [str(directory)], os.urandom(32))
    data = os.urandom(LENGTH)
    sums = block_sums(data)
    await node.open()
    try:
        began, used = time.perf_counter(), time.process_time()
        disk = node.store.disks.pick()
        for start in range(0, count, PIECE):
            handles = range(FIRST_HANDLE + start, FIRST_HANDLE + min(start + PIECE, count))
            made = [Made(handle, 1, memoryview(data), sums) for handle in handles]
            for error in (await node.store.install_new(disk, made)).values():
                raise error
        return {
            "made_per_s": count / (time.perf_counter() - began),
            "made_cpu_us": 1e6 * (time.process_time() - used) / count,
        }
    finally:
        await node.close()


def taken(directory: Path) -> tuple[int, int]:
    """Bytes and inodes on the disk."""
    size = inodes = 0
    for folder, _, names in os.walk(directory):
        inodes += len(names)
        size += sum(os.lstat(os.path.join(folder, name)).st_blocks for name in names) * 512
    return size, inodes


async def start(directory: Path, packed_bytes_max: int, count: int) -> Figures:
    settings = {**SETTINGS, "GFS_CHUNKSERVER_PACKED_BYTES_MAX": str(packed_bytes_max)}
    with running(directory, 0, settings) as cluster:
        async with gfs.connect(cluster.address, key=cluster.key) as fs:
            await fs.status()
            began = time.perf_counter()
            cluster.add_server()

            async def has_all() -> bool:
                return sum(server.chunks for server in (await fs.status()).servers) >= count

            seconds = await seconds_until(began, has_all, START_SECONDS_MAX)
            pid = cluster.servers[0].pid
            return {
                "start_s": seconds,
                "start_cpu_s": cpu_seconds_of(pid),
                "rss_mib": resident(pid),
                "private_mib": resident(pid, "RssAnon"),
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth.replicas", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--replicas", type=int, default=1_000_000)
    parser.add_argument("--packed", action="store_true", help="many in one file")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    count, packed = arguments.replicas, BLOCK_BYTES if arguments.packed else 0
    with interrupted_cleanly():
        directory = Path(tempfile.mkdtemp(prefix="gfs-growth-", dir=arguments.dir))
        try:
            disk = directory / "chunkserver-0"
            disk.mkdir()
            found = trio.run(fill, disk, count, packed)
            size, inodes = taken(disk)
            found |= {"bytes_per_replica": size / count, "inodes": inodes}
            found |= trio.run(start, directory, packed, count)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    for name, value in found.items():
        print(f"{name:24} {value:12,.1f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
