"""The seam's contracts. See :mod:`gfs.io.real` for this machine's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar

import trio

Buffer = bytes | bytearray | memoryview

T = TypeVar("T")


class Runner(Protocol):
    """Runs blocking calls on one disk in threads."""

    async def __call__(self, function: Callable[..., T], *args: object) -> T: ...


class Stream(Protocol):
    """A connected, ordered byte stream. Errors of the peer or the network are
    ``ConnectionError``; a cancelled call leaves the stream unusable for more
    than closing."""

    peer: str

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive 1 … ``len(buffer)`` bytes; 0 means that the peer ended the stream."""

    async def send_all(self, *buffers: Buffer) -> None:
        """Send all of the buffers, in order."""

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        """Send ``count`` bytes of ``file`` without bringing them into the process.

        ``run`` makes the calls that may wait for the disk, and may give one up: then its
        error is raised at once, and file and socket stay open for the thread until its
        call ends. Only :meth:`close` makes sense after that.

        Raises ``EOFError`` when the file ends before, ReadFailed when the disk fails.
        """

    def ended(self) -> bool:
        """Whether an idle stream is of no more use: the peer closed it, or sent
        something nobody asked for. Does not wait."""

    def pending(self) -> int:
        """Bytes that arrived and were not received; with TLS those on the wire. An ended
        stream has none. Does not wait."""

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
    """An open file. All calls but :meth:`read_cached` block: run them with
    :meth:`World.run_blocking`."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the file's end. Raises
        ReadFailed."""

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from ``offset``, all of it, out of memory alone. Never waits for
        the disk, so the loop's thread may call it.

        False if that cannot be done: not all of it is cached, the file ends before, or
        the file system cannot tell (FUSE). What is in ``buffer`` then means nothing: use
        :meth:`read_into` in a thread.
        """

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

    def drop_cached(self) -> None:
        """What counts as written is read from the disk when it is read again, and not from
        memory, which shows what a write-back lost as if it were there."""

    def close(self) -> None:
        """Blocks like all others: some file systems write out what was written, and free
        what was deleted, when the last one closes. A call that another thread is in
        goes on with the file as it is; one that begins later raises ``OSError``."""


class Lock(Protocol):
    """A lock for threads, which whoever has it may take again: ``with lock: ...``."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class ReadFailed(OSError):
    """A file, or some of its bytes, could not be read (EIO). It may be one bad sector, or
    the whole disk."""


class DiskSpace(NamedTuple):
    total_bytes: int
    free_bytes: int
    #: Whether the file system was mounted, or remounted after an error, as read-only.
    read_only: bool = False


class FileSystem(Protocol):
    """The local disk. All calls block. Errors are ``OSError`` as from the kernel."""

    def within(self, directory: str) -> FileSystem:
        """The same calls with the same paths, but all at and below ``directory`` lead to
        the directory that has this name now.

        So nothing is ever read or made in whatever gets that name later: after ``umount
        -l``, or when the directory was moved, replaced or deleted. ``device`` alone still
        tells of what is visible. Raises ``OSError`` if it is no directory. To be closed.
        """

    def close(self) -> None:
        """Let go of the directory of :meth:`within`: its paths raise ``OSError`` from now
        on. Open files stay open. Nothing to do for any other."""

    def make_lock(self) -> Lock:
        """For threads that make calls while they hold it. They hold it for as long as a
        disk that hangs holds them: the loop's thread must never wait for it."""

    def awaits_mount(self, path: str) -> bool:
        """Whether the system is told to mount something at ``path``, or above it, and has
        not: what is made there would be on another file system than was meant."""

    def device(self, path: str) -> int:
        """The number of the device that is visible at ``path`` now (``st_dev``): another
        one than before means that something was mounted or unmounted there."""

    def open(self, path: str, mode: str) -> File:
        """Raises ReadFailed if the file is there and cannot be opened to be read.

        ``mode``: ``"r"`` read, ``"rw"`` read and write, ``"create"`` a new
        file (``FileExistsError`` if there is one), ``"replace"`` empty or new."""

    def lock(self, path: str) -> File:
        """An exclusive lock on ``path`` (made if it is missing), held until the
        file is closed or the process ends. ``BlockingIOError``: another has it."""

    def list(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool:
        """False if there is nothing of that name; a disk that cannot tell raises."""

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
        abandon_on_cancel: bool = False,
    ) -> T:
        """Run a blocking call beside the loop, in a worker thread.

        Not abandoned on cancellation: when this returns, the call is over. With
        ``abandon_on_cancel`` a cancelled caller returns at once, and the call goes on
        alone: it may have its effects at any time later, what it returns or raises is
        dropped, its place in ``limiter`` is free only when it ends. Whatever it was given
        (buffers above all) must not be used for anything else meanwhile.
        """


@dataclass(frozen=True)
class World:
    """One process's access to everything outside it."""

    network: Network
    files: FileSystem
    clock: Clock
    random: random.Random
    #: Runs a blocking call without holding up the loop.
    run_blocking: BlockingRunner
    #: Names the time since the machine was started: while it is the same, nothing that
    #: was written to its disks is lost. Not the same means that something may be.
    boot: str

    def random_bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)
