"""The rows of the metadata, byte by byte. All integers are big-endian.

=============  =========================================  ==========================
database       key                                        value
=============  =========================================  ==========================
meta           name                                       see :mod:`gfs.master.store`
entries        u64 parent inode, name                     u64 inode, u8 kind
inodes         u64 inode                                  :class:`Inode`, attributes
file_chunks    u64 inode, u32 index                       u64 handle
chunks         u64 handle                                 :class:`Chunk`
trash          u64 deletion time (ns), u64 inode          msgpack :class:`Trash`
operation_log  u64 sequence                               msgpack :class:`LogRecord`
answers        client, NUL, u64 the client's sequence     the reply's head, id 0
servers        server id                                  msgpack :class:`KnownServer`
=============  =========================================  ==========================

``attributes`` is room for what later releases keep with a file; it is carried
along unread. The entry repeats the inode's kind, so that walking a path costs
one look-up per segment.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

KIND_FILE = 1
KIND_DIRECTORY = 2
KIND_NAMES = {KIND_FILE: "file", KIND_DIRECTORY: "directory"}

#: The inode left the namespace and waits in the trash.
FLAG_TRASHED = 1

ROOT_INODE = 1
CLIENT_BYTES_MAX = 64

_u64 = struct.Struct(">Q")
_pair = struct.Struct(">QQ")
_entry = struct.Struct(">QB")
_inode = struct.Struct(">BBHIQQQ")
_file_chunk = struct.Struct(">QI")
_chunk = struct.Struct(">IIIIH")

pack_u64 = _u64.pack
pack_entry = _entry.pack
unpack_entry = _entry.unpack
pack_file_chunk_key = _file_chunk.pack
unpack_file_chunk_key = _file_chunk.unpack
pack_trash_key = _pair.pack
unpack_chunk = _chunk.unpack
pack_chunk = _chunk.pack


class Inode(NamedTuple):
    kind: int
    flags: int
    replication: int
    chunks: int
    length: int
    created_ns: int
    modified_ns: int
    attributes: bytes = b""

    def pack(self) -> bytes:
        return _inode.pack(*self[:7]) + self.attributes


class Chunk(NamedTuple):
    """``version`` is the highest that at least one replica was confirmed to
    hold; ``attempted`` the highest ever sent to one, so that no two grants of
    a chunk can bear the same version. ``length`` is the least a good replica
    of a finished chunk must hold."""

    version: int
    attempted: int
    length: int
    references: int
    replication: int

    def pack(self) -> bytes:
        return _chunk.pack(*self)


class Trash(msgspec.Struct, array_like=True, gc=False):
    """Where a deleted file or directory was."""

    parent: int
    name: bytes
    path: str


class KnownServer(msgspec.Struct, array_like=True, gc=False):
    address: str
    rack: str


def unpack_u64(row: bytes) -> int:
    return int.from_bytes(row, "big")


def unpack_inode(row: bytes) -> Inode:
    if len(row) == _inode.size:
        return Inode(*_inode.unpack(row))
    return Inode._make((*_inode.unpack_from(row), row[_inode.size :]))


def chunk_of(row: bytes) -> Chunk:
    return Chunk._make(_chunk.unpack(row))


def entry_key(parent: int, name: bytes) -> bytes:
    return _u64.pack(parent) + name


def answer_key(client: str, number: int) -> bytes:
    return b"%b\0%b" % (client.encode(), _u64.pack(number))
