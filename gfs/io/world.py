"""The interfaces to the outside. :mod:`gfs.io.real` implements them for this machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
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
    ``ConnectionError``; after a cancelled call the stream can only be closed."""

    peer: str

    async def receive_into(self, buffer: memoryview, least: int = 1) -> int:
        """Receive 1 … ``len(buffer)`` bytes; 0 means that the peer ended the stream.

        So few as ``least`` are of no use to the caller, and the peer sends them without waiting
        for anything: the caller may be left to sleep until they are there."""

    async def send_all(self, *buffers: Buffer) -> None:
        """Send all of the buffers, in order."""

    def send_now(self, data: Buffer) -> int:
        """Send what can be sent without waiting, while no :meth:`send_all` is under way.
        Returns how many bytes that was: none with TLS."""

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        """Send ``count`` bytes of ``file`` without bringing them into the process.

        ``run`` makes the calls that may wait for the disk, and may give one up: then
        its error is raised at once, and file and socket stay open for the thread until
        its call ends. After that the stream can only be closed.

        Raises ``EOFError`` when the file ends before, ReadFailed when the disk fails.
        """

    def ended(self) -> bool:
        """Whether an idle stream cannot be used again: the peer closed it, or sent data
        without a request. Does not wait."""

    def pending(self) -> int:
        """The number of bytes that arrived and were not received; with TLS, of
        encrypted ones. An ended stream has none. Does not wait."""

    def close(self) -> None:
        """Close at once; tasks that wait on the stream get ``ConnectionError``."""


class Listener(Protocol):
    address: str

    async def accept(self) -> Stream: ...

    def close(self) -> None: ...


class Network(Protocol):
    """Addresses are ``host:port``. Waits are bounded by the caller's deadline."""

    async def connect(self, address: str) -> Stream:
        """``ConnectionRefusedError`` if nothing listens there, or the host's name has no address;
        another ``ConnectionError`` if it cannot be reached."""

    async def listen(self, address: str) -> Listener:
        """Port 0 takes a free one. ``OSError`` if the address is taken."""


class File(Protocol):
    """An open file. All calls but :meth:`read_cached` block: run them with
    :meth:`World.run_blocking`."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the file's end. Raises
        ReadFailed."""

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from ``offset``, all of it, from memory only. Never waits for
        the disk, so the loop's thread may call it.

        False if that cannot be done: not all of it is cached, the file ends before, or
        the file system does not support this (FUSE). The contents of ``buffer`` are
        undefined then: use :meth:`read_into` in a thread.
        """

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""

    def copy_from(self, source: File, offset: int, count: int) -> None:
        """Copy ``count`` bytes, which ``source`` must have, from it to the same
        ``offset``; the disk may share the blocks between the two."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def punch(self, offset: int, count: int) -> None:
        """Give the space of this range, whole pages of 4 KiB, back to the disk: the bytes
        are zeros from now on. Raises ``OSError`` with EOPNOTSUPP where the file system
        cannot; then nothing has changed."""

    def start_sync(self, offset: int, count: int) -> None:
        """Start writing this range to the disk, so that :meth:`sync` has less to wait
        for. It guarantees nothing and reports no error."""

    def sync(self) -> None:
        """Write all data to the disk (fdatasync); it is there when this returns."""

    def drop_cached(self) -> None:
        """What counts as written, and all that was synced, is read from the disk when it is read
        again, and not from memory: that shows what a write-back lost as if it were there, and
        answers for a disk that cannot be read."""

    def close(self) -> None:
        """Blocks, too: some file systems write data out, and free deleted files, when
        the last descriptor is closed. Calls of other threads that are under way
        continue; later ones raise ``OSError``."""


class Lock(Protocol):
    """A reentrant lock for threads: ``with lock: ...``."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class ReadFailed(OSError):
    """A file, or some of its bytes, could not be read (EIO). The cause may be one bad
    sector or the whole disk."""

    #: Which file, and which MiB of it: the same for reads that one bad sector may have failed.
    place: tuple[int, int] | None = None

    def at(self, file: int, offset: int) -> ReadFailed:
        """This error, of a read of ``file``, by its number on its disk, at ``offset``."""
        self.place = file, offset >> 20
        return self


class DiskSpace(NamedTuple):
    total_bytes: int
    free_bytes: int
    #: Whether the file system was mounted, or remounted after an error, as read-only.
    read_only: bool = False


def lost_mount(before: str, now: str) -> bool:
    """Whether what was on the file system mounted at ``before`` would be on another one, the
    one at ``now``, which is mounted above that; "": it is not known."""
    return bool(before and now) and before != now and f"{before}/".startswith(f"{now.rstrip('/')}/")


class FileSystem(Protocol):
    """The local disk. All calls block. Errors are ``OSError`` as from the kernel."""

    def within(self, directory: str) -> FileSystem:
        """A view with the same calls and paths, in which all paths at and below
        ``directory`` lead to the directory that has this name now.

        So nothing is ever read or made in another directory that gets that name later:
        after ``umount -l``, or when the directory was moved, replaced or deleted. Only
        ``device`` still reports what is visible. Raises ``OSError`` if it is not a
        directory. The caller closes the view.
        """

    def close(self) -> None:
        """Close the directory of a view by :meth:`within`: its paths raise ``OSError``
        from now on, open files stay open. Does nothing for other file systems."""

    def make_lock(self) -> Lock:
        """A lock for threads that make calls while they hold it. While a disk hangs
        they keep holding it: so the loop's thread must never wait for it."""

    def awaits_mount(self, path: str) -> bool:
        """Whether the system is configured to mount something at or above ``path`` and
        has not: files made there would be on another file system than intended."""

    def mount_point(self, path: str) -> str:
        """Where the file system that ``path`` is on is mounted: at ``path``, or above it; a
        path without symbolic links. ``path`` need not exist."""

    def device(self, path: str) -> int:
        """The number of the device that is visible at ``path`` now (``st_dev``). If it
        changes, something was mounted or unmounted there."""

    def open(self, path: str, mode: str) -> File:
        """Open a file. Raises ReadFailed if it exists and cannot be opened to be read.

        ``mode``: ``"r"`` read, ``"rw"`` read and write, ``"create"`` a new
        file (``FileExistsError`` if there is one), ``"replace"`` empty or new."""

    def lock(self, path: str) -> File:
        """An exclusive lock on ``path`` (made if it is missing), held until the
        file is closed or the process ends. ``BlockingIOError``: another has it."""

    def list(self, path: str) -> list[str]: ...

    def exists(self, path: str) -> bool:
        """False if there is nothing of that name. Raises ``OSError`` if the disk fails."""

    def file_size(self, path: str) -> int: ...

    def unlink(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def make_directories(self, path: str) -> None: ...

    def remove_directory(self, path: str) -> None:
        """Delete a directory. Raises ``OSError`` (ENOTEMPTY) if there is anything in it."""

    def sync_directory(self, path: str) -> None: ...

    def sync_all(self, files: Sequence[File]) -> None:
        """Sync these open files at the same time, in no order. When this returns, or raises the
        ``OSError`` of one of them, all of these calls have ended."""

    def space(self, path: str) -> DiskSpace: ...


class Clock(Protocol):
    """The clocks of one machine."""

    def monotonic(self) -> float:
        """Seconds, for durations; never goes back. May stand still while the machine is
        suspended."""

    def elapsed(self) -> float:
        """As :meth:`monotonic`, but it continues while the machine is suspended: for
        times (leases) that must end here before they end by another machine's clock."""

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

        A cancelled caller waits until the call has ended. With ``abandon_on_cancel`` it
        returns at once, and the call continues by itself: it may have its effects at
        any later time, its result or error is dropped, and its place in ``limiter`` is
        free only when it ends. Its arguments (buffers above all) must not be used for
        anything else meanwhile.
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
    #: Identifies the time since the machine was started. While it is the same, nothing
    #: that was written to the machine's disks is lost; if it has changed, something may
    #: be.
    boot: str

    def random_bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)
