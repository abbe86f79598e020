"""The replicas of one chunkserver: which there are, on which disk, open or not.

The *inventory* (handle → disk, version, length) is in memory, read from the
heads of the chunk files at start: a chunkserver has the final word on which
chunks it holds (the paper, 2.6.2). Open files are kept in an LRU of bounded
size. A disk is one directory::

    DIR/server.json            this server's id, its cluster, what it has seen
    DIR/lock                   held while the server runs
    DIR/journal.0, journal.1   see gfs.chunkserver.files.journal
    DIR/marks                  see gfs.chunkserver.files.intents
    DIR/chunks/HH/HANDLE.chunk HH: the handle's lowest byte; all in hex
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple, TypeVar

import trio

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.disks.disk import FAILED, Disk, map_disk_error
from gfs.chunkserver.disks.loading import Contents, unlink_for_good
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.intents import NO_STATE, Mark, Marks, boot_number
from gfs.chunkserver.files.journal import Journal, Keeper
from gfs.chunkserver.files.layout import HEAD_BYTES
from gfs.chunkserver.files.progress import report_progress
from gfs.config import ChunkserverSettings
from gfs.diagnostics import event
from gfs.errors import (
    Busy,
    CorruptReplica,
    DeadlineExceeded,
    DiskFailed,
    DiskFull,
    GfsError,
    NotFound,
    StaleVersion,
)
from gfs.io import World
from gfs.protocol.deadline import Watch, deadline
from gfs.protocol.messages import FORGETFUL, BadReplica, ReplicaName
from gfs.protocol.messages import Disk as DiskReport

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Open chunk files kept; each has up to 8 KiB of sums in memory besides.
OPEN_FILES_MAX = 512
#: Whoever opens, replaces or deletes a chunk's file waits so long for another who does,
#: and for a write that is to end first.
TURN_SECONDS = 3.0
#: Between two marks that are looked at, at most.
MARK_REST_SECONDS = 0.1
#: Replicas saved at once, of those of a full journal; but less than half of the disk's
#: threads, since whoever writes to one of them waits for it in another thread.
SAVES_AT_ONCE = 3
#: Before what a disk refuses to save is tried again.
SAVE_AGAIN_SECONDS_MIN, SAVE_AGAIN_SECONDS_MAX = 1.0, 5.0

_RECORD = struct.Struct(">QII")


class Replica(NamedTuple):
    disk: int
    version: int
    length: int


class Rival(NamedTuple):
    """A second file of a chunk, on another disk than the one that is served."""

    replica: Replica
    #: It may lack something, and the record that says so.
    mark: Mark | None
    is_unfit: bool


class Made(NamedTuple):
    """A whole replica in memory, verified."""

    handle: int
    version: int
    data: memoryview
    sums: bytes


class Changes:
    """Replicas that came or went other than by a master's or a client's order, for one
    master: by handle, of those that went with the version."""

    def __init__(self) -> None:
        self.gone: dict[int, int] = {}
        self.come: dict[int, None] = {}


class OpenChunk:
    """An open replica, shared by everyone who uses it now.

    ``mutex`` is held by whoever mutates the file; ``watch`` is the present write
    exchange's, so that one with a higher version can end it.
    """

    def __init__(self, disk: Disk, file: ChunkFile) -> None:
        self.disk = disk
        self.file = file
        self.users = 0
        self.dropped = False
        self.mutex = trio.Lock()
        self.watch: Watch | None = None
        self.watch_version = 0
        #: The version under which all replicas were last known to be of one length,
        #: by this server as the primary.
        self.level_version = 0
        #: When the last exchange of appends ended, and how long it took; and how many
        #: requests were in it or waited behind it.
        self.appended_at = float("-inf")
        #: When it was last marked, or a write that needs a mark ended.
        self.mutated_at = float("-inf")
        self.append_seconds = 0.0
        self.appenders = 0

    @property
    def is_pending(self) -> bool:
        """Whether its file does not say yet what this says."""
        return self.disk.journal.holds(self.file.handle)

    def preempt(self, version: int | None = None) -> None:
        """End the write under way here, if it is of a lower version when one is given."""
        if self.watch is not None and (version is None or version > self.watch_version):
            watch, self.watch = self.watch, None
            watch.scope.cancel()


class ChunkStore:
    """All replicas of this server. One task at a time decides; threads only work.

    A chunk has one file here, or none. *Busy* is a chunk whose file is being opened,
    made, replaced or deleted: one task at a time does that. Who has it open goes on;
    who writes holds its ``mutex``, which who replaces or deletes it takes as well. So
    nobody finds, with the mutex in hand, that the file was dropped in the middle; only
    before it got it.
    """

    def __init__(self, world: World, settings: ChunkserverSettings) -> None:
        self.world = world
        #: This chunkserver's id, for the log.
        self.server = ""
        self.reserve_bytes = settings.reserve_bytes
        self._settings = settings
        self._idle_seconds = settings.idle_seconds
        self._boot = boot_number(world.boot)
        self._indexes = itertools.count()
        #: The disks that are used, by index; an index is never used again.
        self.disks: dict[int, Disk] = {}
        #: Those that are not, by path.
        self.down: dict[str, Disk] = {}
        self.inventory: dict[int, Replica] = {}
        #: Data of all replicas, without their heads.
        self.bytes = 0
        #: Damaged replicas, by handle, until a clone or the master ends them.
        self.bad: dict[int, BadReplica] = {}
        #: (Handle, version) of damaged replicas on disks that are not used, or not yet: they
        #: count as damaged when the disk is used again, until they are read.
        self.damaged: dict[int, int] = {}
        #: Damaged replicas found since the start.
        self.found_bad = 0
        #: Of each master: what it is still to be told.
        self.changes: list[Changes] = []
        #: By (disk, handle): files of chunks that another disk has, too. Neither is deleted
        #: before it is decided which one is better (see gfs.chunkserver.upkeep.twins).
        self.rivals: dict[tuple[int, int], Rival] = {}
        #: Set when there are some.
        self.found_rivals = trio.Event()
        #: (Disk, handle) of files that are to be deleted: the replica is on another disk.
        self._twins: set[tuple[int, int]] = set()
        #: (Disk, path) of replicas that were given up half made, and could not be deleted.
        self._half_made: set[tuple[int, str]] = set()
        #: Replicas that may lack what was last written, and the marks that say so.
        self.forgetful: dict[int, Mark] = {}
        self._open: OrderedDict[int, OpenChunk] = OrderedDict()
        #: Set when the chunk is not busy any more.
        self.busy: dict[int, trio.Event] = {}

    # --- disks ------------------------------------------------------------------

    def new_disk(self, path: str) -> Disk:
        """A disk of this server, not opened and not used yet."""
        index = next(self._indexes)
        return Disk(self.world, index, path, self._settings, self._boot, self._failed)

    async def run(self, disk: Disk, function: Callable[..., T], *args: object) -> T:
        """See :meth:`gfs.chunkserver.disks.disk.Disk.run`."""
        return await disk.run(function, *args)

    def adopt(self, disk: Disk, contents: Contents) -> None:
        """Use a disk that was read: its replicas are this server's from now on. Of chunks
        that another disk has in the same version, that one is served until both were read."""
        self.disks[disk.index] = disk
        self.down.pop(disk.path, None)
        twice = sum(handle in self.inventory for handle in contents.replicas)
        for handle, found in contents.replicas.items():
            here = Replica(disk.index, found.version, found.length)
            rival = Rival(here, contents.forgetful.get(handle), handle in contents.unfit)
            self.rivals[disk.index, handle] = rival
            self.choose(handle)
            if self.inventory.get(handle) == here and self.damaged.get(handle) == here.version:
                del self.damaged[handle]
                self.bad.setdefault(handle, BadReplica(handle, here.version, "corrupt"))
        for handle in contents.unreadable:
            if handle in self.inventory:
                self._twins.add((disk.index, handle))
            else:
                self.bad[handle] = BadReplica(handle, 0, "corrupt")
        if twice:
            log.warning(
                "%s has replicas of %d chunks that another disk of this server has, too: the "
                "better one of each two is kept",
                disk.path,
                twice,
            )
        if self.rivals or self._twins:
            self.found_rivals.set()

    def rivals_of(self, handle: int) -> list[Rival]:
        """The best one first."""
        some = [self.rivals[n, handle] for n in self.disks if (n, handle) in self.rivals]
        some.sort(key=lambda rival: (rival.replica.version, rival.mark is None), reverse=True)
        return some

    def choose(self, handle: int) -> None:
        """Decide between the files of a chunk what can be decided unread: the higher version
        stays, and of two of the same one that lacks nothing is served until both were read.
        What is used just now is left for another time."""
        for rival in self.rivals_of(handle):
            known = self.inventory.get(handle)
            if known is not None and known.version > rival.replica.version:
                self.drop_rival(handle, rival)
            elif known is None or known.version < rival.replica.version:
                self.prefer(handle, rival, is_better=True)
            elif handle in self.forgetful and rival.mark is None:
                self.prefer(handle, rival, is_better=False)

    def drop_rival(self, handle: int, rival: Rival) -> None:
        """The file that is served is as good, or better."""
        del self.rivals[rival.replica.disk, handle]
        self._twins.add((rival.replica.disk, handle))

    def prefer(self, handle: int, rival: Rival, is_better: bool) -> None:
        """Serve this one instead of what is served now, if anything, unless that is in use.
        That is deleted if this one ``is_better`` for sure."""
        known, chunk = self.inventory.get(handle), self._open.get(handle)
        if handle in self.busy:
            return
        if chunk is not None and (known is None or chunk.users or chunk.is_pending):
            return
        self._take(handle, rival, is_better)

    def _take(self, handle: int, rival: Rival, is_better: bool) -> None:
        here, known = rival.replica, self.inventory.get(handle)
        del self.rivals[here.disk, handle]
        if known is not None:
            key = known.disk, handle
            if is_better:
                self._twins.add(key)
            else:
                self.rivals[key] = Rival(known, self.forgetful.get(handle), handle in self.bad)
            self.forget(handle)
        elif handle in self.bad:  # another disk has one that cannot be read
            keys = {(n, handle) for n in self.disks if n != here.disk}
            self._twins.update(keys - self.rivals.keys())
        self.bad.pop(handle, None)
        self._note(handle, here)
        for changes in self.changes:
            changes.come[handle] = None
        if rival.mark is not None:
            self.forgetful[handle] = rival.mark
        if rival.is_unfit:
            self.mark_bad(handle)

    def _failed(self, disk: Disk) -> None:
        """Its replicas are gone: nobody reads them, and the master has them made anew."""
        self.down[disk.path] = disk
        lost = [h for h, replica in self.inventory.items() if replica.disk == disk.index]
        for handle in lost:
            if handle in self.bad:
                self.damaged[handle] = self.bad[handle].version
            self._lose(handle)
        self._forget_disk(disk)
        for handle in lost:
            self.choose(handle)
        if self.server:
            self.tell_failed(disk, len(lost))

    def tell_failed(self, disk: Disk, lost: int) -> None:
        """Have the log say it; at a start, when it is known which server this is."""
        log.error(
            "disk %s is %s: %s. Its %d replicas will be re-replicated from other servers. "
            "When it works again: gfs disk retry %s %s",
            disk.path,
            disk.down,
            disk.reason,
            lost,
            self.server,
            disk.path,
            extra=event(
                "disk_failed",
                server=self.server,
                disk=disk.path,
                state=disk.down,
                reason=disk.reason,
                replicas=lost,
            ),
        )

    def release(self, disk: Disk) -> None:
        """An empty disk is not used any more."""
        disk.end("removed", "an operator has removed it")
        self._forget_disk(disk)

    def _forget_disk(self, disk: Disk) -> None:
        """Nothing is to be done on it any more."""
        for handle, chunk in list(self._open.items()):
            if chunk.disk is disk:  # one that is being made
                chunk.preempt()
                self.forget(handle)
        self._twins = {each for each in self._twins if each[0] != disk.index}
        self._half_made = {each for each in self._half_made if each[0] != disk.index}
        self.rivals = {key: each for key, each in self.rivals.items() if key[0] != disk.index}
        self.disks.pop(disk.index, None)

    def lose(self, handle: int) -> None:
        """The replica is not there any more: its file is gone."""
        if handle in self.inventory:
            log.error("chunk %016x: the replica's file is gone", handle)
            self._lose(handle)

    def _lose(self, handle: int) -> None:
        version = self.inventory[handle].version
        for changes in self.changes:
            changes.gone[handle] = version
        chunk = self._open.get(handle)
        if chunk is not None:
            chunk.preempt()
        self.forget(handle)
        self.bad.pop(handle, None)

    # --- the redo journal -----------------------------------------------------------

    async def settle(self, disk: Disk) -> None:
        """What was written before is as durable as is promised when this returns: all
        who wait at the same time share one sync. Raises ``OSError``."""
        if disk.journal.sync:
            await self._sync(disk, disk.journal, disk.journal.written)

    async def _sync(self, disk: Disk, log: Journal | Marks, target: int) -> None:
        while log.synced < target:
            under_way = disk.syncing.get(log)
            if under_way is not None:
                await under_way.wait()
                continue
            done = disk.syncing[log] = trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    await self.run(disk, log.flush)
            finally:
                if log.failed:
                    disk.fail(FAILED, f"{log.path} could not be synced")
                del disk.syncing[log]
                done.set()

    async def wait_for_room(self, disk: Disk) -> None:
        """Until the journal can take more. Raises DeadlineExceeded."""
        if disk.journal.crowded:
            with deadline(self._idle_seconds, "room in the redo journal"):
                while disk.journal.crowded:
                    await disk.room.park()
                    if disk.down:
                        raise disk.failure()

    async def empty_journal(self, disk: Disk) -> None:
        """Have what the journal has saved, though it is not full. Raises ``OSError``."""
        await self.run(disk, disk.journal.set_aside)

    async def keep_saving(self, disk: Disk) -> None:
        """Save what a full journal has, so that it can be overwritten. Runs for as long
        as the server does."""
        pause = SAVE_AGAIN_SECONDS_MIN
        while True:
            await disk.to_save.wait()
            disk.to_save = trio.Event()
            try:
                await self._save_all(disk, await self.run(disk, disk.journal.unsaved))
                await self.run(disk, disk.journal.release)
                pause = SAVE_AGAIN_SECONDS_MIN
            except OSError as error:
                log.error("%s: the redo journal cannot be emptied: %s", disk.path, error)
                await self.world.clock.sleep(pause)
                pause = min(2 * pause, SAVE_AGAIN_SECONDS_MAX)
                disk.to_save.set()
            disk.room.unpark_all()

    async def _save_all(self, disk: Disk, keepers: list[Keeper]) -> None:
        """A few at once, since the syncs of several cost a disk hardly more than that of
        one. Raises one of the ``OSError`` of :meth:`_save`, when all others are done."""
        failures: list[OSError] = []
        rest = iter(keepers)

        async def work() -> None:
            for keeper in rest:
                try:
                    await self._save(disk, keeper)
                except OSError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            threads = int(disk.limiter.total_tokens)
            for _ in range(max(1, min(SAVES_AT_ONCE, (threads - 1) // 2))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _save(self, disk: Disk, keeper: Keeper) -> None:
        """Raises ``OSError`` if that is to be tried again."""
        try:
            await disk.run(keeper.save)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if disk.down or (not keeper.is_unsound and (is_full or not disk.journal.crowded)):
                raise  # the journal has it, and nobody needs its place yet
            log.error("chunk %016x cannot be saved: %s", keeper.handle, error)
            if keeper in await self.run(disk, disk.journal.unsaved):  # not deleted or replaced
                await self._give_up_saving(disk, keeper)
            return
        chunk = self._open.get(keeper.handle)
        if chunk is not None and chunk.file is keeper and self.is_lacking(keeper.handle):
            # It was given up, but that could not be noted, and now it is as it should be.
            disk.marks.remove(keeper.handle)
            _tell_mended(self.bad.pop(keeper.handle, None), "saved after all")

    async def _give_up_saving(self, disk: Disk, keeper: Keeper) -> None:
        """The replica is not what it is said to be, and is to be made anew. That is on the
        disk before the records of what it lacks may go. Raises ``OSError``."""
        self.mark_bad(keeper.handle)
        wanted = NO_STATE if keeper.is_unsound else keeper.sequence
        await self._sync(disk, disk.marks, disk.marks.put_lacking(keeper.handle, wanted))
        await self.run(disk, disk.journal.settled, keeper)

    def is_lacking(self, handle: int) -> bool:
        """Whether the disk refused the newest states of the replica here: it is good to
        all looks as long as it is open, and not when it is opened anew. Nothing mends it
        but another in its place."""
        replica = self.inventory.get(handle)
        mark = None if replica is None else self.disks[replica.disk].marks.get(handle)
        return mark is not None and mark.is_lacking

    # --- marks ----------------------------------------------------------------------

    async def mark(self, chunk: OpenChunk, version: int) -> None:
        """Before a replica is written that was there before, or gets a new version: it is
        noted, on the disk, that it may lack something when the power is gone. Raises
        ``OSError``."""
        disk, file = chunk.disk, chunk.file
        if disk.journal.sync or disk.marks.covers(file.handle, version):
            return
        chunk.mutated_at = self.world.clock.monotonic()
        change = disk.marks.put(file.handle, version, file.length)
        await self._sync(disk, disk.marks, change)

    async def believe(self, chunk: OpenChunk) -> None:
        """The master found no better replica: this one is as good as any from now on,
        in its present version, which nobody else's can pass for."""
        disk, file = chunk.disk, chunk.file
        change = disk.marks.put(file.handle, file.version, file.length)
        await self._sync(disk, disk.marks, change)
        if not chunk.dropped:
            self.forgetful.pop(file.handle, None)

    async def take_marks_back(self, disk: Disk, idle_seconds: float) -> None:
        """Sync what was not written for ``idle_seconds``, one replica after the other."""
        marks = disk.marks.all()
        rest = min(MARK_REST_SECONDS, idle_seconds / (len(marks) + 1))
        for mark in marks:
            try:
                await self._take_back(disk, mark, idle_seconds)
            except (GfsError, OSError) as error:
                log.info("chunk %016x stays marked: %s", mark.handle, error)
            await self.world.clock.sleep(rest)
        await self._sync(disk, disk.marks, disk.marks.changes)

    async def _take_back(self, disk: Disk, mark: Mark, idle_seconds: float) -> None:
        handle = mark.handle
        if handle in self.forgetful or handle in self.bad:
            return
        replica = self.inventory.get(handle)
        if replica is None or replica.disk != disk.index:
            if handle in self.busy or handle in self._open:
                return
            if await self.run(disk, self._is_gone, disk, handle):
                self._unmark(disk, mark)
            return
        opened = self.opened(handle)
        now = self.world.clock.monotonic()
        if opened is not None and now < opened.mutated_at + idle_seconds:
            return
        async with self.using(handle) as chunk:
            before = chunk.mutated_at
            if not chunk.mutex.locked() and chunk.disk is disk:
                try:
                    await self.run(disk, chunk.file.sync)
                finally:
                    if chunk.file.is_unsound and not chunk.dropped:
                        await self._give_up_saving(disk, chunk.file)
                if chunk.mutated_at == before and not (chunk.mutex.locked() or chunk.dropped):
                    self._unmark(disk, mark)

    def _unmark(self, disk: Disk, mark: Mark) -> None:
        if disk.marks.get(mark.handle) is mark:
            disk.marks.remove(mark.handle)

    def _is_gone(self, disk: Disk, handle: int) -> bool:
        """Blocks. Whether there is no file of it, and none can come back."""
        if disk.files.exists(disk.chunk_path(handle)):
            return False
        with contextlib.suppress(FileNotFoundError):
            disk.files.sync_directory(disk.folder(handle))
        return True

    # --- inventory ------------------------------------------------------------------

    def _note(self, handle: int, replica: Replica) -> None:
        if replica.disk not in self.disks:
            return  # it failed meanwhile, and took the replica along
        old = self.inventory.get(handle)
        if old is None:
            self.disks[replica.disk].chunks += 1
        elif old.disk != replica.disk:
            self.disks[old.disk].chunks -= 1
            self.disks[replica.disk].chunks += 1
        self.bytes += replica.length - (old.length if old is not None else 0)
        self.inventory[handle] = replica
        bad = self.bad.get(handle)
        if bad is not None and bad.version != replica.version:
            # An upload may start over on it. By its old version nobody could delete it.
            self.bad[handle] = BadReplica(handle, replica.version, bad.kind)

    def note(self, chunk: OpenChunk) -> None:
        """The inventory says what the open file says."""
        if not chunk.dropped:
            file = chunk.file
            if file.is_unsound:
                self.mark_bad(file.handle)
            self._note(file.handle, Replica(chunk.disk.index, file.version, file.length))

    def forget(self, handle: int) -> None:
        replica = self.inventory.pop(handle, None)
        if replica is not None:
            self.disks[replica.disk].chunks -= 1
            self.bytes -= replica.length
        self.forgetful.pop(handle, None)
        chunk = self._open.pop(handle, None)
        if chunk is not None:
            self._drop(chunk)

    def pack_gone(self, gone: dict[int, int]) -> bytes:
        """Report records of replicas that went, of those that did not come back."""
        return b"".join(
            _RECORD.pack(handle, version, 0)
            for handle, version in gone.items()
            if handle not in self.inventory
        )

    def pack(self, handles: Iterable[int]) -> bytes:
        """Report records (see ReportReplicas) of those of ``handles`` held here."""
        found = ((h, self.inventory.get(h)) for h in handles)
        return b"".join(
            [
                _RECORD.pack(h, r.version, r.length | FORGETFUL * (h in self.forgetful))
                for h, r in found
                if r and h not in self.bad
            ]
        )

    def reports(self) -> list[DiskReport]:
        return [disk.report() for disk in (*self.disks.values(), *self.down.values())]

    def mark_bad(self, handle: int) -> None:
        """This replica is damaged; the heartbeat reports that until it is dealt with."""
        replica = self.inventory.get(handle)
        version = replica.version if replica else 0
        if handle not in self.bad:
            self.found_bad += 1
            log.error(
                "chunk %016x version %d is corrupt here",
                handle,
                version,
                extra=event("corruption_found", chunk=f"{handle:x}", version=version),
            )
        self.bad[handle] = BadReplica(handle, version, "corrupt")

    def mark_unfit(self, chunk: OpenChunk) -> None:
        """As :meth:`mark_bad`, unless the replica was replaced or deleted since."""
        if not chunk.dropped:
            self.mark_bad(chunk.file.handle)

    def check_fit(self, handle: int, forgetful: bool = False) -> None:
        """Refuse to build on a replica that is known to be unfit: one whose file was
        deleted while it was open would take writes that no restart finds again. One that
        may lack something is fit only if ``forgetful``."""
        bad = self.bad.get(handle)
        if bad is not None:
            raise CorruptReplica(f"chunk {handle:016x}: the replica here is {bad.kind}")
        if not forgetful:
            self.check_remembers(handle)

    def check_remembers(self, handle: int) -> None:
        """Refuse to show, or to build on, a replica that may lack something."""
        if handle in self.forgetful:
            raise StaleVersion(
                f"chunk {handle:016x}: the replica here may lack what was last written"
            )

    # --- open chunks ------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def using(self, handle: int) -> AsyncIterator[OpenChunk]:
        """The open replica, pinned for as long as the block runs.

        Raises NotFound, CorruptReplica or DiskFailed.
        """
        chunk = await self.get(handle)
        chunk.users += 1
        try:
            yield chunk
        finally:
            chunk.users -= 1
            self.close_if_unused(chunk)

    def opened(self, handle: int) -> OpenChunk | None:
        """The replica if it is open now. Pin it before anything is awaited."""
        return self._open.get(handle)

    def disk_of(self, handle: int) -> Disk | None:
        """Where the replica is, or is being made."""
        chunk, replica = self._open.get(handle), self.inventory.get(handle)
        if chunk is not None:
            return chunk.disk
        return None if replica is None else self.disks[replica.disk]

    async def get(self, handle: int) -> OpenChunk:
        """As ``using``, but not pinned: pin it before anything is awaited."""
        chunk = self._open.get(handle)
        if chunk is None:
            async with self._alone(handle):
                chunk = self._open.get(handle) or await self._open_file(handle)
        self._open.move_to_end(handle)
        return chunk

    @contextlib.asynccontextmanager
    async def _alone(self, handle: int) -> AsyncIterator[None]:
        """The chunk is busy within this block, for its body alone.

        Raises DeadlineExceeded.
        """
        with deadline(TURN_SECONDS, f"end of what is done with chunk {handle:016x}"):
            while handle in self.busy:
                await self.busy[handle].wait()
        done = self.busy[handle] = trio.Event()
        try:
            yield
        finally:
            del self.busy[handle]
            done.set()

    @contextlib.asynccontextmanager
    async def _unwritten(self, handle: int) -> AsyncIterator[None]:
        """Nobody writes to the busy chunk within this block. A write that is under way is
        broken off: its next packet would be one to a file that is gone, or make that
        anew in the place of another. Raises DeadlineExceeded."""
        chunk = self._open.get(handle)
        if chunk is None:
            yield
            return
        chunk.users += 1
        try:
            chunk.preempt()
            with deadline(TURN_SECONDS, f"end of the write to chunk {handle:016x}"):
                await chunk.mutex.acquire()
            try:
                yield
            finally:
                chunk.mutex.release()
        finally:
            chunk.users -= 1
            self.close_if_unused(chunk)

    async def _open_file(self, handle: int) -> OpenChunk:
        replica = self.inventory.get(handle)
        if replica is None:
            raise NotFound(f"chunk {handle:016x} is not on this chunkserver")
        if self.is_lacking(handle):
            raise CorruptReplica(f"chunk {handle:016x}: its newest states could not be saved")
        disk = self.disks[replica.disk]
        try:
            with trio.CancelScope(shield=True):  # a file opened is a file noted
                path = disk.chunk_path(handle)
                file = await disk.run(ChunkFile.open, disk.files, path, handle, disk.journal)
        except CorruptReplica:
            self.mark_bad(handle)
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not disk.down:
                self.lose(handle)
            raise map_disk_error(error, f"chunk {handle:016x}") from error
        return self._keep(OpenChunk(disk, file))

    def _keep(self, chunk: OpenChunk) -> OpenChunk:
        self._open[chunk.file.handle] = chunk
        if len(self._open) > OPEN_FILES_MAX:
            for handle, other in self._open.items():
                if not other.users and other is not chunk and not other.is_pending:
                    del self._open[handle]
                    self._drop(other)
                    break
        return chunk

    def _drop(self, chunk: OpenChunk) -> None:
        chunk.dropped = True
        self.close_if_unused(chunk)

    def close_if_unused(self, chunk: OpenChunk) -> None:
        if chunk.dropped and not chunk.users:
            chunk.disk.close_later(chunk.file)

    # --- making, replacing, deleting ------------------------------------------------

    def pick_disk(self, need_bytes: int = CHUNK_BYTES) -> Disk:
        """The disk for a new replica: the one with most free space.

        Raises DiskFull when the reserve would be touched everywhere.
        """
        used = [disk for disk in self.disks.values() if not disk.draining]
        fit = [disk for disk in used if disk.has_room(self.reserve_bytes)]
        if not used:
            raise DiskFailed("no disk of this chunkserver can be used: see gfs status --disks")
        if not fit:
            raise DiskFull("no disk of this chunkserver has space above its reserve")
        disk = max(fit, key=lambda d: (d.free_bytes - d.begun * need_bytes, -d.chunks))
        disk.begun += 1
        return disk

    async def create(self, handle: int, version: int) -> OpenChunk:
        """A new, empty replica, open; one that is there already is returned as it is.

        Nothing is on the disk, or in the inventory, before something is written.
        """
        if handle not in self._open:
            async with self._alone(handle):
                if handle not in self._open and handle not in self.inventory:
                    rivals = self.rivals_of(handle)
                    if not rivals:
                        return await self._create(handle, version)
                    self._take(handle, rivals[0], is_better=True)
        return await self.get(handle)

    async def _create(self, handle: int, version: int) -> OpenChunk:
        if handle in self.bad:
            await self._discard(handle)  # it could not be read at start
        disk = self.pick_disk()
        path = disk.chunk_path(handle)
        file = ChunkFile.create(disk.files, path, handle, version, disk.journal)
        return self._keep(OpenChunk(disk, file))

    async def give_up(self, chunk: OpenChunk) -> None:
        """A new replica could not be committed: nothing of it stays, since nobody
        would ever know of its file to have it deleted. Its mutex must be held."""
        if chunk.file.committed or chunk.dropped:
            return
        handle = chunk.file.handle
        with trio.CancelScope(shield=True):
            try:
                await self._remove(chunk.disk, handle)
            except OSError:
                self.bad[handle] = BadReplica(handle, 0, "corrupt")
        self.forget(handle)

    async def install(self, disk: Disk, file: ChunkFile, moved: int | None = None) -> None:
        """Save a whole replica that was made beside the others, on ``disk``, and put it
        in the place of whatever is there. The caller closes the file.

        With ``moved`` it is a copy of what is there, in the state of that number.

        Raises StaleVersion when there is a newer one by now, DeadlineExceeded, ``OSError``.
        """
        handle = file.handle
        async with self._alone(handle), self._unwritten(handle):
            replica = self.inventory.get(handle)
            if moved is not None:
                self._check_moved(handle, moved)
            is_good = handle not in self.bad and handle not in self.forgetful
            rivals = self.rivals_of(handle)
            newest = rivals[0].replica if rivals else None
            if replica is not None and is_good:
                newest = max(replica, newest or replica, key=lambda each: each.version)
            if newest is not None and newest.version > file.version:
                raise StaleVersion(f"chunk {handle:016x} has version {newest.version} here")
            with trio.CancelScope(shield=True):
                # Only now: a start skips what the journal has of the old file, if all of
                # that has lower numbers.
                await self.run(disk, file.save)
                await self.run(disk, _rename, disk, file.path, disk.chunk_path(handle))
                await self._retire(handle)
                self.forget(handle)
                disk.marks.remove(handle)
                self.rivals.pop((disk.index, handle), None)
                # One that could not be read at start may be on any disk.
                if replica is not None or handle in self.bad or rivals:
                    for other in list(self.disks.values()):
                        if other is not disk:
                            await self._remove_twin(other, handle)
                _tell_mended(self.bad.pop(handle, None), "replaced")
                self._note(handle, Replica(disk.index, file.version, file.length))

    def is_absent(self, handle: int) -> bool:
        """Nothing of the chunk is here, nor about to be."""
        known = self.inventory, self.bad, self.busy, self._open
        return not (any(handle in each for each in known) or self.rivals_of(handle))

    async def install_new(self, disk: Disk, made: list[Made]) -> dict[int, GfsError]:
        """Make whole replicas on ``disk`` of chunks of which nothing is here, all at once.
        They are durable when this returns, but for those that it returns, with the reason."""
        failed: dict[int, GfsError] = {}
        for one in made:
            if not self.is_absent(one.handle):
                failed[one.handle] = Busy(f"chunk {one.handle:016x} is being made here already")
        made = [one for one in made if one.handle not in failed]
        done = trio.Event()
        self.busy.update(dict.fromkeys([one.handle for one in made], done))
        try:
            with trio.CancelScope(shield=True):
                refused = await self.run(disk, self._make_all, disk, made)
            for error in refused.values():
                disk.take(error)
            for one in made:
                if one.handle in refused:
                    what = f"copy of {one.handle:016x}"
                    failed[one.handle] = map_disk_error(refused[one.handle], what)
                    await self.leave(disk, disk.chunk_path(one.handle) + ".clone")
                else:
                    disk.marks.remove(one.handle)
                    disk.written_bytes += len(one.data)
                    self._note(one.handle, Replica(disk.index, one.version, len(one.data)))
        except OSError as failure:
            failed |= {one.handle: map_disk_error(failure, disk.path) for one in made}
        finally:
            for one in made:
                del self.busy[one.handle]
            done.set()
        return failed

    def _make_all(self, disk: Disk, made: list[Made]) -> dict[int, OSError]:
        """Blocks. Those that could not be made are left under another name."""
        files: dict[int, ChunkFile] = {}
        failed: dict[int, OSError] = {}
        for step in (self._write_new, self._sync_new, self._name_new):
            for one in made:
                report_progress()
                if one.handle not in failed:
                    try:
                        step(disk, one, files)
                    except OSError as error:
                        failed[one.handle] = error
        for folder in {disk.folder(one.handle) for one in made}:
            report_progress()
            try:
                disk.files.sync_directory(folder)
                if folder not in disk.journal.folders:
                    disk.files.sync_directory(folder.rpartition("/")[0])
                    disk.journal.folders.add(folder)
            except OSError as error:
                # Nobody knows which names are on the disk: none is believed.
                for one in made:
                    if disk.folder(one.handle) == folder and one.handle not in failed:
                        failed[one.handle] = error
                        path = disk.chunk_path(one.handle)
                        with contextlib.suppress(OSError):
                            disk.files.rename(path, path + ".clone")
        for file in files.values():
            file.close()
        return failed

    def _write_new(self, disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
        path = disk.chunk_path(one.handle) + ".clone"
        self.forget_half(disk, path)
        file = files[one.handle] = ChunkFile.create(
            disk.files, path, one.handle, one.version, disk.journal, copied=True
        )
        file.write(0, one.data, one.sums)
        file.finish_copy()

    def _sync_new(self, disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
        files[one.handle].file.sync()

    def _name_new(self, disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
        path = disk.chunk_path(one.handle)
        disk.files.rename(path + ".clone", path)

    def _check_moved(self, handle: int, state: int) -> None:
        chunk = self._open.get(handle)
        if chunk is None or chunk.file.sequence != state or chunk.file.uncommitted:
            raise StaleVersion(f"chunk {handle:016x} was written or replaced meanwhile")
        if handle in self.bad or handle in self.forgetful:
            raise StaleVersion(f"chunk {handle:016x} is not known to be good")

    async def _retire(self, handle: int) -> None:
        """Nothing is written to the open file any more, not by who saves either."""
        chunk = self._open.get(handle)
        if chunk is not None and not chunk.disk.down:
            await self.run(chunk.disk, chunk.file.retire)

    async def _remove(self, disk: Disk, handle: int) -> None:
        """Delete a file, if it is there. Raises ``OSError``."""
        for error in (await self._remove_all(disk, [handle])).values():
            raise error

    async def _remove_all(self, disk: Disk, handles: list[int]) -> dict[int, OSError]:
        """Delete files, as far as they are there; returns why some could not be. With
        ``"fsync"`` no power cut brings back what was there, not even by records of it: that
        it is gone is on the disk before it goes."""
        burials: list[int] = []
        is_noted = True
        try:
            if disk.journal.sync:
                try:
                    await self.run(disk, self._bury, disk, handles, burials)
                    await self.settle(disk)
                except OSError as error:
                    # A disk that is full of what is to be deleted has no room for records.
                    log.warning("%d chunks are deleted without a record: %s", len(handles), error)
                    is_noted = False
            failed = await self.run(disk, _unlink_all, disk, handles, is_noted)
            for refused in failed.values():
                disk.take(refused)
            return failed
        finally:
            for burial in burials:
                disk.journal.is_unlinked(burial)

    def _bury(self, disk: Disk, handles: list[int], burials: list[int]) -> None:
        """Blocks."""
        for handle in handles:
            burials.append(disk.journal.bury(handle, disk.folder(handle)))

    async def _remove_twin(self, disk: Disk, handle: int) -> None:
        """Delete what is left on this disk; later if it refuses."""
        self._twins.discard((disk.index, handle))
        self.rivals.pop((disk.index, handle), None)
        try:
            await self._remove(disk, handle)
        except OSError:
            if not disk.down:
                self._twins.add((disk.index, handle))

    async def leave(self, disk: Disk, path: str) -> None:
        """Have a half-made replica deleted, later if the disk refuses now."""
        try:
            with trio.CancelScope(shield=True):
                await disk.run(disk.files.unlink, path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s stays for the moment: %s", path, error)
            if not disk.down:
                self._half_made.add((disk.index, path))

    def forget_half(self, disk: Disk, path: str) -> None:
        """Another one is made there."""
        self._half_made.discard((disk.index, path))

    async def remove_leftovers(self) -> None:
        """Delete what disks refused to: half-made replicas, and those whose place one on
        another disk took."""
        for index, path in list(self._half_made):
            if (index, path) in self._half_made:
                self._half_made.discard((index, path))
                await self.leave(self.disks[index], path)
        await self.remove_twins()

    async def remove_twins(self) -> None:
        """Delete replicas whose place one on another disk took."""
        for index, handle in list(self._twins):
            with contextlib.suppress(DeadlineExceeded):
                async with self._alone(handle):
                    if (index, handle) not in self._twins:
                        continue  # it was dealt with, or its disk has failed
                    replica, chunk = self.inventory.get(handle), self._open.get(handle)
                    if index in (replica and replica.disk, chunk and chunk.disk.index):
                        self._twins.discard((index, handle))  # another file has its name
                    else:
                        await self._remove_twin(self.disks[index], handle)

    async def delete(self, handle: int, version: int) -> None:
        """Delete the replica if it is of exactly this version (a damaged one that
        could not be read at start counts as version 0).

        Raises StaleVersion when it is another by now: a late order; DeadlineExceeded,
        DiskFailed.
        """
        async with self._alone(handle):
            # Before, too: a write under a higher version is not broken off for it.
            if self._is_there(handle, version):
                async with self._unwritten(handle):
                    if self._is_there(handle, version):
                        self._drop_rivals(handle, version)
                        await self._discard(handle)

    async def delete_unused(self, names: list[ReplicaName]) -> list[ReplicaName]:
        """As :meth:`delete`, of replicas of one disk, all at once; returns those that are not
        there, are damaged, or are used by somebody: they are for :meth:`delete`."""
        unused = [name for name in names if self._is_unused(name)]
        if not unused:
            return names
        disk = self.disks[self.inventory[unused[0].handle].disk]
        # One may have been moved to another disk since the order came.
        unused = [n for n in unused if self.inventory[n.handle].disk == disk.index]
        handles = [name.handle for name in unused]
        others = [name for name in names if name not in unused]
        replicas = [self.inventory[handle] for handle in handles]
        done = trio.Event()
        self.busy.update(dict.fromkeys(handles, done))
        try:
            for handle, replica in zip(handles, replicas, strict=True):
                self.forget(handle)
                self._drop_rivals(handle, replica.version)
            with trio.CancelScope(shield=True):
                failed = await self._remove_all(disk, handles)
            for handle, replica in zip(handles, replicas, strict=True):
                if handle in failed:
                    self._note_remains(handle, replica)
                    log.warning("chunk %016x could not be deleted: %s", handle, failed[handle])
        except DiskFailed as error:
            log.warning("%d replicas could not be deleted: %s", len(handles), error)
        finally:
            for handle in handles:
                del self.busy[handle]
            done.set()
        return others

    def _drop_rivals(self, handle: int, version: int) -> None:
        """An order to delete that version is about all files of it, and of older ones."""
        for rival in self.rivals_of(handle):
            if rival.replica.version <= version:
                self.drop_rival(handle, rival)

    def _is_unused(self, name: ReplicaName) -> bool:
        """Whether it is of exactly this version, and nobody has anything to do with it."""
        handle, version = name.handle, name.version
        replica, chunk = self.inventory.get(handle), self._open.get(handle)
        if replica is None or replica.version != version:
            return False
        if handle in self.busy or handle in self.bad:
            return False
        # Without users nobody holds its mutex, or will before this is done.
        return chunk is None or not (
            chunk.users or chunk.is_pending or chunk.file.version != version
        )

    def _note_remains(self, handle: int, replica: Replica | None) -> None:
        """It is there after all, though without what was not saved: to be deleted later."""
        if replica is not None:
            if replica.disk not in self.disks:
                return
            self._note(handle, replica)
        version = replica.version if replica is not None else 0
        self.bad[handle] = BadReplica(handle, version, "corrupt")

    def _is_there(self, handle: int, version: int) -> bool:
        replica = self.inventory.get(handle)
        if replica is None:
            bad = self.bad.get(handle)
            return bad is not None and bad.version == version
        found, chunk = replica.version, self._open.get(handle)
        if chunk is not None:
            # The inventory learns of it when the mutation ends.
            found = max(found, chunk.file.version, chunk.watch_version if chunk.watch else 0)
        if found != version:
            raise StaleVersion(f"chunk {handle:016x} has version {found} here, not {version}")
        return True

    async def _discard(self, handle: int) -> None:
        """Delete all that is here of a chunk: one that could not be read at start may be
        on any disk."""
        replica = self.inventory.get(handle)
        disks = [disk for n, disk in self.disks.items() if (n, handle) not in self.rivals]
        if replica is not None and handle not in self.bad:
            disks = [self.disks[replica.disk]]
        with trio.CancelScope(shield=True):
            await self._retire(handle)
            self.forget(handle)
            for disk in disks:
                try:
                    await self._remove(disk, handle)
                except OSError as error:
                    self._note_remains(handle, replica)
                    raise map_disk_error(error, f"chunk {handle:016x}") from error
        _tell_mended(self.bad.pop(handle, None), "deleted")

    def looks_wrong(self, disk: Disk, handles: list[int]) -> list[tuple[int, bool]]:
        """Blocks. Of these replicas those whose files are gone (False) or too short (True),
        by a stat. Raises ``OSError``."""
        found = []
        for handle in handles:
            replica = self.inventory.get(handle)
            if replica is None or replica.disk != disk.index:
                continue
            try:
                size = disk.files.file_size(disk.chunk_path(handle))
            except FileNotFoundError:
                found.append((handle, False))
            else:
                if replica.length and size < HEAD_BYTES + replica.length:
                    found.append((handle, True))
        return found


def _unlink_all(disk: Disk, handles: list[int], is_noted: bool) -> dict[int, OSError]:
    """Blocks."""
    failed: dict[int, OSError] = {}
    for handle in handles:
        report_progress()
        try:
            if is_noted:
                disk.files.unlink(disk.chunk_path(handle))
            else:
                unlink_for_good(disk.files, disk.chunk_path(handle))
        except FileNotFoundError:
            pass
        except OSError as error:
            failed[handle] = error
    return failed


def _rename(disk: Disk, temporary: str, path: str) -> None:
    disk.files.rename(temporary, path)
    disk.files.sync_directory(path.rpartition("/")[0])


def _tell_mended(bad: BadReplica | None, how: str) -> None:
    """What was unfit here, if anything was, is "replaced" by a good one, or "deleted": the
    good ones are elsewhere."""
    if bad is not None and bad.kind == "corrupt":
        log.info(
            "chunk %016x: the damaged replica is %s",
            bad.handle,
            how,
            extra=event(
                "corruption_repaired", chunk=f"{bad.handle:x}", version=bad.version, how=how
            ),
        )
