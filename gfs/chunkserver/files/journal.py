"""The redo journal of one disk.

A write over existing bytes that is cut short would leave a block that matches neither
checksum: so it is first written to the journal, completely, with the sums of all blocks
that it touches, and recovery replays it. With ``durability = "fsync"`` the journal is
also what makes a small write, an append, a new replica or a new version durable: one
sync of one file, for all tasks that wait at that moment (group commit), instead of two
syncs of each chunk file.

::

    write ──> record in the journal ──> one sync ──> bytes in the chunk file, sums in
                                        for many     memory; acknowledged
                                                       later: sums, sync, slot, sync ("save")

The bytes of an overwrite must not reach the disk before its record; those of an append
may, since no state covers them.

*Two files* are used in turn. When one is full the other is used, and the replicas with
records in the full one are *saved* in the background: then it may be overwritten. So
the work at a start is bounded. A chunk that is written a thousand times meanwhile is
saved once. The replicas of a journal file that nothing was appended to for a while are
saved, too: so on an idle disk everything is in the chunk files, where the scrub reads
it. A replica that cannot be saved because of errors of the disk, while others wait for
room, is incomplete (:mod:`gfs.chunkserver.files.intents`): its records are overwritten
once that is recorded on the disk, and it is replaced by a copy of another server's.

*Which records still count.* All states of all chunks of a disk are numbered by one
counter. A record says which state of its chunk it follows (``base``) and which it
makes (``sequence``). The state in the slot of the chunk file is in the file completely:
with ``"fsync"`` a slot is written only after the bytes and sums that it covers are on
the disk. So records up to it are skipped, whenever they were written and whatever has
happened to the file since; those after it are replayed in order, any number of times. A
record whose base does not exist belongs to a state that was lost. In each journal file
the numbers rise: the first record whose number does not, or that is not complete,
belongs to an earlier round.

*Torn or damaged.* An incomplete record may have been torn by a power cut before it was
acknowledged; or it may have been acknowledged and damaged by the disk since: then the replica
would lack the write and seem good. So each file has a *head*, a sector of its own, that records
up to which number its records were synced, and is renewed about once a second when that has
changed. If a start does not find all of those records, or cannot read the head or a part of the
file, any replica on the disk may lack writes: all are possibly stale
(:mod:`gfs.chunkserver.files.intents`). Cost: a write and a sync a second, at most two.
Only a record that is damaged within a second after it was written, before the head
includes it, is taken for torn.

*A failed sync is never repeated.* Linux reports it once and counts the pages as
written; the next sync would succeed. So after a failed sync of either file, for
whatever reason, the journal accepts no record and frees no space, and its disk has
failed. The records of a chunk file whose sync failed are kept
(:mod:`gfs.chunkserver.files.chunkfile`), until it is recorded on the disk that the
replica is incomplete.

*Deleted* chunks leave a record, too: otherwise a power cut might restore a replica that
lacks later writes.

With ``"replicated"`` the journal is never synced, only overwrites go through it, and
each is saved at once, without a sync.

Sketch, 4 KiB write, each server: 1 write to the journal, 1 to the chunk file, both
into the page cache (10 us), and a share of an ``fdatasync`` (3 ms on the disk this
was measured on) of blocks that are allocated already.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from gfs.blocks import KIB, MIB
from gfs.chunkserver.files import layout
from gfs.chunkserver.files.layout import JournalHead, Redo
from gfs.errors import DiskFailed
from gfs.io import File, FileSystem

NAMES = ("journal.0", "journal.1")
#: The most chunks with records in one of the files: their chunk files stay open.
CHUNKS_MAX = 128
#: The files grow by this much at a time, so that most syncs need not wait for a new
#: length to be recorded.
GROWTH_BYTES = 256 * KIB
#: A start reads the files page by page: all of an unreadable page is lost, until it is
#: written completely.
PAGE_BYTES = 4 * KIB


class DirtyFile(Protocol):
    """A chunk file with states that only the journal has."""

    handle: int

    @property
    def is_unsound(self) -> bool:
        """Whether a sync of the file has failed, so that its contents do not count."""

    @property
    def sequence(self) -> int:
        """The number of the newest state."""

    def save(self) -> None:
        """Blocks. Write the newest state into the file and sync it."""


class Records:
    """The records in the journal's files, by handle, in order."""

    def __init__(self) -> None:
        self.by_handle: dict[int, list[Redo]] = {}
        #: Deleted replicas, with the number of the disk's state at the deletion.
        self.deleted: dict[int, int] = {}
        self.sequence = 0
        #: Whether all synced records were found, as far as the files show.
        self.is_whole = True

    def add(self, redo: Redo) -> None:
        self.sequence = max(self.sequence, redo.sequence)
        if redo.version:
            self.by_handle.setdefault(redo.handle, []).append(redo)
        else:
            self.by_handle.pop(redo.handle, None)
            self.deleted[redo.handle] = redo.sequence

    def take(self, handle: int) -> list[Redo]:
        return self.by_handle.pop(handle, [])


def read_records(files: FileSystem, directory: str) -> Records:
    """Read the journal in ``directory``. Blocks; changes nothing."""
    found: list[Redo] = []
    records = Records()
    for name in NAMES:
        path = f"{directory}/{name}"
        if files.exists(path):
            some, floor, is_whole = _read_file(files, path)
            found += some
            records.sequence = max(records.sequence, floor)
            records.is_whole = records.is_whole and is_whole
    for redo in sorted(found, key=lambda redo: redo.sequence):
        records.add(redo)
    return records


def _read_file(files: FileSystem, path: str) -> tuple[list[Redo], int, bool]:
    """The records of a file, the number that they follow, and whether these are all."""
    content, is_readable = _content(files, path)
    head = layout.decode_journal_head(content)
    if head is None:
        return [], 0, False
    found: list[Redo] = []
    at, last = layout.JOURNAL_HEAD_BYTES, head.floor
    while True:
        redo = layout.decode_redo(content, at)
        if redo is None or redo.sequence <= last:
            return found, head.floor, is_readable and last >= head.synced
        found.append(redo)
        last = redo.sequence
        at += layout.redo_bytes(redo)


def _content(files: FileSystem, path: str) -> tuple[bytearray, bool]:
    """The contents of the file up to the first unreadable page, and whether that is
    all. Raises ``OSError`` if nothing on the disk can be read, which is not damage to
    the file. A bad page may take a disk seconds, so no page after it is tried."""
    file = files.open(path, "r")
    try:
        content = bytearray(file.size())
        for at in range(0, len(content), PAGE_BYTES):
            try:
                with memoryview(content) as view:
                    file.read_into(view[at : at + PAGE_BYTES], at)
            except OSError:
                if _is_away(files, path.rpartition("/")[0]):
                    raise
                return content[:at], False
        return content, True
    finally:
        file.close()


def _is_away(files: FileSystem, directory: str) -> bool:
    """Whether no file in the directory can be read."""
    for name in files.list(directory):
        with contextlib.suppress(OSError):
            file = files.open(f"{directory}/{name}", "r")
            try:
                if file.read_into(memoryview(bytearray(1)), 0):
                    return False
            finally:
                file.close()
    return True


class _Half:
    """One of the two files. Offsets are those of records, without the head."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: File | None = None
        self.end = 0
        self.size = 0
        self.unsynced = False
        #: Its head.
        self.head = JournalHead()
        #: The numbers of the newest record in it, and of the newest one on the disk.
        self.newest = 0
        self.synced = 0
        #: Chunk files with states that are only in this file.
        self.chunks: dict[int, DirtyFile] = {}
        #: Directories with deleted files; and how many files with tombstones here are
        #: not unlinked yet.
        self.folders: set[str] = set()
        self.tombstones = 0
        #: Whether a start after a power cut would find records in it.
        self.valid = False
        #: Whether a sync of it has failed: later ones do not count.
        self.failed = False

    @property
    def needed(self) -> bool:
        return self.valid or bool(self.chunks)

    @property
    def to_claim(self) -> bool:
        return self.valid and self.synced > self.head.synced

    def write(self, content: bytes, at: int) -> None:
        assert self.file is not None
        self.file.write(content, layout.JOURNAL_HEAD_BYTES + at)

    def grow(self, size: int) -> None:
        """Allocate its blocks up to this offset."""
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        self.write(bytes(size - self.size), self.size)
        self.size = size

    def write_head(self, head: JournalHead) -> None:
        assert self.file is not None
        self.file.write(layout.encode_journal_head(head), 0)
        self.head = head

    def invalidate(self, floor: int) -> None:
        """Write a head with which a start skips all records in the file. Otherwise a
        file that was half overwritten might have the record of a new replica, but not
        that of its deletion."""
        self.write_head(JournalHead(floor))
        self.sync()
        self.synced = 0
        self.valid = False

    def sync(self) -> None:
        assert self.file is not None
        try:
            self.file.sync()
        except BaseException:
            self.failed = True
            raise

    def wipe(self) -> None:
        """Overwrite the records that :meth:`invalidate` has hidden; the file keeps its
        blocks, except a part of one, which could not be written if it cannot be
        read."""
        assert self.file is not None
        self.size -= self.size % PAGE_BYTES
        self.file.truncate(layout.JOURNAL_HEAD_BYTES + self.size)
        for at in range(0, self.size, MIB):
            self.write(bytes(min(MIB, self.size - at)), at)
        self.sync()


class Journal:
    """The journal of the disk in ``directory``. Methods block, except a few short ones
    under a lock; ``sync`` says whether acknowledged writes must be on the disk."""

    def __init__(self, files: FileSystem, directory: str, sync: bool, bytes_max: int) -> None:
        self.files = files
        self.path = f"{directory}/{NAMES[0]}"
        self.directory = directory
        self.sync = sync
        self._bytes_max = bytes_max
        self._halves = [_Half(f"{directory}/{name}") for name in NAMES]
        self._active, self._other = self._halves
        self._lock = files.make_lock()
        self._flushing = files.make_lock()
        self._counting = files.make_lock()
        self._sequence = 0
        #: Bytes ever appended, and how many of them are on the disk.
        self.written = 0
        self.synced = 0
        #: Folders whose own names are on the disk.
        self.folders: set[str] = set()

    # --- start and end ----------------------------------------------------------------

    def open(self) -> None:
        """Make the files if there are none. The caller syncs their names."""
        for half in self._halves:
            exists = self.files.exists(half.path)
            half.file = self.files.open(half.path, "rw" if exists else "create")
            if not exists:
                half.write_head(JournalHead())
            half.size = max(0, half.file.size() - layout.JOURNAL_HEAD_BYTES)

    def close(self) -> None:
        for half in self._halves:
            if half.file is not None:
                half.file.close()
                half.file = None

    def start(self) -> None:
        """Begin to accept records, after all records that were found are saved.

        All old records are erased. Otherwise, once the first of them is overwritten, a
        restart would know the numbers of the states in the chunk files, but not those
        of deletions: its records would get lower numbers, and the old ones behind them
        would seem to follow.
        """
        for half in self._halves:
            half.invalidate(self._sequence)
            half.wipe()

    def saw(self, sequence: int) -> None:
        """Note that a state of this number is on the disk: later ones get higher numbers."""
        self._sequence = max(self._sequence, sequence)

    # --- numbers and records --------------------------------------------------------------

    def draw(self, slot: int) -> int:
        """A number for a new state, whose slot differs from that of state ``slot``."""
        with self._lock:
            return self._draw(slot)

    def _draw(self, slot: int) -> int:
        self._sequence += 1
        if self._sequence % 2 == slot % 2:
            self._sequence += 1
        return self._sequence

    def append(self, redo: Redo, slot: int, file: DirtyFile) -> int:
        """Write a record; returns its number, as :meth:`draw`. It is on the disk once
        :attr:`synced` reaches the present value of :attr:`written`."""
        with self._lock:
            sequence = self._draw(slot)
            self._write(redo._replace(sequence=sequence))
            self._active.chunks[redo.handle] = file
            return sequence

    def put_tombstone(self, handle: int, folder: str) -> int:
        """Write a tombstone for a replica whose file will be unlinked. It is kept until
        :meth:`is_unlinked` is called with the result of this."""
        with self._lock:
            self._write(Redo(handle, 0, self._draw(0), 0, 0, 0, b"", b""))
            self._active.folders.add(folder)
            with self._counting:
                self._active.tombstones += 1
            return self._halves.index(self._active)

    def is_unlinked(self, tombstone: int) -> None:
        """Note that the file was unlinked, or stays nevertheless. Does not block."""
        with self._counting:
            self._halves[tombstone].tombstones -= 1

    def _write(self, redo: Redo) -> None:
        self._require_sound()
        record = layout.encode_redo(redo)
        half = self._half_for(len(record))
        end = half.end + len(record)
        if self.sync and end > half.size:
            half.grow(end + min(GROWTH_BYTES, self._bytes_max))
        half.write(record, half.end)
        half.end = end
        half.newest = redo.sequence
        half.unsynced = True
        half.valid = self.sync
        self.written += len(record)

    def _half_for(self, count: int) -> _Half:
        half = self._active
        if not half.needed:
            half.end = 0
        if self._is_full(half, count) and not self._other.needed:
            self._active, self._other = self._other, half
            self._active.end = 0
        return self._active

    @property
    def to_set_aside(self) -> bool:
        """Whether the present file has records and is not full."""
        return self._active.needed and not self._other.needed

    def set_aside(self) -> None:
        """After a while without appends: have the present file saved like a full one,
        so that no state is only in the journal."""
        with self._lock:
            if self.to_set_aside:
                self._active, self._other = self._other, self._active
                self._active.end = 0

    def _is_full(self, half: _Half, count: int) -> bool:
        return bool(half.end) and (
            half.end + count > self._bytes_max or len(half.chunks) >= CHUNKS_MAX
        )

    # --- syncing --------------------------------------------------------------------------

    def flush(self, target: int | None = None) -> None:
        """Sync the records up to ``target`` of :attr:`written`, by default all. After a
        failure no record is accepted any more: it is not known what reached the
        disk."""
        if target is None:
            target = self.written
        if self.synced >= target:
            return
        with self._flushing:
            if self.synced < target:
                self._flush()

    def _flush(self) -> None:
        with self._lock:
            target = self.written
            # The other file is older: its records must be on the disk before those that
            # follow them.
            halves = [(half, half.newest) for half in (self._other, self._active) if half.unsynced]
            for half, _ in halves:
                half.unsynced = False
        self._require_sound()
        for half, newest in halves:
            half.sync()
            half.synced = newest
        self.synced = target

    @property
    def to_claim(self) -> bool:
        """Whether more records are on the disk than the heads say."""
        return any(half.to_claim for half in self._halves)

    def claim(self) -> None:
        """Write to the heads which of the records are on the disk: a start that does
        not find those knows that the file is damaged. Blocks. Raises ``OSError``."""
        with self._flushing:
            self._require_sound()
            for half in self._halves:
                if half.to_claim:
                    half.write_head(half.head._replace(synced=half.synced))
                    half.sync()

    @property
    def failed(self) -> bool:
        """Whether any sync has failed: several tasks may have waited for it."""
        return any(half.failed for half in self._halves)

    def _require_sound(self) -> None:
        if self.failed:
            raise DiskFailed(f"{self.directory}: the redo journal could not be synced")

    # --- saving ---------------------------------------------------------------------------

    def holds(self, handle: int) -> bool:
        """Whether the chunk has states that are only in the journal."""
        return any(handle in half.chunks for half in self._halves)

    @property
    def to_save(self) -> bool:
        """Whether there is a full file: see :meth:`unsaved`."""
        return self._other.needed

    @property
    def crowded(self) -> bool:
        """Whether writers have to wait until replicas are saved."""
        return self._other.needed and self._is_full(self._active, 0)

    def unsaved(self) -> list[DirtyFile]:
        """The chunk files with states in the full file. The caller saves them all, then
        calls :meth:`release`."""
        with self._lock:
            return list(self._other.chunks.values())

    def saved(self, file: DirtyFile) -> None:
        """Note that its newest state is in its file, and on the disk if required."""
        with self._lock:
            for half in self._halves:
                if half.chunks.get(file.handle) is file:
                    del half.chunks[file.handle]

    def release(self) -> None:
        """Free the full file, after all of :meth:`unsaved` was saved, and its deletions
        are synced. Does nothing if there is no full file, or if it has states that are
        nowhere else: another file may be full by now than at the call of
        :meth:`unsaved`."""
        with self._lock:
            self._require_sound()
            half = self._other
            if half.chunks or half.tombstones or not half.valid:
                return
            # Its records have lower numbers, and those that are written to it next have
            # higher ones.
            floor = self._sequence
        # From here on it stays what it is: no half is taken for the next that is valid.
        for folder in sorted(half.folders):
            with contextlib.suppress(FileNotFoundError):
                self.files.sync_directory(folder)
        half.folders.clear()
        with self._flushing:
            half.invalidate(floor)
