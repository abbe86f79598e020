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
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from gfs.blocks import PAGE_BYTES
from gfs.chunkserver.disks.calls import Calls
from gfs.chunkserver.disks.health import HARMLESS, Health, describe, is_of_disk
from gfs.chunkserver.files import Call, Intents, Journal, boot_number, making
from gfs.chunkserver.packs import Packs
from gfs.config import ChunkserverSettings
from gfs.errors import DiskFailed
from gfs.failures import plural
from gfs.io import File, FileSystem, ReadFailed, World
from gfs.protocol.messages import Disk as DiskReport

if TYPE_CHECKING:
    from gfs.chunkserver.files import ChunkFile

T = TypeVar("T")

FAILED, MISSING = "failed", "missing"
STATES = ("ok", "slow", "full", "draining", FAILED, MISSING)
#: The file that a probe writes and syncs in its directory; more than file systems keep with
#: its name, which may be in memory while the rest of the disk cannot be read.
PROBE = "probe"
_PROBE_BYTES = 2 * PAGE_BYTES


class Mount:
    """The directory of a disk, as it was opened and locked."""

    def __init__(self) -> None:
        #: Where its file system is mounted, or was when it was last used.
        self.point = ""
        self.device = 0
        self.lock: File | None = None
        #: Whether the server's record was written there, by this process.
        self.is_recorded = False


class Space:
    def __init__(self, reserve_bytes: int) -> None:
        self.reserve_bytes = reserve_bytes
        self.total_bytes = 0
        self.free_bytes = 0
        #: Since free_bytes was read: bytes that chunks begun here may take, bytes written here.
        self.begun_bytes = 0
        self.written_bytes = 0

    def has_room(self, reserve_bytes: int) -> bool:
        """Whether new data may be written without touching the reserve."""
        return self.free_bytes - self.written_bytes >= reserve_bytes


class Drain:
    """An operator's order to move the replicas of a disk to the server's other ones."""

    def __init__(self) -> None:
        self.is_wanted = False
        #: Wakes the task that moves them.
        self.begun = trio.Event()
        #: Replicas for which the other disks had no room.
        self.stuck = 0
        #: Replicas that are damaged: the master has good ones made elsewhere, if there are any.
        self.damaged = 0


class Saving:
    """Those who wait for the redo journal of a disk, or for its intent records."""

    def __init__(self) -> None:
        #: Set when the sync under way of the journal, or of the intent records, ends.
        self.syncing: dict[Journal | Intents, trio.Event] = {}
        #: Wakes the task that saves the replicas in a full journal.
        self.wanted = trio.Event()
        #: Writers who wait for room in it.
        self.room = trio.lowlevel.ParkingLot()


class Closing:
    """The end of a disk, and the files that nobody uses any more, which a thread closes: on some
    file systems a close waits for the disk."""

    def __init__(self) -> None:
        #: Set when the disk is not used any more; and when all its files are closed.
        self.ended = trio.Event()
        self.closed = trio.Event()
        #: Set when there is a file to close.
        self.wanted = trio.Event()
        self._files: list[File | ChunkFile] = []
        #: Has a thread close the remaining files after all others were closed.
        self._close_rest: Callable[[], object] = lambda: None

    def later(self, file: File | ChunkFile) -> None:
        """Have a file closed by a thread."""
        self._files.append(file)
        self.wanted.set()
        if self.closed.is_set():
            self._close_rest()

    def close_files(self) -> None:
        """Blocks. Close the files that were put off; of a disk that is given up, all files. No
        thread may be using any of them."""
        while self._files:
            # No write was acknowledged that is not synced; another thread may close the same file.
            with contextlib.suppress(OSError, IndexError):
                self._files.pop().close()

    def finish(self, close_rest: Callable[[], object]) -> None:
        """All files are closed except those that are still used: ``close_rest`` is
        called when they can be closed, too."""
        self.closed.set()
        self._close_rest = close_rest
        if self._files:
            close_rest()


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
        on_failure: Callable[[Disk], None] = lambda _: None,
    ) -> None:
        self.world = world
        self.index = index
        self.path = path
        self._settings = settings
        self._on_failure = on_failure
        #: The disk's id, in its identity file.
        self.id = ""
        #: "failed" or "missing", and so on; empty while it is used.
        self.down = ""
        #: Whether all its replicas are known.
        self.is_adopted = True
        self.chunks = 0
        self.space = Space(settings.reserve_bytes)
        self.mount = Mount()
        self.calls = Calls(settings.disk_threads, settings.disk_hang_seconds)
        self.health = Health()
        self.drain = Drain()
        self.saving = Saving()
        self.closing = Closing()
        #: The attributes below exist once the disk was opened.
        self.files: FileSystem
        self.journal: Journal
        self.intents: Intents
        self.packs: Packs

    def open(self, former_id: str = "") -> None:
        """Open the directory that is at its path now. Blocks. Raises ``OSError`` if
        there is none. ``former_id`` is the one that it has if it is the copy of another disk,
        which keeps that id."""
        self.files = self.world.files.within(self.path)
        self.mount.device = self.world.files.device(self.path)
        sync = self._settings.durability == "fsync"
        self.journal = Journal(self.files, self.path, sync, self._settings.journal_bytes)
        self.intents = Intents(self.files, self.path, boot_number(self.world.boot))
        self.packs = Packs(self.files, self.path, self.id, former_id)

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
        return f".clone.{next(self.calls.numbers)}"

    def measure(self) -> None:
        """Blocks. Measure its space. Raises ``OSError``, also if it was remounted read-only."""
        found, space = self.files.space(self.path), self.space
        if found.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.path)
        space.total_bytes, space.free_bytes = found.total_bytes, found.free_bytes
        space.begun_bytes = space.written_bytes = 0

    @property
    def takes_new(self) -> bool:
        """Whether new replicas are made on it, if it has room."""
        return self.is_adopted and not self.drain.is_wanted

    @property
    def state(self) -> str:
        if self.down:
            return self.down
        if self.drain.is_wanted:
            return "draining"
        if self.calls.are_slow:
            return "slow"
        return "ok" if self.space.has_room(self.space.reserve_bytes) else "full"

    def report(self) -> DiskReport:
        is_used, space, drain, reason = not self.down, self.space, self.drain, self.health.reason
        if drain.is_wanted and drain.stuck and is_used:
            reason = f"the server's other disks have no room for {plural(drain.stuck, 'replica')}"
        return DiskReport(
            path=self.path,
            id=self.id,
            total_bytes=space.total_bytes * is_used,
            free_bytes=max(0, space.free_bytes - space.reserve_bytes) * is_used,
            chunks=self.chunks,
            state=self.state,
            reason=reason,
            errors=self.health.errors,
            mount=self.mount.point,
            damaged=drain.damaged * drain.is_wanted,
            device=self.mount.device,
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
        calls = self.calls
        result: T | None = None
        with trio.CancelScope() as scope:
            calls.scopes.add(scope)
            borrower = object()
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                try:
                    # Usually no task waits: this one is scheduled once, for the call.
                    calls.limiter.acquire_on_behalf_of_nowait(borrower)
                except trio.WouldBlock:
                    await calls.limiter.acquire_on_behalf_of(borrower)
                try:
                    scope.shield = True
                    result = await self._run(function, args)
                finally:
                    calls.limiter.release_on_behalf_of(borrower)
            finally:
                calls.scopes.discard(scope)
                if self.is_open and self.journal.to_save:
                    self.saving.wanted.set()
        if self.down:
            # Nobody gets it: it may be a file that was opened, and the error may live long.
            result = None
            raise self.failure()
        return cast(T, result)

    async def _run(self, function: Callable[..., T], args: tuple[object, ...]) -> T:
        number, running = next(self.calls.numbers), self.calls.running

        def call() -> T:
            own = running[number] = Call(getattr(function, "__qualname__", str(function)))
            try:
                with making(own):
                    return function(*args)
            except OSError as error:
                self.health.has_refused = self.health.has_refused or is_of_disk(error)
                raise
            finally:
                del running[number]

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
        if self.calls.probed is not None:
            await self.calls.probed.wait()
            return
        done = self.calls.probed = trio.Event()
        try:
            await self._run(self.probe, ())
        except OSError as error:
            if error.errno not in HARMLESS:
                self.fail(FAILED, describe(error))
        finally:
            self.calls.probed = None
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
        reason = self.health.reason
        return DiskFailed(f"the disk {self.path} of this chunkserver is {self.down}: {reason}")

    def take(self, error: OSError) -> None:
        """Count an error that ended a call to the disk, and fail the disk if the error
        requires it."""
        if is_of_disk(error):
            reason = self.health.count(error)
            if reason is not None:
                self.fail(MISSING if error.errno == errno.ENOTDIR else FAILED, reason)

    def tick(self) -> None:
        """Called every ``TICK_SECONDS``: a call that has run for too long fails the disk."""
        if self.down:
            return
        self.health.ticks += 1
        call = self.calls.tick()
        if call is not None:
            self.health.hung = True
            self.health.errors += 1
            seconds = self.calls.hang_seconds
            self.fail(FAILED, f"a call has not returned for {seconds:g} s ({call.name})")

    def fail(self, state: str, reason: str) -> None:
        """Fail the disk: from now on nothing is read from it or written to it."""
        if not self.down:
            self.end(state, reason)
            self._on_failure(self)

    def end(self, state: str, reason: str) -> None:
        """As :meth:`fail`, without the call of ``on_failure``."""
        self.down, self.health.reason = state, reason
        self.calls.abandon()
        self.saving.room.unpark_all()
        self.closing.ended.set()

    def close(self) -> None:
        """Blocks. As :meth:`Closing.close_files`, and close everything else that is open."""
        self.closing.close_files()
        if self.is_open:
            self.journal.close()
            self.intents.close()
            self.packs.close()
        if self.mount.lock is not None:
            self.mount.lock.close()
            self.mount.lock = None
        if hasattr(self, "files"):
            self.files.close()


_UNLIMITED = trio.CapacityLimiter(float("inf"))
