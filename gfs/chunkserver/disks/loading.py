"""Reading the replicas on a disk, at a start or when it comes back.

Each disk is read by threads of its own, which share nothing with other disks: its redo journal
is replayed, its write-intent records are applied, the index of its packed replicas is read, and
the outcome is a plain table. The store
adopts the table in the loop's thread and decides between two disks that have the same replica.

*A disk that failed* may have lost unsynced writes without a power cut: Linux reports a failed
write-back once and counts the pages as written, and a device that was away comes back
without the writes that never reached it, in the same boot of the machine. So the page cache
of its files is dropped before they are read, and replicas with a write-intent record
(:mod:`gfs.chunkserver.files.intents`) are possibly stale as after a power cut. The
server's other disks record that a disk has failed, for a restart before it is read. A
server with only one disk does not know it after a restart. A call that took too long,
and then succeeded, has lost nothing.
"""

from __future__ import annotations

import contextlib
import logging
from typing import NamedTuple

from gfs.chunkserver.disks.disk import Disk
from gfs.chunkserver.files import (
    NAMES,
    NO_STATE,
    ChunkFile,
    Intent,
    Records,
    Redo,
    State,
    read_records,
    read_state,
    report_progress,
)
from gfs.diagnostics import event
from gfs.errors import CorruptReplica
from gfs.io import FileSystem, ReadFailed

log = logging.getLogger(__name__)


class Found(NamedTuple):
    version: int
    length: int


class Contents:
    """The contents of a disk."""

    def __init__(self) -> None:
        self.replicas: dict[int, Found] = {}
        #: Replicas whose heads are damaged or cannot be read.
        self.unreadable: set[int] = set()
        #: Replicas that lost the version that they were granted, and cannot be raised to it.
        self.unfit: set[int] = set()
        #: Possibly stale replicas, and their write-intent records.
        self.possibly_stale: dict[int, Intent] = {}


def read_disk(disk: Disk) -> Contents:
    """Make the directories, read all heads, replay the redo journal. Blocks, in many small
    calls. Raises ``OSError`` if the disk cannot be used."""
    return _Reader(disk).read()


class _Reader:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._files = disk.files
        self._contents = Contents()
        #: Whether some replica could not be read: the disk as a whole may be to blame.
        self._has_failed = False

    def read(self) -> Contents:
        disk, files = self._disk, self._files
        chunks = disk.chunks_path
        files.make_directories(chunks)
        for path in (*(f"{disk.path}/{name}" for name in NAMES), disk.intents.path):
            self._drop_cached(path)
        for path in (disk.packs.index_path, disk.packs.data_path):
            self._drop_cached(path)
        disk.packs.open()
        records = read_records(files, disk.path)
        disk.journal.open()
        disk.journal.saw(records.sequence)
        are_known = disk.intents.open()
        for intent in disk.intents.all() if disk.health.is_suspect else []:
            if not intent.is_incomplete:
                disk.intents.put_unknown(intent.handle, intent.version)
        for intent in disk.intents.all():
            if intent.is_incomplete and intent.boot != NO_STATE:
                disk.journal.saw(intent.boot)
        files.sync_directory(disk.path)
        for name in sorted(files.list(chunks)):
            self._folder(f"{chunks}/{name}", records)
        for handle, redos in sorted(records.by_handle.items()):
            report_progress()
            if not redos[0].base and handle not in disk.packs:
                self._unnamed(handle, redos)
        # The journal is emptied now: the deletions of these files must be on the disk.
        folders = {disk.folder(handle) for handle in records.deleted}
        if not records.is_whole:  # or anywhere
            folders.update(f"{chunks}/{n:02x}" for n in range(256))
        for folder in sorted(folders):
            with contextlib.suppress(FileNotFoundError):
                files.sync_directory(folder)
            report_progress()
        if not are_known:
            self._suspect_all(disk.intents.path)
        elif not records.is_whole:
            self._suspect_all(f"{disk.path}: the redo journal")
        if disk.intents.synced < disk.intents.changes:
            disk.intents.flush()
        disk.journal.start()
        self._packed()
        self._suspect()
        disk.measure()
        if self._has_failed:
            disk.probe()
        return self._contents

    def _packed(self) -> None:
        """A packed replica was never changed, so no note of what a power cut may have undone
        is about it: one that there is, is of a chunk file that the disk had before."""
        packs, intents = self._disk.packs, self._disk.intents
        for record in packs.all():
            report_progress()
            self._contents.replicas[record.handle] = Found(record.version, record.length)
        for intent in intents.all():
            report_progress()
            if intent.handle in packs:
                intents.remove(intent.handle)

    def _drop_cached(self, path: str) -> None:
        """Drop the page cache of a failed disk's files, so that they are read from the disk."""
        if self._disk.health.is_suspect and self._files.exists(path):
            with contextlib.closing(self._files.open(path, "r")) as file:
                file.drop_cached()

    def _suspect_all(self, what: str) -> None:
        """After an unreadable record all replicas are possibly stale."""
        disk = self._disk
        log.error(
            "%s is damaged: all replicas on this disk are possibly stale",
            what,
            extra=event("notes_damaged", disk=disk.path),
        )
        for handle, found in self._contents.replicas.items():
            disk.intents.put_unknown(handle, found.version)

    def _suspect(self) -> None:
        """Replicas with a write-intent record of an earlier boot, or of an unknown one, are
        possibly stale."""
        disk, contents = self._disk, self._contents
        for intent in disk.intents.all():
            found = contents.replicas.get(intent.handle)
            if intent.boot == disk.intents.boot or found is None:
                continue
            contents.possibly_stale[intent.handle] = intent
            if intent.version > found.version:
                self._raise_version(intent)
        count = len(contents.possibly_stale)
        if count:
            log.warning(
                "%s: %d replicas are possibly stale: the machine lost its power, or the "
                "write-intent records are damaged. They are not read, and replaced by good ones",
                disk.path,
                count,
                extra=event(
                    "replicas_doubted", disk=disk.path, replicas=len(contents.possibly_stale)
                ),
            )

    def _raise_version(self, intent: Intent) -> None:
        """Raise a replica that was granted that version, and lost it in a power cut."""
        report_progress()
        disk = self._disk
        path = disk.chunk_path(intent.handle)
        try:
            file = ChunkFile.open(self._files, path, intent.handle, disk.journal)
            try:
                file.set_version(intent.version)
                file.save()
            finally:
                file.close()
        except (CorruptReplica, ReadFailed) as error:
            log.error("%s: %s", path, error)
            self._contents.unfit.add(intent.handle)
            return
        self._contents.replicas[intent.handle] = Found(intent.version, file.length)

    def _folder(self, folder: str, records: Records) -> None:
        report_progress()
        for name in self._files.list(folder):
            report_progress()
            path = f"{folder}/{name}"
            stem, _, kind = name.partition(".")
            if kind.startswith("chunk.clone"):
                self._files.unlink(path)  # a clone that a crash cut short
                continue
            try:
                handle = int(stem, 16)
            except ValueError:
                log.warning("%s is not a chunk file: ignored", path)
                continue
            if kind == "chunk":
                deleted = records.deleted.get(handle, 0)
                if deleted and self._is_older(path, handle, deleted):
                    unlink_for_good(self._files, path)  # a power cut brought it back
                elif handle in self._disk.packs and not self._replaces_packed(
                    path, handle, records
                ):
                    unlink_for_good(self._files, path)
                else:
                    self._chunk(handle, path, records.take(handle))

    def _is_older(self, path: str, handle: int, sequence: int) -> bool:
        try:
            state = read_state(self._files, path, handle)
        except (CorruptReplica, ReadFailed):
            return False
        return state is not None and state.sequence < sequence

    def _replaces_packed(self, path: str, handle: int, records: Records) -> bool:
        """Whether a chunk file is newer than the packed replica, which is deleted then. Both are
        there when a move into a file of its own was cut short: then the file has no more than
        the record (see :mod:`gfs.chunkserver.packs`), but the disk may have only its bytes."""
        packed = self._disk.packs.get(handle)
        try:
            redos = records.by_handle.get(handle, [])
            state = read_state(self._files, path, handle, redos)
        except (CorruptReplica, ReadFailed):
            state = None
        if packed is not None and (
            state is None
            or state.version < packed.version
            or (state.version == packed.version and self._disk.packs.is_whole(packed))
        ):
            records.take(handle)
            return False
        self._disk.packs.remove([handle])
        return True

    def _unnamed(self, handle: int, records: list[Redo]) -> None:
        """A replica that was made shortly before a power cut, which lost its name."""
        path = self._disk.chunk_path(handle)
        self._files.make_directories(path.rpartition("/")[0])
        self._files.open(path, "create").close()
        self._chunk(handle, path, records)

    def _chunk(self, handle: int, path: str, records: list[Redo]) -> None:
        disk = self._disk
        try:
            self._drop_cached(path)
            state = self._recover(path, handle, records)
            if state is None:
                unlink_for_good(self._files, path)  # never acknowledged
                return
            self._check_saved(handle, state)
        except (CorruptReplica, ReadFailed) as error:
            log.error("%s: %s", path, error)
            self._has_failed = self._has_failed or isinstance(error, ReadFailed)
            if records:  # they are removed from the journal now
                disk.intents.put_incomplete(handle, records[-1].sequence)
            self._contents.unreadable.add(handle)
            return
        self._contents.replicas[handle] = Found(state.version, state.length)

    def _check_saved(self, handle: int, state: State) -> None:
        """Raises CorruptReplica if later states than this could not be saved."""
        intents = self._disk.intents
        intent = intents.get(handle)
        if intent is not None and intent.is_incomplete:
            if state.sequence < intent.boot:
                raise CorruptReplica(f"chunk {handle:016x}: its newest states could not be saved")
            intents.remove(handle)

    def _recover(self, path: str, handle: int, records: list[Redo]) -> State | None:
        journal = self._disk.journal
        state = read_state(self._files, path, handle, records)
        if state is None:
            return None
        journal.saw(state.sequence)
        if records:
            chunk = ChunkFile.open(self._files, path, handle, journal, records)
            try:
                chunk.save()
            except OSError as error:
                if not chunk.is_unsound:
                    raise
                # The kernel may report an old failure only now, once for each file;
                # starts must not fail again and again because of it.
                raise CorruptReplica(
                    f"chunk {handle:016x}: a sync of it failed: {error}"
                ) from error
            finally:
                chunk.close()
        return state


def unlink_for_good(files: FileSystem, path: str) -> None:
    """Delete a file durably without a tombstone."""
    files.unlink(path)
    files.sync_directory(path.rpartition("/")[0])
