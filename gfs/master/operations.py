"""Mutations as records, and what each does to the rows.

Every mutation is decided first (:mod:`gfs.master.namespace`): names resolved,
ids and times fixed, everything that can fail checked. What comes out is one of
these records. :func:`apply` then carries it out and cannot fail, and the
committer appends the record to the operation log in the same transaction. So
whoever applies the log in order to a copy of the store gets the same rows:
``apply`` looks at nothing but the record and the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, get_args

import msgspec

from gfs.blocks import CHUNK_BYTES
from gfs.errors import invariant
from gfs.master.rows import (
    FLAG_TRASHED,
    KIND_DIRECTORY,
    KIND_FILE,
    Inode,
    Trash,
    chunk_of,
    entry_key,
    pack_chunk,
    pack_entry,
    pack_file_chunk_key,
    pack_trash_key,
    pack_u64,
    unpack_entry,
    unpack_file_chunk_key,
    unpack_inode,
    unpack_u64,
)
from gfs.master.store import Txn


class Operation(msgspec.Struct, array_like=True, gc=False):
    """Fields are only ever appended, with a default; tags are never reused."""


class NewDirectory(msgspec.Struct, array_like=True, gc=False):
    parent: int
    name: bytes
    inode: int


class NewChunk(msgspec.Struct, array_like=True, gc=False):
    handle: int
    version: int
    length: int


class DirectoriesMade(Operation, tag=1):
    """Outermost first. None at all: the mutation found nothing to change."""

    time_ns: int
    directories: list[NewDirectory]


class FilePublished(Operation, tag=2):
    """``replaced`` is the inode of the file that had the name, or 0."""

    time_ns: int
    directories: list[NewDirectory]
    parent: int
    name: bytes
    inode: int
    replaced: int
    replication: int
    length: int
    path: str
    chunks: list[NewChunk]


class Renamed(Operation, tag=3):
    time_ns: int
    directories: list[NewDirectory]
    source_parent: int
    source_name: bytes
    target_parent: int
    target_name: bytes
    inode: int
    kind: int
    replaced: int
    path: str  # the target, for the trash row of ``replaced``


class Deleted(Operation, tag=4):
    time_ns: int
    parent: int
    name: bytes
    inode: int
    path: str


class Reclaimed(Operation, tag=5):
    """One piece of a trash row's contents, at most ``limit`` rows, is given up."""

    deleted_ns: int
    inode: int
    limit: int


class ChunkAdded(Operation, tag=6):
    time_ns: int
    inode: int
    index: int
    handle: int
    version: int


class VersionAttempted(Operation, tag=7):
    """Replicas are about to be raised to ``version``."""

    handle: int
    version: int


class VersionConfirmed(Operation, tag=8):
    """At least one replica holds ``version``: all lower ones are stale."""

    handle: int
    version: int


class LengthSet(Operation, tag=9):
    time_ns: int
    inode: int
    length: int


class HandlesReserved(Operation, tag=10):
    end: int


AnyOperation = Union[  # noqa: UP007 - a list this long reads better so
    DirectoriesMade, FilePublished, Renamed, Deleted, Reclaimed,
    ChunkAdded, VersionAttempted, VersionConfirmed, LengthSet, HandlesReserved,
]  # fmt: skip


class LogRecord(msgspec.Struct, array_like=True, gc=False):
    """A row of the operation log. ``client`` is empty for the master's own."""

    time_ns: int
    client: str
    number: int
    operation: AnyOperation


class LogHead(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a log row, for trimming."""

    time_ns: int
    client: str
    number: int


def apply(txn: Txn, operation: Operation) -> None:
    """Carry ``operation`` out. Deterministic, and never refuses."""
    _APPLY[type(operation)](txn, operation)


def _directories_made(txn: Txn, op: DirectoriesMade) -> None:
    _make_directories(txn, op.directories, op.time_ns)


def _make_directories(txn: Txn, directories: list[NewDirectory], time_ns: int) -> None:
    for made in directories:
        row = Inode(KIND_DIRECTORY, 0, 0, 0, 0, time_ns, time_ns)
        txn.put(
            entry_key(made.parent, made.name),
            pack_entry(made.inode, KIND_DIRECTORY),
            txn.db.entries,
        )
        _new_inode(txn, made.inode, row)
        txn.state.directories += 1


def _new_inode(txn: Txn, inode: int, row: Inode) -> None:
    invariant(inode >= txn.state.next_inode, "inode numbers are never reused")
    txn.state.next_inode = inode + 1
    txn.put(pack_u64(inode), row.pack(), txn.db.inodes)


def _file_published(txn: Txn, op: FilePublished) -> None:
    db = txn.db
    _make_directories(txn, op.directories, op.time_ns)
    if op.replaced:
        _to_trash(txn, op.time_ns, op.parent, op.name, op.replaced, op.path)
    txn.put(entry_key(op.parent, op.name), pack_entry(op.inode, KIND_FILE), db.entries)
    row = Inode(KIND_FILE, 0, op.replication, len(op.chunks), op.length, op.time_ns, op.time_ns)
    _new_inode(txn, op.inode, row)
    for index, new in enumerate(op.chunks):
        key = pack_u64(new.handle)
        txn.put(pack_file_chunk_key(op.inode, index), key, db.file_chunks)
        chunk = pack_chunk(new.version, new.version, new.length, 1, op.replication)
        txn.put(key, chunk, db.chunks)
    txn.state.files += 1
    txn.state.bytes += op.length


def _renamed(txn: Txn, op: Renamed) -> None:
    _make_directories(txn, op.directories, op.time_ns)
    if op.replaced:
        _to_trash(txn, op.time_ns, op.target_parent, op.target_name, op.replaced, op.path)
    txn.delete(entry_key(op.source_parent, op.source_name), txn.db.entries)
    txn.put(
        entry_key(op.target_parent, op.target_name),
        pack_entry(op.inode, op.kind),
        txn.db.entries,
    )


def _deleted(txn: Txn, op: Deleted) -> None:
    txn.delete(entry_key(op.parent, op.name), txn.db.entries)
    _to_trash(txn, op.time_ns, op.parent, op.name, op.inode, op.path)


def _to_trash(txn: Txn, time_ns: int, parent: int, name: bytes, inode: int, path: str) -> None:
    """The inode has left the namespace, whole, as one row of the trash.

    What is below a directory is counted out when the reaper comes to it.
    """
    key = pack_u64(inode)
    row = unpack_inode(txn.get(key, b"", txn.db.inodes))
    _count_out(txn, row)
    row = row._replace(flags=row.flags | FLAG_TRASHED)
    txn.put(key, row.pack(), txn.db.inodes)
    trash = msgspec.msgpack.encode(Trash(parent, name, path))
    txn.put(pack_trash_key(time_ns, inode), trash, txn.db.trash)


def _count_out(txn: Txn, row: Inode) -> None:
    if row.kind == KIND_FILE:
        txn.state.files -= 1
        txn.state.bytes -= row.length
    else:
        txn.state.directories -= 1


def _reclaimed(txn: Txn, op: Reclaimed) -> None:
    row = txn.get(pack_u64(op.inode), None, txn.db.inodes)
    if row is None:
        done = True
    elif unpack_inode(row).kind == KIND_FILE:
        done = _reclaim_file(txn, op.inode, op.limit) >= 0
    else:
        done = _reclaim_directory(txn, op)
    if done:
        txn.delete(pack_trash_key(op.deleted_ns, op.inode), txn.db.trash)


def _reclaim_file(txn: Txn, inode: int, limit: int) -> int:
    """Give up to ``limit`` chunks up; returns what is left of the limit, or
    -1 if the file still has chunks."""
    rows: list[tuple[bytes, bytes]] = []
    for key, handle in txn.scan(pack_file_chunk_key(inode, 0), txn.db.file_chunks):
        if unpack_file_chunk_key(key)[0] != inode:
            break
        if len(rows) >= limit:
            _drop_chunks(txn, rows)
            return -1
        rows.append((key, handle))
    _drop_chunks(txn, rows)
    txn.delete(pack_u64(inode), txn.db.inodes)
    return limit - len(rows)


def _drop_chunks(txn: Txn, rows: list[tuple[bytes, bytes]]) -> None:
    db = txn.db
    for key, handle in rows:
        txn.delete(key, db.file_chunks)
        chunk = chunk_of(txn.get(handle, b"", db.chunks))
        if chunk.references > 1:
            txn.put(handle, chunk._replace(references=chunk.references - 1).pack(), db.chunks)
        else:
            txn.delete(handle, db.chunks)
            txn.freed.append((unpack_u64(handle), chunk.version))


def _reclaim_directory(txn: Txn, op: Reclaimed) -> bool:
    """Take up to ``limit`` rows out of a deleted directory; True if it is gone.

    Directories in it become rows of the trash of their own, and so do files
    with more chunks than the limit has left: nothing here is recursive, and no
    piece is larger than the limit.
    """
    db = txn.db
    prefix = pack_u64(op.inode)
    left = op.limit
    children: list[tuple[bytes, bytes]] = []
    for key, entry in txn.scan(prefix, db.entries):
        if key[:8] != prefix:
            break
        if len(children) >= op.limit:
            break
        children.append((key, entry))
    for key, entry in children:
        if left <= 0:
            return False
        child, _ = unpack_entry(entry)
        row = unpack_inode(txn.get(pack_u64(child), b"", db.inodes))
        _count_out(txn, row)
        txn.delete(key, db.entries)
        left -= 1
        if row.kind == KIND_FILE and row.chunks <= left:
            left = _reclaim_file(txn, child, left)
        else:
            txn.put(pack_u64(child), row._replace(flags=row.flags | FLAG_TRASHED).pack(), db.inodes)
            trash = msgspec.msgpack.encode(Trash(op.inode, key[8:], ""))
            txn.put(pack_trash_key(op.deleted_ns, child), trash, db.trash)
    if len(children) >= op.limit:
        return False
    txn.delete(prefix, db.inodes)
    return True


def _chunk_added(txn: Txn, op: ChunkAdded) -> None:
    db = txn.db
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", db.inodes))
    handle = pack_u64(op.handle)
    txn.put(pack_file_chunk_key(op.inode, op.index), handle, db.file_chunks)
    txn.put(handle, pack_chunk(op.version, op.version, 0, 1, row.replication), db.chunks)
    row = row._replace(chunks=op.index + 1, modified_ns=op.time_ns)
    txn.put(key, row.pack(), db.inodes)


def _version_attempted(txn: Txn, op: VersionAttempted) -> None:
    key = pack_u64(op.handle)
    chunk = chunk_of(txn.get(key, b"", txn.db.chunks))
    txn.put(key, chunk._replace(attempted=op.version).pack(), txn.db.chunks)


def _version_confirmed(txn: Txn, op: VersionConfirmed) -> None:
    key = pack_u64(op.handle)
    chunk = chunk_of(txn.get(key, b"", txn.db.chunks))
    attempted = max(chunk.attempted, op.version)
    txn.put(key, chunk._replace(version=op.version, attempted=attempted).pack(), txn.db.chunks)


def _length_set(txn: Txn, op: LengthSet) -> None:
    """Raise the file's length, and with it what its replicas must hold."""
    db = txn.db
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", db.inodes))
    for index in range(row.length // CHUNK_BYTES, -(-op.length // CHUNK_BYTES)):
        handle = txn.get(pack_file_chunk_key(op.inode, index), b"", db.file_chunks)
        chunk = chunk_of(txn.get(handle, b"", db.chunks))
        length = min(CHUNK_BYTES, op.length - index * CHUNK_BYTES)
        txn.put(handle, chunk._replace(length=length).pack(), db.chunks)
    txn.state.bytes += op.length - row.length
    row = row._replace(length=op.length, modified_ns=op.time_ns)
    txn.put(key, row.pack(), db.inodes)


def _handles_reserved(txn: Txn, op: HandlesReserved) -> None:
    txn.state.handle_end = op.end


_APPLY: dict[type[Operation], Callable[[Txn, Any], None]] = {
    DirectoriesMade: _directories_made,
    FilePublished: _file_published,
    Renamed: _renamed,
    Deleted: _deleted,
    Reclaimed: _reclaimed,
    ChunkAdded: _chunk_added,
    VersionAttempted: _version_attempted,
    VersionConfirmed: _version_confirmed,
    LengthSet: _length_set,
    HandlesReserved: _handles_reserved,
}
invariant(set(_APPLY) == set(get_args(AnyOperation)), "every operation can be applied")
