"""The same operations by each way into a system."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import trio

import gfs
from bench import loads, rest
from bench.s3 import S3, exchange
from gfs.blocks import MIB
from gfs.client import Client

Figures = dict[str, float]

IN_FLIGHT = 16
BUCKET = "objects"
DATA = os.urandom(loads.SMALL_BYTES)
#: Directories of the small files: a mount lets one at a time create in the same.
DIRECTORIES = 16
#: Data on its way to the disk below this no longer disturbs a measurement.
DIRTY_BYTES_MAX = 32 * MIB
SETTLE_SECONDS = 60.0
#: Page cache of a large file: three replicas, and one for who reads it.
LARGE_COPIES = 4
#: Free memory that is left to others.
SPARED_BYTES = 1024 * MIB


def settle() -> None:
    """Wait until what was written so far is on the disk."""
    os.sync()
    deadline = time.monotonic() + SETTLE_SECONDS
    while sum(meminfo("Dirty", "Writeback")) > DIRTY_BYTES_MAX and time.monotonic() < deadline:
        time.sleep(0.1)


def meminfo(*fields: str) -> list[int]:
    """Bytes, by the kernel's count."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
    return [int(found[field]) * 1024 for field in fields]


def use_memory_once(size: int) -> None:
    """A virtual machine gets a page of memory from its host when it first writes to it, which takes
    four times as long as to use it again, and gives it back when it was free for some seconds:
    nobody's measurement shall pay for that. What is used last is given out first."""
    free, available = meminfo("MemFree", "MemAvailable")
    size = min(size, free - SPARED_BYTES, available // 2)
    if size > 0:
        with mmap.mmap(-1, size) as memory:
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 1


def path(number: int) -> str:
    return f"{number % DIRECTORIES}/{number}"


def names(
    name: Callable[[int], str], seconds: float = math.inf, count: int | None = None
) -> Iterator[str]:
    """Of number 0, 1, 2 and so on, until the time is over or there were ``count``."""
    return map(name, itertools.islice(rest.numbers(seconds), count))


class Way(ABC):
    """A client of a running system."""

    @abstractmethod
    def run(self, operation: str, paths: Iterator[str]) -> int:
        """Do it to each path, ``IN_FLIGHT`` at a time; how many there were.

        ``put`` stores ``DATA``, ``list`` reads a directory whole. Raises if one fails.
        """

    @abstractmethod
    def write(self, source: Path) -> float:
        """MiB/s of storing as many bytes as ``source`` has, until they are acknowledged."""

    @abstractmethod
    def read(self, source: Path) -> float:
        """MiB/s of reading what ``write`` has stored."""

    def small(self, seconds: float, listed: int) -> Figures:
        """Operations per second; of ``list`` the entries of a directory of ``listed`` files."""

        def rate(operation: str, paths: Iterator[str]) -> tuple[int, float]:
            started = time.perf_counter()
            count = self.run(operation, paths)
            return count, count / (time.perf_counter() - started)

        # This warms connections and code as well.
        self.run("put", names("list/{}".format, count=listed))
        stored, put = rate("put", names(path, seconds))
        return {
            "put": put,
            "get": rate("get", names(lambda n: path(n * 7919 % stored), seconds))[1],
            "stat": rate("stat", names(lambda n: path(n * 7919 % stored), seconds))[1],
            "list": rate("list", names(lambda _: "list", seconds))[1] * listed,
            "delete": rate("delete", names(path, seconds, stored))[1],
        }

    def large(self, source: Path) -> Figures:
        settle()
        use_memory_once(LARGE_COPIES * source.stat().st_size)
        write = self.write(source)
        settle()
        return {"write": write, "read": self.read(source)}


def measure(ways: dict[str, Way], source: Path, seconds: float, listed: int) -> dict[str, Figures]:
    """Small files come first: gigabytes on their way to the disk, and then deleted, would
    be what they wait for."""
    found = {}
    for name, way in ways.items():
        settle()
        found[name] = way.small(seconds, listed)
    for name, way in ways.items():
        found[name] |= way.large(source)
    return found


#: What is asked for by which method; anything else is a GET.
METHODS = {"put": "PUT", "stat": "HEAD", "delete": "DELETE"}


@dataclass(frozen=True)
class Http(Way):
    """Kept connections, and curl for the large file. ``target`` makes the target of a request
    of an operation and a path; ``header`` is sent with each."""

    url: str
    header: str
    target: Callable[[str, str], str]

    def run(self, operation: str, paths: Iterator[str]) -> int:
        method = METHODS.get(operation, "GET")
        body = DATA if operation == "put" else b""
        more = f"Content-Length: {len(body)}\r\n" if body else ""
        rest_of_head = f"HTTP/1.1\r\nHost: bench\r\n{self.header}\r\n{more}\r\n"

        def request(path: str) -> bytes:
            return f"{method} {self.target(operation, path)} {rest_of_head}".encode() + body

        parts = urlsplit(self.url)
        return len(rest.rate((str(parts.hostname), parts.port or 80), map(request, paths)))

    def write(self, source: Path) -> float:
        return self._curl(source, "-T", str(source))

    def read(self, source: Path) -> float:
        return self._curl(source)

    def _curl(self, source: Path, *more: str) -> float:
        url = self.url + self.target("", "large")
        seconds = rest.curl("-H", self.header, *more, "-o", os.devnull, url)
        return source.stat().st_size / MIB / seconds


@dataclass(frozen=True)
class Signed(Way):
    """Over S3, each request with a signature, the body without one: kept connections; a large
    object in one PUT. The bucket exists."""

    port: S3

    def run(self, operation: str, paths: Iterator[str]) -> int:
        method = METHODS.get(operation, "GET")
        body = DATA if operation == "put" else b""

        def request(path: str) -> bytes:
            if operation == "list":
                query = {"list-type": "2", "prefix": f"{path}/"}
                return self.port.head("GET", f"/{BUCKET}", None, **query)
            length = len(body) if body else None
            return self.port.head(method, f"/{BUCKET}/{path}", length) + body

        return len(rest.rate(self.port.address, map(request, paths)))

    def write(self, source: Path) -> float:
        size = source.stat().st_size
        return self._timed(source, self.port.head("PUT", f"/{BUCKET}/large", size), source)

    def read(self, source: Path) -> float:
        return self._timed(source, self.port.head("GET", f"/{BUCKET}/large", None))

    def _timed(self, source: Path, head: bytes, sent: Path | None = None) -> float:
        size, started = source.stat().st_size, time.perf_counter()
        exchange(self.port.address, head, sent, 0, size)
        return size / MIB / (time.perf_counter() - started)


@dataclass(frozen=True)
class Library(Way):
    """Ours."""

    state: Path

    def run(self, operation: str, paths: Iterator[str]) -> int:
        return trio.run(self._run, operation, paths)

    async def _run(self, operation: str, paths: Iterator[str]) -> int:
        done = 0

        async def worker(call: Callable[[str], Awaitable[object]]) -> None:
            nonlocal done
            for path in paths:
                await call(f"/small/{path}")
                done += 1

        async with gfs.connect(state=self.state) as fs, trio.open_nursery() as nursery:
            calls: dict[str, Callable[[str], Awaitable[object]]] = {
                "put": partial(fs.put, DATA),
                "get": fs.get,
                "stat": fs.stat,
                "list": fs.list,
                "delete": partial(fs.delete, now=True),
            }
            for _ in range(IN_FLIGHT):
                nursery.start_soon(worker, calls[operation])
        return done

    def write(self, source: Path) -> float:
        return trio.run(self._large, loads.write, source.stat().st_size)

    def read(self, source: Path) -> float:
        return trio.run(self._large, loads.read, source.stat().st_size)

    async def _large(
        self, load: Callable[[Client, str, int], Awaitable[float]], total: int
    ) -> float:
        async with gfs.connect(state=self.state) as fs:
            return await load(fs, "/large", total)


@dataclass(frozen=True)
class Mount(Way):
    """Directories of a mounted file system, used by threads. ``reading`` is another mount
    of the same, which caches no data, as the other ways in do not."""

    writing: Path
    reading: Path

    def run(self, operation: str, paths: Iterator[str]) -> int:
        lock, done = threading.Lock(), 0

        def worker() -> None:
            nonlocal done
            while True:
                with lock:
                    path = next(paths, None)
                if path is None:
                    return
                self._one(operation, path)
                with lock:
                    done += 1

        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            for ended in [threads.submit(worker) for _ in range(IN_FLIGHT)]:
                ended.result()
        return done

    def _one(self, operation: str, path: str) -> None:
        if operation == "put":
            with open(self.writing / path, "xb", buffering=0) as file:
                file.write(DATA)
        elif operation == "get":
            with open(self.reading / path, "rb", buffering=0) as file:
                if len(file.read(len(DATA) + 1)) != len(DATA):
                    raise RuntimeError(f"{path} has another length")
        elif operation == "stat":
            os.stat(self.reading / path)
        elif operation == "list":
            os.listdir(self.reading / path)
        else:
            os.unlink(self.writing / path)

    def write(self, source: Path) -> float:
        total, piece = source.stat().st_size, os.urandom(loads.PIECE_BYTES)
        started = time.perf_counter()
        with open(self.writing / "large", "xb", buffering=0) as file:
            for at in range(0, total, len(piece)):
                file.write(memoryview(piece)[: total - at])
        return total / MIB / (time.perf_counter() - started)

    def read(self, source: Path) -> float:
        buffer, done = bytearray(loads.PIECE_BYTES), 0
        started = time.perf_counter()
        with open(self.reading / "large", "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                done += count
        if done != source.stat().st_size:
            raise RuntimeError(f"read {done} bytes")
        return done / MIB / (time.perf_counter() - started)
