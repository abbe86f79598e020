"""``python -m bench.failover``: how long a cluster with an elected master is without one.

Three masters that an engine elects, and three chunkservers, all on this machine. Under a load
of puts the holder is killed with SIGKILL, many times; each time it is started again, and the
next kill waits until two shadow masters have everything. With ``--stop`` it gets SIGSTOP, as if
its machine had lost its power, and SIGCONT afterwards. Measured from each kill: until a put
is acknowledged again. Throughout, one register is written with rising numbers, and read through
each of the masters alone: a number below one that was acknowledged before the read began would
be that of a master which is over. At the end everything acknowledged is read.

The engine is an etcd of its own (``etcd`` must be installed), or what ``--elect`` names.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

import gfs
from gfs.client import Client
from gfs.config import ClientSettings
from gfs.errors import GfsError
from gfs.state import make_key

MASTERS, CHUNKSERVERS, WRITERS = 3, 3, 4
#: So many are acknowledged before the next kill.
PUTS = 200
WAIT_SECONDS_MAX = 120.0
#: What is acknowledged so soon was on its way from the victim: its hold lasts longer.
UNDER_WAY_SECONDS = 0.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def etcd(directory: Path) -> Iterator[str]:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    process = subprocess.Popen(
        [
            *(shutil.which("etcd") or sys.exit("there is no etcd: install it, or name --elect"),),
            *("--data-dir", str(directory / "etcd"), "--log-level", "error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}"),
        ]
    )
    try:
        yield f"etcd://{client.removeprefix('http://')}/bench"
    finally:
        process.kill()
        process.wait()


class Machines:
    """The processes, each with a directory of its own."""

    def __init__(self, directory: Path, elect: str) -> None:
        self._directory = directory
        self._elect = elect
        self._key = directory / "cluster.key"
        self.key = make_key(self._key)
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(MASTERS)]
        self._masters = [self._master(number) for number in range(MASTERS)]
        self._others = [
            self._gfs("chunkserver", "--dir", str(directory / f"disk{n}"), "--master", self.all)
            for n in range(CHUNKSERVERS)
        ]

    @property
    def all(self) -> str:
        return ",".join(self.addresses)

    def _gfs(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self._directory / "log", "ab") as log:
            command = [sys.executable, "-m", "gfs.cli", *arguments, "--key-file", str(self._key)]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _master(self, number: int) -> subprocess.Popen[bytes]:
        return self._gfs(
            *("master", "--state", str(self._directory / f"master{number}")),
            *("--address", self.addresses[number], "--elect", self._elect),
        )

    def kill(self, number: int, stop: bool) -> float:
        """When it was killed, and started again; or stopped, until it is made to go on."""
        self._masters[number].send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
        killed = time.perf_counter()
        if not stop:
            self._masters[number].wait()
            self._masters[number] = self._master(number)
        return killed

    def go_on(self, number: int) -> None:
        self._masters[number].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in (*self._masters, *self._others):
            process.kill()
            process.wait()


class Load:
    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.last = time.perf_counter()
        self.changed = trio.Event()
        self.register = 0
        self.reads = 0

    @property
    def count(self) -> int:
        return len(self.acknowledged)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while not condition():
                self.changed = trio.Event()
                await self.changed.wait()

    async def put(self, fs: Client, writer: int) -> None:
        for number in range(1_000_000_000):
            path = f"/{writer}/{number}"
            await fs.put(path.encode(), path)
            self.acknowledged.append(path)
            self.last = time.perf_counter()
            self.changed.set()

    async def write_register(self, fs: Client) -> None:
        for number in range(1, 1_000_000_000):
            await fs.put(str(number).encode(), "/register", overwrite=True)
            self.register = number

    async def read_register(self, machines: Machines, number: int) -> None:
        """Of one master alone, whether it serves or not."""
        nobody = "127.0.0.1:1"  # with one address it would ask a shadow master, too
        settings = ClientSettings(retry_seconds=0.1)
        while True:
            with suppress(GfsError):
                address = f"{machines.addresses[number]},{nobody}"
                async with gfs.connect(address, key=machines.key, settings=settings) as fs:
                    while True:
                        before = self.register
                        found = int(await fs.get("/register"))
                        self.reads += 1
                        assert found >= before, f"master {number}: {found} after {before}"
                        await trio.sleep(0.02)
            await trio.sleep(0.05)


async def holder(fs: Client, machines: Machines) -> int:
    """Once two shadow masters have everything."""
    with trio.fail_after(WAIT_SECONDS_MAX):
        while True:
            with suppress(GfsError):
                status, election = await fs.status(), await fs.election()
                following = [each for each in status.shadows if each.state == "following"]
                if len(following) == MASTERS - 1 and election.holder in machines.addresses:
                    return machines.addresses.index(election.holder)
            await trio.sleep(0.05)


async def measure(machines: Machines, times: int, stop: bool) -> list[float]:
    load, found = Load(), []
    async with gfs.connect(machines.all, key=machines.key) as fs:
        await holder(fs, machines)
        async with trio.open_nursery() as nursery:
            for writer in range(WRITERS):
                nursery.start_soon(load.put, fs, writer)
            nursery.start_soon(load.write_register, fs)
            for number in range(MASTERS):
                nursery.start_soon(load.read_register, machines, number)
            for number in range(times):
                await load.until(lambda wanted=load.count + PUTS: load.count >= wanted)
                victim = await holder(fs, machines)
                killed = await trio.to_thread.run_sync(machines.kill, victim, stop)
                await load.until(lambda killed=killed: load.last > killed + UNDER_WAY_SECONDS)
                machines.go_on(victim)
                found.append(load.last - killed)
                print(f"{number + 1:4}: {found[-1]:.2f} s", flush=True)
            nursery.cancel_scope.cancel()
        for path in load.acknowledged:
            assert await fs.get(path) == path.encode(), path
    print(
        f"{len(load.acknowledged)} puts acknowledged and all of them read; "
        f"{load.reads} reads of the register, none older than what was acknowledged"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead of SIGKILL")
    parser.add_argument("--elect", help="an engine that runs already")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with etcd(directory) if chosen.elect is None else _given(chosen.elect) as elect:
            machines = Machines(directory, elect)
            try:
                found = sorted(trio.run(measure, machines, chosen.times, chosen.stop))
            finally:
                machines.stop()
    what = "stops" if chosen.stop else "kills"
    print(
        f"until a put is acknowledged again, of {len(found)} {what}: "
        f"p50 {statistics.median(found):.2f} s, "
        f"p99 {found[min(len(found) - 1, len(found) * 99 // 100)]:.2f} s, most {found[-1]:.2f} s"
    )


@contextmanager
def _given(elect: str) -> Iterator[str]:
    yield elect


if __name__ == "__main__":
    main()
