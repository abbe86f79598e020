"""Record append from many clients to one file.

    python -m bench.append [--clients 16] [--processes 4] [--in-flight 1] [--seconds 5]

A whole cluster on this machine, three replicas. The clients, in processes of their
own, each append a record, wait for its place, and append the next; with
``--in-flight``, so many at a time. For each size: records and bytes acknowledged in a
second, how long one took, and what the processors did for each record, which other
load on the machine changes least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import trio

import gfs
from bench import cluster
from bench.loads import WARM_SECONDS
from gfs.blocks import KIB, MIB

SIZES = [100, 4 * KIB, 64 * KIB, MIB]
PATH = "/log"
#: For a worker to end, beyond the time it measures.
PATIENCE_SECONDS = 60.0


# --- one process of clients -----------------------------------------------------------


async def append(state: Path, clients: int, in_flight: int, size: int, seconds: float) -> None:
    """Report when ready, begin on command, and print how long each record took."""
    taken: list[float] = []
    record = os.urandom(size)

    async def one(fs: gfs.Client, warm: float, end: float) -> None:
        while (began := time.perf_counter()) < end:
            await fs.append(PATH, record)
            if began >= warm:
                taken.append(time.perf_counter() - began)

    async def client(ready: trio.Event, go: trio.Event) -> None:
        async with gfs.connect(state=state) as fs:
            await fs.append(PATH, b"hello")
            ready.set()
            await go.wait()
            warm = time.perf_counter() + WARM_SECONDS
            async with trio.open_nursery() as nursery:
                for _ in range(in_flight):
                    nursery.start_soon(one, fs, warm, warm + seconds)

    async with trio.open_nursery() as nursery:
        all_ready, go = [trio.Event() for _ in range(clients)], trio.Event()
        for ready in all_ready:
            nursery.start_soon(client, ready, go)
        for ready in all_ready:
            await ready.wait()
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        used = time.process_time()
        go.set()
    print(json.dumps([taken, time.process_time() - used]))


# --- all of them ----------------------------------------------------------------------


def measure(servers: cluster.Running, options: argparse.Namespace, size: int) -> str:
    share = options.clients // options.processes
    command = [
        sys.executable, "-m", "bench.append", "--worker", str(servers.state),
        "--clients", str(share), "--in-flight", str(options.in_flight),
        "--sizes", str(size), "--seconds", str(options.seconds),
    ]  # fmt: skip
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(options.processes)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError("a process of clients failed: see above")
        used = servers.cpu_seconds()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        reported = [worker.communicate(timeout=PATIENCE_SECONDS)[0] for worker in workers]
        used = servers.cpu_seconds() - used
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    results = [json.loads(text) for text in reported]
    taken = sorted(seconds * 1000 for times, _ in results for seconds in times)
    rate = len(taken) / options.seconds
    # They worked in the warm-up as well.
    done = rate * (options.seconds + WARM_SECONDS)
    servers_each = used / done * 1e6
    clients_each = sum(seconds for _, seconds in results) / done * 1e6
    p50, p99 = (taken[len(taken) * n // 100] for n in (50, 99))
    return (
        f"{size:8} B: {rate:7.0f} records/s, {rate * size / MIB:6.1f} MiB/s, "
        f"p50 {p50:6.2f} ms, p99 {p99:6.2f} ms, CPU of a record: servers {servers_each:.0f} us, "
        f"clients {clients_each:.0f} us, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.append", description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--processes", type=int, default=4, help="of clients")
    parser.add_argument("--in-flight", type=int, default=1, help="records of one client")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of a record, bytes")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    parser.add_argument("--worker", type=Path, metavar="STATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        trio.run(
            append,
            options.worker,
            options.clients,
            options.in_flight,
            options.sizes[0],
            options.seconds,
        )
        return
    with cluster.interrupted_cleanly(), cluster.running(folder=options.dir) as servers:
        for size in options.sizes:
            print(measure(servers, options, size), flush=True)


if __name__ == "__main__":
    main()
