"""How long it takes until everything is at its goal again after a chunkserver is lost.

The paper, 6.2.5: 15,000 chunks with 600 GB were restored in 23.2 minutes, at
440 MB/s. Here one of five chunkservers is killed that has about 600 chunks; what
counts is the time from the master's verdict, after ``dead_seconds``, to the last
copy. All on one machine: every byte copied is read, sent, verified and written by
the same processors and disk.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

import gfs
from bench.cluster import ENVIRONMENT, STOP_SECONDS, interrupted_cleanly
from gfs.blocks import MIB
from gfs.client import Client
from gfs.state import make_key

SERVERS = 5
REPLICATION = 3
DEAD_SECONDS = 3.0
LOOK_SECONDS = 0.02
START_SECONDS = 60.0
RECOVERY_SECONDS_MAX = 1800.0
PUTS_AT_ONCE = 32


@contextmanager
def running(directory: Path) -> Iterator[tuple[str, bytes, list[subprocess.Popen[bytes]]]]:
    """A master and chunkservers that nobody starts again: (its address, the key,
    the chunkservers)."""
    key = make_key(directory / "cluster.key")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    environment = {**ENVIRONMENT, "GFS_MASTER_DEAD_SECONDS": str(DEAD_SECONDS)}
    log = open(directory / "log", "ab")  # noqa: SIM115 - closed below

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "gfs.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip

    processes = [start("master", "--state", str(directory), "--address", address)]
    try:
        for number in range(SERVERS):
            processes.append(
                start(
                    "chunkserver", "--dir", str(directory / f"chunkserver-{number}"),
                    "--master", address, "--key-file", str(directory / "cluster.key"),
                )
            )  # fmt: skip
        yield address, key, processes[1:]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
                process.wait()
        log.close()


async def wait_live(fs: Client) -> None:
    with trio.fail_after(START_SECONDS):
        while True:
            states = [server.state for server in (await fs.status()).servers]
            if states.count("live") == SERVERS:
                return
            await trio.sleep(LOOK_SECONDS)


async def fill(fs: Client, chunks: int, size: int) -> None:
    """Files of one chunk each: about ``chunks`` of them on each server."""
    data = secrets.token_bytes(size)
    todo = iter(range(chunks * SERVERS // REPLICATION))

    async def put() -> None:
        for number in todo:
            await fs.put(data, f"/recovery/{number}", replication=REPLICATION)

    async with trio.open_nursery() as nursery:
        for _ in range(PUTS_AT_ONCE):
            nursery.start_soon(put)


async def recovery(fs: Client, victim: subprocess.Popen[bytes]) -> dict[str, float]:
    """Kill one, and wait until all is at its goal again."""
    victim.kill()
    victim.wait()
    killed = time.perf_counter()
    began, chunks = 0.0, 0
    with trio.fail_after(RECOVERY_SECONDS_MAX):
        while True:
            totals = (await fs.status()).totals
            now = time.perf_counter()
            chunks = max(chunks, totals.under_replicated)
            if not began and chunks:
                began = now
            if began and not totals.under_replicated:
                return {
                    "recovery_chunks": chunks,
                    "recovery_detection_s": began - killed,
                    "recovery_s": now - began,
                }
            await trio.sleep(LOOK_SECONDS)


async def measure(directory: Path, chunks: int, size: int) -> dict[str, float]:
    with running(directory) as (address, key, servers):
        async with gfs.connect(address, key=key) as fs:
            await wait_live(fs)
            await fill(fs, chunks, size)
            found = await recovery(fs, servers[0])
            report = await fs.fsck()
            if report.damaged:
                raise RuntimeError(f"after the recovery: {report.problems[:3]}")
    found["recovery_mb_per_s"] = found["recovery_chunks"] * size / 1e6 / found["recovery_s"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--chunks", type=int, default=600, help="on the server that is lost")
    parser.add_argument("--mib", type=float, default=8.0, help="size of each")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with (
        interrupted_cleanly(),
        tempfile.TemporaryDirectory(prefix="gfs-recovery-", dir=arguments.dir) as scratch,
    ):
        size = int(arguments.mib * MIB)
        found = trio.run(measure, Path(scratch), arguments.chunks, size)
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
