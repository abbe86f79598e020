"""The durability of writes: the redo journal and the write-intent records.

With ``durability = "fsync"`` a write is acknowledged when the journal, or the chunk file, is
synced; with ``"replicated"`` when it is written, and a write-intent record is synced before the
first write (:mod:`gfs.chunkserver.files.journal`, :mod:`gfs.chunkserver.files.intents`).
"""

from __future__ import annotations

import contextlib
import errno
import logging

import trio

from gfs.chunkserver.disks import FAILED, Disk
from gfs.chunkserver.files import NO_STATE, DirtyFile, Intent, Intents, Journal
from gfs.chunkserver.replicas.inventory import Inventory, log_mended
from gfs.chunkserver.replicas.open_chunks import OpenChunk, OpenChunks
from gfs.errors import GfsError
from gfs.io import Clock
from gfs.protocol.deadline import deadline

log = logging.getLogger(__name__)

#: The longest pause between two records that are checked.
INTENT_REST_SECONDS = 0.1
#: How many replicas of a full journal are saved at once; fewer than half of the disk's
#: threads, since a writer of one of them waits for it in another thread.
SAVES_AT_ONCE = 3
#: The pause before a failed save is repeated.
SAVE_AGAIN_SECONDS_MIN, SAVE_AGAIN_SECONDS_MAX = 1.0, 5.0


class Durability:
    """The durability of all disks' replicas; the state is in each :class:`Disk`."""

    def __init__(
        self, clock: Clock, idle_seconds: float, inventory: Inventory, open_chunks: OpenChunks
    ) -> None:
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._inventory = inventory
        self._open_chunks = open_chunks

    async def sync_journal(self, disk: Disk) -> None:
        """With ``"fsync"``, sync the journal with all earlier writes: tasks that wait
        at the same time share one sync. Raises ``OSError``."""
        if disk.journal.sync:
            await self._sync(disk, disk.journal, disk.journal.written)

    async def wait_for_room(self, disk: Disk) -> None:
        """Wait until the journal can take more. Raises DeadlineExceeded."""
        if disk.journal.crowded:
            with deadline(self._idle_seconds, "room in the redo journal"):
                while disk.journal.crowded:
                    await disk.saving.room.park()
                    if disk.down:
                        raise disk.failure()

    async def empty_journal(self, disk: Disk) -> None:
        """Save all replicas in the journal, even if it is not full. Raises ``OSError``."""
        await disk.run(disk.journal.set_aside)

    async def keep_saving(self, disk: Disk) -> None:
        """Save the replicas in a full journal, so that it can be overwritten. Runs for as long as
        the disk is used."""
        pause = SAVE_AGAIN_SECONDS_MIN
        while True:
            await disk.saving.wanted.wait()
            disk.saving.wanted = trio.Event()
            try:
                await self._save_all(disk, await disk.run(disk.journal.unsaved))
                await disk.run(disk.journal.release)
                pause = SAVE_AGAIN_SECONDS_MIN
            except OSError as error:
                log.error("%s: the redo journal cannot be emptied: %s", disk.path, error)
                await self._clock.sleep(pause)
                pause = min(2 * pause, SAVE_AGAIN_SECONDS_MAX)
                disk.saving.wanted.set()
            disk.saving.room.unpark_all()

    async def _save_all(self, disk: Disk, dirty_files: list[DirtyFile]) -> None:
        """Save several at once, since several syncs cost a disk hardly more than one. Raises one of
        the ``OSError`` of :meth:`_save` when all others are done."""
        failures: list[OSError] = []
        rest = iter(dirty_files)

        async def work() -> None:
            for file in rest:
                try:
                    await self._save(disk, file)
                except OSError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            threads = int(disk.calls.limiter.total_tokens)
            for _ in range(max(1, min(SAVES_AT_ONCE, (threads - 1) // 2))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _save(self, disk: Disk, file: DirtyFile) -> None:
        """Raises ``OSError`` if the save must be repeated."""
        try:
            await disk.run(file.save)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if disk.down or (not file.is_unsound and (is_full or not disk.journal.crowded)):
                raise  # the journal has it, and its space is not needed yet
            log.error("chunk %016x cannot be saved: %s", file.handle, error)
            if file in await disk.run(disk.journal.unsaved):  # not deleted or replaced
                await self._give_up_saving(disk, file)
            return
        chunk = self._open_chunks.opened(file.handle)
        if chunk is not None and chunk.file is file and self._inventory.is_incomplete(file.handle):
            # The save was given up, but not recorded; now the file is complete.
            disk.intents.remove(file.handle)
            log_mended(
                self._inventory.bad.pop(file.handle, None), "its states could be saved later"
            )

    async def _give_up_saving(self, disk: Disk, file: DirtyFile) -> None:
        """Record that the replica is incomplete, and must be replaced. That is on the
        disk before the journal's records of it may be overwritten. Raises
        ``OSError``."""
        self._inventory.mark_bad(file.handle)
        wanted = NO_STATE if file.is_unsound else file.sequence
        await self._sync(disk, disk.intents, disk.intents.put_incomplete(file.handle, wanted))
        await disk.run(disk.journal.saved, file)

    async def record_intent(self, chunk: OpenChunk, version: int) -> None:
        """Before an existing replica is written or gets a new version: sync the record that it
        may lack writes after a power cut. Raises ``OSError``."""
        disk, file = chunk.disk, chunk.file
        if disk.journal.sync or disk.intents.covers(file.handle, version):
            return
        chunk.mutated_at = self._clock.monotonic()
        change = disk.intents.put(file.handle, version, file.length)
        await self._sync(disk, disk.intents, change)

    async def accept_elected(self, chunk: OpenChunk) -> None:
        """Take the election of this replica: it is no longer possibly stale, under a
        new version that no other replica has."""
        disk, file = chunk.disk, chunk.file
        change = disk.intents.put(file.handle, file.version, file.length)
        await self._sync(disk, disk.intents, change)
        if not chunk.dropped:
            self._inventory.possibly_stale.pop(file.handle, None)

    async def clear_intents(self, disk: Disk, idle_seconds: float) -> None:
        """Sync the replicas that were not written for ``idle_seconds``, one after the other,
        and remove their records."""
        intents = disk.intents.all()
        rest = min(INTENT_REST_SECONDS, idle_seconds / (len(intents) + 1))
        for intent in intents:
            try:
                await self._clear_intent(disk, intent, idle_seconds)
            except (GfsError, OSError) as error:
                log.info("chunk %016x keeps its write-intent record: %s", intent.handle, error)
            await self._clock.sleep(rest)
        await self._sync(disk, disk.intents, disk.intents.changes)

    async def _clear_intent(self, disk: Disk, intent: Intent, idle_seconds: float) -> None:
        handle = intent.handle
        if handle in self._inventory.possibly_stale or handle in self._inventory.bad:
            return
        replica = self._inventory.get(handle)
        if replica is None or replica.disk != disk.index:
            if handle in self._open_chunks.busy or self._open_chunks.opened(handle):
                return
            if await disk.run(self._is_gone, disk, handle):
                self._remove_intent(disk, intent)
            return
        opened = self._open_chunks.opened(handle)
        now = self._clock.monotonic()
        if opened is not None and now < opened.mutated_at + idle_seconds:
            return
        async with self._open_chunks.using(handle) as chunk:
            before = chunk.mutated_at
            if not chunk.mutex.locked() and chunk.disk is disk:
                try:
                    await disk.run(chunk.file.sync)
                finally:
                    if chunk.file.is_unsound and not chunk.dropped:
                        await self._give_up_saving(disk, chunk.file)
                if chunk.mutated_at == before and not (chunk.mutex.locked() or chunk.dropped):
                    self._remove_intent(disk, intent)

    def _remove_intent(self, disk: Disk, intent: Intent) -> None:
        if disk.intents.get(intent.handle) is intent:
            disk.intents.remove(intent.handle)

    async def _sync(self, disk: Disk, file: Journal | Intents, target: int) -> None:
        while file.synced < target:
            under_way = disk.saving.syncing.get(file)
            if under_way is not None:
                await under_way.wait()
                continue
            done = disk.saving.syncing[file] = trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    await disk.run(file.flush)
            finally:
                if file.failed:
                    disk.fail(FAILED, f"{file.path} could not be synced")
                del disk.saving.syncing[file]
                done.set()

    def _is_gone(self, disk: Disk, handle: int) -> bool:
        """Blocks. Whether the replica has no file, and no power cut can bring one back."""
        if disk.files.exists(disk.chunk_path(handle)):
            return False
        with contextlib.suppress(FileNotFoundError):
            disk.files.sync_directory(disk.folder(handle))
        return True
