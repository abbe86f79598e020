"""A mount beside the library, on the same cluster: one large file, and many small ones.

    python -m bench.mount [--mib 1024] [--files 1000]

As root, on a cluster of its own. Each figure is the best of three turns, in which the two ways take
turns. A large file is written and read by one program in pieces of 1 MiB, and read after what the
kernel has of it for the mount was dropped, and nothing of what it has of the chunkservers' files,
from which both ways read; small ones of 1 KiB are written and read by one program, one after
another, and by ``WORKERS`` at once. Beside them stands what FUSE alone reads (`bench.bare_mount`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench import cluster
from gfs.client.sync import SyncClient, connect

MIB = 1 << 20
TURNS = 3
WORKERS = 16
#: A mount's names and attributes are older then than the kernel takes them for true.
CACHE_SECONDS = 1.5
SMALL = os.urandom(1024)


class Library:
    name = "library"

    def __init__(self, client: SyncClient) -> None:
        self.client = client

    def write(self, mib: int) -> None:
        data = os.urandom(MIB)
        with self.client.open("/bench/large", "w") as file:
            for _ in range(mib):
                file.write(data)

    def read(self) -> None:
        piece = bytearray(MIB)
        with self.client.open("/bench/large") as file:
            while file.readinto(piece):
                pass

    def put(self, name: str) -> None:
        self.client.put(SMALL, f"/bench/small/{name}", overwrite=True)

    def get(self, name: str) -> None:
        assert self.client.get(f"/bench/small/{name}") == SMALL

    def forget(self, names: Iterable[str]) -> None:
        pass


class Mounted:
    name = "mount"

    def __init__(self, top: Path, below: str = "bench") -> None:
        self.top = top / below

    def write(self, mib: int) -> None:
        data = os.urandom(MIB)
        with open(self.top / "large", "wb", buffering=0) as file:
            for _ in range(mib):
                file.write(data)

    def read(self) -> None:
        piece = bytearray(MIB)
        with open(self.top / "large", "rb", buffering=0) as file:
            while file.readinto(piece):
                pass

    def put(self, name: str) -> None:
        (self.top / "small" / name).write_bytes(SMALL)

    def get(self, name: str) -> None:
        assert (self.top / "small" / name).read_bytes() == SMALL

    def forget(self, names: Iterable[str]) -> None:
        """Have the kernel drop their pages. What is read at once gets the same memory again: a
        virtual machine gives what is free for seconds back to its host, from which it is slow."""
        for name in names:
            with open(self.top / name, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def mounted(program: list[str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", *program],
        stdout=subprocess.PIPE,
        env=cluster.ENVIRONMENT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), f"{program} ended"
        yield
    finally:
        process.terminate()
        process.wait(60)


def bare(mib: int) -> float:
    """What FUSE alone reads, in MiB/s."""
    with (
        tempfile.TemporaryDirectory() as directory,
        mounted(["bench.bare_mount", directory, str(mib)]),
    ):
        way = Mounted(Path(directory), ".")
        return max(mib / seconds(way.read) for _ in range(TURNS) if way.forget(["large"]) is None)


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def at_once(work: Callable[[str], None], names: list[str]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, names))


def turn(way: Library | Mounted, mib: int, files: int, number: int) -> dict[str, float]:
    """MiB/s and files/s."""
    names = [f"{way.name}-{number}-{n}" for n in range(files)]
    rates = {"write, MiB/s": mib / seconds(lambda: way.write(mib))}
    way.forget(["large"])
    rates["read, MiB/s"] = mib / seconds(way.read)
    few, many = names[: files // 10], names[files // 10 :]
    rates["1 KiB written, one after another"] = len(few) / seconds(
        lambda: [way.put(name) for name in few]
    )
    rates[f"1 KiB written, {WORKERS} at once"] = len(many) / seconds(lambda: at_once(way.put, many))
    way.forget(f"small/{name}" for name in names)
    time.sleep(CACHE_SECONDS)
    rates["1 KiB read, one after another"] = len(few) / seconds(
        lambda: [way.get(name) for name in few]
    )
    rates[f"1 KiB read, {WORKERS} at once"] = len(many) / seconds(lambda: at_once(way.get, many))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=1000)
    arguments = parser.parse_args()
    with (
        cluster.interrupted_cleanly(),
        cluster.running() as servers,
        connect(state=servers.state) as client,
        tempfile.TemporaryDirectory() as directory,
    ):
        client.mkdir("/bench/small", parents=True)
        best: dict[str, dict[str, float]] = {}
        with mounted(["gfs.cli", "mount", "--state", str(servers.state), "/", directory]):
            for number in range(TURNS):
                ways = (Library(client), Mounted(Path(directory)))
                for way in ways if number % 2 == 0 else reversed(ways):
                    for what, rate in turn(way, arguments.mib, arguments.files, number).items():
                        rates = best.setdefault(what, {})
                        rates[way.name] = max(rate, rates.get(way.name, 0.0))
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n")
    print("| | library | mount | share |\n| --- | --- | --- | --- |")
    for what, rates in best.items():
        share = rates["mount"] / rates["library"]
        print(f"| {what} | {rates['library']:.0f} | {rates['mount']:.0f} | {share:.2f} |")
    print(f"\nFUSE alone, read, MiB/s: {bare(arguments.mib):.0f}")


if __name__ == "__main__":
    main()
