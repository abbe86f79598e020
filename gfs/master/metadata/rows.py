"""The rows of the metadata, byte by byte. All integers are big-endian.

=============  =========================================  ==========================
database       key                                        value
=============  =========================================  ==========================
meta           name                                       see :mod:`gfs.master.metadata.store`
entries        u64 parent inode, name                     u64 inode, u8 kind
inodes         u64 inode                                  :class:`Inode`, attributes
file_chunks    u64 inode, u32 index                       u64 handle
chunks         u64 handle                                 :class:`Chunk`
trash          u64 when it may go (lived ns), u64 inode    msgpack :class:`Trash`
trash_paths    :func:`trash_path_key`                     u64 when it may go (ns)
operation_log  u64 sequence                               msgpack :class:`LogRecord`
answers        client, NUL, u64 the client's sequence     the reply's head, id 0
servers        server id                                  msgpack :class:`KnownServer`
=============  =========================================  ==========================

``attributes`` are empty, or msgpack :class:`FileAttributes`. The entry repeats
the inode's kind, so that walking a path costs one look-up per segment.
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
#: Records are appended: the replicas of the last chunk determine its length.
FLAG_APPENDED = 2

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
unpack_chunk = _chunk.unpack_from
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


class FileAttributes(msgspec.Struct, array_like=True, gc=False):
    """A file's digest and attributes; a directory has no digest. Fields are only ever appended."""

    digest: bytes = b""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)


_attributes = msgspec.msgpack.Decoder(FileAttributes)


class Chunk(NamedTuple):
    """``version`` is the highest that at least one replica was confirmed to have;
    ``attempted`` the highest ever sent to one, so that no two grants of a chunk use the
    same version. ``length`` is the least length of a good replica of a complete
    chunk."""

    version: int
    attempted: int
    length: int
    references: int
    replication: int
    #: See :mod:`gfs.master.metadata.shared_chunks`; empty for a chunk that only one file ever had.
    goals: bytes = b""

    def pack(self) -> bytes:
        return _chunk.pack(*self[:5]) + self.goals


class Trash(msgspec.Struct, array_like=True, gc=False):
    """Where a deleted file or directory was."""

    parent: int
    name: bytes
    path: str
    #: When it was deleted, as long as it can be undeleted; 0 if it cannot: replaced
    #: files that are kept for their readers, and what is being reclaimed.
    deleted_ns: int = 0
    #: The same in the masters' uptime (:mod:`gfs.master.metadata.uptime`), which orders
    #: the deletions of one path; 0: from a release that lacked it, ``deleted_ns``
    #: orders them.
    since_ns: int = 0


#: So many bytes of a path are in its key in the trash, because LMDB limits keys. Longer
#: paths with the same beginning are adjacent.
TRASH_PATH_BYTES = 480


def trash_path_start(path: str) -> bytes:
    """The beginning of all keys of this path. No path contains a NUL."""
    return path.encode()[:TRASH_PATH_BYTES] + b"\0"


def trash_path_key(path: str, since_ns: int, inode: int) -> bytes:
    return trash_path_start(path) + _pair.pack(since_ns, inode)


#: Whether a chunkserver is being emptied: see :mod:`gfs.master.rules.drain_admission`.
NOT_DRAINING, DRAINING, DRAINED = 0, 1, 2


class KnownServer(msgspec.Struct, array_like=True, gc=False):
    address: str
    rack: str
    draining: int = NOT_DRAINING
    #: See :mod:`gfs.master.service.operator_commands`.
    maintenance_until_ns: int = 0
    #: The paths of its disks that are on a file system of their own, and where that is mounted.
    mounts: dict[str, str] = {}


def unpack_u64(row: bytes) -> int:
    return int.from_bytes(row, "big")


def unpack_inode(row: bytes) -> Inode:
    return Inode._make((*_inode.unpack_from(row), row[_inode.size :]))


def pack_attributes(digest: bytes, attributes: dict[str, str]) -> bytes:
    """Empty for a file without digest and attributes."""
    if not (digest or attributes):
        return b""
    return msgspec.msgpack.encode(FileAttributes(digest, attributes))


def unpack_attributes(packed: bytes) -> FileAttributes:
    return _attributes.decode(packed) if packed else FileAttributes()


def without_digest(row: Inode) -> Inode:
    """The row of a file whose bytes are to be changed."""
    kept = unpack_attributes(row.attributes)
    if not kept.digest:
        return row
    return row._replace(attributes=pack_attributes(b"", kept.attributes))


def chunk_of(row: bytes) -> Chunk:
    if len(row) == _chunk.size:
        return Chunk(*_chunk.unpack(row))
    return Chunk._make((*_chunk.unpack_from(row), row[_chunk.size :]))


def entry_key(parent: int, name: bytes) -> bytes:
    return _u64.pack(parent) + name


def answer_key(client: str, number: int) -> bytes:
    return b"%b\0%b" % (client.encode(), _u64.pack(number))
