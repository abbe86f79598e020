"""What a client takes of memory, and what its load takes of the servers'.

    python -m bench.memory --gib 10

Each load runs in a process of its own, which notes its resident set when it is
connected and idle, and the highest it ever was under the load (``VmHWM``). The
loads keep nothing themselves: one large file is streamed from a generator that
repeats one piece, and into a sink; 400 writers share what they write.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import trio

import gfs
from bench import cluster, loads
from gfs.blocks import KIB, MIB
from gfs.client import Client, File

LARGE = "/memory/large"
WRITE_BYTES = 64 * KIB


def resident(pid: int | str = "self", field: str = "VmRSS") -> float:
    """MiB of a process's resident set now, or with ``VmHWM`` at its highest."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def forget_peak(pid: int | str = "self") -> None:
    """From here on ``VmHWM`` counts anew. Where that is not allowed it goes on
    counting from the process's start, which can only make a figure worse."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


# --- the loads ---------------------------------------------------------------------


async def put(fs: Client, arguments: argparse.Namespace) -> None:
    await fs.put(loads.pieces(int(arguments.gib * 1024) * MIB), LARGE)


async def get(fs: Client, arguments: argparse.Namespace) -> None:
    with open(os.devnull, "wb", buffering=0) as sink:  # noqa: ASYNC230 - it never blocks
        entry = await fs.get(LARGE, sink)
    if entry.length != int(arguments.gib * 1024) * MIB:
        raise RuntimeError(f"{entry.length} bytes came back")


async def writers(fs: Client, arguments: argparse.Namespace) -> None:
    """All files are open at once: the first is closed when all are written."""
    data = os.urandom(WRITE_BYTES)

    async def fill(file: File) -> None:
        for _ in range(arguments.writer_mib * MIB // WRITE_BYTES):
            await file.write(data)

    async with AsyncExitStack() as files:
        opened = [
            await files.enter_async_context(await fs.open(f"/memory/writers/{number}", "w"))
            for number in range(arguments.writers)
        ]
        async with trio.open_nursery() as nursery:
            for file in opened:
                nursery.start_soon(fill, file)


LOADS: dict[str, Callable[[Client, argparse.Namespace], Awaitable[None]]] = {
    "put": put,
    "get": get,
    "writers": writers,
}


async def run_load(arguments: argparse.Namespace) -> dict[str, float]:
    """In the load's own process."""
    async with gfs.connect(state=arguments.state) as fs:
        await fs.status()
        gc.collect()
        idle = resident()
        forget_peak()
        started = time.perf_counter()
        await LOADS[arguments.load](fs, arguments)
        seconds = time.perf_counter() - started
        peak = resident(field="VmHWM")
    return {"idle_mib": idle, "peak_mib": peak, "over_idle_mib": peak - idle, "seconds": seconds}


# --- the bench ---------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    with cluster.running(folder=arguments.dir) as servers:
        for load in LOADS:
            for pid in servers.pids:
                forget_peak(pid)
            found[load] = in_a_process(load, servers.state, arguments)
            found[load]["master_peak_mib"] = resident(servers.master, "VmHWM")
            found[load]["chunkserver_peak_mib"] = max(
                resident(pid, "VmHWM") for pid in servers.chunkservers
            )
            print(describe(load, found[load], arguments), flush=True)
    return found


def in_a_process(load: str, state: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.memory", "--load", load, "--state", str(state)]
    for name in ("gib", "writers", "writer_mib"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=cluster.ENVIRONMENT, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def describe(load: str, figures: dict[str, float], arguments: argparse.Namespace) -> str:
    what = {
        "put": f"put of one file of {arguments.gib:g} GiB",
        "get": f"get of one file of {arguments.gib:g} GiB",
        "writers": f"{arguments.writers} writers at once, {arguments.writer_mib} MiB each",
    }[load]
    return (
        f"{what}: {figures['over_idle_mib']:.1f} MiB over idle ({figures['peak_mib']:.1f} over "
        f"{figures['idle_mib']:.1f}), in {figures['seconds']:.0f} s; at their highest the master "
        f"had {figures['master_peak_mib']:.0f} MiB, a chunkserver "
        f"{figures['chunkserver_peak_mib']:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory",
        description="Measure the memory of a client, and of the servers, under load.",
    )
    parser.add_argument("--gib", type=float, default=10.0, help="size of the large file")
    parser.add_argument("--writers", type=int, default=400, help="files being written at once")
    parser.add_argument("--writer-mib", type=int, default=4, help="size of each of them")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    parser.add_argument("--load", choices=LOADS, help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        json.dump(trio.run(run_load, arguments), sys.stdout)
        return
    with cluster.interrupted_cleanly():
        measure(arguments)


if __name__ == "__main__":
    main()
