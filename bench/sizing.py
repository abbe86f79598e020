"""What machines a cluster takes: memory and metadata for each file and chunk, the pace of a
check, and what a burst of deletions leaves in the logs.

    python -m bench.sizing --files 30000

Files of one small chunk, three replicas each, on three chunkservers of this machine.
Memory is what processes have more than before the first file.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import trio

import gfs
from bench import cluster
from bench.memory import resident
from gfs.client import Client

SERVERS = 3
PUTS_AT_ONCE = 32
BYTES = 1024
LOOK_SECONDS = 0.5
GARBAGE_SECONDS_MAX = 1800.0


async def fill(fs: Client, files: int) -> None:
    data = os.urandom(BYTES)
    todo = iter(range(files))

    async def put() -> None:
        for number in todo:
            await fs.put(data, f"/sizing/{number // 1000}/{number}")

    async with trio.open_nursery() as nursery:
        for _ in range(PUTS_AT_ONCE):
            nursery.start_soon(put)


async def wait_deleted(running: cluster.Running) -> None:
    with trio.fail_after(GARBAGE_SECONDS_MAX):
        while True:
            if not any(running.state.glob("chunkserver-*/chunks/*/*.chunk")):
                return
            await trio.sleep(LOOK_SECONDS)


def log_bytes(state: Path) -> int:
    return sum(log.stat().st_size for log in (state / "log").iterdir())


async def measure(running: cluster.Running, files: int) -> dict[str, float]:
    found: dict[str, float] = {}
    async with gfs.connect(state=running.state) as fs:
        await fs.put(b"x" * BYTES, "/first")
        before = [resident(pid) for pid in running.pids]
        began = time.perf_counter()
        await fill(fs, files)
        found["puts_per_s"] = files / (time.perf_counter() - began)
        more = [resident(pid) - had for pid, had in zip(running.pids, before, strict=True)]
        found["master_bytes_per_file"] = more[0] * 2**20 / files
        found["chunkserver_bytes_per_replica"] = sum(more[1:]) * 2**20 / (3 * files)
        metadata = running.state / "master" / "data.mdb"
        found["metadata_bytes_per_file"] = metadata.stat().st_size / files
        for name, verify in (("fsck_no_verify_chunks_per_s", False), ("fsck_chunks_per_s", True)):
            began = time.perf_counter()
            report = await fs.fsck("/sizing", verify=verify)
            if report.damaged or report.chunks != files:
                raise RuntimeError(f"not well: {report.counts}, {report.chunks} chunks")
            found[name] = files / (time.perf_counter() - began)
        logged = log_bytes(running.state)
        began = time.perf_counter()
        await fs.delete("/sizing", recursive=True, now=True)
        await fs.delete("/first", now=True)
        await wait_deleted(running)
        found["deleted_replicas_per_s"] = 3 * files / (time.perf_counter() - began)
        found["log_bytes_per_deleted_replica"] = (log_bytes(running.state) - logged) / (3 * files)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with cluster.interrupted_cleanly(), cluster.running(SERVERS, arguments.dir) as running:
        found = trio.run(measure, running, arguments.files)
    for name, value in found.items():
        print(f"{name:32} {value:10.1f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
