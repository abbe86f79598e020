"""``python -m bench.durability``: what each setting of ``durability`` costs.

The same loads against a cluster of real processes with ``"replicated"`` and with
``"fsync"``: one large file, small new files, and 4 KiB writes in place, alone and by
many at once. All servers share this machine's disk, so each sync is waited for by
three of them.
"""

from __future__ import annotations

import argparse
import os
import random
import time

import trio

import gfs
from bench import cluster, loads
from gfs.blocks import KIB, MIB
from gfs.client import Client

FILE_BYTES = 8 * MIB
WRITE_BYTES = 4 * KIB


async def writes_per_second(fs: Client, writers: int, seconds: float) -> float:
    """Writes in place, each acknowledged before its writer makes the next."""
    paths = [f"/in-place-{writers}-{n}" for n in range(writers)]
    for path in paths:
        await fs.put(bytes(FILE_BYTES), path)
    done = 0

    async def write(path: str) -> None:
        nonlocal done
        chance, data = random.Random(path), os.urandom(WRITE_BYTES)
        async with await fs.open(path, "r+") as file:
            await file.pwrite(0, data)  # the lease is granted
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                await file.pwrite(chance.randrange(FILE_BYTES - WRITE_BYTES), data)
                done += 1

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(write, path)
    return done / (time.perf_counter() - started)


async def files_per_second(fs: Client, writers: int, seconds: float) -> float:
    """New files of 4 KiB."""
    done = 0

    async def put(writer: int) -> None:
        nonlocal done
        data = os.urandom(WRITE_BYTES)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await fs.put(data, f"/small-{writers}-{writer}-{done}")
            done += 1

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for writer in range(writers):
            nursery.start_soon(put, writer)
    return done / (time.perf_counter() - started)


async def measure(servers: cluster.Running, total: int, seconds: float) -> dict[str, float]:
    async with gfs.connect(state=servers.state) as fs:
        figures = {"large file, MiB/s": await loads.write(fs, "/large", total)}
        for writers in (1, 32):
            figures[f"4 KiB in place, {writers} at once, writes/s"] = await writes_per_second(
                fs, writers, seconds
            )
            figures[f"4 KiB files, {writers} at once, files/s"] = await files_per_second(
                fs, writers, seconds
            )
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the large file")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    options = parser.parse_args()
    found = {}
    for durability in ("replicated", "fsync"):
        environment = {"GFS_CHUNKSERVER_DURABILITY": durability}
        with cluster.running(3, options.dir, environment) as servers:
            found[durability] = trio.run(measure, servers, options.mib * MIB, options.seconds)
    print(f"{'':44}{'replicated':>12}{'fsync':>12}")
    for name, figure in found["replicated"].items():
        print(f"{name:44}{figure:12.0f}{found['fsync'][name]:12.0f}")


if __name__ == "__main__":
    main()
