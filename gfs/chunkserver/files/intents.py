"""Which replicas may lack something when the power was gone: a note on each disk.

With ``durability = "replicated"`` nothing is synced before it is acknowledged. A
machine that loses its power may come back with a replica of the current version that
is whole by all its checksums, and is not what it was: it lacks what was last written
in place or appended, together with the sums of that. Nothing in it tells.

So before a replica that was there before is written, a *mark* goes to the disk,
synced: this chunk is being written, in this *boot* of the machine (its page cache is
as old as that). A replica whose mark is of another boot is *forgetful*: perhaps it
has forgotten something. It is shown to nobody, written by nobody, and replaced by a
copy of one that is not; only if there is none anywhere, it is believed again, by
order of the master (:mod:`gfs.master.replicas.election`).

::

    grant, or first write ──> mark, synced ──> any number of writes, not synced
                 some time after the last of them: chunk file synced ──> mark taken back

*What it costs*: one sync for each chunk that begins to be written, of a small file
whose blocks are allocated, shared by all who wait for one at that moment. Nothing
for each write, nothing for reads. Measured on two busy cores, three servers on one disk: the
first write to a file 35 ms instead of 24, of which most is the master's commits; writes
after it, appends and new files as before.

*What needs no mark*: a new chunk until it is of a file, since nothing of it was there
before that could pass for it. The master is told its length and version when it is
published; bytes that were lost, with or without their sums, fail the checksum, as
the sum of no block is zero. Copies are synced before they have a name. The empty
replica of a chunk that is added to a file is synced when it is made, and is marked
as all others are.

*What a mark says of the replica*: its version, so that one that loses the grant of
it, with the power, does not pass for stale: if all replicas do, that would be the end
of the chunk. And the length it had when the first of the writes began that a power
cut may take: what is missing below that is lost; what is missing beyond was written
under the mark, and may be missing.

*Where in the file*: a mark is written where there is room, within one sector, so that
all the others stay what they are whatever becomes of it. It is overwritten only by
another one, or by zeros when it is taken back: no order of the writes matters. A mark
that is taken back and comes again, as nothing was synced then, makes a replica
forgetful that is not: a copy is made in vain.

A mark that cannot be read may be anybody's: all replicas on its disk are forgetful.

*Lacking*: another mark says that the newest states of a replica could not be put into its
file, since the disk refused it. They are in the redo journal, from which they go in turn;
then the file looks like a good one, of the current version, and lacks what was
acknowledged. So such a mark is on the disk before they go. It names the state that the
file would have to be in: if a start finds one before that, the replica is damaged; if it
finds that one, done again by the records, or a later one, of a file that was put in its
place, the mark means nothing any more. Of a chunk file whose sync failed, no state is good
(:mod:`gfs.chunkserver.files.chunkfile`): what a later start reads in the page cache may not be on
the disk.

*A sync of the marks that fails is the last one*, since Linux tells of it once and counts
the pages as written: no mark is believed to be on the disk from then on, so nothing is
written that needs one, and the disk has failed.

Not chosen: a flag in the chunk file's head, whose sync would take all that is dirty
of the chunk along; the redo journal, which has its own order of things and is
overwritten in turn.
"""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, KIB, SUM_BYTES, Buffer, block_sum
from gfs.errors import DiskFailed
from gfs.io import File, FileSystem

NAME = "marks"
#: Of a mark that was made since nobody knows which ones there were.
NO_BOOT = 0
#: The state that no file is ever in: of a replica whose sync has failed, none is good.
NO_STATE = 2**64 - 1
#: In the place of a length, in a mark that says that the replica is lacking.
LACKING = 2**32 - 1
#: The file grows by this much at a time: a sync need not wait for the file system to
#: note a new length.
GROWTH_BYTES = 16 * KIB

_MARK = struct.Struct(">QIIQ")
MARK_BYTES = _MARK.size + SUM_BYTES
_FREE = bytes(MARK_BYTES)


class Mark(NamedTuple):
    handle: int
    version: int
    #: Bytes of the replica that no power cut since the mark can have taken.
    length: int
    #: Or, of a lacking one, the number of the state that it should be in.
    boot: int

    @property
    def is_lacking(self) -> bool:
        return self.length == LACKING


def boot_number(boot: str) -> int:
    """A machine's boot (see :class:`gfs.io.World`) as marks have it."""
    return int.from_bytes(block_sum(boot.encode()), "big") or 1


def encode_mark(mark: Mark) -> bytes:
    fields = _MARK.pack(*mark)
    return fields + block_sum(fields)


def decode_mark(record: Buffer) -> Mark | None:
    """None if it is no mark."""
    fields = bytes(record[: _MARK.size])
    if bytes(record[_MARK.size : MARK_BYTES]) != block_sum(fields):
        return None
    return Mark(*_MARK.unpack(fields))


def joined(one: Mark, other: Mark) -> Mark:
    """What two marks of one replica say together: no less than either. Of two that cannot
    both hold on, the replica is forgetful: whichever is true, it shows nothing then."""
    if one.is_lacking and other.is_lacking:
        return max(one, other, key=lambda mark: mark.boot)
    boot = one.boot if one.boot == other.boot else NO_BOOT
    length = min(one.length, other.length)
    return Mark(one.handle, max(one.version, other.version), length, boot)


class Marks:
    """The marks on the disk in ``directory``, made in this ``boot`` or before.

    Used by one thread; :meth:`flush` may run in another one meanwhile, once at a time.
    """

    def __init__(self, files: FileSystem, directory: str, boot: int) -> None:
        self.files = files
        self.path = f"{directory}/{NAME}"
        self.boot = boot
        self._file: File | None = None
        self._size = 0
        self._known: dict[int, Mark] = {}
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        #: So many slots were used ever.
        self._end = 0
        #: The change that made a mark what it is.
        self._changed: dict[int, int] = {}
        #: Slots that are to be written, and what with.
        self._unwritten: dict[int, bytes] = {}
        self._lock = files.make_lock()
        #: Changes ever made, and up to which they are on the disk.
        self.changes = 0
        self.synced = 0
        self.failed = False

    # --- start and end ----------------------------------------------------------------

    def open(self) -> bool:
        """Read the marks, or make the file, whose name is synced by the caller. False if
        some of them cannot be read. Blocks; ``OSError``."""
        exists = self.files.exists(self.path)
        self._file = self.files.open(self.path, "rw" if exists else "create")
        content = bytearray(self._file.size())
        # Less than a mark at the end was never synced as a whole.
        self._end = len(content) // MARK_BYTES
        self._size = self._end * MARK_BYTES
        try:
            self._file.read_into(memoryview(content), 0)
        except OSError:
            for slot in range(self._end):
                self._clear(slot)
            return False
        if not content:
            # While there is room; a disk that is full may be written in place.
            with contextlib.suppress(OSError):
                self._extend(1)
        return self._read(content)

    def _read(self, content: bytearray) -> bool:
        is_whole = True
        for slot in range(self._end):
            record = bytes(content[slot * MARK_BYTES : (slot + 1) * MARK_BYTES])
            if record == _FREE:
                self._free.append(slot)
                continue
            mark = decode_mark(record)
            if mark is None:
                is_whole = False
                self._clear(slot)
            elif mark.handle in self._known:
                self._clear(slot)
                self._put(joined(self._known[mark.handle], mark))
            else:
                self._known[mark.handle] = mark
                self._slots[mark.handle] = slot
                self._changed[mark.handle] = 0
        return is_whole

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- marks ------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Mark]:
        return list(self._known.values())

    def get(self, handle: int) -> Mark | None:
        return self._known.get(handle)

    def covers(self, handle: int, version: int) -> bool:
        """Whether the replica is marked, of this version and in this boot, on the disk."""
        mark = self._known.get(handle)
        return (
            mark is not None
            and not mark.is_lacking
            and mark.boot == self.boot
            and mark.version >= version
            and self._changed[handle] <= self.synced
        )

    def put(self, handle: int, version: int, length: int) -> int:
        """Mark a replica in this boot; returns up to which change :meth:`flush` has to
        get for that. What an earlier mark of it says of its length, holds on."""
        known = self._known.get(handle)
        if known is not None and not known.is_lacking:
            version, length = max(known.version, version), min(known.length, length)
        mark = Mark(handle, version, length, self.boot)
        if mark != known:
            self._put(mark)
        return self._changed[handle]

    def put_unknown(self, handle: int, version: int) -> None:
        """Mark a replica of which nobody knows whether it was marked, or what it lacks. What
        a mark of it says that is known, holds on."""
        length, known = CHUNK_BYTES, self._known.get(handle)
        if known is not None and not known.is_lacking:
            version, length = max(known.version, version), known.length
        self._put(Mark(handle, version, length, NO_BOOT))

    def put_lacking(self, handle: int, sequence: int) -> int:
        """Mark a replica that is damaged if a start finds it in a state before number
        ``sequence``; returns as :meth:`put` does."""
        known = self._known.get(handle)
        if known is not None and known.is_lacking:
            sequence = max(known.boot, sequence)
        mark = Mark(handle, 0, LACKING, sequence)
        if mark != known:
            self._put(mark)
        return self._changed[handle]

    def remove(self, handle: int) -> None:
        """Take a mark back: the chunk file is synced, or gone for good."""
        if self._known.pop(handle, None) is not None:
            del self._changed[handle]
            self._clear(self._slots.pop(handle))

    def _put(self, mark: Mark) -> None:
        slot = self._slots.get(mark.handle)
        if slot is None:
            slot = self._slots[mark.handle] = self._new_slot()
        self._known[mark.handle] = mark
        self._write(slot, encode_mark(mark))
        self._changed[mark.handle] = self.changes

    def _new_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._end += 1
        return self._end - 1

    def _clear(self, slot: int) -> None:
        self._free.append(slot)
        self._write(slot, _FREE)

    def _write(self, slot: int, record: bytes) -> None:
        with self._lock:
            self.changes += 1
            self._unwritten[slot] = record

    def flush(self) -> None:
        """All changes made before are on the disk when this returns. Blocks. After a
        failed sync nothing is accepted any more: what the kernel still has of it,
        nobody knows."""
        if self.failed:
            raise DiskFailed(f"{self.path} could not be synced")
        assert self._file is not None
        with self._lock:
            batch, self._unwritten = self._unwritten, {}
            target = self.changes
        try:
            self._extend(max(batch, default=-1) + 1)
            for slot in sorted(batch):
                self._file.write(batch[slot], slot * MARK_BYTES)
        except BaseException:
            with self._lock:
                self._unwritten = {**batch, **self._unwritten}
            raise
        try:
            self._file.sync()
        except BaseException:
            self.failed = True
            raise
        self.synced = target

    def _extend(self, slots: int) -> None:
        assert self._file is not None
        end = slots * MARK_BYTES
        if end > self._size:
            size = -(-end // GROWTH_BYTES) * GROWTH_BYTES
            self._file.write(bytes(size - self._size), self._size)
            self._size = size
