"""``python -m bench.samples``: random batches of samples, beside a local directory.

Files of 4 KiB to 100 KiB, of each order of size as many (30 KiB on average), are stored in a
cluster on this machine, and after that in a directory on the same disk, which need not have room
for both. Then so many processes read batches of 256, drawn at random, each sample once, as the
workers of a data loader do: by ``gfs.data.Files``, and by ``open`` and ``read``. Printed is the sum
of the samples that each process read in a second, *cold*, after the kernel was asked to forget the
files, and *warm*, for only the samples just read cold; and the microseconds of processor time of a
sample, the servers' with it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gfs.data
from bench import cluster
from bench.circumstances import OUT, circumstances
from gfs.blocks import KIB, MIB
from gfs.client import sync

BATCH = 256
SIZES = 4 * KIB, 100 * KIB
FOLDER_FILES = 1000
#: All workers have begun within this.
START_SECONDS = 120.0
#: Samples are cut out of this much noise.
NOISE_BYTES = 16 * MIB
#: Of a worker: until all have begun.
start: Any = None


def name(number: int) -> str:
    return f"{number // FOLDER_FILES}/{number}"


class LocalFiles:
    """As ``gfs.data.Files``."""

    def __init__(self, root: Path, count: int) -> None:
        self._root, self._count = str(root), count

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        found = []
        for index in indices:
            with open(f"{self._root}/{name(index)}", "rb", buffering=0) as file:
                found.append(file.read())
        return found


def samples(count: int) -> Iterator[tuple[str, bytes]]:
    """The same names and bytes each time."""
    chance = random.Random(1)
    noise = chance.randbytes(NOISE_BYTES)
    for number in range(count):
        size = round(math.exp(chance.uniform(*map(math.log, SIZES))))
        at = chance.randrange(NOISE_BYTES - size)
        yield name(number), noise[at : at + size]


def store(fs: sync.Client, count: int, replication: int) -> None:
    items = ((f"/samples/{path}", data) for path, data in samples(count))
    while batch := list(itertools.islice(items, BATCH)):
        for each in fs.put_many(batch, replication=replication):
            if isinstance(each, Exception):
                raise each


def store_locally(root: Path, count: int) -> None:
    for path, data in samples(count):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)


def forget(folder: Path) -> None:
    """Have the kernel drop the pages of these files."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".mdb", ".json"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def begin(barrier: Any) -> None:
    global start
    start = barrier


def work(files: Any, seconds: float, part: slice, most: int) -> tuple[int, int, float, float]:
    order = list(range(len(files)))
    random.Random(0).shuffle(order)
    mine = order[part][:most]
    files.__getitems__([0])  # it is connected then
    start.wait(START_SECONDS)
    samples = size = 0
    began, used = time.perf_counter(), time.process_time()
    while samples < len(mine) and time.perf_counter() < began + seconds:
        batch = files.__getitems__(mine[samples : samples + BATCH])
        samples += len(batch)
        size += sum(map(len, batch))
    return samples, size, time.perf_counter() - began, time.process_time() - used


def rate(
    files: Any, most: Sequence[int], seconds: float, servers: Callable[[], float]
) -> tuple[list[int], float, float, float]:
    """How many samples each worker read, of at most so many; samples and MiB a second of all
    workers; and microseconds of a sample. ``servers``: the processor seconds of theirs until now.
    """
    workers = len(most)
    context = multiprocessing.get_context("spawn")
    parts = [slice(first, None, workers) for first in range(workers)]
    used = servers()
    # One that dies is an error here, and no wait without end.
    with ProcessPoolExecutor(workers, context, begin, (context.Barrier(workers),)) as pool:
        found = list(pool.map(partial(work, files, seconds), parts, most))
    used = servers() - used + sum(each[3] for each in found)
    per_s = sum(samples / took for samples, _, took, _ in found)
    mib_per_s = sum(size / took for _, size, took, _ in found) / MIB
    counts = [each[0] for each in found]
    return counts, per_s, mib_per_s, 1e6 * used / sum(counts)


def measure(
    place: str,
    files: Any,
    folder: Path,
    arguments: argparse.Namespace,
    servers: Callable[[], float] = lambda: 0.0,
) -> dict[str, tuple[float, float]]:
    result = {}
    for workers in map(int, arguments.workers.split(",")):
        forget(folder)
        counts = [len(files)] * workers
        for state in ("cold", "warm"):
            counts, per_s, mib_per_s, us = rate(files, counts, arguments.seconds, servers)
            result[f"{place}_{workers}_{state}"] = per_s, us
            print(
                f"{workers:3} workers, {place:5} {state} {per_s:8.0f} samples/s "
                f"{mib_per_s:7.0f} MiB/s {us:5.0f} µs",
                flush=True,
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.samples", description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--workers", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--replication", type=int, default=1, help="reads need one replica")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    count: int = arguments.files
    started, load_before = time.time(), os.getloadavg()[0]
    result: dict[str, Any] = {"files": count}

    def stored(where: str, since: float) -> None:
        print(f"{count} files stored {where} in {time.time() - since:.0f} s", flush=True)

    with (
        cluster.interrupted_cleanly(),
        cluster.running(folder=arguments.dir) as servers,
        sync.connect(state=servers.state) as fs,
    ):
        store(fs, count, arguments.replication)
        stored("in gfs", started)
        remote = gfs.data.Files(fs, (f"/samples/{name(n)}" for n in range(count)))
        result |= measure("gfs", remote, servers.state, arguments, servers.cpu_seconds)
    with tempfile.TemporaryDirectory(prefix="gfs-local-", dir=arguments.dir) as scratch:
        began = time.time()
        store_locally(Path(scratch), count)
        stored("locally", began)
        result |= measure("local", LocalFiles(Path(scratch), count), Path(scratch), arguments)
    result["circumstances"] = circumstances(started, load_before)
    OUT.mkdir(exist_ok=True)
    (OUT / "samples.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["circumstances"]))


if __name__ == "__main__":
    main()
