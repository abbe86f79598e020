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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import trio

import gfs
from bench.cluster import ENVIRONMENT, STOP_SECONDS, cpu_seconds_of, interrupted_cleanly
from gfs.blocks import BLOCK_BYTES, MIB
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
#: Then all chunkservers have reported how much they have.
HEARTBEATS_SECONDS = 2.0
START_SECONDS = 60.0
RECOVERY_SECONDS_MAX = 1800.0
PUTS_AT_ONCE = 32


class Cluster:
    """A master and chunkservers that nobody starts again."""

    def __init__(self, directory: Path, settings: Mapping[str, str] = SETTINGS) -> None:
        self._directory = directory
        self._settings = settings
        self.key = make_key(directory / "cluster.key")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.address = f"127.0.0.1:{taken.getsockname()[1]}"
        self._log = open(directory / "log", "ab")  # noqa: SIM115 - closed by stop
        self.start_master()
        self.servers: list[subprocess.Popen[bytes]] = []

    def start_master(self) -> None:
        state = str(self._directory)
        self.master = self._start("master", "--state", state, "--address", self.address)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "gfs.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env={**ENVIRONMENT, **self._settings}, start_new_session=True,
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
def running(
    directory: Path, servers: int, settings: Mapping[str, str] = SETTINGS
) -> Iterator[Cluster]:
    cluster = Cluster(directory, settings)
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
    files = chunks * SERVERS // REPLICATION
    at_once = min(256, max(1, 16 * MIB // size))
    todo = iter(range(0, files, at_once))

    async def put() -> None:
        for start in todo:
            numbers = range(start, min(start + at_once, files))
            paths = [f"/recovery/{number // 1000}/{number}" for number in numbers]
            results = await fs.put_many([(path, data) for path in paths], replication=REPLICATION)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async with trio.open_nursery() as nursery:
        for _ in range(max(2, PUTS_AT_ONCE // at_once)):
            nursery.start_soon(put)


class Work:
    """What the servers take of the processors, per replica."""

    def __init__(self, cluster: Cluster) -> None:
        self._pids = [each.pid for each in (cluster.master, *cluster.servers) if not each.poll()]
        self._before = [*map(cpu_seconds_of, self._pids)]

    def per_replica(self, what: str, replicas: int) -> dict[str, float]:
        used = [cpu_seconds_of(pid) for pid in self._pids]
        used = [after - before for after, before in zip(used, self._before, strict=True)]
        each = {"master": used[0], "chunkservers": sum(used[1:])}
        return {f"{what}_{name}_cpu_us": 1e6 * cpu / replicas for name, cpu in each.items()}


async def recovery(fs: Client, cluster: Cluster) -> dict[str, float]:
    """Kill one, and wait until all is at its goal again."""
    await trio.sleep(HEARTBEATS_SECONDS)
    known = {server.id: server.chunks for server in (await fs.status()).servers}
    victim = cluster.servers.pop(0)
    victim.kill()
    victim.wait()
    killed = time.perf_counter()
    began = 0.0
    work = Work(cluster)
    with trio.fail_after(RECOVERY_SECONDS_MAX):
        while True:
            status = await fs.status()
            now = time.perf_counter()
            if not began and status.totals.under_replicated:
                began = now
            if began and not status.totals.under_replicated:
                break
            await trio.sleep(LOOK_SECONDS)
    (replicas,) = [known[server.id] for server in status.servers if server.state == "dead"]
    return {
        "recovery_chunks": replicas,
        "recovery_detection_s": began - killed,
        "recovery_s": now - began,
        **work.per_replica("recovery", replicas),
    }


async def drained(fs: Client, cluster: Cluster) -> dict[str, float]:
    """Drain one, and wait until nothing is there; it can be stopped when uploads that were
    reserved before are over, too."""
    server = max((await fs.status()).servers, key=lambda one: one.chunks)
    began = time.perf_counter()
    work = Work(cluster)
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
        **work.per_replica("drain", server.chunks),
    }


async def balanced(fs: Client, cluster: Cluster) -> dict[str, float]:
    """Add one, wait until it has nine tenths of the mean, and let it go on to see whether
    anything moves away from it again."""
    before = {server.id for server in (await fs.status()).servers}
    cluster.add_server()
    work = Work(cluster)
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
    used = work.per_replica("balance", count)
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
        **used,
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


async def measure(
    directory: Path, what: str, chunks: int, size: int, packed: bool
) -> dict[str, float]:
    settings = {**SETTINGS, "GFS_CHUNKSERVER_PACKED_BYTES_MAX": str(BLOCK_BYTES * packed)}
    with running(directory, SERVERS - (what == "balance"), settings) as cluster:
        async with gfs.connect(cluster.address, key=cluster.key) as fs:
            await wait_live(fs, len(cluster.servers))
            await fill(fs, chunks, size)
            if what == "balance":
                found = await balanced(fs, cluster)
            elif what == "drain":
                found = await drained(fs, cluster)
            else:
                found = await recovery(fs, cluster)
                seconds = found["recovery_s"]
                found["recovery_replicas_per_s"] = found["recovery_chunks"] / seconds
                found["recovery_mb_per_s"] = found["recovery_chunks"] * size / 1e6 / seconds
            # Many small ones take minutes.
            report = await fs.fsck("/recovery" if size >= MIB else "/recovery/0")
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
    parser.add_argument("--packed", action="store_true", help="small replicas, many in one file")
    arguments = parser.parse_args()
    size, chunks = int(arguments.mib * MIB), arguments.chunks
    with (
        interrupted_cleanly(),
        tempfile.TemporaryDirectory(prefix="gfs-recovery-", dir=arguments.dir) as scratch,
        own_disks(Path(scratch), SERVERS, chunks, size)
        if arguments.what == "balance"
        else nullcontext(),
    ):
        found = trio.run(measure, Path(scratch), arguments.what, chunks, size, arguments.packed)
    for name, value in found.items():
        print(f"{name:24} {value:10.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
