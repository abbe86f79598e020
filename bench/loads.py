"""The loads. Each returns figures; none of them checks a threshold."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

import gfs
from gfs.blocks import MIB
from gfs.client import Client

Figures = dict[str, float]


async def large_file(fs: Client, total: int) -> Figures:
    """Write and read one file from and to memory, three times; the medians."""
    piece = os.urandom(4 * MIB)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(total // len(piece)):
            yield piece
            await trio.lowlevel.checkpoint()

    writes, reads = [], []
    for number in range(3):
        path = f"/bench/large-{number}"
        started = time.perf_counter()
        await fs.put(source(), path)
        writes.append(total / MIB / (time.perf_counter() - started))
    for number in range(3):
        started = time.perf_counter()
        async with await fs.open(f"/bench/large-{number}") as file:
            buffer = bytearray(4 * MIB)
            done = 0
            while count := await file.readinto(buffer):
                done += count
        if done != total:
            raise RuntimeError(f"read {done} of {total} bytes")
        reads.append(total / MIB / (time.perf_counter() - started))
    for number in range(3):
        await fs.delete(f"/bench/large-{number}")
    return {"write_mib_s": sorted(writes)[1], "read_mib_s": sorted(reads)[1]}


async def _rate(
    call: Callable[[int], Awaitable[object]], concurrency: int, seconds: float
) -> tuple[float, list[float]]:
    """Calls per second and the sorted latencies of ``concurrency`` callers."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    number = 0

    async def caller() -> None:
        nonlocal number
        now = time.perf_counter()
        while now < end:
            number += 1
            await call(number)
            after = time.perf_counter()
            latencies.append(after - now)
            now = after

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(concurrency):
            nursery.start_soon(caller)
    rate = len(latencies) / (time.perf_counter() - started)
    return rate, sorted(latencies)


def _figures(name: str, rate: float, latencies: list[float]) -> Figures:
    return {
        f"{name}_per_s": rate,
        f"{name}_p50_ms": 1000 * latencies[len(latencies) // 2],
        f"{name}_p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


async def stats(fs: Client, seconds: float) -> Figures:
    """``stat`` of files two directories deep, at three depths of concurrency."""
    for number in range(100):
        await fs.put(b"x", f"/bench/stat/{number}")
    figures: Figures = {}
    for concurrency in (1, 16, 128):
        rate, latencies = await _rate(
            lambda n: fs.stat(f"/bench/stat/{n % 100}"), concurrency, seconds
        )
        figures |= _figures(f"stat_{concurrency}", rate, latencies)
    return figures


async def small_files(fs: Client, seconds: float) -> Figures:
    """Put, then get, files of 1 KiB with 16 calls in flight."""
    data = os.urandom(1024)
    put_rate, put_latencies = await _rate(lambda n: fs.put(data, f"/bench/small-{os.getpid()}/{n}"), 16, seconds)
    count = len(put_latencies)
    get_rate, get_latencies = await _rate(
        lambda n: fs.get(f"/bench/small-{os.getpid()}/{n % count + 1}"), 16, seconds
    )
    return _figures("put_1k_16", put_rate, put_latencies) | _figures(
        "get_1k_16", get_rate, get_latencies
    )


async def all_loads(state: Path, total: int, seconds: float) -> Figures:
    async with gfs.connect(state=state) as fs:
        figures = await large_file(fs, total)
        figures |= await stats(fs, seconds)
        figures |= await small_files(fs, seconds)
        return figures
