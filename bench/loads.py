"""The loads. Each returns figures; none of them checks a threshold."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType

import trio

import gfs
from gfs.blocks import MIB
from gfs.client import Client

Figures = dict[str, float]

PIECE_BYTES = 4 * MIB
#: Calls before the clock starts: connections are made, code is warm.
WARM_SECONDS = 0.5
BATCH = 64
SMALL_BYTES = 1024


# --- one large file ----------------------------------------------------------------


async def pieces(total: int) -> AsyncIterator[bytes]:
    """``total`` bytes from memory, the same piece again and again."""
    piece = os.urandom(PIECE_BYTES)
    for at in range(0, total, PIECE_BYTES):
        yield piece[: total - at]
        await trio.lowlevel.checkpoint()


async def write(fs: Client, path: str, total: int) -> float:
    """MiB/s of a put from memory until it is acknowledged."""
    started = time.perf_counter()
    await fs.put(pieces(total), path)
    return total / MIB / (time.perf_counter() - started)


async def read(fs: Client, path: str, total: int) -> float:
    """MiB/s of reading a whole file, verified, into memory that is reused."""
    buffer = bytearray(PIECE_BYTES)
    done = 0
    started = time.perf_counter()
    async with await fs.open(path) as file:
        while count := await file.readinto(buffer):
            done += count
    took = time.perf_counter() - started
    if done != total:
        raise RuntimeError(f"read {done} of {total} bytes")
    return total / MIB / took


async def calls_per_mib(fs: Client, total: int) -> Figures:
    """How many functions the client calls, in Python and from it, for each MiB.

    The measure that other load on the machine does not change.
    """
    figures = {}
    for name, load in (("write", write), ("read", read)):
        count = 0

        def note(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            await load(fs, "/bench/calls", total)
        finally:
            sys.setprofile(None)
        figures[f"{name}_client_calls_per_mib"] = count / (total / MIB)
    await fs.delete("/bench/calls", now=True)
    return figures


# --- many small calls ----------------------------------------------------------------


async def _rate(
    name: str, call: Callable[[int], Awaitable[object]], concurrency: int, seconds: float
) -> Figures:
    """Calls per second, and latencies, of ``concurrency`` callers."""
    latencies: list[float] = []
    number = 0
    warm = time.perf_counter() + WARM_SECONDS
    end = warm + seconds

    async def caller() -> None:
        nonlocal number
        now = time.perf_counter()
        while now < end:
            number += 1
            await call(number)
            after = time.perf_counter()
            if after >= warm:
                latencies.append(after - now)
            now = after

    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(caller)
    took = time.perf_counter() - warm
    latencies.sort()
    return {
        f"{name}_per_s": len(latencies) / took,
        f"{name}_p50_ms": 1000 * latencies[len(latencies) // 2],
        f"{name}_p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


async def stats(fs: Client, seconds: float) -> Figures:
    """``stat`` of files two directories deep, at three depths of concurrency."""
    for number in range(100):
        await fs.put(b"x", f"/bench/stat/{number}")
    figures: Figures = {}
    for concurrency in (1, 16, 128):
        figures |= await _rate(
            f"stat_{concurrency}", lambda n: fs.stat(f"/bench/stat/{n % 100}"), concurrency, seconds
        )
    return figures


async def small_files(fs: Client, concurrency: int, seconds: float) -> Figures:
    """Put, then get, files of 1 KiB."""
    data = os.urandom(SMALL_BYTES)
    folder = f"/bench/small-{concurrency}"
    count = 0

    async def put(number: int) -> None:
        nonlocal count
        await fs.put(data, f"{folder}/{number}")
        count = max(count, number)

    async def get(number: int) -> None:
        await fs.get(f"{folder}/{number % count + 1}")

    figures = await _rate(f"put_1k_{concurrency}", put, concurrency, seconds)
    return figures | await _rate(f"get_1k_{concurrency}", get, concurrency, seconds)


async def batches(fs: Client, seconds: float) -> Figures:
    """``put_many``, then ``get_many``, of so many files of 1 KiB at once; rates are of batches."""
    data, count = os.urandom(SMALL_BYTES), 0

    def paths(number: int) -> list[str]:
        return [f"/bench/batch-{number}/{each}" for each in range(BATCH)]

    async def put(number: int) -> None:
        nonlocal count
        results = await fs.put_many((path, data) for path in paths(number))
        assert not any(isinstance(each, Exception) for each in results), results
        count = max(count, number)

    async def get(number: int) -> None:
        results = await fs.get_many(paths(number % count + 1))
        assert not any(isinstance(each, Exception) for each in results), results

    figures = await _rate("put_many_1k", put, 1, seconds)
    return figures | await _rate("get_many_1k", get, 1, seconds)


async def all_small(state: Path, seconds: float) -> Figures:
    async with gfs.connect(state=state) as fs:
        figures = await stats(fs, seconds)
        for concurrency in (1, 16):
            figures |= await small_files(fs, concurrency, seconds)
        return figures | await batches(fs, seconds)
