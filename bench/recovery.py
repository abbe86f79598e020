"""How long it takes until everything is at its goal again after a chunkserver is lost;
until one is drained; and until a new one has its share.

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
from contextlib import contextmanager, nullcontext
from pathlib import Path

import trio

import gfs
from bench.cluster import ENVIRONMENT, STOP_SECONDS, interrupted_cleanly
from gfs.blocks import MIB
from gfs.client import Client
from gfs.state import make_key

SERVERS = 5
REPLICATION = 3
SETTINGS = {"GFS_MASTER_DEAD_SECONDS": "3", "GFS_MASTER_BALANCE_SHARE": "0.02"}
#: As a chunkserver keeps free by default.
RESERVE_BYTES = 256 * MIB
#: A new server is even with the others at this share of their mean; and so long afterwards
#: it is looked at whether it stays so.
BALANCED, CALM_SECONDS = 0.9, 10.0
LOOK_SECONDS = 0.02
START_SECONDS = 60.0
RECOVERY_SECONDS_MAX = 1800.0
PUTS_AT_ONCE = 32


class Cluster:
    """A master and chunkservers that nobody starts again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.key = make_key(directory / "cluster.key")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.address = f"127.0.0.1:{taken.getsockname()[1]}"
        self._log = open(directory / "log", "ab")  # noqa: SIM115 - closed by stop
        self.master = self._start("master", "--state", str(directory), "--address", self.address)
        self.servers: list[subprocess.Popen[bytes]] = []

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "gfs.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env={**ENVIRONMENT, **SETTINGS}, start_new_session=True,
        )  # fmt: skip

    def add_server(self) -> None:
        folder = self._directory / f"chunkserver-{len(self.servers)}"
        self.servers.append(
            self._start(
                "chunkserver", "--dir", str(folder), "--master", self.address,
                "--key-file", str(self._directory / "cluster.key"),
            )
        )  # fmt: skip

    def stop(self) -> None:
        processes = [self.master, *self.servers]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
                process.wait()
        self._log.close()


@contextmanager
def running(directory: Path, servers: int) -> Iterator[Cluster]:
    cluster = Cluster(directory)
    try:
        for _ in range(servers):
            cluster.add_server()
        yield cluster
    finally:
        cluster.stop()


async def wait_live(fs: Client, count: int) -> None:
    with trio.fail_after(START_SECONDS):
        while True:
            states = [server.state for server in (await fs.status()).servers]
            if states.count("live") == count:
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


async def drained(fs: Client) -> dict[str, float]:
    """Drain one, and wait until nothing is there; it can be stopped when uploads that were
    reserved before are over, too."""
    server = max((await fs.status()).servers, key=lambda one: one.chunks)
    began = time.perf_counter()
    await fs.drain(server.id)
    with trio.fail_after(RECOVERY_SECONDS_MAX):
        while True:
            (now,) = [one for one in (await fs.status()).servers if one.id == server.id]
            if not now.chunks and not now.drain_chunks:
                break
            await trio.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - began
    return {
        "drain_replicas": server.chunks,
        "drain_s": seconds,
        "drain_replicas_per_s": server.chunks / seconds,
    }


async def balanced(fs: Client, before: set[str]) -> dict[str, float]:
    """Wait until the server that is new has nine tenths of the mean, and let it go on to
    see whether anything moves away from it again."""
    began, first = 0.0, 0.0
    most = 0
    with trio.fail_after(RECOVERY_SECONDS_MAX):
        while True:
            servers = (await fs.status()).servers
            new = [server for server in servers if server.id not in before]
            mean = sum(server.chunks for server in servers) / max(1, len(servers))
            now = time.perf_counter()
            began = began or (now if new else 0.0)
            first = first or (now if new and new[0].chunks else 0.0)
            if new and new[0].chunks >= BALANCED * mean:
                break
            await trio.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - first
    count = new[0].chunks
    for _ in range(int(CALM_SECONDS / LOOK_SECONDS)):
        (new_server,) = [one for one in (await fs.status()).servers if one.id not in before]
        most = max(most, new_server.chunks)
        await trio.sleep(LOOK_SECONDS)
    return {
        "balance_replicas": count,
        "balance_begins_s": first - began,
        "balance_s": seconds,
        "balance_replicas_per_s": count / seconds,
        "balance_share_of_mean": new_server.chunks / mean,
        "balance_moved_back": most - new_server.chunks,
    }


@contextmanager
def own_disks(directory: Path, count: int, chunks: int, size: int) -> Iterator[None]:
    """Each chunkserver on a file system of its own, in memory; as root only."""
    need = 2 * chunks * (size + 32 * 1024) + RESERVE_BYTES
    paths = [directory / f"chunkserver-{number}" for number in range(count)]
    mounted: list[Path] = []
    try:
        for path in paths:
            path.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={need}", "tmpfs", str(path)], check=True
            )
            mounted.append(path)
        yield
    finally:
        for path in mounted:
            subprocess.run(["umount", str(path)], check=True)


async def measure(directory: Path, what: str, chunks: int, size: int) -> dict[str, float]:
    with running(directory, SERVERS - (what == "balance")) as cluster:
        async with gfs.connect(cluster.address, key=cluster.key) as fs:
            await wait_live(fs, len(cluster.servers))
            await fill(fs, chunks, size)
            if what == "balance":
                before = {server.id for server in (await fs.status()).servers}
                cluster.add_server()
                found = await balanced(fs, before)
            elif what == "drain":
                found = await drained(fs)
            else:
                found = await recovery(fs, cluster.servers[0])
                seconds = found["recovery_s"]
                found["recovery_replicas_per_s"] = found["recovery_chunks"] / seconds
                found["recovery_mb_per_s"] = found["recovery_chunks"] * size / 1e6 / seconds
            report = await fs.fsck()
            if report.damaged:
                raise RuntimeError(f"afterwards: {report.problems[:3]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument(
        "what", nargs="?", default="recovery", choices=["recovery", "drain", "balance"],
        help="a server is killed; drained; or added, empty (as root: file systems in memory)",
    )  # fmt: skip
    parser.add_argument("--chunks", type=int, default=600, help="on each server")
    parser.add_argument("--mib", type=float, default=8.0, help="size of each")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    size, chunks = int(arguments.mib * MIB), arguments.chunks
    with (
        interrupted_cleanly(),
        tempfile.TemporaryDirectory(prefix="gfs-recovery-", dir=arguments.dir) as scratch,
        own_disks(Path(scratch), SERVERS, chunks, size)
        if arguments.what == "balance"
        else nullcontext(),
    ):
        found = trio.run(measure, Path(scratch), arguments.what, chunks, size)
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
