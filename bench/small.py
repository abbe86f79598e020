"""``python -m bench.small``: what one small file costs the processors, by process.

One client process stores and fetches small files: alone (``1``), in single calls of so many
tasks (``16``, ``64``), and with ``put_many`` and ``get_many`` of ``many`` at a time. Printed for
each: files a second, and the microseconds of processor time per file of the client, of the
master and of the chunkservers together. That time is what the machine's other work changes
least; the rate needs a machine that does nothing else.

The second line says what a wake-up costs there: how long a byte takes to another process and
back, both on one core, and on two. Where that of another core is dear, as on virtual machines
whose cores are halted when they have nothing to do, the kernel keeps on one core what wakes one
another, and small files keep one of several cores busy.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import trio

import gfs
from bench import cluster
from gfs.blocks import KIB
from gfs.client import Client

MANY = 64
FOLDER_FILES = 1000
#: Of each load, before it is measured: connections are made, code is warm.
WARM_SECONDS = 0.5

ROUND_TRIPS = 2000

Call = Callable[[int], Awaitable[int]]


@dataclass(frozen=True)
class Cost:
    """``*_us`` are microseconds of processor time per file."""

    load: str
    bytes: int
    durability: str
    per_s: float
    client_us: float
    master_us: float
    chunkservers_us: float

    @property
    def all_us(self) -> float:
        return self.client_us + self.master_us + self.chunkservers_us

    def line(self) -> str:
        return (
            f"{self.load:10}{self.bytes // KIB:4} KiB {self.durability:10}{self.per_s:8.0f}/s"
            f"{self.all_us:8.0f} µs = {self.client_us:.0f} client + {self.master_us:.0f} master"
            f" + {self.chunkservers_us:.0f} chunkservers"
        )


class Meter:
    """Processor time of the client (this process), the master and the chunkservers."""

    def __init__(self, servers: cluster.Running) -> None:
        self._servers = servers
        self._began = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        chunkservers = sum(map(cluster.cpu_seconds_of, self._servers.chunkservers))
        master = cluster.cpu_seconds_of(self._servers.master)
        return time.perf_counter(), time.process_time(), master, chunkservers

    def cost(self, load: str, size: int, durability: str, files: int) -> Cost:
        took, *used = (now - then for now, then in zip(self._now(), self._began, strict=True))
        us = [1e6 * seconds / files for seconds in used]
        return Cost(load, size, durability, files / took, *us)


def round_trip_us(here: int, there: int) -> float:
    """How long a byte takes from this process, on one core, to another one on that core, and
    back."""
    allowed = os.sched_getaffinity(0)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        os.sched_setaffinity(0, {there})
        while byte := theirs.recv(1):
            theirs.send(byte)
        os._exit(0)
    theirs.close()
    os.sched_setaffinity(0, {here})
    began = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        ours.send(b"x")
        ours.recv(1)
    took = time.perf_counter() - began
    ours.close()
    os.waitpid(child, 0)
    os.sched_setaffinity(0, allowed)
    return 1e6 * took / ROUND_TRIPS


async def repeat(call: Call, numbers: Iterator[int], tasks: int, seconds: float) -> int:
    """How many files ``tasks`` tasks that call so long have done."""
    done = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            files = await call(next(numbers))
            done += files

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(work)
    return done


@dataclass(frozen=True)
class Loads:
    fs: Client
    servers: cluster.Running
    durability: str
    seconds: float

    async def of(self, size: int, tasks: list[int]) -> list[Cost]:
        data, stored = os.urandom(size), count()
        folder = f"/small-{size}"

        def path(number: int) -> str:
            return f"{folder}/{number // FOLDER_FILES}/{number}"

        async def put(number: int) -> int:
            await self.fs.put(data, path(number))
            return 1

        async def put_many(_: int) -> int:
            found = await self.fs.put_many((path(next(stored)), data) for _ in range(MANY))
            return self._checked(found)

        costs = [await self._cost(f"put {n}", size, put, stored, n) for n in tasks]
        costs.append(await self._cost("put many", size, put_many, count(), 1))
        total = next(stored)

        async def get(number: int) -> int:
            await self.fs.get(path(number * 7919 % total))
            return 1

        async def get_many(number: int) -> int:
            numbers = range(number * MANY, (number + 1) * MANY)
            return self._checked(await self.fs.get_many(path(n * 7919 % total) for n in numbers))

        costs += [await self._cost(f"get {n}", size, get, count(), n) for n in tasks]
        costs.append(await self._cost("get many", size, get_many, count(), 1))
        return costs

    async def _cost(
        self, load: str, size: int, call: Call, numbers: Iterator[int], tasks: int
    ) -> Cost:
        await repeat(call, numbers, tasks, WARM_SECONDS)
        meter = Meter(self.servers)
        files = await repeat(call, numbers, tasks, self.seconds)
        cost = meter.cost(load, size, self.durability, files)
        print(cost.line(), flush=True)
        return cost

    @staticmethod
    def _checked(found: Sequence[object]) -> int:
        for each in found:
            if isinstance(each, Exception):
                raise each
        return len(found)


async def measure(
    servers: cluster.Running, durability: str, sizes: list[int], tasks: list[int], seconds: float
) -> list[Cost]:
    async with gfs.connect(state=servers.state) as fs:
        loads = Loads(fs, servers, durability, seconds)
        return [cost for size in sizes for cost in await loads.of(size, tasks)]


def numbers_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.small", description=__doc__)
    parser.add_argument("--kib", type=numbers_of, default=[1, 4, 64], help="sizes: 1,4,64")
    parser.add_argument("--tasks", type=numbers_of, default=[1, 16, 64], help="calls at a time")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per load")
    parser.add_argument("--durability", default="replicated,fsync")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for the servers")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    first, *rest = os.sched_getaffinity(0)
    trips = [f"{round_trip_us(first, core):.0f} µs" for core in (first, *rest[:1])]
    print(f"a byte to another process and back: {', over two cores '.join(trips)}")
    costs: list[Cost] = []
    with cluster.interrupted_cleanly():
        for durability in options.durability.split(","):
            environment = dict(each.split("=", 1) for each in options.set)
            environment["GFS_CHUNKSERVER_DURABILITY"] = durability
            with cluster.running(3, options.dir, environment) as servers:
                sizes = [kib * KIB for kib in options.kib]
                costs += trio.run(
                    measure, servers, durability, sizes, options.tasks, options.seconds
                )
    print(f"load average {os.getloadavg()[0]:.1f}")
    if options.json:
        found = [asdict(cost) for cost in costs]
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
