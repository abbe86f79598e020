"""The chunk file, byte by byte. Pure: bytes in, values out.

::

    offset  bytes  field                                    (integers big-endian)
         0      8  magic "GFSCHUNK"
         8      4  format, u32 = 1
        12      4  zero
        16      8  chunk handle, u64
        24      8  XXH3-64 of bytes 0 … 23
       512     40  state slot 0
      1024     40  state slot 1
      4096   8192  sums: XXH3-64 of each whole block, 1024 x 8
     12288   4096  zero
     16384         data

A *state slot* has the replica's state, and lies within one 512-byte sector::

         0      8  sequence, u64: the valid slot with the higher one holds
         8      4  chunk version, u32
        12      4  length of the data in bytes, u32
        16      8  zero
        24      8  XXH3-64 of the last block's bytes if it is partial, else zero
        32      8  XXH3-64 of bytes 0 … 31

Every change of state writes the *other* slot, after the data and the sums that
it covers. So whenever a crash happens, one slot is valid, and everything that it covers
was written before it: the length never covers a byte that was not written (rule 2).
Extending a partial last block changes none of the bytes that the older slot's sum
covers (rule 3), and the block's entry in the sums is ignored while the slot says that
the block is partial.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from gfs.blocks import (
    BLOCK_BYTES,
    BLOCKS_PER_CHUNK,
    CHUNK_BYTES,
    PAGE_BYTES,
    REPLICA_HEAD_BYTES,
    SUM_BYTES,
    Buffer,
    block_sum,
)
from gfs.errors import CorruptReplica

MAGIC = b"GFSCHUNK"
FORMAT = 1
HEAD_BYTES = REPLICA_HEAD_BYTES
SLOT_OFFSETS = (512, 1024)
SUMS_OFFSET = 4096
SUMS_BYTES = BLOCKS_PER_CHUNK * SUM_BYTES
NO_SUM = bytes(SUM_BYTES)
#: The identity and both slots are in these first bytes.
PROBE_BYTES = 2048

_IDENTITY = struct.Struct(">8sIIQ")
_SLOT = struct.Struct(">QIIQ8s")
SLOT_BYTES = _SLOT.size + SUM_BYTES


class State(NamedTuple):
    """The contents of one state slot."""

    sequence: int
    version: int
    length: int
    tail_sum: bytes


def encode_identity(handle: int) -> bytes:
    fields = _IDENTITY.pack(MAGIC, FORMAT, 0, handle)
    return fields + block_sum(fields)


def check_identity(head: Buffer, handle: int) -> None:
    """Raise CorruptReplica unless ``head`` is that of this chunk's file."""
    fields = bytes(head[: _IDENTITY.size])
    if bytes(head[_IDENTITY.size : _IDENTITY.size + SUM_BYTES]) != block_sum(fields):
        raise CorruptReplica(f"chunk {handle:016x}: the file's head is damaged")
    magic, version, _, found = _IDENTITY.unpack(fields)
    if magic != MAGIC or version != FORMAT:
        raise CorruptReplica(f"chunk {handle:016x}: format {version} is not known to this release")
    if found != handle:
        raise CorruptReplica(f"chunk {handle:016x}: the file belongs to chunk {found:016x}")


def encode_slot(state: State) -> bytes:
    fields = _SLOT.pack(state.sequence, state.version, state.length, 0, state.tail_sum)
    return fields + block_sum(fields)


def decode_slot(slot: Buffer) -> State | None:
    """The state, or None if the slot is torn, damaged, or was never written."""
    fields = bytes(slot[: _SLOT.size])
    if len(slot) < SLOT_BYTES or bytes(slot[_SLOT.size : SLOT_BYTES]) != block_sum(fields):
        return None
    sequence, version, length, _, tail_sum = _SLOT.unpack(fields)
    if not sequence or length > CHUNK_BYTES:
        return None
    return State(sequence, version, length, tail_sum)


def encode_first_page(handle: int, state: State) -> bytes:
    """The first bytes of a new chunk file, with its first state."""
    page = bytearray(PROBE_BYTES)
    identity, slot = encode_identity(handle), encode_slot(state)
    page[: len(identity)] = identity
    at = slot_offset(state.sequence)
    page[at : at + len(slot)] = slot
    return bytes(page)


def slot_offset(sequence: int) -> int:
    return SLOT_OFFSETS[sequence % 2]


def recover_state(head: Buffer, handle: int, file_bytes: int) -> State:
    """The newest valid state of a chunk file.

    ``head`` is at least its first ``PROBE_BYTES``, ``file_bytes`` the file's size.
    Raises CorruptReplica if the identity is damaged, no slot is valid, or the file is
    shorter than its state says.
    """
    check_identity(head, handle)
    slots = [decode_slot(head[at : at + SLOT_BYTES]) for at in SLOT_OFFSETS]
    valid = [slot for slot in slots if slot is not None]
    if not valid:
        raise CorruptReplica(f"chunk {handle:016x}: no valid state in the file's head")
    state = max(valid)
    if state.length and file_bytes < HEAD_BYTES + state.length:
        raise CorruptReplica(
            f"chunk {handle:016x}: {file_bytes} bytes in the file, "
            f"its state needs {HEAD_BYTES + state.length}"
        )
    return state


def sums_pages(length: int) -> int:
    """How many pages the sums of the whole blocks of ``length`` bytes take."""
    return -(-whole_blocks(length) * SUM_BYTES // PAGE_BYTES)


def whole_blocks(length: int) -> int:
    return length // BLOCK_BYTES


def was_never_saved(head: Buffer) -> bool:
    """Whether this is the head of a file into which no state was written, or only a
    part of the first one: each of its sectors was written completely or not at all."""
    identity = bytes(head[: _IDENTITY.size + SUM_BYTES])
    slots = [bytes(head[at : at + SLOT_BYTES]) for at in SLOT_OFFSETS]
    written = [slot for slot in slots if any(slot)]
    if any(identity) and (written or identity[-SUM_BYTES:] != block_sum(identity[:-SUM_BYTES])):
        return False
    return len(written) < 2 and all(decode_slot(slot) is not None for slot in written)


# --- the redo journal: the head of a file, and a record -------------------------


_JOURNAL = struct.Struct(">8sQQ")
JOURNAL_MAGIC = b"GFSJRNL1"
#: Records begin in a page of their own, so that writes to them never tear the head.
JOURNAL_HEAD_BYTES = 4096
JOURNAL_SUMMED_BYTES = _JOURNAL.size + SUM_BYTES


class JournalHead(NamedTuple):
    """The head of a journal file."""

    #: Records up to this number are obsolete.
    floor: int = 0
    #: Records up to this number were on the disk when this was written.
    synced: int = 0


def encode_journal_head(head: JournalHead) -> bytes:
    """The head as a whole page, so that the disk need not read the page before it writes it."""
    fields = _JOURNAL.pack(JOURNAL_MAGIC, *head)
    page = bytearray(JOURNAL_HEAD_BYTES)
    page[:JOURNAL_SUMMED_BYTES] = fields + block_sum(fields)
    return bytes(page)


def decode_journal_head(journal: Buffer) -> JournalHead | None:
    """The head of the file; None if it is damaged."""
    fields = bytes(journal[: _JOURNAL.size])
    stored = bytes(journal[_JOURNAL.size : JOURNAL_SUMMED_BYTES])
    if stored != block_sum(fields) or fields[:8] != JOURNAL_MAGIC:
        return None
    return JournalHead(*_JOURNAL.unpack(fields)[1:])


_REDO = struct.Struct(">8sQQQIIIIQ")
REDO_MAGIC = b"GFSREDO2"


class Redo(NamedTuple):
    """A redo record: the change from one state of a replica to the next.

    ``sums`` are those of all changed blocks, from the one with ``offset`` on, after the
    write; ``data`` is written at ``offset``. For appended bytes that are on the disk
    there is no data. Version 0 means that the replica was deleted.
    """

    handle: int
    base: int  # the number of the state before; 0: the replica is new
    sequence: int  # the number of this state
    version: int
    offset: int
    length: int  # of the replica, afterwards
    sums: bytes
    data: bytes


def encode_redo(redo: Redo) -> bytes:
    head = _REDO.pack(
        REDO_MAGIC,
        redo.handle,
        redo.base,
        redo.sequence,
        redo.version,
        redo.offset,
        redo.length,
        len(redo.sums),
        len(redo.data),
    )
    record = b"".join((head, redo.sums, redo.data))
    return record + block_sum(record)


def redo_bytes(redo: Redo) -> int:
    """The length of the record."""
    return _REDO.size + len(redo.sums) + len(redo.data) + SUM_BYTES


def decode_redo(journal: Buffer, at: int = 0) -> Redo | None:
    """The record at ``at``, or None if it is not complete."""
    if len(journal) < at + _REDO.size + SUM_BYTES:
        return None
    magic, handle, base, sequence, version, offset, length, sums_bytes, data_bytes = (
        _REDO.unpack_from(journal, at)
    )
    sums_at = at + _REDO.size
    data_at = sums_at + sums_bytes
    end = data_at + data_bytes
    if magic != REDO_MAGIC or len(journal) < end + SUM_BYTES:
        return None
    with memoryview(journal) as view:
        if block_sum(view[at:end]) != view[end : end + SUM_BYTES]:
            return None
        sums, data = bytes(view[sums_at:data_at]), bytes(view[data_at:end])
    return Redo(handle, base, sequence, version, offset, length, sums, data)
