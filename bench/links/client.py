"""The process of one client, and what it does.

python -m bench.links.client MASTER KEY-FILE
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import trio

import gfs
from gfs.blocks import BLOCK_BYTES, KIB, MIB
from gfs.client import Client

REGION_BYTES = 4 * MIB
RECORD_BYTES = 64 * KIB
#: Records that one client has under way.
RECORDS_AT_ONCE = 32
PATIENCE_SECONDS = 120.0


class Counter:
    """Counts what is done between two instants; ``over`` is true after the second."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, end
        self.bytes = 0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def add(self, count: int) -> None:
        if self._begin <= time.monotonic() < self._end:
            self.bytes += count


async def write(fs: Client, number: int, clients: int, counter: Counter) -> None:
    """A new file, to be read later. The window is full after the warm-up, so that bytes are
    taken at the pace of their acknowledgement."""
    data = os.urandom(MIB)
    async with fs.create(f"/write/{clients}/{number}") as file:
        while not counter.over:
            await file.write(data)
            counter.add(len(data))


async def read(fs: Client, number: int, clients: int, counter: Counter, at_once: int = 1) -> None:
    """Random regions of all files."""
    runs = await fs.list("/write")
    files = [file for run in runs for file in await fs.list(run.path)]
    rng = random.Random(number)

    async def one() -> None:
        while not counter.over:
            file = rng.choices(files, [file.length for file in files])[0]
            at = rng.randrange((file.length - REGION_BYTES) // BLOCK_BYTES) * BLOCK_BYTES
            async with aclosing(fs.stream(file.path, at, REGION_BYTES)) as pieces:
                async for piece in pieces:
                    counter.add(len(piece))

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(one)


async def append(fs: Client, number: int, clients: int, counter: Counter) -> None:
    record = os.urandom(RECORD_BYTES)

    async def one() -> None:
        while not counter.over:
            await fs.append(f"/log-{clients}", record)
            counter.add(len(record))

    async with trio.open_nursery() as nursery:
        for _ in range(RECORDS_AT_ONCE):
            nursery.start_soon(one)


async def wait(fs: Client, number: int, clients: int, counter: Counter) -> None:
    """Until ``clients`` chunkservers serve."""
    live = 0
    while live < clients:
        await trio.sleep(0.05)
        live = [server.state for server in (await fs.status()).servers].count("live")


WORK: dict[str, Callable[[Client, int, int, Counter], Awaitable[None]]]
WORK = {
    "write": write,
    "read": read,
    "read4": partial(read, at_once=4),
    "append": append,
    "wait": wait,
}


async def serve(master: str, key: Path) -> None:
    """Do what is ordered, line by line."""
    async with gfs.connect(master, key=key) as fs:
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            load, number, clients, begin, end = json.loads(line)
            counter = Counter(begin, end)
            with trio.fail_after(end - time.monotonic() + PATIENCE_SECONDS):
                await WORK[load](fs, number, clients, counter)
            print(counter.bytes, flush=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], Path(sys.argv[2]))
