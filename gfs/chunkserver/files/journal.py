"""The redo journal of one disk.

A write over existing bytes, cut short in the middle, would leave a block that no
checksum fits: so it goes to the journal first, as a whole, with the sums of all
blocks it touches, and recovery does it again. With ``durability = "fsync"`` the
journal is also what makes a small write, an append, a new replica or a new version
durable: one sync of one file, for all who wait at that moment (group commit), in
place of two of each chunk file.

::

    write ──> record in the journal ──> one sync ──> bytes in the chunk file, sums in
                                        for many     memory; acknowledged
                                                       later: sums, sync, slot, sync ("save")

The bytes of an overwrite must not be on the disk before its record is; those of an
append may, since no state covers them.

*Two files* in turn. When one is full the other is used, and what the full one has
records of is *saved* in the background: then it may be overwritten. So the work at a
start is bounded. A chunk written a thousand times meanwhile is saved once. So is a file
that nothing was appended to for a while: on a disk that is left alone all is in the chunk
files, where the scrubber reads it. One that the disk refuses to save, while others wait
for room, is lacking (:mod:`gfs.chunkserver.files.intents`): its records go all the same, once that
is on the disk, and it is made anew from other servers' replicas.

*Which records still count.* All states of all chunks of a disk are numbered by one
counter. A record says which state of its chunk it follows (``base``) and which it
makes (``sequence``). What the slot in the chunk file says is in the file as a whole:
with ``"fsync"`` nothing writes a slot before the bytes and sums that it covers are on
the disk. So records up to it are skipped, whenever they were written and whatever has
become of the file since; those after it are done again, in order, any number of times.
A record whose base is not there is of a state that was lost. In each file the numbers
rise: the first that does not, or that is not whole, is not of this round.

*Torn or damaged.* A record that is not whole may be one that a power cut tore, of which
nobody was told; or one that was acknowledged, and that the disk has damaged since: the
replica would lack it, and pass for good. So each file has a *head*, a sector of its own,
that is renewed about once a second while there is something to say: up to which number
its records were synced. If a start does not find all of those, or cannot read the head
or a part of the file, any replica on the disk may lack something: all are possibly stale
(:mod:`gfs.chunkserver.files.intents`). Cost: a write and a sync a second, at most two. Only what
is damaged within a second after it was written, while the head does not tell of it yet,
is taken for torn.

*A sync that fails is the last one.* Linux tells of it once and counts the pages as written;
the next sync would say that all is well. So after one that failed, of either file and for
whatever reason, the journal takes nothing and frees nothing, and its disk has failed. A
chunk file whose sync failed keeps its records (:mod:`gfs.chunkserver.files.chunkfile`), until it
is noted on the disk that it is lacking.

*Deleted* chunks leave a record too: else a power cut might bring one back that has
missed what was written since.

With ``"replicated"`` the journal is never synced, only writes over existing bytes go
through it, and each is saved, without a sync, at once.

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
#: Chunks with records in one of the files, at most: their files stay open.
CHUNKS_MAX = 128
#: The files grow by this much at a time, so that a sync need not wait for the file
#: system to note a new length.
GROWTH_BYTES = 256 * KIB
#: A start reads the files page by page: of one that cannot be read, all is lost, until it
#: is written as a whole.
PAGE_BYTES = 4 * KIB


class DirtyFile(Protocol):
    """A chunk file with states that only the journal has."""

    handle: int

    @property
    def is_unsound(self) -> bool:
        """Whether a sync of the file has failed, so that nothing in it counts."""

    @property
    def sequence(self) -> int:
        """The number of the newest one."""

    def save(self) -> None:
        """Blocks. Have the newest state in the file, synced."""


class Records:
    """What the journal's files hold, by handle, in order."""

    def __init__(self) -> None:
        self.by_handle: dict[int, list[Redo]] = {}
        #: Replicas deleted, and after which state of the disk.
        self.deleted: dict[int, int] = {}
        self.sequence = 0
        #: Whether all is there that was synced, as far as the files tell.
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
    """What the journal in ``directory`` holds. Blocks; changes nothing."""
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
    """Its records, the number that they come after, and whether these are all."""
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
    """What is in the file, up to where it can be read, and whether that is all of it.
    Raises ``OSError`` if nothing on the disk can be read: that is no damage to the file.
    A bad page may take a disk seconds: no second one is tried."""
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
        #: What its head says.
        self.head = JournalHead()
        #: Numbers of the newest record in it, and of the newest one that is on the disk.
        self.newest = 0
        self.synced = 0
        #: Who has states that are nowhere else.
        self.chunks: dict[int, DirtyFile] = {}
        #: Directories from which something was deleted; and how many files, of which this
        #: says that they are, are still there.
        self.folders: set[str] = set()
        self.tombstones = 0
        #: Whether records in it would be found by a start after a power cut.
        self.valid = False
        #: Whether a sync of it has failed: no other is believed.
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
        """Its blocks are allocated up to this offset."""
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        self.write(bytes(size - self.size), self.size)
        self.size = size

    def write_head(self, head: JournalHead) -> None:
        assert self.file is not None
        self.file.write(layout.encode_journal_head(head), 0)
        self.head = head

    def invalidate(self, floor: int) -> None:
        """No start finds any record up to this number, so none that is in it. Else one that
        was half overwritten might show a replica being made, and not any more that it was
        deleted."""
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
        """Nothing is left of what :meth:`invalidate` hid; the file keeps its blocks, but
        for a part of one, which could not be written if it cannot be read."""
        assert self.file is not None
        self.size -= self.size % PAGE_BYTES
        self.file.truncate(layout.JOURNAL_HEAD_BYTES + self.size)
        for at in range(0, self.size, MIB):
            self.write(bytes(min(MIB, self.size - at)), at)
        self.sync()


class Journal:
    """The journal of the disk in ``directory``. Methods block, but for a few lines
    under a lock; ``sync`` is whether what is acknowledged must be on the disk."""

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
        """Make the files if there are none. Their names are synced by the caller."""
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
        """All that was found is saved. From now on the journal takes records.

        Nothing of what was found stays. Once the first record is gone, a start that comes
        before the next one knows the numbers of the states in the chunk files, and not
        those of what was deleted: its records would get lower numbers, and the old ones
        behind them would seem to follow.
        """
        for half in self._halves:
            half.invalidate(self._sequence)
            half.wipe()

    def saw(self, sequence: int) -> None:
        """A state of this number is on the disk: later ones get higher numbers."""
        self._sequence = max(self._sequence, sequence)

    # --- numbers and records --------------------------------------------------------------

    def draw(self, slot: int) -> int:
        """The number of a new state. Its slot is another than that of state ``slot``."""
        with self._lock:
            return self._draw(slot)

    def _draw(self, slot: int) -> int:
        self._sequence += 1
        if self._sequence % 2 == slot % 2:
            self._sequence += 1
        return self._sequence

    def append(self, redo: Redo, slot: int, file: DirtyFile) -> int:
        """Write a record; returns the number it got, as by :meth:`draw`. It is on the
        disk once :attr:`synced` is what :attr:`written` is when this returns."""
        with self._lock:
            sequence = self._draw(slot)
            self._write(redo._replace(sequence=sequence))
            self._active.chunks[redo.handle] = file
            return sequence

    def put_tombstone(self, handle: int, folder: str) -> int:
        """Note that the replica, whose file is about to be unlinked, is not to return. The
        note stays until :meth:`is_unlinked` is called with what this returns."""
        with self._lock:
            self._write(Redo(handle, 0, self._draw(0), 0, 0, 0, b"", b""))
            self._active.folders.add(folder)
            with self._counting:
                self._active.tombstones += 1
            return self._halves.index(self._active)

    def is_unlinked(self, tombstone: int) -> None:
        """The file is gone, or stays after all. Does not block."""
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
        """Whether there is a file that is not full, and something in it."""
        return self._active.needed and not self._other.needed

    def set_aside(self) -> None:
        """Nothing was appended for a while: have the present file saved as a full one is, so
        that nothing depends on what only the journal has."""
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
        """What was appended while :attr:`written` was up to ``target``, or all that was
        appended before, is on the disk when this returns. After a failure nothing is
        accepted any more: it is not known what reached the disk."""
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
            # The other is the older: what follows its records must not be there alone.
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
        """Whether more is on the disk than the files say."""
        return any(half.to_claim for half in self._halves)

    def claim(self) -> None:
        """Have the files say which of their records are on the disk: a start that does not
        find those knows that they are damaged. Blocks; ``OSError``."""
        with self._flushing:
            self._require_sound()
            for half in self._halves:
                if half.to_claim:
                    half.write_head(half.head._replace(synced=half.synced))
                    half.sync()

    @property
    def failed(self) -> bool:
        """Whether a sync has failed, of whatever: others may have waited for it, too."""
        return any(half.failed for half in self._halves)

    def _require_sound(self) -> None:
        if self.failed:
            raise DiskFailed(f"{self.directory}: the redo journal could not be synced")

    # --- saving ---------------------------------------------------------------------------

    def holds(self, handle: int) -> bool:
        """Whether the chunk has states that are nowhere else."""
        return any(handle in half.chunks for half in self._halves)

    @property
    def to_save(self) -> bool:
        """Whether there is a full file: see :meth:`unsaved`."""
        return self._other.needed

    @property
    def crowded(self) -> bool:
        """Whether writers have to wait until something is saved."""
        return self._other.needed and self._is_full(self._active, 0)

    def unsaved(self) -> list[DirtyFile]:
        """Those whose states the full file has. Have all of them saved, then call
        :meth:`release`."""
        with self._lock:
            return list(self._other.chunks.values())

    def saved(self, file: DirtyFile) -> None:
        """Its newest state is in its file, and on the disk if that is promised."""
        with self._lock:
            for half in self._halves:
                if half.chunks.get(file.handle) is file:
                    del half.chunks[file.handle]

    def release(self) -> None:
        """The full file is needed no more, now that all of :meth:`unsaved` was saved; what
        was deleted is surely deleted. Does nothing while there is no such file, or if it
        has states again that are nowhere else: what is full may be another file by now
        than when the caller looked."""
        with self._lock:
            self._require_sound()
            half = self._other
            if half.chunks or half.tombstones or not half.valid:
                return
            # Its records have lower numbers, and those of who takes it next higher ones.
            floor = self._sequence
        # From here on it stays what it is: no half is taken for the next that is valid.
        for folder in sorted(half.folders):
            with contextlib.suppress(FileNotFoundError):
                self.files.sync_directory(folder)
        half.folders.clear()
        with self._flushing:
            half.invalidate(floor)
