"""Mutations as records, and what each does to the rows.

Every mutation is planned first (:mod:`gfs.master.metadata.namespace`): names are
resolved, ids and times fixed, and everything that can fail is checked. The result is
one of these records. :func:`apply` then carries it out and cannot fail, and the
committer appends the record to the operation log in the same transaction. ``apply``
uses only the record and the rows: so applying the log in order to a copy of the store
gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, get_args

import msgspec

from gfs.blocks import CHUNK_BYTES
from gfs.errors import invariant
from gfs.master.metadata import shared_chunks, terms
from gfs.master.metadata.rows import (
    FLAG_APPENDED,
    FLAG_TRASHED,
    KIND_DIRECTORY,
    KIND_FILE,
    Inode,
    KnownServer,
    Trash,
    chunk_of,
    entry_key,
    pack_attributes,
    pack_chunk,
    pack_entry,
    pack_file_chunk_key,
    pack_trash_key,
    pack_u64,
    trash_path_key,
    unpack_attributes,
    unpack_entry,
    unpack_file_chunk_key,
    unpack_inode,
    unpack_u64,
    without_digest,
)
from gfs.master.metadata.store import Change, Counted, Freed, RepairSettings, State, Txn, UnderWay


class Operation(msgspec.Struct, array_like=True, gc=False):
    """Fields are only ever appended, with a default; tags are never reused."""


class NewDirectory(msgspec.Struct, array_like=True, gc=False):
    parent: int
    name: bytes
    inode: int
    attributes: dict[str, str] = msgspec.field(default_factory=dict)


class NewChunk(msgspec.Struct, array_like=True, gc=False):
    handle: int
    version: int
    length: int


class DirectoriesMade(Operation, tag=1):
    """Outermost first. Without any, the mutation found nothing to change."""

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
    digest: bytes = b""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    #: Until then the replaced file is kept for its readers.
    kept_ns: int = 0
    #: The file's time of change; 0: ``time_ns``.
    modified_ns: int = 0


class FilesJoined(FilePublished, tag=32):
    """It has the chunks of ``sources``, which keep them, one file's after the other's, and none
    of its own."""

    sources: list[int] = []


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
    #: Until then the replaced file is kept for its readers.
    kept_ns: int = 0


class Deleted(Operation, tag=4):
    time_ns: int
    parent: int
    name: bytes
    inode: int
    path: str
    #: Until then it can be undeleted; not at all if this is not later than ``time_ns``.
    kept_ns: int = 0


class Reclaimed(Operation, tag=5):
    """One piece of a trash row's contents, at most ``limit`` rows, is reclaimed; then
    those of ``others`` (due, inode), up to the same limit."""

    due_ns: int
    inode: int
    limit: int
    others: list[tuple[int, int]] = []


class ChunkAdded(Operation, tag=6):
    """The file loses its digest."""

    time_ns: int
    inode: int
    index: int
    handle: int
    version: int


class VersionAttempted(Operation, tag=7):
    """Replicas are to be raised to ``version``, to be written: the file ``inode``,
    which has the chunk, loses its digest."""

    handle: int
    version: int
    inode: int = 0


class VersionConfirmed(Operation, tag=8):
    """At least one replica holds ``version``: all lower ones are stale."""

    handle: int
    version: int


class LengthSet(Operation, tag=9):
    """The file loses its digest."""

    time_ns: int
    inode: int
    length: int


class HandlesReserved(Operation, tag=10):
    end: int


class TimePassed(Operation, tag=28):
    """Nothing changed: the log row only records the masters' uptime."""


class ServerRemembered(Operation, tag=50):
    """A chunkserver registered for the first time, or with another address, or other mounts."""

    server: str
    address: str
    rack: str
    mounts: dict[str, str] = {}


class ServerForgotten(Operation, tag=51):
    server: str


class CorruptionFound(Operation, tag=52):
    """A corrupt replica was found; it is counted, repaired or not."""

    handle: int
    version: int


class TermBegun(Operation, tag=53):
    """A shadow master was promoted. Numbers that the master before it may have
    allocated without a row in this log are never allocated again: see
    :mod:`gfs.master.metadata.terms`."""

    time_ns: int
    term: int
    #: The new master does not count as a shadow master any more; the master ``before``
    #: it counts in its place, if that handed over and is a shadow master now.
    address: str = ""
    before: str = ""
    #: It begins with a restored backup: see :class:`RestoreAccepted`.
    keeps_unknown: bool = False


class RestoreAccepted(Operation, tag=60):
    """An operator has accepted that the files made after a restored backup are lost: from
    now on their chunks are garbage, which they were not since the TermBegun."""


class ShadowsChanging(Operation, tag=55):
    """Other shadow masters are to count for ``replicas_before_ack``. Until those that
    count now have this row, both sets count: see
    :mod:`gfs.master.shadows.quorum`."""

    addresses: list[str]
    wanted: int


class ShadowsChanged(Operation, tag=56):
    """The former ones have the row: only the new ones count from now on."""


class ShadowForgotten(Operation, tag=57):
    """An operator has declared the shadow master at ``address`` lost for good."""

    address: str


class DrainSet(Operation, tag=54):
    """The drain of a chunkserver has begun, is complete, or was cancelled: see
    :mod:`gfs.master.rules.drain_admission`."""

    server: str
    draining: int


class MaintenanceSet(Operation, tag=58):
    """A chunkserver is under maintenance until then, in the masters' uptime; 0: it is not."""

    server: str
    until_ns: int


class RepairSet(Operation, tag=59):
    """An operator paused repair, or changed its limits."""

    settings: RepairSettings


class Undeleted(Operation, tag=20):
    """The row of the trash at (``due_ns``, ``inode``) gets a name again."""

    time_ns: int
    directories: list[NewDirectory]
    due_ns: int
    inode: int
    parent: int
    name: bytes
    kind: int


class TrashEmptied(Operation, tag=21):
    """These rows of the trash, as (due, inode), cannot be undeleted any more and may be
    reclaimed from ``time_ns`` on."""

    time_ns: int
    rows: list[tuple[int, int]]


class ReplicationSet(Operation, tag=22):
    """The goal of a file, and of its chunks."""

    inode: int
    replication: int


class SnapshotBegun(Operation, tag=23):
    """``copy`` is to become a copy of ``source``. Until that is finished or abandoned,
    it has no name, and nothing at and below ``source`` changes (``above`` are the
    directories above it)."""

    time_ns: int
    source: int
    copy: int
    above: list[int]


class Copied(msgspec.Struct, array_like=True, gc=False):
    """``source`` is copied to ``copy``, under ``name`` in ``parent``, with ``count``
    chunks from number ``first`` on. Parent 0: the copy exists already, and these are
    more of its chunks."""

    source: int
    copy: int
    parent: int
    name: bytes
    first: int
    count: int


class SnapshotCopied(Operation, tag=24):
    """One piece of a snapshot: directories before their contents."""

    time_ns: int
    pieces: list[Copied]


class SnapshotFinished(Operation, tag=25):
    """The copy is complete, and gets its name."""

    time_ns: int
    directories: list[NewDirectory]
    copy: int
    parent: int
    name: bytes


class SnapshotAbandoned(Operation, tag=26):
    """The incomplete copy may be reclaimed."""

    time_ns: int
    copy: int


class ChunkReplaced(Operation, tag=27):
    """The file is to be written, and had a chunk that other files have or had: it has a
    copy of that chunk from now on. It loses its digest."""

    inode: int
    index: int
    handle: int
    version: int


class AppendBegun(Operation, tag=30):
    """Records will be appended to the file: it loses its digest, and the length in its
    row is a lower bound from now on."""

    inode: int


class AttributesSet(Operation, tag=31):
    """These are all attributes of a file or directory from now on, and this its time of
    change. Its digest stays."""

    inode: int
    attributes: dict[str, str]
    modified_ns: int


def nothing_changed(time_ns: int) -> Operation:
    """A log row that changes nothing, for an answer that a retry must get again, since
    answers belong to rows. It has had this form since the first version of the log."""
    return DirectoriesMade(time_ns, [])


AnyOperation = Union[  # noqa: UP007 - a list this long reads better so
    DirectoriesMade, FilePublished, FilesJoined, Renamed, Deleted, Reclaimed,
    ChunkAdded, VersionAttempted, VersionConfirmed, LengthSet, HandlesReserved,
    ServerRemembered, ServerForgotten, CorruptionFound, TermBegun, DrainSet,
    MaintenanceSet, RepairSet, RestoreAccepted,
    ShadowsChanging, ShadowsChanged, ShadowForgotten,
    Undeleted, TrashEmptied, ReplicationSet,
    SnapshotBegun, SnapshotCopied, SnapshotFinished, SnapshotAbandoned, ChunkReplaced,
    TimePassed, AppendBegun, AttributesSet,
]  # fmt: skip


class LogRecord(msgspec.Struct, array_like=True, gc=False):
    """A row of the operation log. ``client`` is empty for the master's own,
    ``previous`` is the checksum of the row before it."""

    time_ns: int
    client: str
    number: int
    operation: AnyOperation
    previous: int = 0
    #: See :mod:`gfs.master.metadata.uptime`.
    lived_ns: int = 0


def apply(txn: Txn, operation: Operation) -> None:
    """Carry ``operation`` out. Deterministic, and never refuses."""
    _APPLY[type(operation)](txn, operation)


def _directories_made(txn: Txn, op: DirectoriesMade) -> None:
    _make_directories(txn, op.directories, op.time_ns)


def _make_directories(txn: Txn, directories: list[NewDirectory], time_ns: int) -> None:
    for made in directories:
        row = directory_row(time_ns, made.attributes)
        txn.put(
            entry_key(made.parent, made.name),
            pack_entry(made.inode, KIND_DIRECTORY),
            txn.db.entries,
        )
        _new_inode(txn, made.inode, row)
        txn.state.directories += 1
        _names_changed(txn, made.parent, time_ns)


def _names_changed(txn: Txn, directory: int, time_ns: int) -> None:
    """A directory is changed when a name in it is made, or is gone, as POSIX has it."""
    key = pack_u64(directory)
    row = unpack_inode(txn.get(key, b"", txn.db.inodes))
    if row.modified_ns != time_ns:
        txn.put(key, row._replace(modified_ns=time_ns).pack(), txn.db.inodes)


def directory_row(time_ns: int, attributes: dict[str, str]) -> Inode:
    """The row of a new directory."""
    packed = pack_attributes(b"", attributes)
    return Inode(KIND_DIRECTORY, 0, 0, 0, 0, time_ns, time_ns, packed)


def _new_inode(txn: Txn, inode: int, row: Inode) -> None:
    invariant(inode >= txn.state.next_inode, "inode numbers are never reused")
    txn.state.next_inode = inode + 1
    txn.put(pack_u64(inode), row.pack(), txn.db.inodes)


def _file_published(txn: Txn, op: FilePublished) -> None:
    db = txn.db
    _put_file(txn, op, len(op.chunks))
    for index, new in enumerate(op.chunks):
        key = pack_u64(new.handle)
        txn.put(pack_file_chunk_key(op.inode, index), key, db.file_chunks)
        chunk = pack_chunk(new.version, new.version, new.length, 1, op.replication)
        txn.put(key, chunk, db.chunks)


def _files_joined(txn: Txn, op: FilesJoined) -> None:
    handles = [handle for inode in op.sources for handle in _handles_of(txn, inode)]
    _put_file(txn, op, len(handles))
    for index, handle in enumerate(handles):
        txn.put(pack_file_chunk_key(op.inode, index), handle, txn.db.file_chunks)
        before = chunk_of(txn.get(handle, b"", txn.db.chunks))
        chunk = shared_chunks.shared(before, op.replication)
        txn.put(handle, chunk.pack(), txn.db.chunks)
        txn.state.shared_bytes += chunk.length
        if chunk.replication != before.replication:
            txn.effects.goals.append(unpack_u64(handle))


def _put_file(txn: Txn, op: FilePublished, chunks: int) -> None:
    """The name and the inode of a new file of so many chunks."""
    db = txn.db
    _make_directories(txn, op.directories, op.time_ns)
    if op.replaced:
        due_ns = max(_now_ns(txn, op), op.kept_ns)
        _to_trash(txn, due_ns, op.parent, op.name, op.replaced, op.path)
    else:
        _names_changed(txn, op.parent, op.time_ns)
    txn.put(entry_key(op.parent, op.name), pack_entry(op.inode, KIND_FILE), db.entries)
    row = Inode(
        KIND_FILE,
        0,
        op.replication,
        chunks,
        op.length,
        op.time_ns,
        op.modified_ns or op.time_ns,
        pack_attributes(op.digest, op.attributes),
    )
    _new_inode(txn, op.inode, row)
    txn.state.files += 1
    txn.state.bytes += op.length


def _renamed(txn: Txn, op: Renamed) -> None:
    _make_directories(txn, op.directories, op.time_ns)
    if op.replaced:
        due_ns = max(_now_ns(txn, op), op.kept_ns)
        _to_trash(txn, due_ns, op.target_parent, op.target_name, op.replaced, op.path)
    txn.delete(entry_key(op.source_parent, op.source_name), txn.db.entries)
    txn.put(
        entry_key(op.target_parent, op.target_name),
        pack_entry(op.inode, op.kind),
        txn.db.entries,
    )
    _names_changed(txn, op.source_parent, op.time_ns)
    _names_changed(txn, op.target_parent, op.time_ns)


def _deleted(txn: Txn, op: Deleted) -> None:
    txn.delete(entry_key(op.parent, op.name), txn.db.entries)
    now_ns = _now_ns(txn, op)
    due_ns = max(now_ns, op.kept_ns)
    deleted_ns = op.time_ns if due_ns > now_ns else 0
    _to_trash(txn, due_ns, op.parent, op.name, op.inode, op.path, deleted_ns)
    _names_changed(txn, op.parent, op.time_ns)


def _now_ns(
    txn: Txn, op: FilePublished | Renamed | Deleted | TrashEmptied | SnapshotAbandoned
) -> int:
    """The present time as the trash counts it: the masters' uptime, or the wall clock
    in a log without it."""
    return txn.lived_ns or op.time_ns


def _to_trash(
    txn: Txn, due_ns: int, parent: int, name: bytes, inode: int, path: str, deleted_ns: int = 0
) -> None:
    """Move the inode, with everything below it, from the namespace to one row of the
    trash; it may be reclaimed from ``due_ns`` on.

    The contents of a directory are subtracted from the totals when they are reclaimed.
    """
    key = pack_u64(inode)
    row = unpack_inode(txn.get(key, b"", txn.db.inodes))
    _count_out(txn, row)
    row = row._replace(flags=row.flags | FLAG_TRASHED)
    txn.put(key, row.pack(), txn.db.inodes)
    trash = Trash(parent, name, path, deleted_ns, txn.lived_ns)
    txn.put(pack_trash_key(due_ns, inode), msgspec.msgpack.encode(trash), txn.db.trash)
    if deleted_ns:
        key = trash_path_key(path, trash.since_ns or deleted_ns, inode)
        txn.put(key, pack_u64(due_ns), txn.db.trash_paths)
        _count_trash(txn, inode, row, 1)
    elif row.kind == KIND_FILE:
        txn.effects.replaced.append((inode, row.length))


def _count_trash(txn: Txn, inode: int, row: Inode, by: int) -> None:
    txn.state.trash_rows += by
    if row.kind == KIND_FILE:
        txn.state.trash_files += by
        txn.state.trash_bytes += by * row.length
    else:
        txn.effects.trashed.append((inode, by > 0))


def _unlist(txn: Txn, due_ns: int, inode: int) -> Trash | None:
    """Make this row of the trash, which stays, impossible to undelete. Returns the
    former row, None if there is none."""
    db = txn.db
    key = pack_trash_key(due_ns, inode)
    packed = txn.get(key, None, db.trash)
    if packed is None:
        return None
    trash = msgspec.msgpack.decode(packed, type=Trash)
    if trash.deleted_ns:
        since_ns = trash.since_ns or trash.deleted_ns
        txn.delete(trash_path_key(trash.path, since_ns, inode), db.trash_paths)
        _count_trash(txn, inode, unpack_inode(txn.get(pack_u64(inode), b"", db.inodes)), -1)
        unlisted = msgspec.structs.replace(trash, deleted_ns=0)
        txn.put(key, msgspec.msgpack.encode(unlisted), db.trash)
    return trash


def _undeleted(txn: Txn, op: Undeleted) -> None:
    db = txn.db
    _make_directories(txn, op.directories, op.time_ns)
    _unlist(txn, op.due_ns, op.inode)
    txn.delete(pack_trash_key(op.due_ns, op.inode), db.trash)
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", db.inodes))
    row = row._replace(flags=row.flags & ~FLAG_TRASHED)
    txn.put(key, row.pack(), db.inodes)
    txn.put(entry_key(op.parent, op.name), pack_entry(op.inode, op.kind), db.entries)
    _names_changed(txn, op.parent, op.time_ns)
    _count(txn, row, 1)


def _trash_emptied(txn: Txn, op: TrashEmptied) -> None:
    db = txn.db
    for due_ns, inode in op.rows:
        trash = _unlist(txn, due_ns, inode)
        if trash is not None:
            txn.delete(pack_trash_key(due_ns, inode), db.trash)
            trash.deleted_ns = 0
            key = pack_trash_key(_now_ns(txn, op), inode)
            txn.put(key, msgspec.msgpack.encode(trash), db.trash)


def _count_out(txn: Txn, row: Inode) -> None:
    _count(txn, row, -1)


def _count(txn: Txn, row: Inode, by: int) -> None:
    if row.kind == KIND_FILE:
        txn.state.files += by
        txn.state.bytes += by * row.length
    else:
        txn.state.directories += by


def _reclaimed(txn: Txn, op: Reclaimed) -> None:
    left = op.limit
    for due_ns, inode in ((op.due_ns, op.inode), *op.others):
        if left <= 0:
            return
        left = _reclaim_row(txn, due_ns, inode, left)


def _reclaim_row(txn: Txn, due_ns: int, inode: int, limit: int) -> int:
    """Returns the rest of the limit; 0 if the row is not reclaimed completely."""
    _unlist(txn, due_ns, inode)
    row = txn.get(pack_u64(inode), None, txn.db.inodes)
    left = limit
    if row is None:
        pass
    elif unpack_inode(row).kind == KIND_FILE:
        left = _reclaim_file(txn, inode, limit)
        if left < 0:
            return 0
        txn.effects.replaced.append((inode, -1))
    elif _reclaim_directory(txn, due_ns, inode, limit):
        left = 0
    else:
        return 0
    txn.delete(pack_trash_key(due_ns, inode), txn.db.trash)
    return left - 1


def _reclaim_file(txn: Txn, inode: int, limit: int) -> int:
    """Reclaim up to ``limit`` chunks; returns the rest of the limit, or -1 if the file
    still has chunks."""
    rows: list[tuple[bytes, bytes]] = []
    goal = unpack_inode(txn.get(pack_u64(inode), b"", txn.db.inodes)).replication
    for key, handle in txn.scan(pack_file_chunk_key(inode, 0), txn.db.file_chunks):
        if unpack_file_chunk_key(key)[0] != inode:
            break
        if len(rows) >= limit:
            _drop_chunks(txn, rows, goal)
            return -1
        rows.append((key, handle))
    _drop_chunks(txn, rows, goal)
    txn.delete(pack_u64(inode), txn.db.inodes)
    return limit - len(rows)


def _drop_chunks(txn: Txn, rows: list[tuple[bytes, bytes]], goal: int) -> None:
    for key, handle in rows:
        txn.delete(key, txn.db.file_chunks)
        _release_chunk(txn, handle, goal)


def _release_chunk(txn: Txn, handle: bytes, goal: int) -> None:
    """A file of that goal does not have the chunk any more."""
    chunk = chunk_of(txn.get(handle, b"", txn.db.chunks))
    left = shared_chunks.released(chunk, goal)
    if left is None:
        txn.delete(handle, txn.db.chunks)
        txn.effects.freed.append(Freed(unpack_u64(handle), chunk.version, chunk.length))
        return
    txn.put(handle, left.pack(), txn.db.chunks)
    txn.state.shared_bytes -= left.length
    if left.replication != chunk.replication:
        txn.effects.goals.append(unpack_u64(handle))


def _replication_set(txn: Txn, op: ReplicationSet) -> None:
    db = txn.db
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", db.inodes))
    txn.put(key, row._replace(replication=op.replication).pack(), db.inodes)
    for handle in _handles_of(txn, op.inode):
        chunk = chunk_of(txn.get(handle, b"", db.chunks))
        changed = shared_chunks.regoaled(chunk, row.replication, op.replication)
        txn.put(handle, changed.pack(), db.chunks)
        txn.effects.goals.append(unpack_u64(handle))


def _handles_of(txn: Txn, inode: int) -> list[bytes]:
    """The chunks of a file."""
    handles = []
    for at, handle in txn.scan(pack_file_chunk_key(inode, 0), txn.db.file_chunks):
        if unpack_file_chunk_key(at)[0] != inode:
            break
        handles.append(handle)
    return handles


def _reclaim_directory(txn: Txn, due_ns: int, inode: int, limit: int) -> bool:
    """Remove up to ``limit`` rows from a deleted directory; True if it is gone.

    Directories in it become rows of the trash of their own, and so do files
    with more chunks than the limit has left: nothing here is recursive, and no
    piece is larger than the limit.
    """
    db = txn.db
    prefix = pack_u64(inode)
    left = limit
    children: list[tuple[bytes, bytes]] = []
    for key, entry in txn.scan(prefix, db.entries):
        if key[:8] != prefix:
            break
        if len(children) >= limit:
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
            trash = msgspec.msgpack.encode(Trash(inode, key[8:], ""))
            txn.put(pack_trash_key(due_ns, child), trash, db.trash)
    if len(children) >= limit:
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
    row = without_digest(row)._replace(chunks=op.index + 1, modified_ns=op.time_ns)
    txn.put(key, row.pack(), db.inodes)


def _version_attempted(txn: Txn, op: VersionAttempted) -> None:
    key = pack_u64(op.handle)
    chunk = chunk_of(txn.get(key, b"", txn.db.chunks))
    txn.put(key, chunk._replace(attempted=op.version).pack(), txn.db.chunks)
    if op.inode:
        _drop_digest(txn, op.inode)


def _drop_digest(txn: Txn, inode: int) -> None:
    key = pack_u64(inode)
    packed = txn.get(key, None, txn.db.inodes)
    if packed is None:
        return
    row = unpack_inode(packed)
    changed = without_digest(row)
    if changed is not row:
        txn.put(key, changed.pack(), txn.db.inodes)


def _version_confirmed(txn: Txn, op: VersionConfirmed) -> None:
    key = pack_u64(op.handle)
    chunk = chunk_of(txn.get(key, b"", txn.db.chunks))
    attempted = max(chunk.attempted, op.version)
    txn.put(key, chunk._replace(version=op.version, attempted=attempted).pack(), txn.db.chunks)


def _length_set(txn: Txn, op: LengthSet) -> None:
    """Raise the file's length, and with it the least length of its replicas."""
    db = txn.db
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", db.inodes))
    for index in range(row.length // CHUNK_BYTES, -(-op.length // CHUNK_BYTES)):
        handle = txn.get(pack_file_chunk_key(op.inode, index), b"", db.file_chunks)
        chunk = chunk_of(txn.get(handle, b"", db.chunks))
        # Another file may have the chunk, and more bytes of it.
        length = max(chunk.length, min(CHUNK_BYTES, op.length - index * CHUNK_BYTES))
        txn.state.shared_bytes += (chunk.references - 1) * (length - chunk.length)
        txn.put(handle, chunk._replace(length=length).pack(), db.chunks)
    txn.state.bytes += op.length - row.length
    if op.length > row.length:
        txn.effects.grown.append((op.inode, op.length))
    row = without_digest(row)._replace(length=op.length, modified_ns=op.time_ns)
    txn.put(key, row.pack(), db.inodes)


def _snapshot_begun(txn: Txn, op: SnapshotBegun) -> None:
    row = unpack_inode(txn.get(pack_u64(op.source), b"", txn.db.inodes))
    flags = row.flags | FLAG_TRASHED
    _new_inode(txn, op.copy, row._replace(flags=flags, created_ns=op.time_ns))
    state = txn.state
    state.snapshots = [*state.snapshots, UnderWay(op.source, op.copy, op.above)]


def _snapshot_copied(txn: Txn, op: SnapshotCopied) -> None:
    for piece in op.pieces:
        row = unpack_inode(txn.get(pack_u64(piece.source), b"", txn.db.inodes))
        if piece.parent:
            entry = pack_entry(piece.copy, row.kind)
            txn.put(entry_key(piece.parent, piece.name), entry, txn.db.entries)
            _new_inode(txn, piece.copy, row._replace(created_ns=op.time_ns))
            _count(txn, row, 1)
        elif not piece.first and row.kind == KIND_FILE:
            _renew_copy(txn, piece.copy, row)
        if piece.count:
            _share_chunks(txn, piece, row.replication)


def _renew_copy(txn: Txn, inode: int, source: Inode) -> None:
    """Copy the inode of a single file again, which was copied when the snapshot began.
    A grant that was under way then may have given the file a chunk since; from now on
    the file does not change."""
    key = pack_u64(inode)
    copy = unpack_inode(txn.get(key, b"", txn.db.inodes))
    row = source._replace(flags=source.flags | FLAG_TRASHED, created_ns=copy.created_ns)
    txn.put(key, row.pack(), txn.db.inodes)


def _share_chunks(txn: Txn, piece: Copied, goal: int) -> None:
    db = txn.db
    for index in range(piece.first, piece.first + piece.count):
        handle = txn.get(pack_file_chunk_key(piece.source, index), b"", db.file_chunks)
        txn.put(pack_file_chunk_key(piece.copy, index), handle, db.file_chunks)
        chunk = shared_chunks.shared(chunk_of(txn.get(handle, b"", db.chunks)), goal)
        txn.put(handle, chunk.pack(), db.chunks)
        txn.state.shared_bytes += chunk.length


def _end_snapshot(txn: Txn, copy: int) -> None:
    state = txn.state
    state.snapshots = [known for known in state.snapshots if known.copy != copy]


def _snapshot_finished(txn: Txn, op: SnapshotFinished) -> None:
    _make_directories(txn, op.directories, op.time_ns)
    key = pack_u64(op.copy)
    row = unpack_inode(txn.get(key, b"", txn.db.inodes))
    row = row._replace(flags=row.flags & ~FLAG_TRASHED)
    txn.put(key, row.pack(), txn.db.inodes)
    entry = pack_entry(op.copy, row.kind)
    txn.put(entry_key(op.parent, op.name), entry, txn.db.entries)
    _names_changed(txn, op.parent, op.time_ns)
    _count(txn, row, 1)
    _end_snapshot(txn, op.copy)


def _snapshot_abandoned(txn: Txn, op: SnapshotAbandoned) -> None:
    trash = msgspec.msgpack.encode(Trash(0, b"", ""))
    txn.put(pack_trash_key(_now_ns(txn, op), op.copy), trash, txn.db.trash)
    _end_snapshot(txn, op.copy)


def _chunk_replaced(txn: Txn, op: ChunkReplaced) -> None:
    db = txn.db
    row = unpack_inode(txn.get(pack_u64(op.inode), b"", db.inodes))
    key = pack_file_chunk_key(op.inode, op.index)
    before = txn.get(key, b"", db.file_chunks)
    handle = pack_u64(op.handle)
    held = max(0, min(row.length - op.index * CHUNK_BYTES, CHUNK_BYTES))
    txn.put(key, handle, db.file_chunks)
    txn.put(handle, pack_chunk(op.version, op.version, held, 1, row.replication), db.chunks)
    _release_chunk(txn, before, row.replication)
    _drop_digest(txn, op.inode)


def _append_begun(txn: Txn, op: AppendBegun) -> None:
    key = pack_u64(op.inode)
    row = without_digest(unpack_inode(txn.get(key, b"", txn.db.inodes)))
    txn.put(key, row._replace(flags=row.flags | FLAG_APPENDED).pack(), txn.db.inodes)


def _attributes_set(txn: Txn, op: AttributesSet) -> None:
    key = pack_u64(op.inode)
    row = unpack_inode(txn.get(key, b"", txn.db.inodes))
    digest = unpack_attributes(row.attributes).digest
    packed = pack_attributes(digest, op.attributes)
    txn.put(key, row._replace(modified_ns=op.modified_ns, attributes=packed).pack(), txn.db.inodes)


def _handles_reserved(txn: Txn, op: HandlesReserved) -> None:
    txn.state.handle_end = op.end


def _server_remembered(txn: Txn, op: ServerRemembered) -> None:
    known = _known_server(txn, op.server) or KnownServer("", "")
    row = msgspec.structs.replace(known, address=op.address, rack=op.rack, mounts=op.mounts)
    txn.put(op.server.encode(), msgspec.msgpack.encode(row), txn.db.servers)


def _known_server(txn: Txn, server: str) -> KnownServer | None:
    row = txn.get(server.encode(), None, txn.db.servers)
    return None if row is None else msgspec.msgpack.decode(row, type=KnownServer)


def _drain_set(txn: Txn, op: DrainSet) -> None:
    known = _known_server(txn, op.server)
    if known is not None:
        row = msgspec.structs.replace(known, draining=op.draining)
        txn.put(op.server.encode(), msgspec.msgpack.encode(row), txn.db.servers)
        txn.effects.drains.append((op.server, op.draining))


def _maintenance_set(txn: Txn, op: MaintenanceSet) -> None:
    known = _known_server(txn, op.server)
    if known is not None:
        row = msgspec.structs.replace(known, maintenance_until_ns=op.until_ns)
        txn.put(op.server.encode(), msgspec.msgpack.encode(row), txn.db.servers)
        txn.effects.maintenance.append((op.server, op.until_ns))


def _repair_set(txn: Txn, op: RepairSet) -> None:
    txn.state.repair = op.settings


def _server_forgotten(txn: Txn, op: ServerForgotten) -> None:
    txn.delete(op.server.encode(), txn.db.servers)


def _corruption_found(txn: Txn, op: CorruptionFound) -> None:
    txn.state.corruptions += 1


def _term_begun(txn: Txn, op: TermBegun) -> None:
    state = txn.state
    state.term = op.term
    state.next_inode = max(state.next_inode, terms.first_number(op.term))
    state.handle_end = max(state.handle_end, terms.first_number(op.term))
    state.version_floor = max(state.version_floor, terms.first_version(op.term))
    if op.keeps_unknown:
        state.kept_below = terms.first_number(op.term)
        # Nobody has acknowledged anything of it yet. If those that counted did, an elected master
        # would wait for their word to begin, and they, which are empty, for its metadata.
        state.counted, state.counted_next = Counted(), None
    _count_instead(state, op.address, op.before)


def _restore_accepted(txn: Txn, op: RestoreAccepted) -> None:
    txn.state.kept_below = 0


def _count_instead(state: State, address: str, other: str) -> None:
    """Let ``other`` count in place of ``address``; if it is empty, no other does."""
    change = state.counted_next
    state.counted = state.counted.replaced(address, other)
    if change is not None:
        to = change.to.replaced(address, other)
        state.counted_next = msgspec.structs.replace(change, to=to)


def _shadows_changing(txn: Txn, op: ShadowsChanging) -> None:
    to = Counted(op.addresses, op.wanted)
    txn.state.counted_next = Change(to, txn.state.sequence)


def _shadows_changed(txn: Txn, op: ShadowsChanged) -> None:
    state = txn.state
    if state.counted_next is not None:
        state.counted, state.counted_next = state.counted_next.to, None


def _shadow_forgotten(txn: Txn, op: ShadowForgotten) -> None:
    _count_instead(txn.state, op.address, "")


def _time_passed(txn: Txn, op: TimePassed) -> None:
    """Nothing but the log row is written."""


_APPLY: dict[type[Operation], Callable[[Txn, Any], None]] = {
    DirectoriesMade: _directories_made,
    FilePublished: _file_published,
    FilesJoined: _files_joined,
    Renamed: _renamed,
    Deleted: _deleted,
    Reclaimed: _reclaimed,
    ChunkAdded: _chunk_added,
    VersionAttempted: _version_attempted,
    VersionConfirmed: _version_confirmed,
    LengthSet: _length_set,
    HandlesReserved: _handles_reserved,
    ServerRemembered: _server_remembered,
    ServerForgotten: _server_forgotten,
    CorruptionFound: _corruption_found,
    TermBegun: _term_begun,
    DrainSet: _drain_set,
    MaintenanceSet: _maintenance_set,
    RepairSet: _repair_set,
    RestoreAccepted: _restore_accepted,
    ShadowsChanging: _shadows_changing,
    ShadowsChanged: _shadows_changed,
    ShadowForgotten: _shadow_forgotten,
    Undeleted: _undeleted,
    TrashEmptied: _trash_emptied,
    ReplicationSet: _replication_set,
    SnapshotBegun: _snapshot_begun,
    SnapshotCopied: _snapshot_copied,
    SnapshotFinished: _snapshot_finished,
    SnapshotAbandoned: _snapshot_abandoned,
    ChunkReplaced: _chunk_replaced,
    TimePassed: _time_passed,
    AppendBegun: _append_begun,
    AttributesSet: _attributes_set,
}
invariant(set(_APPLY) == set(get_args(AnyOperation)), "every operation can be applied")
