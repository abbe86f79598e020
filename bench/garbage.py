"""Whether garbage collection keeps up with overwrites of small files.

Files of 1 KiB are overwritten at full rate. Each overwrite leaves three replicas of
the old chunk; the file that had it is kept for its readers for ten seconds, after
that they are garbage. Looked at all the time:

* the *backlog* as ``gfs status`` shows it;
* the same by other accounts: what the chunkservers say that they hold, less three for
  each chunk that the master has, which must come to the same.

It is never to exceed what ten seconds of the load make, and to be gone thirty seconds
after.
"""

from __future__ import annotations

import argparse
import math
import os
import secrets
import time
from collections.abc import Iterator

import trio

import gfs
from bench.cluster import interrupted_cleanly, running
from gfs.client import Client

SERVERS = 3
REPLICATION = 3
FILES = 512
SIZE = 1024
LOOK_SECONDS = 0.5
GONE_SECONDS = 30.0


class Backlog:
    """What was seen of it."""

    def __init__(self) -> None:
        self.reports_max = self.reports_bytes_max = self.counted_max = self.held_max = 0
        self.reported = self.counted = 0

    async def look(self, fs: Client) -> None:
        status = await fs.status()
        held = sum(server.chunks for server in status.servers)
        self.reported = status.totals.orphaned
        self.counted = held - REPLICATION * status.totals.chunks
        self.reports_max = max(self.reports_max, self.reported)
        self.reports_bytes_max = max(self.reports_bytes_max, status.totals.orphaned_bytes)
        self.counted_max = max(self.counted_max, self.counted)
        self.held_max = max(self.held_max, held - REPLICATION * status.totals.files)


async def overwrite(fs: Client, tasks: int, seconds: float, backlog: Backlog) -> list[float]:
    """How long each overwrite took."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    def names() -> Iterator[str]:
        while time.perf_counter() < until:
            for number in range(FILES):
                yield f"/garbage/{number}"

    async def work(todo: Iterator[str]) -> None:
        data = secrets.token_bytes(SIZE)
        for name in todo:
            began = time.perf_counter()
            await fs.put(data, name, overwrite=True, replication=REPLICATION)
            took.append(time.perf_counter() - began)
            if time.perf_counter() >= until:
                return

    async with trio.open_nursery() as watcher:
        watcher.start_soon(look_on, fs, backlog)
        todo = names()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(work, todo)
        watcher.cancel_scope.cancel()
    return took


async def look_on(fs: Client, backlog: Backlog) -> None:
    while True:
        await trio.sleep(LOOK_SECONDS)
        await backlog.look(fs)


async def measure(state: str, tasks: int, seconds: float) -> dict[str, float]:
    backlog = Backlog()
    async with gfs.connect(state=state) as fs:
        took = sorted(await overwrite(fs, tasks, seconds, backlog))
        ended = time.perf_counter()
        gone = math.nan
        while time.perf_counter() < ended + 4 * GONE_SECONDS:
            await backlog.look(fs)
            status = await fs.status()
            kept = status.totals.chunks > FILES  # of readers, which become garbage yet
            if not kept and not backlog.reported and backlog.counted <= 0:
                gone = time.perf_counter() - ended
                break
            await trio.sleep(LOOK_SECONDS)
    rate = len(took) / seconds
    return {
        "overwrites_per_s": rate,
        "overwrite_p50_ms": 1000 * took[len(took) // 2],
        "overwrite_p99_ms": 1000 * took[len(took) * 99 // 100],
        "garbage_per_s": REPLICATION * rate,
        "backlog_max": backlog.reports_max,
        "backlog_max_seconds": backlog.reports_max / (REPLICATION * rate),
        "backlog_max_mb": backlog.reports_bytes_max / 1e6,
        "backlog_max_counted": backlog.counted_max,
        "held_beyond_files_max_seconds": backlog.held_max / (REPLICATION * rate),
        "gone_after_s": gone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.garbage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (default: 60)")
    parser.add_argument("--tasks", type=int, default=32, help="overwrites at once (default: 32)")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with interrupted_cleanly(), running(SERVERS, arguments.dir) as cluster:
        found = trio.run(measure, str(cluster.state), arguments.tasks, arguments.seconds)
        found["server_cpu_s"] = cluster.cpu_seconds()
    for name, value in found.items():
        print(f"{name:32} {value:12.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
