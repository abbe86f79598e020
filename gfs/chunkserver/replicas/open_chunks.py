"""Open chunk files: an LRU of bounded size, and the rules for access to a chunk's file.

A chunk has at most one file here. A chunk is *busy* while its file is being opened,
made, replaced or deleted, by one task at a time. Tasks that have it open continue; a
writer holds its ``mutex``, which a task that replaces or deletes the file takes as
well. So the file can be dropped only before a task gets the mutex, and not while it
holds it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator

import trio

from gfs.chunkserver.disks import Disk, DiskSet, map_read_error
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.packs import PackedFile, open_packed
from gfs.chunkserver.replicas.inventory import Inventory, Replica
from gfs.errors import CorruptReplica, NotFound
from gfs.protocol.deadline import Watch, deadline

log = logging.getLogger(__name__)

#: How many chunk files stay open; each has up to 8 KiB of sums in memory besides.
OPEN_FILES_MAX = 512
#: How long a task that opens, replaces or deletes a chunk's file waits for another task that
#: does, and for a write that must end first.
TURN_SECONDS = 3.0


class OpenChunk:
    """An open replica, shared by all tasks that use it now.

    A task that mutates the file holds ``mutex``; ``watch`` is that of the present write
    exchange, so that one with a higher version can end it.
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
        #: When its write-intent record was last made, or a write that needs one ended.
        self.mutated_at = float("-inf")
        self.append_seconds = 0.0
        self.appenders = 0

    @property
    def is_pending(self) -> bool:
        """Whether its newest state is only in the journal."""
        return self.disk.journal.holds(self.file.handle)

    def preempt(self, version: int | None = None) -> None:
        """End the write under way here; with ``version`` only if it is of a lower one."""
        if self.watch is not None and (version is None or version > self.watch_version):
            watch, self.watch = self.watch, None
            watch.scope.cancel()


class OpenChunks:
    """The replicas that are open now, by handle; and the chunks that are busy."""

    def __init__(self, disks: DiskSet, inventory: Inventory) -> None:
        self._disks = disks
        self._inventory = inventory
        self._open: OrderedDict[int, OpenChunk] = OrderedDict()
        #: Set when the chunk is not busy any more.
        self.busy: dict[int, trio.Event] = {}

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
        """The replica if it is open now. Pin it before the next ``await``."""
        return self._open.get(handle)

    def disk_at_rest(self, handle: int) -> Disk | None:
        """The disk that the replica is on, if nothing is to happen to it now: for a read that
        does not wait."""
        replica = self._inventory.get(handle)
        if replica is None or handle in self.busy:
            return None
        return self._disks.used[replica.disk]

    def used_now(self, handle: int) -> None:
        """It is among the last to be closed for others."""
        self._open.move_to_end(handle)

    def disk_of(self, handle: int) -> Disk | None:
        """The disk that the replica is on, or is being made on."""
        chunk, replica = self._open.get(handle), self._inventory.get(handle)
        if chunk is not None:
            return chunk.disk
        return None if replica is None else self._disks.used[replica.disk]

    async def get(self, handle: int) -> OpenChunk:
        """As :meth:`using`, but not pinned: pin it before the next ``await``."""
        chunk = self._open.get(handle)
        if chunk is None:
            async with self.alone(handle):
                chunk = self._open.get(handle) or await self._open_file(handle)
        self.used_now(handle)
        return chunk

    @contextlib.asynccontextmanager
    async def alone(self, handle: int) -> AsyncIterator[None]:
        """Make the chunk busy for this block.

        Raises DeadlineExceeded.
        """
        with deadline(TURN_SECONDS, f"end of the task that has chunk {handle:016x}"):
            while handle in self.busy:
                await self.busy[handle].wait()
        done = self.busy[handle] = trio.Event()
        try:
            yield
        finally:
            del self.busy[handle]
            done.set()

    @contextlib.asynccontextmanager
    async def unwritten(self, handle: int) -> AsyncIterator[None]:
        """Keep writers off the busy chunk for this block. A write under way is ended: its next
        packet would go to a deleted file, or recreate that in the place of another. Raises
        DeadlineExceeded."""
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
        replica = self._inventory.get(handle)
        if replica is None:
            raise NotFound(f"chunk {handle:016x} is not on this chunkserver")
        if self._inventory.is_incomplete(handle):
            raise CorruptReplica(f"chunk {handle:016x}: its newest states could not be saved")
        disk = self._disks.used[replica.disk]
        packed = open_packed(disk.packs, handle, disk.journal)
        if packed is not None:
            return self.keep(OpenChunk(disk, packed))
        try:
            with trio.CancelScope(shield=True):  # an open file is always noted
                path = disk.chunk_path(handle)
                file = await disk.run(ChunkFile.open, disk.files, path, handle, disk.journal)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not disk.down:
                self.lose(handle)
            known = map_read_error(error, f"chunk {handle:016x}")
            if isinstance(known, CorruptReplica) and self.disk_of(handle) is disk:
                self._inventory.mark_bad(handle)
            raise known from error
        return self.keep(OpenChunk(disk, file))

    def keep(self, chunk: OpenChunk) -> OpenChunk:
        """Keep it open; a file that nobody uses may be closed for it."""
        self._open[chunk.file.handle] = chunk
        for handle, other in list(self._open.items()) if self._is_over() else ():
            if not other.users and other is not chunk and not other.is_pending:
                del self._open[handle]
                self._drop(other)
                if not self._is_over():
                    break
        return chunk

    def _is_over(self) -> bool:
        return len(self._open) > OPEN_FILES_MAX

    def _drop(self, chunk: OpenChunk) -> None:
        chunk.dropped = True
        self.close_if_unused(chunk)

    def close_if_unused(self, chunk: OpenChunk) -> None:
        """Close the file of a dropped chunk if nobody has it pinned. A packed replica has no open
        file, and takes no place from those that have."""
        if chunk.users:
            return
        if not isinstance(chunk.file, PackedFile):
            if chunk.dropped:
                chunk.disk.closing.later(chunk.file)
        elif self._open.get(chunk.file.handle) is chunk:
            del self._open[chunk.file.handle]

    def note(self, chunk: OpenChunk) -> None:
        """Update the inventory to the state of the open file."""
        if not chunk.dropped:
            file = chunk.file
            if file.is_unsound:
                self._inventory.mark_bad(file.handle)
            self._inventory.put(file.handle, Replica(chunk.disk.index, file.version, file.length))

    def mark_unfit(self, chunk: OpenChunk) -> None:
        """As :meth:`Inventory.mark_bad`, unless the replica was replaced or deleted since."""
        if not chunk.dropped:
            self._inventory.mark_bad(chunk.file.handle)

    def lose(self, handle: int) -> None:
        """The replica's file does not exist any more."""
        if handle in self._inventory:
            log.error("chunk %016x: the replica's file is gone", handle)
            self.report_gone(handle)

    def report_gone(self, handle: int) -> None:
        """As :meth:`forget`, and report it to every master."""
        version = self._inventory[handle].version
        for changes in self._inventory.changes:
            changes.gone[handle] = version
        chunk = self._open.get(handle)
        if chunk is not None:
            chunk.preempt()
        self.forget(handle)
        self._inventory.bad.pop(handle, None)

    def forget(self, handle: int) -> None:
        """Drop a replica that is no longer here: tasks that have it open continue with
        a dropped file."""
        self._inventory.remove(handle)
        chunk = self._open.pop(handle, None)
        if chunk is not None:
            self._drop(chunk)

    def forget_disk(self, disk: Disk) -> None:
        """Drop the replicas that are being made on it."""
        for handle, chunk in list(self._open.items()):
            if chunk.disk is disk:
                chunk.preempt()
                self.forget(handle)

    @contextlib.contextmanager
    def all_busy(self, handles: Iterable[int]) -> Iterator[None]:
        """Make these chunks busy for this block; none of them is yet."""
        done, held = trio.Event(), list(handles)
        self.busy.update(dict.fromkeys(held, done))
        try:
            yield
        finally:
            for handle in held:
                del self.busy[handle]
            done.set()
