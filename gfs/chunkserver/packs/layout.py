"""The index of the packed replicas, byte by byte. Pure: bytes in, values out.

::

    offset  bytes  field                                    (integers big-endian)
         0      8  magic "GFSPACKS"
         8      4  format, u32 = 1
        12      4  bytes of a record, u32 = 64
        16     16  id of the disk, as in its identity file, filled with zeros
        32      8  XXH3-64 of bytes 0 … 31
        40      8  number: the bytes of all records up to it are on the disk, u64
        48      8  XXH3-64 of bytes 0 … 47
      4096         records; one of zeros is free

A *record*::

         0      4  magic "PACK"
         4      4  chunk version, u32
         8      8  chunk handle, u64
        16      8  offset of the slot in packs.data, u64
        24      4  length of the data in bytes, u32: 1 … 65536
        28      4  zero
        32      8  XXH3-64 of the data
        40      8  number of the record on this disk, u64, in the order of writing
        48      8  zero
        56      8  XXH3-64 of bytes 0 … 55

``packs.data`` has no head. It consists of *frames* of 64 KiB, each cut into slots of one size:
the smallest power of two from 512 bytes that holds the replica.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from gfs.blocks import (
    BLOCK_BYTES,
    KIB,
    PACK_RECORD_BYTES,
    PAGE_BYTES,
    Buffer,
    block_sum,
    slot_bytes,
)
from gfs.errors import CorruptReplica

INDEX_NAME, DATA_NAME = "packs.index", "packs.data"
MAGIC, FORMAT = b"GFSPACKS", 1
HEAD_BYTES = PAGE_BYTES
RECORD_BYTES = PACK_RECORD_BYTES
FREE = bytes(RECORD_BYTES)
#: The largest packed replica: one block, so that it has one sum.
PACKED_BYTES_MAX = BLOCK_BYTES
FRAME_BYTES = 64 * KIB

_HEAD = struct.Struct(">8sII16s")
_CONFIRMED = struct.Struct(">Q")
_RECORD = struct.Struct(">4sIQQII8sQ8s")
_MAGIC = b"PACK"
_SUMMED_BYTES = _RECORD.size


class Record(NamedTuple):
    handle: int
    version: int
    offset: int
    length: int
    sum: bytes
    #: 0: written by a release that did not number them.
    number: int = 0


class Head(NamedTuple):
    #: None: damaged.
    disk_id: str | None
    #: 0: damaged, or written by a release that did not number records.
    confirmed: int


def encode_head(disk_id: str, confirmed: int = 0) -> bytes:
    """The head as a whole page."""
    fields = _HEAD.pack(MAGIC, FORMAT, RECORD_BYTES, disk_id.encode())
    fields += block_sum(fields) + _CONFIRMED.pack(confirmed)
    return (fields + block_sum(fields)).ljust(HEAD_BYTES, b"\0")


def decode_head(head: Buffer) -> Head:
    """What is damaged of it is unknown then: the records say themselves what they
    are. Raises CorruptReplica if it is a head, but of a format that this release does not know."""
    fields = bytes(head[: _HEAD.size])
    if len(fields) < _HEAD.size or bytes(head[_HEAD.size : _HEAD.size + 8]) != block_sum(fields):
        return Head(None, 0)
    magic, number, size, disk_id = _HEAD.unpack(fields)
    if (magic, number, size) != (MAGIC, FORMAT, RECORD_BYTES):
        raise CorruptReplica(
            f"{INDEX_NAME} has format {number}, which this release does not know: use the "
            "release that wrote it, or a newer one"
        )
    name = str(disk_id.rstrip(b"\0"), "ascii", "replace")
    rest = bytes(head[: _HEAD.size + 8 + _CONFIRMED.size])
    is_whole = bytes(head[len(rest) : len(rest) + 8]) == block_sum(rest)
    return Head(name, _CONFIRMED.unpack_from(rest, _HEAD.size + 8)[0] if is_whole else 0)


def encode_record(record: Record) -> bytes:
    handle, version, offset, length, data_sum, number = record
    fields = _RECORD.pack(_MAGIC, version, handle, offset, length, 0, data_sum, number, bytes(8))
    return fields + block_sum(fields)


def decode_record(content: Buffer) -> Record | None:
    """The record, or None if it is damaged."""
    fields = bytes(content[:_SUMMED_BYTES])
    if bytes(content[_SUMMED_BYTES:]) != block_sum(fields) or fields[:4] != _MAGIC:
        return None
    record = unpack_record(content, 0)
    if not 0 < record.length <= PACKED_BYTES_MAX or record.offset % slot_bytes(record.length):
        return None
    return record


def is_record(record: Record, content: Buffer, at: int) -> bool:
    """As ``record == unpack_record(content, at)``, of which readers ask twice for each replica."""
    _, version, handle, offset, length, _, data_sum, number, _ = _RECORD.unpack_from(content, at)
    return record == (handle, version, offset, length, data_sum, number)


def unpack_record(content: Buffer, at: int) -> Record:
    """The record at ``at``, of which it is known that it is valid, or free: then its length is
    0."""
    _, version, handle, offset, length, _, data_sum, number, _ = _RECORD.unpack_from(content, at)
    return Record(handle, version, offset, length, data_sum, number)
