"""``python -m bench.restart``: how long a cluster of a million files is without its master.

A whole cluster on this machine. A hundred thousand files of 100 bytes are put, three
replicas each, and their tree is snapshotted until there are as many files as wanted:
every name has its own inode and its row of chunks, every replica its file at a
chunkserver. Then the master is killed with SIGKILL, three times; its supervisor starts
it again. Measured from the kill: until a client has an entry, until it has put a file,
until it has read one (whose replicas must have been reported again), and until every
chunkserver has reported all its replicas.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import gfs
from bench import cluster
from bench.snapshot import fill
from gfs.blocks import MIB
from gfs.client import Client
from gfs.errors import GfsError
from gfs.state import READY_NAME

PUT_FILES = 100_000
REPLICATION = 3
WAIT_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.01
KILLS = 3


async def seconds_until(
    began: float, call: Callable[[], Awaitable[bool]], seconds_max: float = WAIT_SECONDS_MAX
) -> float:
    """Since ``began``, when ``call`` was true; a client waits for a master for a while only."""
    with trio.fail_after(seconds_max):
        while True:
            try:
                if await call():
                    return time.perf_counter() - began
            except GfsError:
                pass
            await trio.sleep(LOOK_SECONDS)


def master_pid(state: Path) -> int:
    pid = json.loads((state / READY_NAME).read_bytes())["master"]["pid"]
    return int(pid)


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


async def replicas(fs: Client) -> int:
    """How many the master knows the place of."""
    return sum(server.chunks for server in (await fs.status()).servers)


async def restart(state: Path, number: int, known: int) -> dict[str, float]:
    os.kill(master_pid(state), signal.SIGKILL)
    killed = time.perf_counter()
    found: dict[str, float] = {}

    async def measure(what: str, call: Callable[[Client], Awaitable[bool]]) -> None:
        async with gfs.connect(state=state) as fs:
            found[what] = await seconds_until(killed, lambda: call(fs))

    async def stat(fs: Client) -> bool:
        await fs.stat("/src/0/0")
        return True

    async def put(fs: Client) -> bool:
        await fs.put(b"after the restart", f"/after-{number}", overwrite=True)
        return True

    async def get(fs: Client) -> bool:
        return bool(await fs.get("/src/0/1"))

    async def reported(fs: Client) -> bool:
        return await replicas(fs) >= known

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure, "first stat", stat)
        nursery.start_soon(measure, "first put", put)
        nursery.start_soon(measure, "first get", get)
        nursery.start_soon(measure, "all replicas reported", reported)
    return found


async def measure(state: Path, files: int) -> None:
    async with gfs.connect(state=state) as fs:
        began = time.perf_counter()
        await fill(fs, min(files, PUT_FILES))
        print(f"{min(files, PUT_FILES)} files put in {time.perf_counter() - began:.0f} s")
        began = time.perf_counter()
        for copy in range(1, -(-files // PUT_FILES)):
            await fs.snapshot("/src", f"/copy-{copy}")
        totals = (await fs.status()).totals
        known = REPLICATION * min(files, PUT_FILES)

        async def reported() -> bool:
            return await replicas(fs) >= known

        await seconds_until(began, reported)
        print(
            f"{totals.files} files, {known} replicas; snapshots {time.perf_counter() - began:.0f} s"
        )
    stored = sum(path.stat().st_size for path in (state / "master").rglob("*.mdb"))
    print(
        f"master: {rss_mib(master_pid(state)):.0f} MiB of memory, {stored / MIB:.0f} MiB of files",
        flush=True,
    )
    runs = [await restart(state, number, known) for number in range(KILLS)]
    for what in runs[0]:
        each = [run[what] for run in runs]
        reported = ", ".join(f"{seconds:.2f}" for seconds in each)
        print(f"from kill -9 to {what:18} {statistics.median(each):6.2f} s ({reported})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with cluster.interrupted_cleanly(), cluster.running(folder=arguments.dir) as servers:
        trio.run(measure, servers.state, arguments.files)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
