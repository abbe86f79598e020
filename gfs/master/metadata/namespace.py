"""The file tree: from a request to the operation that carries it out.

A directory is a range of ``entries`` rows under its inode, so a listing is one
range scan, and renaming even the largest directory moves one row. A path is resolved
from the root, one look-up per segment.

``plan_*`` run inside the committer's write transaction, so they see everything
that was applied before them, and only read: they resolve names, check all that
can be refused, fix ids, and return the operation together with the reply. A GfsError
raised here changes nothing. There is one writer, so nothing can change between the plan
and its :func:`~gfs.master.metadata.operations.apply`; the paper's locks on path
prefixes (section 4.1) are not needed for operations of one step.

Deleting is one row as well: the inode moves to the ``trash``, and everything below it
is unreachable at once. For a while it can be undeleted
(:mod:`gfs.master.metadata.trash`); then its rows are reclaimed, in pieces.

Limits: a directory's modification time does not follow its entries (otherwise every
create in a directory would write the same row), and there are no permissions or links.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from gfs.blocks import CHUNK_BYTES
from gfs.errors import (
    AlreadyExists,
    Busy,
    DirectoryNotEmpty,
    FileChanged,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.failures import plural
from gfs.master.metadata import shared_chunks
from gfs.master.metadata.operations import (
    AppendBegun,
    AttributesSet,
    ChunkAdded,
    ChunkReplaced,
    Deleted,
    DirectoriesMade,
    FilePublished,
    FilesJoined,
    LengthSet,
    NewChunk,
    NewDirectory,
    Operation,
    Renamed,
    ReplicationSet,
    VersionAttempted,
    VersionConfirmed,
    directory_row,
    nothing_changed,
)
from gfs.master.metadata.paths import in_folder, join, parse
from gfs.master.metadata.rows import (
    FLAG_APPENDED,
    FLAG_TRASHED,
    KIND_DIRECTORY,
    KIND_FILE,
    KIND_NAMES,
    ROOT_INODE,
    Chunk,
    Inode,
    chunk_of,
    entry_key,
    pack_attributes,
    pack_file_chunk_key,
    pack_u64,
    unpack_attributes,
    unpack_entry,
    unpack_inode,
    unpack_u64,
)
from gfs.master.metadata.store import Txn
from gfs.protocol.attributes import check_attributes
from gfs.protocol.messages import (
    JOINED_CHUNKS_MAX,
    AppendedChunk,
    Delete,
    Done,
    Entry,
    Join,
    MakeDirectory,
    Message,
    Prune,
    Publish,
    PublishReply,
    Rename,
    SetAttributes,
    SetLength,
    SetReplication,
    StatReply,
    readers_seconds,
)

Planned = tuple[Operation | None, Message]

SECOND_NS = 1_000_000_000


# --- walking -------------------------------------------------------------------


def find(txn: Txn, segments: Sequence[bytes]) -> tuple[int, int] | None:
    """(inode, kind) of a path, or None. NotADirectory if a file is in the way."""
    inode, kind = ROOT_INODE, KIND_DIRECTORY
    get, entries = txn.get, txn.db.entries
    for at, segment in enumerate(segments):
        row = get(pack_u64(inode) + segment, None, entries)
        if row is None:
            if kind == KIND_FILE:
                raise NotADirectory(f"{join(list(segments[:at]))} is a file")
            return None
        inode, kind = unpack_entry(row)
    return inode, kind


def lookup(txn: Txn, path: str) -> tuple[int, int]:
    """(inode, kind) of a path. Raises InvalidName, NotFound or NotADirectory. In a snapshot the
    directory of a path is remembered: that of the next one is the same nearly always."""
    known, split = txn.directories, in_folder(path)
    parent = None if known is None or split is None else known.get(split[0])
    if parent is not None and split is not None:
        row = txn.get(parent + split[1], None, txn.db.entries)
        found = None if row is None else unpack_entry(row)
    else:
        segments = parse(path)
        found = find(txn, segments)
        if known is not None and split is not None and (above := find(txn, segments[:-1])):
            known[split[0]] = pack_u64(above[0])
    if found is None:
        raise NotFound(f"{path}: no such file or directory")
    return found


def inode_row(txn: Txn, inode: int) -> Inode | None:
    row = txn.get(pack_u64(inode), None, txn.db.inodes)
    return None if row is None else unpack_inode(row)


def chunk_row(txn: Txn, handle: int) -> Chunk | None:
    row = txn.get(pack_u64(handle), None, txn.db.chunks)
    return None if row is None else chunk_of(row)


def chunk_handle(txn: Txn, inode: int, index: int) -> int | None:
    row = txn.get(pack_file_chunk_key(inode, index), None, txn.db.file_chunks)
    return None if row is None else unpack_u64(row)


def entry_of(path: str, inode: int, row: Inode) -> Entry:
    entry = Entry(
        path,
        inode,
        KIND_NAMES[row.kind],
        row.length,
        row.replication,
        row.created_ns,
        row.modified_ns,
        row.chunks,
    )
    if row.attributes:
        kept = unpack_attributes(row.attributes)
        entry.digest = kept.digest
        entry.attributes = kept.attributes
    entry.appended = bool(row.flags & FLAG_APPENDED)
    return entry


def live_file(txn: Txn, inode: int, name: str) -> Inode:
    """The row of a file that is in the namespace. NotFound or IsADirectory."""
    row = inode_row(txn, inode)
    if row is None or row.flags & FLAG_TRASHED:
        raise NotFound(f"{name}: the file was deleted")
    if row.kind != KIND_FILE:
        raise IsADirectory(f"{name} is a directory")
    return row


class Place:
    """The place of a new name: its directory, and the directories to be made first."""

    def __init__(
        self, parent: int, name: bytes, made: list[NewDirectory], passed: list[int]
    ) -> None:
        self.parent = parent
        self.name = name
        self.made = made
        #: The existing directories on the way, the root first.
        self.passed = passed

    def existing(self, txn: Txn) -> tuple[int, int] | None:
        """(inode, kind) of the present entry of that name, or None."""
        if self.made:
            return None
        row = txn.get(entry_key(self.parent, self.name), None, txn.db.entries)
        return None if row is None else unpack_entry(row)


def place_for(txn: Txn, segments: list[bytes], parents: bool, kept: int = 0) -> Place:
    """Resolve the directory of ``segments``; missing ones get new inodes if
    ``parents``; otherwise, and always for the first ``kept``, NotFound is raised."""
    inode = ROOT_INODE
    made: list[NewDirectory] = []
    passed = [inode]
    next_inode = txn.state.next_inode
    for at, segment in enumerate(segments[:-1]):
        row = None if made else txn.get(entry_key(inode, segment), None, txn.db.entries)
        if row is not None:
            inode, kind = unpack_entry(row)
            if kind == KIND_FILE:
                raise NotADirectory(f"{join(segments[: at + 1])} is a file")
            passed.append(inode)
        elif at < kept:
            raise NotFound(f"{join(segments[:kept])}: no such directory")
        elif parents:
            made.append(NewDirectory(inode, segment, next_inode))
            inode, next_inode = next_inode, next_inode + 1
        else:
            raise NotFound(f"{join(segments[: at + 1])}: no such directory")
    if txn.state.snapshots:
        check_thawed(txn, passed)
    return Place(inode, segments[-1], made, passed)


def check_thawed(txn: Txn, passed: Sequence[int]) -> None:
    """Busy if one of these directories is being copied by a snapshot."""
    for snapshot in txn.state.snapshots:
        if snapshot.source in passed:
            raise _frozen()


def _check_movable(txn: Txn, inode: int) -> None:
    """Busy if this, or something below it, is being copied by a snapshot."""
    for snapshot in txn.state.snapshots:
        if inode == snapshot.source or inode in snapshot.above:
            raise _frozen()


def _frozen() -> Busy:
    return Busy(
        "a snapshot of it is being made, and it cannot change until that is done: try again"
    )


# --- plans -----------------------------------------------------------------------


def plan_publish(
    txn: Txn, request: Publish, chunks: list[NewChunk], replication: int, time_ns: int
) -> Planned:
    """Make a written file visible. The chunks' lengths were checked before."""
    planned = _publication(txn, request, chunks, replication, time_ns)
    for new in chunks:
        if txn.get(pack_u64(new.handle), None, txn.db.chunks) is not None:
            raise InvalidArgument(f"chunk {new.handle:x} belongs to a file already")
    return planned


def plan_join(
    txn: Txn, request: Join, sources: list[int], replication: int, time_ns: int
) -> Planned:
    """Make a file of the chunks of others visible."""
    chunks = _check_joined(txn, request, sources)
    published, reply = _publication(txn, request, [], replication, time_ns)
    reply.entry.chunks = chunks
    return FilesJoined(**msgspec.structs.asdict(published), sources=sources), reply


def _check_joined(txn: Txn, request: Join, sources: list[int]) -> int:
    """How many chunks these files have. A file with a digest was never written in place, and
    has no lease: who is about to get one finds that the chunk is shared by then
    (:func:`plan_attempt_version`)."""
    chunks = length = 0
    for inode in sources:
        row = inode_row(txn, inode)
        is_whole = (
            row is not None
            and row.kind == KIND_FILE
            and not row.flags & FLAG_TRASHED
            and unpack_attributes(row.attributes).digest
        )
        if row is None or not is_whole:
            raise FileChanged(f"inode {inode} was deleted or written in place, and is not joined")
        if length % CHUNK_BYTES:
            raise InvalidArgument(f"{request.path}: only the last of its files ends in a chunk")
        chunks += row.chunks
        length += row.length
    if chunks > JOINED_CHUNKS_MAX:
        raise InvalidArgument(
            f"{request.path}: {chunks} chunks are too many: {JOINED_CHUNKS_MAX} can be joined"
        )
    if length != request.length:
        raise InvalidArgument(f"{request.path}: files of {length} bytes, not {request.length}")
    return chunks


def _publication(
    txn: Txn, request: Publish, chunks: list[NewChunk], replication: int, time_ns: int
) -> tuple[FilePublished, PublishReply]:
    segments = parse(request.path)
    if not segments:
        raise IsADirectory("/ is a directory")
    expect = request.expect
    kept = _kept(request.below, segments)
    # If a file is expected there, missing directories mean that it is gone.
    place = place_for(txn, segments, request.parents or expect > 0, kept)
    existing = place.existing(txn)
    _check_expected(request.path, expect, existing)
    if existing is not None:
        if existing[1] == KIND_DIRECTORY:
            raise IsADirectory(f"{request.path} is a directory")
        if expect == 0 or (expect < 0 and not request.replace):
            raise AlreadyExists(f"{request.path} exists already")
        _check_movable(txn, existing[0])
    path = join(segments)
    inode = txn.state.next_inode + len(place.made)
    replaced = existing[0] if existing else 0
    operation = FilePublished(
        time_ns=time_ns,
        directories=place.made,
        parent=place.parent,
        name=place.name,
        inode=inode,
        replaced=replaced,
        replication=replication,
        length=request.length,
        path=path,
        chunks=chunks,
        digest=request.digest,
        attributes=request.attributes,
        kept_ns=_kept_ns(txn, existing) if request.keeps in (-1, replaced) else 0,
        modified_ns=request.modified_ns,
    )
    entry = Entry(
        path,
        inode,
        "file",
        request.length,
        replication,
        time_ns,
        request.modified_ns or time_ns,
        len(chunks),
        request.digest,
        request.attributes,
    )
    return operation, PublishReply(0, entry, _replaced(txn, path, existing))


def _replaced(txn: Txn, path: str, existing: tuple[int, int] | None) -> list[Entry]:
    row = inode_row(txn, existing[0]) if existing is not None else None
    return [entry_of(path, existing[0], row)] if existing is not None and row is not None else []


def _kept_ns(txn: Txn, replaced: tuple[int, int] | None) -> int:
    """Until when the replaced file is kept for its readers."""
    if replaced is None:
        return 0
    row = unpack_inode(txn.get(pack_u64(replaced[0]), b"", txn.db.inodes))
    return txn.lived_ns + readers_seconds(row.chunks) * SECOND_NS


def _kept(below: str, segments: list[bytes]) -> int:
    """How many of ``segments`` are those of the directory ``below``."""
    if not below:
        return 0
    kept = parse(below)
    if len(kept) >= len(segments) or segments[: len(kept)] != kept:
        raise InvalidArgument(f"{below} is not a directory above {join(segments)}")
    return len(kept)


def _check_expected(path: str, expect: int, existing: tuple[int, int] | None) -> None:
    """Check the condition on the path; ``expect`` is an inode if it is positive."""
    if expect < -1:
        raise InvalidArgument(f"{path}: inode {expect} cannot be expected")
    if expect > 0 and (existing is None or existing[0] != expect):
        raise FileChanged(f"{path} was replaced or deleted meanwhile")


def check_chunk_lengths(path: str, lengths: Sequence[int], total: int) -> None:
    """Check that all but the last chunk are full, none is empty, and the sum is the length."""
    for index, length in enumerate(lengths[:-1]):
        if length != CHUNK_BYTES:
            raise InvalidArgument(
                f"{path}: chunk {index} has {length} bytes, but is not the last one"
            )
    if lengths and not 0 < lengths[-1] <= CHUNK_BYTES:
        raise InvalidArgument(f"{path}: a last chunk of {lengths[-1]} bytes")
    if sum(lengths) != total:
        raise InvalidArgument(f"{path}: chunks of {sum(lengths)} bytes for a length of {total}")


def plan_make_directory(txn: Txn, request: MakeDirectory, time_ns: int) -> Planned:
    segments = parse(request.path)
    path = join(segments)
    made: list[NewDirectory] = []
    existing: tuple[int, int] | None = (ROOT_INODE, KIND_DIRECTORY)
    if segments:
        place = place_for(txn, segments, request.parents)
        existing = place.existing(txn)
        if existing is None:
            inode = txn.state.next_inode + len(place.made)
            new = NewDirectory(place.parent, place.name, inode, request.attributes)
            made = [*place.made, new]
    if existing is None:
        check_attributes(request.attributes)
        row = directory_row(time_ns, request.attributes)
        return DirectoriesMade(time_ns, made), StatReply(0, entry_of(path, made[-1].inode, row))
    if existing[1] != KIND_DIRECTORY or not request.exist_ok:
        raise AlreadyExists(f"{request.path} exists already")
    row = unpack_inode(txn.get(pack_u64(existing[0]), b"", txn.db.inodes))
    return nothing_changed(time_ns), StatReply(0, entry_of(path, existing[0], row))


def plan_rename(txn: Txn, request: Rename, time_ns: int) -> Planned:
    source = parse(request.source)
    target = parse(request.target)
    if not source:
        raise InvalidArgument("/ cannot be renamed")
    if not target:
        raise AlreadyExists("/ exists already")
    origin = place_for(txn, source, parents=False)
    moved = origin.existing(txn)
    if moved is None:
        raise NotFound(f"{request.source}: no such file or directory")
    inode, kind = moved
    place = place_for(txn, target, request.parents)
    if inode in place.passed:
        raise InvalidArgument(f"{request.source} cannot be moved into itself")
    existing = place.existing(txn)
    if existing == moved:
        return nothing_changed(time_ns), Done(id=0)
    if existing is not None:
        _check_replaceable(request, kind, existing[1])
        _check_movable(txn, existing[0])
    _check_movable(txn, inode)
    operation = Renamed(
        time_ns=time_ns,
        directories=place.made,
        source_parent=origin.parent,
        source_name=origin.name,
        target_parent=place.parent,
        target_name=place.name,
        inode=inode,
        kind=kind,
        replaced=existing[0] if existing else 0,
        path=join(target),
        kept_ns=_kept_ns(txn, existing),
    )
    return operation, Done(id=0)


def _check_replaceable(request: Rename, kind: int, target_kind: int) -> None:
    """Only a file may replace a file, and only if ``replace`` is set."""
    if not request.replace:
        raise AlreadyExists(f"{request.target} exists already")
    if target_kind == KIND_DIRECTORY:
        raise IsADirectory(f"{request.target} is a directory and cannot be replaced")
    if kind == KIND_DIRECTORY:
        raise NotADirectory(f"{request.target} is a file, {request.source} a directory")


def plan_delete(txn: Txn, request: Delete, time_ns: int, trash_ns: int = 0) -> Planned:
    """``trash_ns``: how long it can be undeleted."""
    segments = parse(request.path)
    if not segments:
        raise InvalidArgument("/ cannot be deleted")
    place = place_for(txn, segments, parents=False)
    existing = place.existing(txn)
    if existing is None:
        raise NotFound(f"{request.path}: no such file or directory")
    if request.expect == 0:
        raise InvalidArgument(f"{request.path}: the request must name the inode to delete")
    _check_expected(request.path, request.expect, existing)
    inode, kind = existing
    if kind == KIND_DIRECTORY and not request.recursive and has_entries(txn, inode):
        raise DirectoryNotEmpty(f"{request.path} is not empty: delete it recursively")
    _check_movable(txn, inode)
    kept_ns = 0 if request.now else txn.lived_ns + trash_ns
    operation = Deleted(time_ns, place.parent, place.name, inode, join(segments), kept_ns)
    return operation, Done(id=0)


def plan_prune(txn: Txn, request: Prune, time_ns: int) -> Planned:
    """A directory that has nothing but a chain of directories is deleted with them, by one row."""
    segments = parse(request.path)
    kept = _kept(request.below or "/", segments)
    place = place_for(txn, segments, parents=False)
    existing = place.existing(txn)
    if existing is None:
        raise NotFound(f"{request.path}: no such directory")
    inode, kind = existing
    if kind != KIND_DIRECTORY:
        raise NotADirectory(f"{request.path} is a file")
    if has_entries(txn, inode):
        raise DirectoryNotEmpty(f"{request.path} is not empty")
    last = len(segments) - 1
    while last > kept and not has_entries(txn, place.passed[last], 1):
        inode = place.passed[last]
        last -= 1
    _check_movable(txn, inode)
    path = join(segments[: last + 1])
    return Deleted(time_ns, place.passed[last], segments[last], inode, path), Done(id=0)


def has_entries(txn: Txn, directory: int, besides: int = 0) -> bool:
    """Whether a directory has more entries than that."""
    prefix = pack_u64(directory)
    rows = islice(txn.scan(prefix, txn.db.entries), besides, None)
    return any(key[:8] == prefix for key, _ in islice(rows, 1))


def plan_set_length(txn: Txn, request: SetLength, time_ns: int) -> Planned:
    row = live_file(txn, request.inode, f"inode {request.inode}")
    if not 0 <= request.length <= row.chunks * CHUNK_BYTES:
        raise InvalidArgument(
            f"a length of {request.length} bytes for a file of {plural(row.chunks, 'chunk')}"
        )
    length = max(row.length, request.length)
    return LengthSet(time_ns, request.inode, length), Done(id=0)


def plan_begin_append(txn: Txn, inode: int) -> Planned:
    row = live_file(txn, inode, f"inode {inode}")
    return (None if row.flags & FLAG_APPENDED else AppendBegun(inode)), Done(id=0)


def plan_note_append(txn: Txn, appended: AppendedChunk, time_ns: int) -> Planned:
    """Record the length that all replicas of a chunk have. Outdated reports, and those
    of a chunk that the file does not have there any more, change nothing."""
    row = inode_row(txn, appended.inode)
    if row is None or row.kind != KIND_FILE or row.flags & FLAG_TRASHED:
        return None, Done(id=0)
    index = row.length // CHUNK_BYTES
    length = index * CHUNK_BYTES + appended.length
    if chunk_handle(txn, appended.inode, index) != appended.handle or length <= row.length:
        return None, Done(id=0)
    return LengthSet(time_ns, appended.inode, length), Done(id=0)


def plan_set_replication(txn: Txn, request: SetReplication, goal: int) -> Planned:
    segments = parse(request.path)
    inode, kind = lookup(txn, request.path)
    if kind != KIND_FILE:
        raise IsADirectory(f"{request.path} is a directory: only files have a goal")
    place_for(txn, segments, parents=False)
    _check_movable(txn, inode)
    row = live_file(txn, inode, request.path)
    reply = StatReply(0, entry_of(join(segments), inode, row._replace(replication=goal)))
    return (ReplicationSet(inode, goal) if goal != row.replication else None), reply


def plan_set_attributes(txn: Txn, request: SetAttributes) -> Planned:
    segments = parse(request.path)
    inode, _ = found = lookup(txn, request.path)
    if request.expect == 0:
        raise InvalidArgument(f"{request.path}: the request must name the inode to change")
    _check_expected(request.path, request.expect, found)
    if segments:
        place_for(txn, segments, parents=False)
    _check_movable(txn, inode)
    row = unpack_inode(txn.get(pack_u64(inode), b"", txn.db.inodes))
    kept = unpack_attributes(row.attributes)
    stay = {k: v for k, v in kept.attributes.items() if k not in request.removed}
    attributes = stay | request.attributes
    check_attributes(attributes)
    modified_ns = request.modified_ns or row.modified_ns
    packed = pack_attributes(kept.digest, attributes)
    changed = row._replace(modified_ns=modified_ns, attributes=packed)
    reply = StatReply(0, entry_of(join(segments), inode, changed))
    return AttributesSet(inode, attributes, modified_ns), reply


def plan_add_chunk(
    txn: Txn, inode: int, index: int, handle: int, version: int, time_ns: int
) -> Planned:
    row = live_file(txn, inode, f"inode {inode}")
    if row.chunks != index:
        # Another client has added the chunk since: the caller tries again.
        raise Busy(f"chunk {index} of inode {inode} was added by another client")
    return ChunkAdded(time_ns, inode, index, handle, version), Done(id=0)


def plan_replace_chunk(
    txn: Txn, inode: int, index: int, shared: int, handle: int, version: int
) -> Planned:
    """Give the file ``handle``, a copy of the chunk ``shared``, in place of that."""
    live_file(txn, inode, f"inode {inode}")
    if chunk_handle(txn, inode, index) != shared:
        raise Busy(f"chunk {index} of inode {inode} was replaced by another client")
    return ChunkReplaced(inode, index, handle, version), Done(id=0)


def plan_attempt_version(txn: Txn, handle: int, inode: int) -> Planned:
    """The next version, never sent to any replica before, of a chunk of ``inode``.

    The caller reads it from the operation. Busy if the chunk is to be written, and other files
    have it since it was looked at.
    """
    chunk = chunk_row(txn, handle)
    if chunk is None:
        raise NotFound(f"chunk {handle:x} was deleted")
    if inode and shared_chunks.is_frozen(chunk):
        raise Busy(f"chunk {handle:x} was given to another file just now: try again")
    version = max(chunk.attempted + 1, txn.state.version_floor)
    return VersionAttempted(handle, version, inode), Done(id=0)


def plan_confirm_version(txn: Txn, handle: int, version: int) -> Planned:
    """At least one replica holds ``version``. Never lowers it."""
    chunk = chunk_row(txn, handle)
    if chunk is None:
        raise NotFound(f"chunk {handle:x} was deleted")
    if chunk.version >= version:
        return None, Done(id=0)
    return VersionConfirmed(handle, version), Done(id=0)
