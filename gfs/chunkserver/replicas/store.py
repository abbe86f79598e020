"""The replicas of one chunkserver: which files there are, and how they are made,
replaced and deleted.

Its parts: the disks that are used, the :class:`Inventory` of what is on them, the files that
are open, how durable they are, and the chunks of which two disks have a file. A disk is one
directory::

    DIR/server.json this server's id, its cluster, its last master
    DIR/lock                   held while the server runs
    DIR/journal.0, journal.1   see gfs.chunkserver.files.journal
    DIR/marks                  see gfs.chunkserver.files.intents
    DIR/packs.index, packs.data see gfs.chunkserver.packs
    DIR/chunks/HH/HANDLE.chunk HH: the handle's lowest byte; all in hex
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import trio

from gfs.blocks import REPLICA_HEAD_BYTES
from gfs.chunkserver.disks import (
    Contents,
    Disk,
    DiskSet,
    Found,
    map_disk_error,
    map_read_error,
)
from gfs.chunkserver.files import ChunkFile, Intent
from gfs.chunkserver.packs import Made, PackedFile
from gfs.chunkserver.replicas.duplicates import Duplicate, Duplicates
from gfs.chunkserver.replicas.durability import Durability
from gfs.chunkserver.replicas.inventory import Inventory, Replica, log_mended
from gfs.chunkserver.replicas.make_many import make_all, move_out, write_all
from gfs.chunkserver.replicas.open_chunks import OpenChunk, OpenChunks
from gfs.chunkserver.replicas.removal import Removal
from gfs.config import ChunkserverSettings
from gfs.errors import (
    Busy,
    CorruptReplica,
    DeadlineExceeded,
    DiskFailed,
    DiskFull,
    GfsError,
    StaleVersion,
)
from gfs.io import World
from gfs.protocol.messages import BadReplica, ReplicaName

log = logging.getLogger(__name__)

#: Replicas that are adopted in one go, in the loop's thread: some milliseconds.
ADOPT_STEP = 2048


class ChunkStore:
    """All replicas of this server. One task at a time decides; threads only work."""

    def __init__(self, world: World, settings: ChunkserverSettings) -> None:
        self.world = world
        self.disks = DiskSet(world, settings, self._failed)
        self.inventory = Inventory(self.disks)
        self.open_chunks = OpenChunks(self.disks, self.inventory)
        self.duplicates = Duplicates(self.disks, self.inventory, self.open_chunks)
        self.durability = Durability(
            world.clock, settings.idle_seconds, self.inventory, self.open_chunks
        )
        self.removal = Removal(self.durability)
        self._packed_bytes_max = settings.packed_bytes_max

    # --- disks that come and go -------------------------------------------------------

    def adopt(self, disk: Disk, contents: Contents) -> Iterator[None]:
        """Use a disk that was read: its replicas are this server's from now on. Of a chunk
        that another disk has in the same version, the first file is served until both were
        read.

        A step at a time: other tasks run between two. Until all is done the disk takes no new
        replica: it might be of a chunk that the disk has, and that is not known yet.
        """
        disk.is_adopted = False
        self.disks.used[disk.index] = disk
        self.disks.down.pop(disk.path, None)
        twice = 0
        for number, (handle, found) in enumerate(contents.replicas.items(), 1):
            twice += self._adopt(disk, contents, handle, found)
            if number % ADOPT_STEP == 0:
                yield
                if disk.down:
                    return
        disk.is_adopted = True
        for handle in contents.unreadable:
            if handle in self.inventory:
                self.duplicates.to_delete.add((disk.index, handle))
            else:
                self.inventory.bad[handle] = BadReplica(handle, 0, "corrupt")
        if twice:
            log.warning(
                "%s has replicas of %d chunks that are also on another disk of this server: the "
                "better file of each is kept",
                disk.path,
                twice,
            )
        if self.duplicates.files or self.duplicates.to_delete:
            self.duplicates.found.set()

    def _adopt(self, disk: Disk, contents: Contents, handle: int, found: Found) -> bool:
        """Whether another disk has a replica of the chunk, too."""
        inventory = self.inventory
        is_twice = handle in inventory
        if is_twice and inventory[handle].disk == disk.index:
            return False  # it was copied to this disk meanwhile
        here = Replica(disk.index, found.version, found.length)
        if not (
            is_twice or handle in self.open_chunks.busy
            or self.open_chunks.opened(handle) is not None
            or handle in inventory.bad or handle in inventory.damaged
            or handle in contents.possibly_stale or handle in contents.unfit
            or self.duplicates.files
        ):  # fmt: skip
            inventory.put(handle, here)  # as below, of a million
            for changes in inventory.changes:
                changes.come[handle] = None
            return False
        other = Duplicate(here, contents.possibly_stale.get(handle), handle in contents.unfit)
        self.duplicates.files[disk.index, handle] = other
        self.duplicates.choose(handle)
        if inventory.get(handle) == here and inventory.damaged.get(handle) == here.version:
            del inventory.damaged[handle]
            inventory.bad.setdefault(handle, BadReplica(handle, here.version, "corrupt"))
        return is_twice

    def _failed(self, disk: Disk) -> None:
        """The replicas of a failed disk are gone: nothing reads them, and the master
        re-replicates them."""
        self.disks.down[disk.path] = disk
        lost = self.inventory.on_disk(disk)
        for handle in lost:
            if handle in self.inventory.bad:
                self.inventory.damaged[handle] = self.inventory.bad[handle].version
            self.open_chunks.report_gone(handle)
        self._forget_disk(disk)
        for handle in lost:
            self.duplicates.choose(handle)
        if self.disks.server:
            self.disks.log_failed(disk, len(lost))

    def release(self, disk: Disk) -> None:
        """Stop using an empty disk."""
        disk.end("removed", "an operator has removed it")
        self._forget_disk(disk)

    def _forget_disk(self, disk: Disk) -> None:
        """Drop everything about a disk that is no longer used."""
        self.open_chunks.forget_disk(disk)
        self.duplicates.forget_disk(disk)
        self.removal.forget_disk(disk)
        self.disks.used.pop(disk.index, None)

    # --- making and replacing ---------------------------------------------------------

    async def create(self, handle: int, version: int) -> OpenChunk:
        """A new, empty replica, open; an existing one is returned as it is.

        Nothing is on the disk, or in the inventory, before something is written.
        """
        if self.open_chunks.opened(handle) is None:
            async with self.open_chunks.alone(handle):
                if self.open_chunks.opened(handle) is None and handle not in self.inventory:
                    others = self.duplicates.of(handle)
                    if not others:
                        return await self._create(handle, version)
                    self.duplicates.serve(handle, others[0], is_better=True)
        return await self.open_chunks.get(handle)

    async def _create(self, handle: int, version: int) -> OpenChunk:
        if handle in self.inventory.bad:
            await self._discard(handle)  # it could not be read at the start
        disk = self.disks.pick()
        try:
            await self.removal.packed(disk, [handle])
        except OSError as error:
            raise map_disk_error(error, f"chunk {handle:016x}") from error
        path = disk.chunk_path(handle)
        file = ChunkFile.create(disk.files, path, handle, version, disk.journal)
        return self.open_chunks.keep(OpenChunk(disk, file))

    async def give_up(self, chunk: OpenChunk) -> None:
        """A new replica could not be committed: delete all of it, since no master knows of its
        file and could order that. Its mutex must be held."""
        if chunk.file.sequence or chunk.dropped:
            return
        handle = chunk.file.handle
        with trio.CancelScope(shield=True):
            try:
                await self.removal.one(chunk.disk, handle)
            except OSError:
                self.inventory.bad[handle] = BadReplica(handle, 0, "corrupt")
        self.open_chunks.forget(handle)

    def is_packed(self, length: int) -> bool:
        """Whether a new whole replica of this length is packed."""
        return 0 < length <= self._packed_bytes_max

    async def move_out(self, chunk: OpenChunk) -> None:
        """Give a replica that is to be changed a chunk file, if it is packed. Its mutex must be
        held. Raises CorruptReplica, DiskFull, DiskFailed."""
        file, disk = chunk.file, chunk.disk
        if not isinstance(file, PackedFile):
            return
        if disk.space.reserve_bytes and not disk.space.has_room(disk.space.reserve_bytes):
            raise DiskFull(f"chunk {file.handle:016x}: the disk is full to its reserve")
        disk.space.written_bytes += REPLICA_HEAD_BYTES + file.length
        half = disk.new_half()
        try:
            with trio.CancelScope(shield=True):
                chunk.file = await disk.run(move_out, disk, file, half)
        except OSError as error:
            known = map_read_error(error, f"chunk {file.handle:016x}")
            if isinstance(known, CorruptReplica):
                self.open_chunks.mark_unfit(chunk)
            await self.removal.leave(disk, disk.chunk_path(file.handle) + half)
            raise known from error

    async def install(self, disk: Disk, file: ChunkFile | Made, moved: int | None = None) -> None:
        """Save a whole replica that was made beside the others on ``disk``, or pack it, and
        replace whatever is there. The caller closes the file.

        With ``moved`` the replica is a copy of the one that is there, in the state of that
        number.

        Raises StaleVersion when there is a newer one by now, DeadlineExceeded, ``OSError``.
        """
        handle = file.handle
        async with self.open_chunks.alone(handle), self.open_chunks.unwritten(handle):
            replica = self.inventory.get(handle)
            if moved is not None:
                self._check_moved(handle, moved)
            is_good = (
                handle not in self.inventory.bad and handle not in self.inventory.possibly_stale
            )
            others = self.duplicates.of(handle)
            newest = others[0].replica if others else None
            if replica is not None and is_good:
                newest = max(replica, newest or replica, key=lambda each: each.version)
            if newest is not None and newest.version > file.version:
                raise StaleVersion(f"chunk {handle:016x} has version {newest.version} here")
            with trio.CancelScope(shield=True):
                if isinstance(file, Made):
                    await disk.run(_pack, disk, file)
                else:
                    # Only now: a start skips the journal's records of the old file if all of
                    # them have lower numbers.
                    await disk.run(file.save)
                    await disk.run(_rename, disk, file.path, disk.chunk_path(handle))
                try:
                    await self._finish(disk, handle)
                except OSError:
                    if not disk.down:
                        self.duplicates.to_delete.add((disk.index, handle))
                    raise
                intent = self.inventory.possibly_stale.get(handle)
                self.open_chunks.forget(handle)
                try:
                    if not isinstance(file, Made):
                        if handle in disk.packs:
                            await disk.run(disk.packs.remove, [handle])
                    elif await disk.run(disk.files.exists, disk.chunk_path(handle)):
                        for error in (await self.removal.files(disk, [handle])).values():
                            raise error
                        # Or a power cut could bring the file back, after its mark is gone.
                        await disk.run(disk.files.sync_directory, disk.folder(handle))
                    if disk.down:  # while the other one was waited for
                        raise disk.failure()
                except OSError:
                    self._go_back(handle, replica, intent, disk)
                    raise
                # One that could not be read at start may be on any disk.
                elsewhere = replica is not None or handle in self.inventory.bad or bool(others)
                disk.intents.remove(handle)
                self.duplicates.files.pop((disk.index, handle), None)
                bad = self.inventory.bad.pop(handle, None)
                # From here on it is reported as gone if the disk fails.
                length = len(file.data) if isinstance(file, Made) else file.length
                self.inventory.put(handle, Replica(disk.index, file.version, length))
                last = self.disks.used.get(replica.disk) if replica is not None else None
                for other in sorted(self.disks.used.values(), key=lambda each: each is last):
                    if elsewhere and other is not disk:
                        if disk.down:
                            if bad is not None:
                                self.inventory.bad[handle] = bad
                            self._go_back(handle, replica, intent, disk)
                            break
                        await self._remove_duplicate(other, handle)
                if disk.down:
                    raise disk.failure()
                log_mended(bad, "replaced")

    async def _finish(self, disk: Disk, handle: int) -> None:
        """The open file is whole, if it is on another disk and may be needed again, and nothing is
        written to it any more."""
        chunk = self.open_chunks.opened(handle)
        if chunk is not None and chunk.disk is not disk and chunk.is_pending:
            try:
                await chunk.disk.run(chunk.file.save)
            except OSError:
                if not chunk.disk.down:
                    raise
        await self._retire(handle)

    def _go_back(
        self, handle: int, replica: Replica | None, intent: Intent | None, disk: Disk
    ) -> None:
        """After a replica was to be replaced by one on ``disk``, which has refused."""
        if replica is None:
            return
        if replica.disk == disk.index and not disk.down:
            self._note_remains(handle, replica)
        elif replica.disk in self.disks.used:
            self.inventory.put(handle, replica)
            if intent is not None:
                self.inventory.possibly_stale[handle] = intent
            for changes in self.inventory.changes:
                changes.come[handle] = None
        else:
            for changes in self.inventory.changes:
                changes.gone[handle] = replica.version

    def _check_moved(self, handle: int, state: int) -> None:
        chunk = self.open_chunks.opened(handle)
        if chunk is None or chunk.file.sequence != state or chunk.file.uncommitted:
            raise StaleVersion(f"chunk {handle:016x} was written or replaced meanwhile")
        if handle in self.inventory.bad or handle in self.inventory.possibly_stale:
            raise StaleVersion(f"chunk {handle:016x} is not known to be good")

    async def _retire(self, handle: int) -> None:
        """Nothing is written to the open file any more, not by a save either."""
        chunk = self.open_chunks.opened(handle)
        if chunk is not None and not chunk.disk.down:
            try:
                await chunk.disk.run(chunk.file.retire)
            except OSError:
                if not chunk.disk.down:  # nothing is written to one that is
                    raise

    def is_absent(self, handle: int) -> bool:
        """Whether nothing of the chunk is here, nor being made."""
        return not (
            handle in self.inventory
            or handle in self.inventory.bad
            or handle in self.open_chunks.busy
            or self.open_chunks.opened(handle) is not None
            or self.duplicates.of(handle)
        )

    async def install_new(self, disk: Disk, made: list[Made]) -> dict[int, GfsError]:
        """Make whole replicas on ``disk`` of chunks that are absent here, all at once. They
        are durable when this returns, except those that are returned, with the reason."""
        failed = await self._pack_new(disk, made, sync=True)
        disk.space.written_bytes += sum(len(m.data) for m in made if self.is_packed(len(m.data)))
        made = [one for one in made if not self.is_packed(len(one.data))]
        for one in made:
            if not self.is_absent(one.handle):
                failed[one.handle] = Busy(f"chunk {one.handle:016x} is being made here already")
        made = [one for one in made if one.handle not in failed]
        with self.open_chunks.all_busy([one.handle for one in made]):
            try:
                half = disk.new_half()
                with trio.CancelScope(shield=True):
                    await self.removal.packed(disk, [one.handle for one in made])
                    refused = await disk.run(make_all, disk, made, half)
                for error in refused.values():
                    disk.take(error)
                for one in made:
                    if one.handle in refused:
                        what = f"copy of {one.handle:016x}"
                        failed[one.handle] = map_disk_error(refused[one.handle], what)
                        await self.removal.leave(disk, disk.chunk_path(one.handle) + half)
                    else:
                        disk.intents.remove(one.handle)
                        disk.space.written_bytes += len(one.data)
                        replica = Replica(disk.index, one.version, len(one.data))
                        self.inventory.put(one.handle, replica)
            except OSError as failure:
                failed |= {one.handle: map_disk_error(failure, disk.path) for one in made}
        return failed

    async def _pack_new(self, disk: Disk, made: list[Made], sync: bool) -> dict[int, GfsError]:
        """Pack those of the replicas that are small, of chunks that are absent here."""
        failed: dict[int, GfsError] = {}
        new: dict[int, Made] = {}
        for one in made:
            if not self.is_packed(len(one.data)):
                continue
            if self.is_absent(one.handle) and one.handle not in new:
                new[one.handle] = one
            else:
                failed[one.handle] = Busy(f"chunk {one.handle:016x} is being made here already")
        if not new:
            return failed
        with self.open_chunks.all_busy(new):
            try:
                with trio.CancelScope(shield=True):
                    refused = await disk.run(_pack_all, disk, list(new.values()), sync)
                for handle, one in new.items():
                    if handle in refused:
                        disk.take(refused[handle])
                        failed[handle] = map_disk_error(refused[handle], f"chunk {handle:016x}")
                    else:
                        disk.intents.remove(handle)
                        replica = Replica(disk.index, one.version, len(one.data))
                        self.inventory.put(handle, replica)
            except (GfsError, OSError) as error:
                failure = map_disk_error(error, disk.path) if isinstance(error, OSError) else error
                failure.__traceback__ = failure.__context__ = failure.__cause__ = None
                failed |= dict.fromkeys(new, failure)
        return failed

    async def write_new(self, disk: Disk, made: list[Made]) -> dict[int, GfsError]:
        """Write whole replicas of new chunks on ``disk``, all at once, as durably as any write;
        returns those that were not written, with the reason."""
        failed = await self._pack_new(disk, made, sync=disk.journal.sync)
        chunks: dict[int, OpenChunk] = {}
        for one in [one for one in made if not self.is_packed(len(one.data))]:
            if self.is_absent(one.handle) and one.handle not in chunks:
                path = disk.chunk_path(one.handle)
                file = ChunkFile.create(disk.files, path, one.handle, one.version, disk.journal)
                chunk = chunks[one.handle] = OpenChunk(disk, file)
                chunk.users += 1
                # A copy of the chunk, a grant or a deletion waits until it is made.
                chunk.mutex.acquire_nowait()
                self.open_chunks.keep(chunk)
            else:
                failed[one.handle] = Busy(f"chunk {one.handle:016x} is being made here already")
        try:
            if not chunks:
                return failed
            await self.removal.packed(disk, chunks)
            await self.durability.wait_for_room(disk)
            wanted = [(chunks[m.handle].file, m) for m in made if m.handle in chunks]
            for handle, error in (await disk.run(write_all, wanted)).items():
                disk.take(error)
                failed[handle] = map_disk_error(error, f"chunk {handle:016x}")
            await self.durability.sync_journal(disk)
        except (GfsError, OSError) as error:
            failure = map_disk_error(error, disk.path) if isinstance(error, OSError) else error
            # It is returned, and this frame, with all the bytes, is one of its own.
            failure.__traceback__ = failure.__context__ = failure.__cause__ = None
            failed |= dict.fromkeys(chunks, failure)
        finally:
            for handle, chunk in chunks.items():
                if chunk.file.made:
                    self.open_chunks.note(chunk)
                else:
                    self.open_chunks.forget(handle)
                chunk.mutex.release()
                chunk.users -= 1
                self.open_chunks.close_if_unused(chunk)
        return failed

    # --- deleting ---------------------------------------------------------------------

    async def delete(self, handle: int, version: int) -> None:
        """Delete the replica if it is of exactly this version (a damaged one that could not be
        read at start counts as version 0).

        Raises StaleVersion when it has another version by now, since the order is late;
        DeadlineExceeded, DiskFailed.
        """
        async with self.open_chunks.alone(handle):
            # Checked first, too: a write under a higher version must not be ended for it.
            if self._is_there(handle, version):
                async with self.open_chunks.unwritten(handle):
                    if self._is_there(handle, version):
                        self.duplicates.discard_up_to(handle, version)
                        await self._discard(handle)

    async def delete_unused(self, names: list[ReplicaName]) -> list[ReplicaName]:
        """As :meth:`delete`, of replicas of one disk, all at once. Returns those that are
        absent, damaged, or in use: they are for :meth:`delete`."""
        unused = [name for name in names if self._is_unused(name)]
        if not unused:
            return names
        disk = self.disks.used[self.inventory[unused[0].handle].disk]
        # One may have been moved to another disk since the order came.
        unused = [n for n in unused if self.inventory[n.handle].disk == disk.index]
        handles = [name.handle for name in unused]
        others = [name for name in names if name not in unused]
        replicas = [self.inventory[handle] for handle in handles]
        with self.open_chunks.all_busy(handles):
            try:
                for handle, replica in zip(handles, replicas, strict=True):
                    self.open_chunks.forget(handle)
                    self.duplicates.discard_up_to(handle, replica.version)
                with trio.CancelScope(shield=True):
                    failed = await self.removal.all(disk, handles)
                for handle, replica in zip(handles, replicas, strict=True):
                    if handle in failed:
                        self._note_remains(handle, replica)
                        log.warning("chunk %016x could not be deleted: %s", handle, failed[handle])
            except DiskFailed as error:
                log.warning("%d replicas could not be deleted: %s", len(handles), error)
        return others

    def _is_there(self, handle: int, version: int) -> bool:
        replica = self.inventory.get(handle)
        if replica is None:
            bad = self.inventory.bad.get(handle)
            return bad is not None and bad.version == version
        found, chunk = replica.version, self.open_chunks.opened(handle)
        if chunk is not None:
            # The inventory is updated when the mutation ends.
            found = max(found, chunk.file.version, chunk.watch_version if chunk.watch else 0)
        if found != version:
            raise StaleVersion(f"chunk {handle:016x} has version {found} here, not {version}")
        return True

    def _is_unused(self, name: ReplicaName) -> bool:
        """Whether it is of exactly this version, and no task uses it."""
        handle, version = name.handle, name.version
        replica, chunk = self.inventory.get(handle), self.open_chunks.opened(handle)
        if replica is None or replica.version != version:
            return False
        if handle in self.open_chunks.busy or handle in self.inventory.bad:
            return False
        # Without users, no task holds its mutex, or will before this is done.
        return chunk is None or not (
            chunk.users or chunk.is_pending or chunk.file.version != version
        )

    def _note_remains(self, handle: int, replica: Replica | None) -> None:
        """The replica could not be deleted, and lacks what was not saved: delete it later."""
        if replica is not None:
            if replica.disk not in self.disks.used:
                return
            self.inventory.put(handle, replica)
        version = replica.version if replica is not None else 0
        self.inventory.bad[handle] = BadReplica(handle, version, "corrupt")

    async def _discard(self, handle: int) -> None:
        """Delete all files of a chunk here: one that could not be read at start may be on any
        disk."""
        replica = self.inventory.get(handle)
        others = self.duplicates.files
        disks = [disk for n, disk in self.disks.used.items() if (n, handle) not in others]
        if replica is not None and handle not in self.inventory.bad:
            disks = [self.disks.used[replica.disk]]
        with trio.CancelScope(shield=True):
            await self._retire(handle)
            self.open_chunks.forget(handle)
            for disk in disks:
                try:
                    await self.removal.one(disk, handle)
                except OSError as error:
                    self._note_remains(handle, replica)
                    raise map_disk_error(error, f"chunk {handle:016x}") from error
        log_mended(self.inventory.bad.pop(handle, None), "deleted")

    async def _remove_duplicate(self, disk: Disk, handle: int) -> None:
        """Delete the file on this disk; later if the disk refuses."""
        self.duplicates.to_delete.discard((disk.index, handle))
        self.duplicates.files.pop((disk.index, handle), None)
        try:
            await self.removal.one(disk, handle)
        except OSError:
            if not disk.down:
                self.duplicates.to_delete.add((disk.index, handle))

    async def remove_leftovers(self) -> None:
        """Delete the files that disks refused to delete before: half-made replicas, and those
        that a file on another disk replaced."""
        await self.removal.leave_again(self.disks.used)
        await self.remove_duplicates()

    async def remove_duplicates(self) -> None:
        """Delete files that one on another disk replaced."""
        for index, handle in list(self.duplicates.to_delete):
            with contextlib.suppress(DeadlineExceeded):
                async with self.open_chunks.alone(handle):
                    if (index, handle) not in self.duplicates.to_delete:
                        continue  # it was deleted, or its disk has failed
                    replica, chunk = self.inventory.get(handle), self.open_chunks.opened(handle)
                    if index in (replica and replica.disk, chunk and chunk.disk.index):
                        self.duplicates.to_delete.discard(
                            (index, handle)
                        )  # another file has its name
                    else:
                        await self._remove_duplicate(self.disks.used[index], handle)


def _pack(disk: Disk, made: Made) -> None:
    """Blocks. Pack a replica durably."""
    for error in _pack_all(disk, [made], True).values():
        raise error


def _pack_all(disk: Disk, made: list[Made], sync: bool) -> dict[int, OSError]:
    """Blocks. Pack replicas."""
    for one in made:
        if disk.intents.get(one.handle) is not None:
            # Of a deleted file. It goes, so no power cut may bring that back.
            with contextlib.suppress(FileNotFoundError):
                disk.files.sync_directory(disk.folder(one.handle))
    return disk.packs.put(made, sync)


def _rename(disk: Disk, temporary: str, path: str) -> None:
    disk.files.rename(temporary, path)
    disk.files.sync_directory(path.rpartition("/")[0])
