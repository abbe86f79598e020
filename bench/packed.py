"""``python -m bench.packed``: packed replicas beside chunk files, on one disk, without a cluster.

What a chunkserver's threads do to make, read, load and delete small replicas, through its own
store: CPU time and time for each replica, bytes on the disk, and the memory that a replica
takes in the chunkserver (with its entry in the inventory). The directory is filled and
deleted; ``--count`` replicas are packed, and ``--files`` made as chunk files.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from gfs.blocks import KIB, block_sum
from gfs.chunkserver.disks import Disk, read_disk
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.packs import open_packed
from gfs.chunkserver.replicas import ChunkStore, Made
from gfs.chunkserver.replicas.make_many import write_all
from gfs.config import ChunkserverSettings
from gfs.io import real_world

BATCH = 64


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def stored_bytes(directory: str) -> int:
    return sum(path.stat().st_blocks * 512 for path in Path(directory).rglob("*"))


class Bench:
    def __init__(self, directory: str, count: int, size: int, durability: str) -> None:
        self.settings = ChunkserverSettings(durability=durability)
        self.directory, self.count, self.size = directory, count, size
        os.makedirs(directory, exist_ok=True)
        self.store = ChunkStore(real_world(), self.settings)
        self.disk = self.opened()
        self.data = os.urandom(size)
        self.sum = block_sum(self.data)

    def opened(self) -> Disk:
        disk = self.store.disks.new(self.directory)
        disk.open()
        return disk

    def load(self) -> None:
        for _ in self.store.adopt(self.disk, read_disk(self.disk)):
            pass

    def batches(self) -> Iterator[list[Made]]:
        for at in range(1, self.count + 1, BATCH):
            end = min(at + BATCH, self.count + 1)
            view = memoryview(self.data)
            yield [Made(handle, 1, view, self.sum) for handle in range(at, end)]

    def timed(self, what: str, run: Callable[[], object], count: int) -> None:
        gc.collect()
        cpu, began = time.process_time(), time.perf_counter()
        run()
        cpu, took = time.process_time() - cpu, time.perf_counter() - began
        print(f"  {what:34} {cpu / count * 1e6:8.1f} us CPU  {took / count * 1e6:8.1f} us each")

    # --- packed -----------------------------------------------------------------------

    def pack(self) -> None:
        for made in self.batches():
            self.disk.packs.put(made, self.disk.journal.sync)
        self.disk.packs.confirm()  # as a server does now and then

    def read_packed(self, handles: list[int]) -> None:
        for handle in handles:
            file = open_packed(self.disk.packs, handle, self.disk.journal)
            assert file is not None
            data = bytearray(file.length)
            if not file.read_at_cached(memoryview(data), 0):
                file.read_at(memoryview(data), 0)

    def remove_packed(self, handles: list[int]) -> None:
        for at in range(0, len(handles), BATCH):
            self.disk.packs.remove(handles[at : at + BATCH])

    # --- chunk files ------------------------------------------------------------------

    def make_files(self) -> None:
        disk = self.disk
        for made in self.batches():
            new = []
            for one in made:
                path = disk.chunk_path(one.handle)
                file = ChunkFile.create(disk.files, path, one.handle, 1, disk.journal)
                new.append((file, one))
            write_all(new)
            disk.journal.flush()
            for file, _ in new:
                if disk.journal.sync:
                    file.save()
                file.close()

    def read_files(self, handles: list[int]) -> None:
        disk = self.disk
        for handle in handles:
            file = ChunkFile.open(disk.files, disk.chunk_path(handle), handle, disk.journal)
            file.read_at(memoryview(bytearray(file.length)), 0)
            file.close()

    def remove_files(self, handles: list[int]) -> None:
        for handle in handles:
            self.disk.files.unlink(self.disk.chunk_path(handle))

    # --- both -------------------------------------------------------------------------

    def write(self, is_packed: bool) -> None:
        self.load()
        self.timed("write, 64 at a time", self.pack if is_packed else self.make_files, self.count)
        os.sync()
        stored = stored_bytes(self.directory)
        print(f"  {'on the disk':34} {stored / self.count:8.1f} bytes each")

    def use(self, is_packed: bool) -> None:
        before = resident_bytes()
        self.timed("start", self.load, self.count)
        print(f"  {'in memory':34} {(resident_bytes() - before) / self.count:8.1f} bytes each")
        some = random.Random(1).sample(range(1, self.count + 1), min(self.count, 10_000))
        read = self.read_packed if is_packed else self.read_files
        self.timed("read, from the page cache", lambda: read(some), len(some))
        remove = self.remove_packed if is_packed else self.remove_files
        self.timed("delete, 64 at a time", lambda: remove(some), len(some))


def in_a_process(run: Callable[[], object]) -> None:
    """Of its own, so that the memory of one step is not used again by the next."""
    pid = os.fork()
    if not pid:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("it failed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.packed", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=KIB)
    parser.add_argument("--durability", default="replicated", choices=["replicated", "fsync"])
    parser.add_argument("--directory", default=None, help="on the disk that is measured")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} cores, {args.durability}", flush=True)
    for is_packed, count in ((True, args.count), (False, args.files)):
        top = tempfile.mkdtemp(prefix="gfs-packed-", dir=args.directory)
        try:
            if not count:
                continue
            kind = "packed" if is_packed else "chunk files"
            print(f"{kind}: {count:,} replicas of {args.size} bytes", flush=True)
            for step in (Bench.write, Bench.use):
                in_a_process(
                    lambda step=step, top=top, count=count, is_packed=is_packed: step(
                        Bench(f"{top}/disk", count, args.size, args.durability), is_packed
                    )
                )
        finally:
            shutil.rmtree(top)


if __name__ == "__main__":
    main()
