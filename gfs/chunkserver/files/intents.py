"""Write-intent records: after a power cut they say which replicas may lack writes.

With ``durability = "replicated"`` nothing is synced before it is acknowledged. A
machine that loses power may come back with a replica of the current version that passes
all its checksums, and still lacks the last writes in place or appends, together with
their sums. Nothing in the replica shows it.

So before an existing replica is written, a *write-intent record* is synced to the disk:
this chunk is being written, in this *boot* of the machine (the page cache is as old as
that). A replica whose record is of another boot is *possibly stale*. The server neither
serves it nor accepts writes to it; the master replaces it by a copy of a good one. Only
if no good one is left anywhere, the master elects one of the possibly stale replicas
(:mod:`gfs.master.rules.election`).

::

    grant, or first write ──> record, synced ──> any number of writes, not synced
              some time after the last of them: chunk file synced ──> record removed

*What it costs*: one sync for each chunk that begins to be written, of a small file
whose blocks are allocated, shared by all tasks that wait for one at that moment.
Further writes and reads cost nothing. Measured on two busy cores, three servers on one
disk: the first write to a file 35 ms instead of 24, of which most is the master's
commits; writes after it, appends and new files as before.

*What needs no record*: a new chunk until it belongs to a file, since no earlier state of it
can be taken for the newest. The master learns its length and version when it is
published; bytes that were lost, with or without their sums, fail the checksum, as
the sum of no block is zero. Copies are synced before they have a name. The empty
replica of a chunk that is added to a file is synced when it is made, and gets a record
as all others do.

*What a record says of the replica*: its version, so that a replica that loses its
newest version in a power cut is not taken for stale: if all replicas were, the chunk
would be lost. And the length that it had before the first write that a power cut may
undo: missing bytes below that are damage; those beyond it were written under the
record, and may be missing.

*Where in the file*: a record is written to any free slot, within one sector, so that a
torn write changes no other record. It is overwritten only by another one, or by zeros
when it is removed: the order of the writes does not matter. Since nothing is synced at
a removal, a removed record may come back; then a good replica counts as possibly stale,
and is replaced without need.

A record that cannot be read may be of any replica: then all replicas on its disk are
possibly stale.

*Incomplete*: another kind of record says that the newest states of a replica could not be
saved in its file because of errors of the disk. They are in the redo journal, which is
overwritten in turn; then the file would look good, with the current version, but lack
acknowledged writes. So such a record is synced before the journal is overwritten. It has
the number of the state that the file should have. If a start finds an earlier state, the
replica is damaged. If it finds that state, restored from the journal, or a later one, of a
file that replaced this one, the record does not matter any more. No state of a chunk
file whose sync failed is good (:mod:`gfs.chunkserver.files.chunkfile`): what a later
start reads from the page cache may not be on the disk.

*A failed sync of the records is never repeated*, since Linux reports a failed write-back once
and counts the pages as written. From then on no record counts as being on the disk, so
no write that needs one is accepted, and the disk has failed.

Not chosen: a flag in the chunk file's head, whose sync would include all dirty pages of the
chunk; the redo journal, which has its own order and is overwritten in turn.
"""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, KIB, SUM_BYTES, Buffer, block_sum
from gfs.errors import DiskFailed
from gfs.io import File, FileSystem

NAME = "marks"
#: The boot of records that were made because the former ones are unknown.
NO_BOOT = 0
#: A state that no file ever has: no state of a replica whose sync has failed is good.
NO_STATE = 2**64 - 1
#: Replaces the length in a record that says that the replica is incomplete.
INCOMPLETE = 2**32 - 1
#: The file grows by this much at a time, so that most syncs need not wait for a new
#: length to be recorded.
GROWTH_BYTES = 16 * KIB

_INTENT = struct.Struct(">QIIQ")
INTENT_BYTES = _INTENT.size + SUM_BYTES
_FREE = bytes(INTENT_BYTES)


class Intent(NamedTuple):
    handle: int
    version: int
    #: Bytes of the replica that a power cut since the record was made cannot have undone.
    length: int
    #: Of an incomplete replica: the number of the state that it should have.
    boot: int

    @property
    def is_incomplete(self) -> bool:
        return self.length == INCOMPLETE


def boot_number(boot: str) -> int:
    """The number of a machine's boot (see :class:`gfs.io.World`) in records."""
    return int.from_bytes(block_sum(boot.encode()), "big") or 1


def encode_intent(intent: Intent) -> bytes:
    fields = _INTENT.pack(*intent)
    return fields + block_sum(fields)


def decode_intent(record: Buffer) -> Intent | None:
    """The record, or None if it is invalid."""
    fields = bytes(record[: _INTENT.size])
    if bytes(record[_INTENT.size : INTENT_BYTES]) != block_sum(fields):
        return None
    return Intent(*_INTENT.unpack(fields))


def merged(one: Intent, other: Intent) -> Intent:
    """The union of two records of one replica. If they contradict each other, the
    replica is possibly stale, so that it is not read in either case."""
    if one.is_incomplete and other.is_incomplete:
        return max(one, other, key=lambda intent: intent.boot)
    boot = one.boot if one.boot == other.boot else NO_BOOT
    length = min(one.length, other.length)
    return Intent(one.handle, max(one.version, other.version), length, boot)


class Intents:
    """The records on the disk in ``directory``, made in this ``boot`` or before.

    Used by one thread; :meth:`flush` may run in another one meanwhile, once at a time.
    """

    def __init__(self, files: FileSystem, directory: str, boot: int) -> None:
        self.files = files
        self.path = f"{directory}/{NAME}"
        self.boot = boot
        self._file: File | None = None
        self._size = 0
        self._known: dict[int, Intent] = {}
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        #: How many slots have ever been used.
        self._end = 0
        #: The number of the last change of each record.
        self._changed: dict[int, int] = {}
        #: Slots that have to be written, and their contents.
        self._unwritten: dict[int, bytes] = {}
        self._lock = files.make_lock()
        #: The number of the last change, and that of the last one on the disk.
        self.changes = 0
        self.synced = 0
        self.failed = False

    # --- start and end ----------------------------------------------------------------

    def open(self) -> bool:
        """Read the records, or make the file; the caller syncs its name. Returns false if
        some of them cannot be read. Blocks; raises ``OSError``."""
        exists = self.files.exists(self.path)
        self._file = self.files.open(self.path, "rw" if exists else "create")
        content = bytearray(self._file.size())
        # Less than a record at the end was never synced as a whole.
        self._end = len(content) // INTENT_BYTES
        self._size = self._end * INTENT_BYTES
        try:
            self._file.read_into(memoryview(content), 0)
        except OSError:
            for slot in range(self._end):
                self._clear(slot)
            return False
        if not content:
            # While there is room: on a full disk only existing blocks can be written.
            with contextlib.suppress(OSError):
                self._extend(1)
        return self._read(content)

    def _read(self, content: bytearray) -> bool:
        is_whole = True
        for slot in range(self._end):
            record = bytes(content[slot * INTENT_BYTES : (slot + 1) * INTENT_BYTES])
            if record == _FREE:
                self._free.append(slot)
                continue
            intent = decode_intent(record)
            if intent is None:
                is_whole = False
                self._clear(slot)
            elif intent.handle in self._known:
                self._clear(slot)
                self._put(merged(self._known[intent.handle], intent))
            else:
                self._known[intent.handle] = intent
                self._slots[intent.handle] = slot
                self._changed[intent.handle] = 0
        return is_whole

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- records ----------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Intent]:
        return list(self._known.values())

    def get(self, handle: int) -> Intent | None:
        return self._known.get(handle)

    def covers(self, handle: int, version: int) -> bool:
        """Whether a record of the replica, of this version and boot, is on the disk."""
        intent = self._known.get(handle)
        return (
            intent is not None
            and not intent.is_incomplete
            and intent.boot == self.boot
            and intent.version >= version
            and self._changed[handle] <= self.synced
        )

    def put(self, handle: int, version: int, length: int) -> int:
        """Record a replica in this boot. Returns the number of the change that
        :meth:`flush` must have reached for the record to be on the disk. An earlier record's
        length stays."""
        known = self._known.get(handle)
        if known is not None and not known.is_incomplete:
            version, length = max(known.version, version), min(known.length, length)
        intent = Intent(handle, version, length, self.boot)
        if intent != known:
            self._put(intent)
        return self._changed[handle]

    def put_unknown(self, handle: int, version: int) -> None:
        """Record a replica whose former record is unknown. A known record of it stays."""
        length, known = CHUNK_BYTES, self._known.get(handle)
        if known is not None and not known.is_incomplete:
            version, length = max(known.version, version), known.length
        self._put(Intent(handle, version, length, NO_BOOT))

    def put_incomplete(self, handle: int, sequence: int) -> int:
        """Record a replica that is damaged if a start finds it in a state before number
        ``sequence``. Returns as :meth:`put` does."""
        known = self._known.get(handle)
        if known is not None and known.is_incomplete:
            sequence = max(known.boot, sequence)
        intent = Intent(handle, 0, INCOMPLETE, sequence)
        if intent != known:
            self._put(intent)
        return self._changed[handle]

    def remove(self, handle: int) -> None:
        """Remove a record: the chunk file is synced, or deleted for good."""
        if self._known.pop(handle, None) is not None:
            del self._changed[handle]
            self._clear(self._slots.pop(handle))

    def _put(self, intent: Intent) -> None:
        slot = self._slots.get(intent.handle)
        if slot is None:
            slot = self._slots[intent.handle] = self._new_slot()
        self._known[intent.handle] = intent
        self._write(slot, encode_intent(intent))
        self._changed[intent.handle] = self.changes

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
        """Sync all earlier changes. Blocks. After a failed sync no change is accepted
        any more: it is not known what reached the disk."""
        if self.failed:
            raise DiskFailed(f"{self.path} could not be synced")
        assert self._file is not None
        with self._lock:
            batch, self._unwritten = self._unwritten, {}
            target = self.changes
        try:
            self._extend(max(batch, default=-1) + 1)
            for slot in sorted(batch):
                self._file.write(batch[slot], slot * INTENT_BYTES)
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
        end = slots * INTENT_BYTES
        if end > self._size:
            size = -(-end // GROWTH_BYTES) * GROWTH_BYTES
            self._file.write(bytes(size - self._size), self._size)
            self._size = size
