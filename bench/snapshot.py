"""Snapshot of a tree of many files, and what others notice of it meanwhile.

    python -m bench.snapshot [--files 100000]

A whole cluster on this machine; the files have 100 bytes each, three replicas. While
the snapshot is made, one other client asks for a file's entry again and again, and
another one makes directories elsewhere; the same before, with nothing else to do.
Then the first write to a shared chunk of 64 MiB, which is copied by three servers,
beside one to a chunk that is not shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

import gfs
from bench import cluster
from gfs.blocks import CHUNK_BYTES
from gfs.client import Client

FILES_PER_DIRECTORY = 1000
WRITERS = 64
QUIET_SECONDS = 5.0
CONTENT = bytes(range(100))
WRITES = 5


class Latencies:
    """Of calls made one after another, in milliseconds."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def run(self, call: Callable[[int], Awaitable[object]]) -> None:
        number = 0
        while True:
            began = time.perf_counter()
            await call(number)
            self.taken.append((time.perf_counter() - began) * 1000)
            number += 1

    def __str__(self) -> str:
        taken = sorted(self.taken)
        p99 = taken[min(len(taken) - 1, len(taken) * 99 // 100)]
        middle = statistics.median(taken)
        high = f"p99 {p99:.2f} ms, max {taken[-1]:.1f} ms"
        return f"{len(taken):7} calls, median {middle:.2f} ms, {high}"


async def fill(fs: Client, files: int) -> None:
    numbers = iter(range(files))

    async def write() -> None:
        for n in numbers:
            await fs.put(CONTENT, f"/src/{n // FILES_PER_DIRECTORY}/{n}")

    async with trio.open_nursery() as nursery:
        for _ in range(WRITERS):
            nursery.start_soon(write)


@asynccontextmanager
async def others(state: Path, title: str) -> AsyncIterator[None]:
    """Two clients that do something else, and what they noticed."""
    stats, mkdirs = Latencies(), Latencies()
    async with (
        gfs.connect(state=state) as reader,
        gfs.connect(state=state) as writer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stats.run, lambda _: reader.stat("/src/0/0"))
        nursery.start_soon(mkdirs.run, lambda n: writer.mkdir(f"/{title.replace(' ', '-')}-{n}"))
        yield
        nursery.cancel_scope.cancel()
    print(f"{title}: stat   {stats}\n{title}: mkdir  {mkdirs}", flush=True)


async def first_write(fs: Client, path: str) -> float:
    async with await fs.open(path, "r+") as file:
        began = time.perf_counter()
        await file.pwrite(CHUNK_BYTES // 2, b"x")
        return (time.perf_counter() - began) * 1000


async def measure(state: Path, files: int) -> None:
    async with gfs.connect(state=state) as fs:
        began = time.perf_counter()
        await fill(fs, files)
        print(f"{files} files put in {time.perf_counter() - began:.1f} s", flush=True)
        async with others(state, "alone"):
            await trio.sleep(QUIET_SECONDS)
        async with others(state, "with the snapshot"):
            began = time.perf_counter()
            reply = await fs.snapshot("/src", "/dst")
            taken = time.perf_counter() - began
        print(f"snapshot of {reply.files} files: {taken:.2f} s, {reply.files / taken:.0f} files/s")
        await fs.put(bytes(CHUNK_BYTES), "/large")
        alone, shared = [], []
        for number in range(WRITES):
            alone.append(await first_write(fs, "/large"))
            await fs.snapshot("/large", f"/large-{number}")
            shared.append(await first_write(fs, "/large"))
        print(
            f"first write of a chunk of 64 MiB: {statistics.median(alone):.1f} ms alone, "
            f"{statistics.median(shared):.1f} ms when it is shared and copied"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.snapshot", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with cluster.interrupted_cleanly(), cluster.running(folder=arguments.dir) as servers:
        trio.run(measure, servers.state, arguments.files)


if __name__ == "__main__":
    main()
