"""The master's rows, looked at from outside, and what must be true of them.

A snapshot is taken by copying LMDB's data file: everything in a simulation runs
in one thread, so nobody commits meanwhile, and what is in the file is the last
commit. The running master does not notice.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import lmdb
import msgspec

from gfs.blocks import CHUNK_BYTES
from gfs.master.metadata import operation_log
from gfs.master.metadata.operations import (
    ChunkAdded,
    ChunkReplaced,
    FilePublished,
    LogRecord,
    NewChunk,
    Operation,
    VersionConfirmed,
)
from gfs.master.metadata.rows import (
    FLAG_TRASHED,
    KIND_DIRECTORY,
    KIND_FILE,
    ROOT_INODE,
    Chunk,
    Inode,
    KnownServer,
    Trash,
    chunk_of,
    unpack_entry,
    unpack_file_chunk_key,
    unpack_inode,
    unpack_u64,
)
from gfs.master.metadata.shared_chunks import is_frozen
from gfs.master.metadata.store import Databases, State, Txn
from gfs.testing import SimCluster
from gfs.testing.scratch import make_scratch

#: What applying the operation log again must give as it is.
FROM_THE_LOG = ("entries", "inodes", "file_chunks", "chunks", "trash", "servers")
COPY_MAP_BYTES = 64 << 20

Rows = dict[bytes, bytes]

_trash = msgspec.msgpack.Decoder(Trash)


@dataclass
class Metadata:
    rows: dict[str, Rows]
    state: State
    inodes: dict[int, Inode]
    #: (parent, name) -> (inode, kind)
    entries: dict[tuple[int, bytes], tuple[int, int]]
    #: (inode, index) -> handle
    file_chunks: dict[tuple[int, int], int]
    chunks: dict[int, Chunk]
    trash: set[int]
    servers: list[KnownServer]

    def live(self) -> set[int]:
        """The inodes that have a path."""
        return self.below({ROOT_INODE})

    def kept(self) -> set[int]:
        """Those, and what is in the trash."""
        return self.below({ROOT_INODE} | self.trash)

    def replaced(self) -> set[int]:
        """The files that cannot be undeleted, and are kept for their readers."""
        rows = self.rows["trash"].items()
        kept = {unpack_u64(key[8:]) for key, row in rows if not _trash.decode(row).deleted_ns}
        return {inode for inode in kept if self.inodes[inode].kind == KIND_FILE}

    def below(self, roots: set[int]) -> set[int]:
        children: dict[int, list[int]] = {}
        for (parent, _), (inode, _) in self.entries.items():
            children.setdefault(parent, []).append(inode)
        found: set[int] = set()
        pending = list(roots)
        while pending:
            inode = pending.pop()
            found.add(inode)
            pending += children.get(inode, [])
        return found

    def owners(self, handle: int) -> list[int]:
        """The inodes of the files that have a chunk."""
        return [inode for (inode, _), found in self.file_chunks.items() if found == handle]

    def operations(self, after: int) -> list[Operation]:
        """Those of the log that came after the one of this number."""
        log = self.rows["operation_log"]
        numbers = range(after + 1, self.state.sequence + 1)
        rows = [log[number.to_bytes(8, "big")] for number in numbers]
        return [msgspec.msgpack.decode(row, type=LogRecord).operation for row in rows]

    def version_before(self, handle: int) -> int:
        """The version that a chunk had before its present one; 0: it had none."""
        versions = {0}
        for operation in self.operations(self.state.sequence - len(self.rows["operation_log"])):
            named = operation.chunks if isinstance(operation, FilePublished) else [operation]
            versions.update(
                each.version
                for each in named
                if isinstance(each, NewChunk | ChunkAdded | ChunkReplaced | VersionConfirmed)
                and each.handle == handle
            )
        return sorted(versions)[-2]

    def handles(self, inode: int) -> list[int]:
        return [handle for (owner, _), handle in sorted(self.file_chunks.items()) if owner == inode]


def position_of(directory: str) -> tuple[int, int]:
    """The term of the store in ``directory``, and how far its log goes."""
    if not os.path.exists(os.path.join(directory, "data.mdb")):
        return -1, 0
    row = _copied(directory, ["meta"]).get("meta", {}).get(b"state")
    state = State() if row is None else msgspec.msgpack.decode(row, type=State)
    return state.term, state.sequence


def _copied(directory: str, names: Sequence[str] = Databases._fields) -> dict[str, Rows]:
    copy = make_scratch()
    try:
        shutil.copyfile(os.path.join(directory, "data.mdb"), os.path.join(copy, "data.mdb"))
        return _read_all(copy, names)
    finally:
        shutil.rmtree(copy)


def read_metadata(directory: str) -> Metadata:
    """All rows of the store in ``directory``, as of the last commit."""
    rows = _copied(directory)
    return Metadata(
        rows=rows,
        state=msgspec.msgpack.decode(rows["meta"][b"state"], type=State),
        inodes={unpack_u64(key): unpack_inode(row) for key, row in rows["inodes"].items()},
        entries={
            (unpack_u64(key[:8]), key[8:]): unpack_entry(row)
            for key, row in rows["entries"].items()
        },
        file_chunks={
            unpack_file_chunk_key(key): unpack_u64(row) for key, row in rows["file_chunks"].items()
        },
        chunks={unpack_u64(key): chunk_of(row) for key, row in rows["chunks"].items()},
        trash={unpack_u64(key[8:]) for key in rows["trash"]},
        servers=[msgspec.msgpack.decode(row, type=KnownServer) for row in rows["servers"].values()],
    )


def _read_all(directory: str, names: Sequence[str]) -> dict[str, Rows]:
    environment = lmdb.open(
        directory, readonly=True, lock=False, max_dbs=len(Databases._fields), create=False
    )
    try:
        databases = {name: environment.open_db(name.encode()) for name in names}
        with environment.begin() as txn:
            return {name: dict(txn.cursor(db)) for name, db in databases.items()}
    finally:
        environment.close()


def problems(metadata: Metadata) -> list[str]:
    """Everything about these rows that cannot be right."""
    return [
        *_tree_problems(metadata),
        *_chunk_problems(metadata),
        *_goal_problems(metadata),
        *_count_problems(metadata),
        *_log_problems(metadata),
    ]


def _tree_problems(metadata: Metadata) -> list[str]:
    found = []
    inodes = metadata.inodes
    names = Counter(inode for inode, _ in metadata.entries.values())
    for (parent, name), (inode, kind) in metadata.entries.items():
        row, above = inodes.get(inode), inodes.get(parent)
        if row is None:
            found.append(f"name {name!r} in {parent} is of inode {inode}, which is not there")
        elif row.kind != kind:
            found.append(f"name {name!r} is of kind {kind}, inode {inode} of kind {row.kind}")
        elif row.flags & FLAG_TRASHED:
            found.append(f"name {name!r} is of inode {inode}, which is deleted")
        if above is None or above.kind != KIND_DIRECTORY:
            found.append(f"name {name!r} is in {parent}, which is no directory")
    for inode, row in inodes.items():
        trashed = bool(row.flags & FLAG_TRASHED)
        copies = {snapshot.copy for snapshot in metadata.state.snapshots}
        if trashed != (inode in metadata.trash or inode in copies):
            found.append(f"inode {inode}: flags {row.flags}, in the trash: {not trashed}")
        wanted = 0 if trashed or inode == ROOT_INODE else 1
        if names[inode] != wanted:
            found.append(f"inode {inode} has {names[inode]} names, not {wanted}")
        if inode >= metadata.state.next_inode:
            found.append(f"inode {inode} was never given out")
    return found


def _chunk_problems(metadata: Metadata) -> list[str]:
    found = []
    references = Counter(metadata.file_chunks.values())
    indexes: dict[int, list[int]] = {}
    for inode, index in sorted(metadata.file_chunks):
        indexes.setdefault(inode, []).append(index)
    for inode in indexes:
        row = metadata.inodes.get(inode)
        if row is None or row.kind != KIND_FILE:
            found.append(f"chunks of inode {inode}, which is no file")
    for inode, row in metadata.inodes.items():
        if row.kind != KIND_FILE:
            continue
        of_file = indexes.get(inode, [])
        if of_file and of_file != list(range(of_file[0], row.chunks)):
            found.append(f"inode {inode} has the chunks {of_file} of {row.chunks}")
        if not row.flags & FLAG_TRASHED and len(of_file) != row.chunks:
            found.append(f"inode {inode} has {len(of_file)} of {row.chunks} chunks")
        if row.length > row.chunks * CHUNK_BYTES:
            found.append(f"inode {inode}: {row.length} bytes in {row.chunks} chunks")
        for index in of_file:
            chunk = metadata.chunks.get(metadata.file_chunks[inode, index])
            held = min(CHUNK_BYTES, max(0, row.length - index * CHUNK_BYTES))
            if chunk is not None and (
                chunk.length < held or (chunk.length > held and not is_frozen(chunk))
            ):
                found.append(f"chunk {index} of inode {inode}: length {chunk.length}, not {held}")
    for handle, chunk in metadata.chunks.items():
        if chunk.references != references[handle]:
            found.append(
                f"chunk {handle:x}: {chunk.references} references, has {references[handle]}"
            )
        if not 0 < chunk.version <= chunk.attempted:
            found.append(f"chunk {handle:x}: version {chunk.version} of {chunk.attempted}")
        if handle >= metadata.state.handle_end:
            found.append(f"chunk {handle:x} was never given out")
    for handle in references:
        if handle not in metadata.chunks:
            found.append(f"chunk {handle:x} of a file has no row")
    return found


def _goal_problems(metadata: Metadata) -> list[str]:
    """A chunk's goal is the highest of the files that it belongs to."""
    goals: dict[int, int] = {}
    for (inode, _), handle in metadata.file_chunks.items():
        row = metadata.inodes.get(inode)
        if row is not None:
            goals[handle] = max(goals.get(handle, 0), row.replication)
    return [
        f"chunk {handle:x}: goal {metadata.chunks[handle].replication}, its files' is {goal}"
        for handle, goal in goals.items()
        if handle in metadata.chunks and metadata.chunks[handle].replication != goal
    ]


def _count_problems(metadata: Metadata) -> list[str]:
    shared = sum((c.references - 1) * c.length for c in metadata.chunks.values())
    if metadata.state.shared_bytes != shared:
        return [f"{metadata.state.shared_bytes} bytes are shared, not {shared}"]
    live = [row for row in metadata.inodes.values() if not row.flags & FLAG_TRASHED]
    files = [row for row in live if row.kind == KIND_FILE]
    state = metadata.state
    counted = (state.files, state.directories, state.bytes)
    there = (len(files), len(live) - len(files) - 1, sum(row.length for row in files))
    return [] if counted == there else [f"files, directories, bytes: {counted}, not {there}"]


def _log_problems(metadata: Metadata) -> list[str]:
    """The operation log, applied to nothing, must give these very rows."""
    log = sorted(metadata.rows["operation_log"].items())
    numbers = [unpack_u64(key) for key, _ in log]
    if numbers != list(range(1, metadata.state.sequence + 1)):
        return [f"the operation log has {len(numbers)} rows up to {metadata.state.sequence}"]
    again = _apply_all([value for _, value in log], metadata)
    return [
        f"applying the operation log gives other {name}"
        for name in FROM_THE_LOG
        if again[name] != metadata.rows[name]
    ]


def _apply_all(log: list[bytes], metadata: Metadata) -> dict[str, Rows]:
    directory = make_scratch()
    try:
        environment = lmdb.open(
            directory, map_size=COPY_MAP_BYTES, max_dbs=len(Databases._fields), sync=False
        )
        try:
            db = Databases(*[environment.open_db(name.encode()) for name in Databases._fields])
            with environment.begin(write=True) as raw:
                root = next(row for key, row in metadata.rows["inodes"].items()
                            if unpack_u64(key) == ROOT_INODE)  # fmt: skip
                raw.put(ROOT_INODE.to_bytes(8, "big"), root, db=db.inodes)
                txn = Txn(raw, db, State())
                chain = 0
                for row in log:
                    chain = operation_log.replay(txn, row, b"", chain)
                return {name: dict(raw.cursor(getattr(db, name))) for name in FROM_THE_LOG}
        finally:
            environment.close()
    finally:
        shutil.rmtree(directory)


def is_past(cluster: SimCluster, time_ns: int) -> bool:
    """Whether it is, by the wall clock of a master."""
    return any(cluster.machine(name).time.time_ns() >= time_ns for name in cluster.masters)
