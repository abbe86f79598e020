"""The seam's contracts. See :mod:`gfs.io.real` for this machine's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import trio

Buffer = bytes | bytearray | memoryview

T = TypeVar("T")


class Stream(Protocol):
    """A connected, ordered byte stream. Errors of the peer or the network are
    ``ConnectionError``; a cancelled call leaves the stream unusable for more
    than closing."""

    peer: str

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive 1 … ``len(buffer)`` bytes; 0 means that the peer ended the stream."""

    async def send_all(self, *buffers: Buffer) -> None:
        """Send all of the buffers, in order."""

    async def send_file(self, file: File, offset: int, count: int) -> None:
        """Send ``count`` bytes of ``file`` without bringing them into the process.

        Raises ``EOFError`` when the file ends before.
        """

    def ended(self) -> bool:
        """Whether an idle stream is of no more use: the peer closed it, or sent
        something nobody asked for. Does not wait."""

    def close(self) -> None:
        """Close at once; tasks that wait on the stream get ``ConnectionError``."""


class Listener(Protocol):
    address: str

    async def accept(self) -> Stream: ...

    def close(self) -> None: ...


class Network(Protocol):
    """Addresses are ``host:port``. Waits are bounded by the caller's deadline."""

    async def connect(self, address: str) -> Stream: ...

    async def listen(self, address: str) -> Listener:
        """Port 0 takes a free one. ``OSError`` if the address is taken."""


class File(Protocol):
    """An open file. All calls block: run them with :meth:`World.run_blocking`."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the file's end."""

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""

    def copy_from(self, source: File, offset: int, count: int) -> None:
        """As a read of ``count`` bytes of ``source``, all there, and a write, at the same
        ``offset``; the disk may share the blocks between the two."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def start_sync(self, offset: int, count: int) -> None:
        """What was written there begins to go to the disk, so that :meth:`sync` has less
        to wait for. A promise of nothing, and no error is told."""

    def sync(self) -> None:
        """What was written is on the disk when this returns (fdatasync)."""

    def close(self) -> None: ...


class DiskSpace(NamedTuple):
    total_bytes: int
    free_bytes: int


class FileSystem(Protocol):
    """The local disk. All calls block. Errors are ``OSError`` as from the kernel."""

    def open(self, path: str, mode: str) -> File:
        """``mode``: ``"r"`` read, ``"rw"`` read and write, ``"create"`` a new
        file (``FileExistsError`` if there is one), ``"replace"`` empty or new."""

    def lock(self, path: str) -> File:
        """An exclusive lock on ``path`` (made if it is missing), held until the
        file is closed or the process ends. ``BlockingIOError``: another has it."""

    def list(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool: ...

    def file_size(self, path: str) -> int: ...

    def unlink(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def make_directories(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def space(self, path: str) -> DiskSpace: ...


class Clock(Protocol):
    """One machine's idea of time."""

    def monotonic(self) -> float:
        """Seconds, for durations; never goes back. May stand still while the machine is
        suspended."""

    def elapsed(self) -> float:
        """As :meth:`monotonic`, and goes on while the machine is suspended: for what must
        be over here before it is over by another machine's count."""

    def time_ns(self) -> int:
        """Wall clock, for people; may jump."""

    async def sleep(self, seconds: float) -> None: ...


class BlockingRunner(Protocol):
    async def __call__(
        self,
        function: Callable[..., T],
        *args: object,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T: ...


@dataclass(frozen=True)
class World:
    """One process's access to everything outside it."""

    network: Network
    files: FileSystem
    clock: Clock
    random: random.Random
    #: Runs a blocking call without holding up the loop: in a worker thread
    #: here, at once in the simulator (a thread would break its clock). Not
    #: abandoned on cancellation: when it returns, the call is over.
    run_blocking: BlockingRunner
    #: Names the time since the machine was started: while it is the same, nothing that
    #: was written to its disks is lost. Not the same means that something may be.
    boot: str

    def random_bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)
