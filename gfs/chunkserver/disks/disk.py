"""One disk of a chunkserver: a directory, its state, and every call that is made to it.

=========  =====================================================================
state      meaning
=========  =====================================================================
ok         read and written
slow       a call has run for longer than ``SLOW_SECONDS``: used, and watched
full       only the reserve is left: replicas are read and deleted, not written
draining   read; its replicas are moved to the server's other disks
failed     the disk returned an error or did not answer: not used at all
missing    this disk is not at its path: not used at all
=========  =====================================================================

*What fails a disk.* A write, a sync or an operation on a name that ends with an error
which is not about space or about that one name (EIO, EROFS, ENODEV ...); a failed sync
of its redo journal or its write-intent records, whatever the error; a call that has not
returned after ``disk_hang_seconds``; its identity file, which is checked all the time
at the visible path, missing, that of another disk, or on another file system. A *read*
that fails may be one bad sector: the disk is probed at once by a synced write, which is
read back from the disk and not from the page cache, and only the replica is damaged if
that succeeds. A disk of which ``UNREAD_MAX`` different places cannot be read within
``UNREAD_SECONDS`` has failed, too.

*From then on* nothing is read from it or written to it. Tasks that wait for a call get
DiskFailed, although the thread that makes the call may wait for the kernel for a long
time: the call is abandoned, with its buffer, and its result is dropped. Effects of an
abandoned call do no harm, since the disk is used again only after it has been read from
the start, as if the server had been killed (:mod:`gfs.chunkserver.disks.loading`), and
not before the last call has returned.

*Hangs are measured in ticks* of the checking task, and not by a clock: if the process
was stopped, or the machine suspended, that is one long tick, and no disk fails because
of it.

All paths are resolved from a descriptor of the directory as it was opened
(:meth:`gfs.io.FileSystem.within`): after ``umount -l`` nothing is created in the
directory that is visible at the path then.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from gfs.blocks import PAGE_BYTES
from gfs.chunkserver.files import Call, Intents, Journal, making
from gfs.chunkserver.packs import Packs
from gfs.config import ChunkserverSettings
from gfs.errors import Busy, CorruptReplica, DiskFailed, DiskFull, GfsError, NotFound
from gfs.failures import plural
from gfs.io import File, FileSystem, ReadFailed, World
from gfs.protocol.messages import Disk as DiskReport

if TYPE_CHECKING:
    from gfs.chunkserver.files import ChunkFile

T = TypeVar("T")

#: A disk with a call that runs for longer than this is reported as slow.
SLOW_SECONDS = 5.0
#: How often unfinished calls are checked.
TICK_SECONDS = 0.5

#: Errors of a process, or a machine, that has too little of something for the moment: the next
#: call may succeed.
_PASSING = frozenset((errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
#: Errors that are about space, one name, or this process, and not about the disk.
_HARMLESS = _PASSING | {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EBADF,
}

FAILED, MISSING = "failed", "missing"
STATES = ("ok", "slow", "full", "draining", FAILED, MISSING)
#: The file that a probe writes and syncs in its directory; more than file systems keep with
#: its name, which may be in memory while the rest of the disk cannot be read.
PROBE = "probe"
_PROBE_BYTES = 2 * PAGE_BYTES
#: As many as ZFS takes for a device that fails: bad sectors come one by one.
UNREAD_MAX = 10
UNREAD_SECONDS = 600.0

log = logging.getLogger(__name__)


class Disk:
    """One directory. Blocking calls on it share a bounded number of threads.

    ``on_failure`` is called once, in the loop's thread, when the disk has failed.
    """

    def __init__(
        self,
        world: World,
        index: int,
        path: str,
        settings: ChunkserverSettings,
        boot: int,
        on_failure: Callable[[Disk], None] = lambda _: None,
    ) -> None:
        self.world = world
        self.index = index
        self.path = path
        self.reserve_bytes = settings.reserve_bytes
        self._settings = settings
        self._boot = boot
        self._on_failure = on_failure
        #: The disk's id, in its identity file.
        self.id = ""
        #: And the one that was there, if it is the copy of another disk, which keeps that id.
        self.former_id = ""
        #: Whether the server's record was written to it, by this process.
        self.is_recorded = False
        self.draining = False
        #: Whether all its replicas are known.
        self.is_adopted = True
        #: Replicas of a draining disk for which the other disks had no room.
        self.stuck = 0
        #: Replicas of a draining disk that are damaged: the master has good ones made elsewhere, if
        #: there are any.
        self.damaged = 0
        #: "failed" or "missing", and why; empty while it is used.
        self.down = ""
        self.reason = ""
        #: Failed by a call that did not return: it may come back when all have.
        self.hung = False
        #: Whether it could not be opened for want of space.
        self.lacks_room = False
        #: Whether a call had an error of the disk, also after it was abandoned.
        self.has_refused = False
        #: The disk failed: its contents may be older than those of the page cache, now or before
        #: (see gfs.chunkserver.disks.loading).
        self.is_suspect = False
        self.limiter = trio.CapacityLimiter(settings.disk_threads)
        #: The attributes below exist once the disk was opened.
        self.files: FileSystem
        self.device = 0
        #: Where its file system is mounted, or was when it was last used.
        self.mount = ""
        self.lock: File | None = None
        self.journal: Journal
        self.intents: Intents
        self.packs: Packs
        #: Set when the sync under way of the journal, or of the intent records, ends.
        self.syncing: dict[Journal | Intents, trio.Event] = {}
        #: Wakes the task that saves the replicas in a full journal.
        self.to_save = trio.Event()
        self.room = trio.lowlevel.ParkingLot()
        self.chunks = 0
        self.total_bytes = 0
        self.free_bytes = 0
        #: Since free_bytes was read: bytes that chunks begun here may take, bytes written here.
        self.begun_bytes = 0
        self.written_bytes = 0
        #: Calls that the disk answered with an error.
        self.errors = 0
        #: Calls that threads are making, abandoned ones included. Threads change it:
        #: the loop copies it before it reads it.
        self.running: dict[int, Call] = {}
        self._numbers = itertools.count()
        self._scopes: set[trio.CancelScope] = set()
        #: Set when the disk is not used any more; and when all its files are closed.
        self.ended = trio.Event()
        self.closed = trio.Event()
        #: Wakes the task that moves its replicas to other disks.
        self.to_drain = trio.Event()
        #: Places that could not be read, and when, in ticks: see ReadFailed.
        self._unread: dict[object, int] = {}
        self._ticks = 0
        #: Set when the probe that is under way ends.
        self._probed: trio.Event | None = None
        #: Files that nobody uses any more, closed by a thread: on some file systems a
        #: close waits for the disk.
        self._to_close: list[File | ChunkFile] = []
        self.closing = trio.Event()
        #: Has a thread close the remaining files after all others were closed.
        self._close_rest: Callable[[], object] = lambda: None

    def open(self) -> None:
        """Open the directory that is at its path now. Blocks. Raises ``OSError`` if
        there is none."""
        self.files = self.world.files.within(self.path)
        self.device = self.world.files.device(self.path)
        sync = self._settings.durability == "fsync"
        self.journal = Journal(self.files, self.path, sync, self._settings.journal_bytes)
        self.intents = Intents(self.files, self.path, self._boot)
        self.packs = Packs(self.files, self.path, self.id, self.former_id)

    # --- paths and space ------------------------------------------------------------

    @property
    def chunks_path(self) -> str:
        """The folder of the folders of its chunk files."""
        return f"{self.path}/chunks"

    def folder(self, handle: int) -> str:
        return f"{self.chunks_path}/{handle & 0xFF:02x}"

    def chunk_path(self, handle: int) -> str:
        return f"{self.folder(handle)}/{handle:016x}.chunk"

    def new_half(self) -> str:
        """What to append to a chunk's path for a replica that is half-made. No two have one name:
        a copy, a move and a replica that is unpacked may be made at the same time."""
        return f".clone.{next(self._numbers)}"

    def has_room(self, reserve_bytes: int) -> bool:
        """Whether new data may be written without touching the reserve."""
        return self.free_bytes - self.written_bytes >= reserve_bytes

    def measure(self) -> None:
        """Blocks. Measure its space. Raises ``OSError``, also if it was remounted read-only."""
        space = self.files.space(self.path)
        if space.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.path)
        self.total_bytes, self.free_bytes = space.total_bytes, space.free_bytes
        self.begun_bytes = self.written_bytes = 0

    @property
    def takes_new(self) -> bool:
        """Whether new replicas are made on it, if it has room."""
        return self.is_adopted and not self.draining

    @property
    def state(self) -> str:
        if self.down:
            return self.down
        if self.draining:
            return "draining"
        if any(call.ticks * TICK_SECONDS > SLOW_SECONDS for call in list(self.running.values())):
            return "slow"
        return "ok" if self.has_room(self.reserve_bytes) else "full"

    def report(self) -> DiskReport:
        is_used = not self.down
        reason = self.reason
        if self.draining and self.stuck and is_used:
            reason = f"the server's other disks have no room for {plural(self.stuck, 'replica')}"
        return DiskReport(
            path=self.path,
            id=self.id,
            total_bytes=self.total_bytes * is_used,
            free_bytes=max(0, self.free_bytes - self.reserve_bytes) * is_used,
            chunks=self.chunks,
            state=self.state,
            reason=reason,
            errors=self.errors,
            mount=self.mount,
            damaged=self.damaged * self.draining,
            device=self.device,
        )

    # --- calls ----------------------------------------------------------------------

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Make a blocking call in a thread, under the disk's limit.

        Cancellation ends the wait for a free thread, not the call. Raises what the call
        raises, and DiskFailed if the disk has failed, or fails meanwhile: then the call
        may still be under way, so no buffer that was given to it may be used again.
        ReadFailed means that the disk works and a sector of it cannot be read.
        """
        if self.down:
            raise self.failure()
        result: T | None = None
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            borrower = object()
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                try:
                    # Usually no task waits: this one is scheduled once, for the call.
                    self.limiter.acquire_on_behalf_of_nowait(borrower)
                except trio.WouldBlock:
                    await self.limiter.acquire_on_behalf_of(borrower)
                try:
                    scope.shield = True
                    result = await self._run(function, args)
                finally:
                    self.limiter.release_on_behalf_of(borrower)
            finally:
                self._scopes.discard(scope)
                if self.is_open and self.journal.to_save:
                    self.to_save.set()
        if self.down:
            # Nobody gets it: it may be a file that was opened, and the error may live long.
            result = None
            raise self.failure()
        return cast(T, result)

    async def _run(self, function: Callable[..., T], args: tuple[object, ...]) -> T:
        number = next(self._numbers)

        def call() -> T:
            own = Call(getattr(function, "__qualname__", str(function)))
            self.running[number] = own
            try:
                with making(own):
                    return function(*args)
            except OSError as error:
                self.has_refused = self.has_refused or is_of_disk(error)
                raise
            finally:
                del self.running[number]

        try:
            return await self.world.run_blocking(call, limiter=_UNLIMITED, abandon_on_cancel=True)
        except OSError as error:
            self.take(error)
            if self.is_open and self.packs.failed:
                self.fail(FAILED, f"its packed replicas could not be synced: {describe(error)}")
            if isinstance(error, ReadFailed) and self.is_open and function != self.probe:
                await self._probe()
                if self.down:
                    raise self.failure() from error
            raise

    async def _probe(self) -> None:
        """After a failed read: find out whether the disk has failed, before the replica counts
        as damaged."""
        if self._probed is not None:
            await self._probed.wait()
            return
        done = self._probed = trio.Event()
        try:
            await self._run(self.probe, ())
        except OSError as error:
            if error.errno not in _HARMLESS:
                self.fail(FAILED, describe(error))
        finally:
            self._probed = None
            done.set()

    def probe(self) -> None:
        """Blocks. Write and sync a little, and read it from the disk. Raises ``OSError``, also if
        that is not what was written."""
        # Zeros may be stored as a hole, which is read without the disk.
        path, data = f"{self.path}/{PROBE}", self.world.random_bytes(_PROBE_BYTES)
        found = bytearray(_PROBE_BYTES)
        file = self.files.open(path, "replace")
        try:
            file.write(data, 0)
            file.sync()
            file.drop_cached()
            file.read_into(memoryview(found), 0)
        finally:
            file.close()
        if found != data:
            raise OSError(errno.EIO, "other bytes were read than had been written and synced", path)
        self.files.unlink(path)

    @property
    def is_open(self) -> bool:
        return hasattr(self, "packs")

    def failure(self) -> DiskFailed:
        return DiskFailed(f"the disk {self.path} of this chunkserver is {self.down}: {self.reason}")

    def take(self, error: OSError) -> None:
        """Count an error that ended a call to the disk, and fail the disk if the error
        requires it."""
        if not is_of_disk(error):
            return
        self.errors += 1
        if isinstance(error, ReadFailed):
            self._count_unread(error)
        else:
            self.fail(MISSING if error.errno == errno.ENOTDIR else FAILED, describe(error))

    def _count_unread(self, error: ReadFailed) -> None:
        since = self._ticks - UNREAD_SECONDS / TICK_SECONDS
        self._unread[error.place or error.filename] = self._ticks
        self._unread = {place: at for place, at in self._unread.items() if at > since}
        if len(self._unread) >= UNREAD_MAX:
            minutes = UNREAD_SECONDS / 60
            self.fail(
                FAILED, f"{UNREAD_MAX} places on it could not be read within {minutes:g} minutes"
            )

    def tick(self) -> None:
        """Called every ``TICK_SECONDS``: a call that has run for too long fails the disk."""
        if self.down:
            return
        self._ticks += 1
        for call in list(self.running.values()):
            call.ticks += 1
            if call.ticks * TICK_SECONDS >= self._settings.disk_hang_seconds:
                self.hung = True
                self.errors += 1
                seconds = self._settings.disk_hang_seconds
                self.fail(FAILED, f"a call has not returned for {seconds:g} s ({call.name})")
                return

    @property
    def may_have_lost(self) -> bool:
        """Whether an unused disk may have lost writes that were not synced. One whose calls
        only took too long has lost none."""
        return not self.hung or self.has_refused

    def fail(self, state: str, reason: str) -> None:
        """Fail the disk: from now on nothing is read from it or written to it."""
        if not self.down:
            self.end(state, reason)
            self._on_failure(self)

    def end(self, state: str, reason: str) -> None:
        """As :meth:`fail`, without the call of ``on_failure``."""
        self.down, self.reason = state, reason
        for scope in list(self._scopes):
            scope.cancel()
        self.room.unpark_all()
        self.ended.set()

    # --- closing --------------------------------------------------------------------

    def close_later(self, file: File | ChunkFile) -> None:
        """Have a file closed by a thread."""
        self._to_close.append(file)
        self.closing.set()
        if self.closed.is_set():
            self._close_rest()

    def close_files(self) -> None:
        """Blocks. Close the files that were put off; of a disk that is given up, all files. No
        thread may be using any of them."""
        while self._to_close:
            # No write was acknowledged that is not synced; another thread may close the same file.
            with contextlib.suppress(OSError, IndexError):
                self._to_close.pop().close()

    def end_closing(self, close_rest: Callable[[], object]) -> None:
        """All files are closed except those that are still used: ``close_rest`` is
        called when they can be closed, too."""
        self.closed.set()
        self._close_rest = close_rest
        if self._to_close:
            close_rest()

    def close(self) -> None:
        """Blocks. As :meth:`close_files`, and close everything else that is open."""
        self.close_files()
        if self.is_open:
            self.journal.close()
            self.intents.close()
            self.packs.close()
        if self.lock is not None:
            self.lock.close()
            self.lock = None
        if hasattr(self, "files"):
            self.files.close()


_UNLIMITED = trio.CapacityLimiter(float("inf"))


def is_of_disk(error: OSError) -> bool:
    """Whether the error is about the disk, and not about space, one name or this process."""
    return not isinstance(error, (GfsError, ConnectionError)) and error.errno not in _HARMLESS


def describe(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    text = error.strerror or str(error)
    return f"{text} ({name})" if name else text


def map_read_error(error: OSError, what: str) -> GfsError:
    """As :func:`map_disk_error`, for a read of a replica by :meth:`Disk.run`: of which a sector
    cannot be read is damaged."""
    if isinstance(error, ReadFailed):
        return CorruptReplica(f"{what}: {describe(error)}")
    return map_disk_error(error, what)


def map_disk_error(error: OSError, what: str) -> GfsError:
    """The error a client gets for a failure of a local disk."""
    if isinstance(error, GfsError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: no space left on the chunkserver's disk")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: the chunk file is gone")
    if error.errno in _PASSING:
        # A replica is not damaged for it: the scrub had the good ones of a server that was short
        # of descriptors replaced.
        return Busy(f"{what}: {error.strerror or error}")
    return DiskFailed(f"{what}: {error.strerror or error}")
