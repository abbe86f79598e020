"""What each operation costs, and the master takes, as the number of files grows.

    python -m bench.growth [--files 1000 100000 10000000]

For each number a namespace is made through the master's real store (:mod:`.namespace`);
then a master, three chunkservers, and stand-ins (:mod:`.stand_ins`), which have the
replicas of the files that were made, since this machine has no room for them. Files
are put into an ordinary cluster and read from it; entries and listings are of the files
that were made, at random. Processor time is that of the operation's client and of all
servers, and the master's part of it; each figure is the median of the rounds.

Then the master is killed with SIGKILL and started again at once. From then it is
measured until a client has an entry, has put a file, has read one, and all replicas are
reported; and, until then, how long a client that asks for one entry after another
had to wait at most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

import gfs
from bench.circumstances import OUT, circumstances
from bench.cluster import ENVIRONMENT, STOP_SECONDS, cpu_seconds_of, interrupted_cleanly
from bench.growth import namespace
from bench.growth.namespace import FILES_PER_DIRECTORY, REPLICATION, Namespace
from bench.memory import resident
from bench.recovery import Cluster, running, wait_live
from bench.restart import seconds_until
from gfs.blocks import MIB
from gfs.client import Client

SIZES = [1_000, 100_000, 10_000_000]
#: The stand-ins' disks are full: nothing is to be moved away from them.
SETTINGS = {"GFS_MASTER_MOVES_TOTAL": "0", "GFS_LOG_LEVEL": "warning"}
SERVERS = 3
IN_FLIGHT = 16
ROUNDS = 3
#: Calls in one round.
CALLS = {"put": 600, "get": 1_500, "stat": 24_000, "list": 40, "page": 40}
BYTES = 1_024
#: Of a processor: a master with less to do than this is idle.
CALM_SHARE = 0.05
STAND_INS_SECONDS = 3_600.0

Figures = dict[str, float]


class Loads:
    def __init__(self, fs: Client, made: Namespace) -> None:
        self._fs = fs
        self._made = made
        self._random = random.Random(1)
        self._data = os.urandom(BYTES)
        self._put = 0

    async def put(self) -> None:
        number, self._put = self._put, self._put + 1
        await self._fs.put(self._data, f"/put/{number // FILES_PER_DIRECTORY}/{number}")

    async def get(self) -> None:
        number = self._random.randrange(self._put)
        await self._fs.get(f"/put/{number // FILES_PER_DIRECTORY}/{number}")

    async def stat(self) -> None:
        await self._fs.stat(self._made.path(self._random.randrange(self._made.files)))

    async def list(self) -> None:
        """A directory of a thousand files, in two replies."""
        first, end = self._made.flat // FILES_PER_DIRECTORY, self._made.files // FILES_PER_DIRECTORY
        number = self._random.randrange(first, end) if first < end else 0
        path, _, _ = self._made.path(number * FILES_PER_DIRECTORY).rpartition("/")
        await self._fs.list(path)

    async def page(self) -> None:
        """The next reply of a listing of the large directory, some six hundred entries."""
        last = max(1, self._made.flat - FILES_PER_DIRECTORY)
        async for _ in self._fs.scan("/flat", f"{self._random.randrange(last):08}"):
            return


async def costs(cluster: Cluster, call: Callable[[], Awaitable[None]], count: int) -> Figures:
    """Of one call, in microseconds."""
    todo = iter(range(count))

    async def caller() -> None:
        for _ in todo:
            await call()

    pids = [cluster.master.pid, *(server.pid for server in cluster.servers)]
    before = [*map(cpu_seconds_of, pids), time.process_time()]
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(caller)
    took = time.perf_counter() - began
    after = [*map(cpu_seconds_of, pids), time.process_time()]
    used = [b - a for a, b in zip(before, after, strict=True)]
    per_call = 1e6 / count
    return {"wall": took * per_call, "cpu": sum(used) * per_call, "master": used[0] * per_call}


async def operations(cluster: Cluster, made: Namespace) -> Figures:
    found: Figures = {}
    async with gfs.connect(cluster.address, key=cluster.key) as fs:
        loads = Loads(fs, made)
        for name, count in CALLS.items():
            call = getattr(loads, name)
            # The first use of each page of the metadata costs some microseconds more.
            await costs(cluster, call, count)
            rounds = [await costs(cluster, call, count) for _ in range(ROUNDS)]
            for what in rounds[0]:
                found[f"{name}_{what}_us"] = statistics.median(each[what] for each in rounds)
    return found


# --- the stand-ins -----------------------------------------------------------------


@contextmanager
def stand_ins(cluster: Cluster, directory: Path, made: Namespace) -> Iterator[None]:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "bench.growth.stand_ins", cluster.address,
            str(directory / "cluster.key"), str(made.first_handle), str(made.files),
        ],
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


async def has_all(made: Namespace, fs: Client) -> bool:
    """Whether every replica of the files that were made is reported."""
    known = sum(server.chunks for server in (await fs.status()).servers)
    return known >= REPLICATION * made.files


async def calm(cluster: Cluster) -> None:
    """Wait until the master has ended its first pass over all chunks."""
    used = CALM_SHARE
    while used >= CALM_SHARE:
        before = cpu_seconds_of(cluster.master.pid)
        await trio.sleep(1.0)
        used = cpu_seconds_of(cluster.master.pid) - before


# --- the restart ---------------------------------------------------------------------


async def restart(cluster: Cluster, made: Namespace) -> Figures:
    cluster.master.kill()
    cluster.master.wait()
    began = time.perf_counter()
    cluster.start_master()
    found: Figures = {}
    worst = 0.0

    async def measure(name: str, call: Callable[[Client], Awaitable[bool]]) -> None:
        async with gfs.connect(cluster.address, key=cluster.key) as fs:
            seconds = await seconds_until(began, partial(call, fs), STAND_INS_SECONDS)
            found[f"restart_{name}_s"] = seconds

    async def stat(fs: Client) -> bool:
        await fs.stat(made.path(0))
        return True

    async def put(fs: Client) -> bool:
        await fs.put(b"after the restart", "/after", overwrite=True)
        return True

    async def get(fs: Client) -> bool:
        return bool(await fs.get("/put/0/0"))

    async def wait_long() -> None:
        nonlocal worst
        async with gfs.connect(cluster.address, key=cluster.key) as fs:
            await seconds_until(began, partial(stat, fs), STAND_INS_SECONDS)
            while True:
                asked = time.perf_counter()
                await stat(fs)
                worst = max(worst, time.perf_counter() - asked)
                await trio.sleep(0.002)

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait_long)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(measure, "stat", stat)
            nursery.start_soon(measure, "put", put)
            nursery.start_soon(measure, "get", get)
            nursery.start_soon(measure, "all", partial(has_all, made))
        waiting.cancel_scope.cancel()
    found["restart_cpu_s"] = cpu_seconds_of(cluster.master.pid)
    found["restart_stat_max_ms"] = 1000 * worst
    return found


# --- all of it ---------------------------------------------------------------------------


async def one_size(cluster: Cluster, directory: Path, made: Namespace) -> Figures:
    found: Figures = {}
    async with gfs.connect(cluster.address, key=cluster.key) as fs:
        await wait_live(fs, SERVERS)
        began = time.perf_counter()
        with stand_ins(cluster, directory, made):
            await seconds_until(began, partial(has_all, made, fs), STAND_INS_SECONDS)
            await calm(cluster)
            found |= await operations(cluster, made)
            pid = cluster.master.pid
            found["master_rss_mib"] = resident(pid)
            found["master_private_mib"] = resident(pid, "RssAnon")
            found["metadata_mib"] = (await fs.status()).metadata.used_bytes / MIB
            found |= await restart(cluster, made)
    return found


def measure(files: int, folder: str | None) -> Figures:
    directory = Path(tempfile.mkdtemp(prefix="gfs-growth-", dir=folder))
    try:
        print(f"{files:,} files are made …", flush=True)
        made = namespace.make(directory / "master", files)
        print("measured …", flush=True)
        with running(directory, SERVERS, SETTINGS) as cluster:
            return trio.run(one_size, cluster, directory, made)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def table(found: dict[int, Figures]) -> str:
    """As in docs/speed.md."""
    lines = [
        "| | " + " | ".join(f"{files:,} files" for files in found) + " |",
        "| --- |" + " ---: |" * len(found),
    ]
    for name in next(iter(found.values())):
        values = [
            f"{figures[name]:,.{1 if figures[name] < 100 else 0}f}" for figures in found.values()
        ]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--files", type=int, nargs="+", default=SIZES, help="at least 1,000 each")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    if min(arguments.files) < FILES_PER_DIRECTORY:
        parser.error(f"at least {FILES_PER_DIRECTORY} files are needed")
    started, load = time.time(), os.getloadavg()[0]
    with interrupted_cleanly():
        found = {files: measure(files, arguments.dir) for files in arguments.files}
    result = circumstances(started, load) | {"figures": found}
    OUT.mkdir(exist_ok=True)
    (OUT / "growth.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(found))
    print(f"\nload average {os.getloadavg()[0]:.1f}\n{OUT / 'growth.json'}")


if __name__ == "__main__":
    main()
