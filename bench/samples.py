"""``python -m bench.samples``: random batches of samples, beside a local directory.

Files of 4 KiB to 100 KiB are stored in a cluster on this machine and in a directory on the same
disk. Then so many processes read batches of 256, drawn at random, each sample once, as the workers
of a data loader do: by ``gfs.data.Files``, and by ``open`` and ``read``. Printed are the samples of
all processes together in a second, *cold*, after the kernel was asked to forget the files, and
*warm*, as far as the page cache has room for them; and the microseconds of processor time of a
sample, the servers' with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
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


def store(state: Path, root: Path, count: int, replication: int) -> None:
    """The same files in both places."""
    chance = random.Random(1)
    noise = chance.randbytes(NOISE_BYTES)
    with sync.connect(state=state) as fs:
        for first in range(0, count, BATCH):
            items = []
            for number in range(first, min(first + BATCH, count)):
                size = chance.randint(*SIZES)
                at = chance.randrange(NOISE_BYTES - size)
                items.append((f"/samples/{name(number)}", noise[at : at + size]))
            for each in fs.put_many(items, replication=replication):
                if isinstance(each, Exception):
                    raise each
            for path, data in items:
                local = root / path.removeprefix("/samples/")
                local.parent.mkdir(exist_ok=True)
                local.write_bytes(data)


def forget(*folders: Path) -> None:
    """Have the kernel drop the pages of these files."""
    os.sync()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".mdb", ".json"):
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def begin(barrier: Any) -> None:
    global start
    start = barrier


def work(files: Any, seconds: float, part: slice) -> tuple[int, int, float, float]:
    order = list(range(len(files)))
    random.Random(0).shuffle(order)
    mine = order[part]
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
    files: Any, workers: int, seconds: float, servers: cluster.Running
) -> tuple[float, float, float]:
    """Samples and MiB a second of all workers, and microseconds of a sample."""
    context = multiprocessing.get_context("spawn")
    parts = [slice(first, None, workers) for first in range(workers)]
    used = servers.cpu_seconds()
    # One that dies is an error here, and no wait without end.
    with ProcessPoolExecutor(workers, context, begin, (context.Barrier(workers),)) as pool:
        found = list(pool.map(partial(work, files, seconds), parts))
    used = servers.cpu_seconds() - used + sum(each[3] for each in found)
    per_s = sum(samples / took for samples, _, took, _ in found)
    mib_per_s = sum(size / took for _, size, took, _ in found) / MIB
    return per_s, mib_per_s, 1e6 * used / sum(each[0] for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.samples", description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--workers", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--replication", type=int, default=1, help="reads need one replica")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    started, load_before = time.time(), os.getloadavg()[0]
    result: dict[str, Any] = {"files": arguments.files}
    with (
        cluster.interrupted_cleanly(),
        tempfile.TemporaryDirectory(prefix="gfs-local-", dir=arguments.dir) as scratch,
        cluster.running(folder=arguments.dir) as servers,
    ):
        root = Path(scratch)
        store(servers.state, root, arguments.files, arguments.replication)
        print(f"{arguments.files} files stored in {time.time() - started:.0f} s", flush=True)
        with sync.connect(state=servers.state) as fs:
            paths = (f"/samples/{name(n)}" for n in range(arguments.files))
            places = {
                "gfs": gfs.data.Files(fs, paths),
                "local": LocalFiles(root, arguments.files),
            }
            for workers in map(int, arguments.workers.split(",")):
                for place, files in places.items():
                    forget(root, servers.state)
                    for state in ("cold", "warm"):
                        per_s, mib_per_s, us = rate(files, workers, arguments.seconds, servers)
                        result[f"{place}_{workers}_{state}"] = per_s, us
                        print(
                            f"{workers:3} workers, {place:5} {state} {per_s:8.0f} samples/s "
                            f"{mib_per_s:7.0f} MiB/s {us:5.0f} µs",
                            flush=True,
                        )
    result["circumstances"] = circumstances(started, load_before)
    OUT.mkdir(exist_ok=True)
    (OUT / "samples.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["circumstances"]))


if __name__ == "__main__":
    main()
