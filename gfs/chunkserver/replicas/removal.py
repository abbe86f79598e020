"""Deleting what replicas have on a disk: a record of the pack, a chunk file, a half-made one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import trio

from gfs.chunkserver.disks import Disk, unlink_for_good
from gfs.chunkserver.files import report_progress
from gfs.chunkserver.replicas.durability import Durability

log = logging.getLogger(__name__)


class Removal:
    """Deletes without a look at who uses the replicas: that is :class:`ChunkStore`'s."""

    def __init__(self, durability: Durability) -> None:
        self._durability = durability
        #: (Disk, path) of half-made replicas that could not be deleted.
        self._half_made: set[tuple[int, str]] = set()

    async def packed(self, disk: Disk, handles: Iterable[int]) -> None:
        """Before these absent chunks get files: delete packed replicas that others replaced, and
        that the disk refused to delete then. They would hide the files. Raises ``OSError``."""
        left = [handle for handle in handles if handle in disk.packs]
        if left:
            await disk.run(disk.packs.remove, left)

    async def one(self, disk: Disk, handle: int) -> None:
        """Delete a file, if it exists. Raises ``OSError``."""
        for error in (await self.all(disk, [handle])).values():
            raise error

    async def all(self, disk: Disk, handles: list[int]) -> dict[int, OSError]:
        """Delete replicas, packed or in files; returns the errors of those that could not be
        deleted."""
        failed: dict[int, OSError] = {}
        packed = [handle for handle in handles if handle in disk.packs]
        if packed:
            try:
                await disk.run(disk.packs.remove, packed)
            except OSError as error:
                failed = dict.fromkeys(packed, error)
        others = [handle for handle in handles if handle not in packed]
        return {**failed, **await self.files(disk, others)} if others else failed

    async def files(self, disk: Disk, handles: list[int]) -> dict[int, OSError]:
        """Delete files that exist; returns the errors of those that could not be deleted. With
        ``"fsync"`` a synced tombstone keeps a power cut from bringing a file back, by the
        journal's records of it either."""
        tombstones: list[int] = []
        is_noted = True
        try:
            if disk.journal.sync:
                try:
                    await disk.run(_put_tombstones, disk, handles, tombstones)
                    await self._durability.sync_journal(disk)
                except OSError as error:
                    # A disk that is full of files to be deleted has no room for tombstones.
                    log.warning("deleting %d replicas without tombstones: %s", len(handles), error)
                    is_noted = False
            failed = await disk.run(_unlink_all, disk, handles, is_noted)
            for refused in failed.values():
                disk.take(refused)
            return failed
        finally:
            for tombstone in tombstones:
                disk.journal.is_unlinked(tombstone)

    async def leave(self, disk: Disk, path: str) -> None:
        """Delete a half-made replica, later if the disk refuses now."""
        try:
            with trio.CancelScope(shield=True):
                await disk.run(disk.files.unlink, path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s could not be deleted, trying again later: %s", path, error)
            if not disk.down:
                self._half_made.add((disk.index, path))

    async def leave_again(self, used: Mapping[int, Disk]) -> None:
        """Delete the half-made replicas that disks refused to delete before."""
        for index, path in list(self._half_made):
            if (index, path) in self._half_made:
                self._half_made.discard((index, path))
                await self.leave(used[index], path)

    def forget_disk(self, disk: Disk) -> None:
        self._half_made = {each for each in self._half_made if each[0] != disk.index}


def _put_tombstones(disk: Disk, handles: list[int], tombstones: list[int]) -> None:
    """Blocks."""
    for handle in handles:
        tombstones.append(disk.journal.put_tombstone(handle, disk.folder(handle)))


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
            failed[handle] = error.with_traceback(None)  # see make_many
    return failed
