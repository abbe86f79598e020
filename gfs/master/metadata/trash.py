"""The trash: deleted files and directories can be undeleted for a while (the paper, 4.4).

A delete moves one row: the inode leaves ``entries`` and gets a row of ``trash``,
under the time at which it may be reclaimed, in the uptime of masters
(:mod:`gfs.master.metadata.uptime`). Clients that have the file open can go on reading,
because an open file is looked up by its inode. Rows that can be undeleted are in
``trash_paths`` as well, under the path they had, so that a search for one, or for all
below a directory, is a range scan. Both are written in the same transaction as the
delete.

Nothing is undeleted in part: a row leaves ``trash_paths`` before the first piece
of it is reclaimed.

The contents of a deleted directory are not known when it is deleted, since that would
cost a walk. :class:`TrashBook` counts them afterwards, in slices and in memory.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from gfs.errors import AlreadyExists, InvalidArgument, NotFound
from gfs.master.metadata import lookups
from gfs.master.metadata.namespace import SECOND_NS, Planned, entry_of, inode_row, place_for
from gfs.master.metadata.number_set import NumberSet
from gfs.master.metadata.operations import TrashEmptied, Undeleted
from gfs.master.metadata.paths import join, parse
from gfs.master.metadata.rows import (
    KIND_DIRECTORY,
    KIND_FILE,
    KIND_NAMES,
    TRASH_PATH_BYTES,
    Trash,
    pack_trash_key,
    trash_path_start,
    unpack_u64,
)
from gfs.master.metadata.store import Store, Txn
from gfs.protocol.messages import (
    PAGE_BYTES_MAX,
    READERS_SECONDS_MAX,
    Done,
    EmptyTrash,
    EmptyTrashReply,
    StatReply,
    TrashEntry,
    Undelete,
)

#: Rows of the trash returned in one page, or emptied in one transaction, at most.
ROWS_MAX = 1000
#: Entries visited in one slice of a walk: a few milliseconds.
SLICE = 1000
#: A smaller directory is counted at once.
SMALL = 100
#: No replaced file is kept longer.
READERS_NS = READERS_SECONDS_MAX * SECOND_NS
#: The size of a TrashEntry on the wire without its path.
ENTRY_BYTES = 64

_trash = msgspec.msgpack.Decoder(Trash)


class Found(NamedTuple):
    """A row of the trash that can be undeleted."""

    key: bytes  # in ``trash_paths``
    due_ns: int
    inode: int
    row: Trash


def _found(txn: Txn, key: bytes, due: bytes) -> Found:
    due_ns, inode = unpack_u64(due), unpack_u64(key[-8:])
    row = _trash.decode(txn.get(pack_trash_key(due_ns, inode), b"", txn.db.trash))
    return Found(key, due_ns, inode, row)


def deleted_at(txn: Txn, path: str) -> Iterator[Found]:
    """The deletions of exactly this path, the last one first."""
    start = trash_path_start(path)
    for key, due in txn.last_below(start[:-1] + b"\1", txn.db.trash_paths):
        if not key.startswith(start):
            return
        found = _found(txn, key, due)
        if found.row.path == path:
            yield found


def deleted_below(txn: Txn, path: str, after: bytes = b"") -> Iterator[Found]:
    """The deletions at and below ``path`` after the key ``after``: by path, then by
    time. Paths of more than 480 bytes with the same beginning are in no particular
    order."""
    below = path.removesuffix("/") + "/"
    prefixes = [below.encode()[:TRASH_PATH_BYTES]]
    if len(below.encode()) <= TRASH_PATH_BYTES:
        prefixes.insert(0, trash_path_start(path))
    for prefix in prefixes:
        for key, due in txn.scan(max(prefix, after + b"\0"), txn.db.trash_paths):
            if not key.startswith(prefix):
                break
            found = _found(txn, key, due)
            if found.row.path == path or found.row.path.startswith(below):
                yield found


def page(
    txn: Txn, book: TrashBook, path: str, after: bytes, limit: int, wall_ns: Callable[[int], int]
) -> tuple[list[TrashEntry], bytes]:
    """Up to ``limit`` deletions at and below ``path``, and the key to continue after;
    empty if there are no more. ``wall_ns`` converts a time of the trash to the wall
    clock."""
    if limit < 1:
        raise InvalidArgument(f"a page of {limit} entries")
    entries: list[TrashEntry] = []
    room = PAGE_BYTES_MAX
    last = b""
    for found in deleted_below(txn, join(parse(path)), after):
        room -= ENTRY_BYTES + len(found.row.path.encode())
        if len(entries) >= min(limit, ROWS_MAX) or (room < 0 and entries):
            return entries, last
        entries.append(_entry(txn, book, found, wall_ns))
        last = found.key
    return entries, b""


def _entry(txn: Txn, book: TrashBook, found: Found, wall_ns: Callable[[int], int]) -> TrashEntry:
    row = inode_row(txn, found.inode)
    if row is None:
        raise AssertionError(f"the trash has inode {found.inode}, which is gone")
    usage = book.usage(found.inode) if row.kind == KIND_DIRECTORY else Usage(1, 0, row.length)
    return TrashEntry(
        path=found.row.path,
        inode=found.inode,
        kind=KIND_NAMES[row.kind],
        length=-1 if usage is None else usage.bytes,
        files=-1 if usage is None else usage.files,
        deleted_ns=found.row.deleted_ns,
        until_ns=wall_ns(found.due_ns),
    )


# --- plans -----------------------------------------------------------------------


def plan_undelete(txn: Txn, request: Undelete, time_ns: int) -> Planned:
    """Restore a deletion under its old name or another one."""
    path = join(parse(request.path))
    wanted = (f for f in deleted_at(txn, path) if request.inode in (0, f.inode))
    found = next(wanted, None)
    if found is None:
        raise NotFound(_not_there(txn, path, request.inode))
    segments = parse(request.target) if request.target else parse(path)
    if not segments:
        raise AlreadyExists("/ exists already")
    target = join(segments)
    place = place_for(txn, segments, parents=True)
    if place.existing(txn) is not None:
        raise AlreadyExists(f"{target} exists already: undelete {path} under another name")
    row = inode_row(txn, found.inode)
    if row is None:
        raise AssertionError(f"the trash has inode {found.inode}, which is gone")
    operation = Undeleted(
        time_ns=time_ns,
        directories=place.made,
        due_ns=found.due_ns,
        inode=found.inode,
        parent=place.parent,
        name=place.name,
        kind=row.kind,
    )
    return operation, StatReply(0, entry_of(target, found.inode, row))


def _not_there(txn: Txn, path: str, inode: int) -> str:
    if inode:
        return f"{path}: inode {inode} is not in the trash"
    segments = parse(path)
    for length in range(len(segments) - 1, 0, -1):
        above = join(segments[:length])
        if any(True for _ in deleted_at(txn, above)):
            return f"{path} was not deleted by itself but may be in {above}: undelete that"
    return f"{path} is not in the trash"


def plan_empty(txn: Txn, request: EmptyTrash, time_ns: int) -> Planned:
    """Purge rows of the trash, as many as fit into one transaction."""
    path = join(parse(request.path))
    source = deleted_below(txn, path) if request.recursive else deleted_at(txn, path)
    rows: list[tuple[int, int]] = []
    more = False
    for found in source:
        if request.inode not in (0, found.inode):
            continue
        if len(rows) >= ROWS_MAX:
            more = True
            break
        rows.append((found.due_ns, found.inode))
    reply = EmptyTrashReply(0, len(rows), more)
    return (TrashEmptied(time_ns, rows) if rows else None), reply


def plan_empty_early(txn: Txn, time_ns: int, wanted: list[tuple[int, int]]) -> Planned:
    """Purge those of these rows, as (due, inode), that are still in the trash."""
    trash = txn.db.trash
    rows = [row for row in wanted if txn.get(pack_trash_key(*row), None, trash) is not None]
    return (TrashEmptied(time_ns, rows) if rows else None), Done(id=0)


# --- what is in it -----------------------------------------------------------------


class Usage(NamedTuple):
    files: int
    directories: int
    bytes: int


class TrashBook:
    """The contents of deleted directories: in memory, counted in slices.

    The store's totals include the contents of a deleted directory until it is
    reclaimed; this book says how much that is. A client that has such a file open may
    go on writing it, so the counted length of each file is kept: 16 bytes a file.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._usages: dict[int, Usage] = {}
        #: Directory -> its files, in order, and their lengths as they were counted.
        self._lengths: dict[int, tuple[array[int], array[int]]] = {}
        #: All those files, and others that were there since it was empty the last time.
        self._inside = NumberSet()
        #: The lengths of files that were written while a directory was not counted.
        self._grown: dict[int, int] = {}
        #: Directories that are not counted yet.
        self.waiting: dict[int, None] = {}
        self.files = self.directories = self.bytes = 0
        #: Files that were replaced and are kept for their readers, and their lengths.
        self._replaced: dict[int, int] = {}
        self.replaced_bytes = 0
        #: The deletions that were purged early since this master was started, and their bytes.
        self.purged = self.purged_bytes = 0

    def usage(self, inode: int) -> Usage | None:
        """The usage of a deleted directory; None if it is not known yet."""
        return self._usages.get(inode)

    def changed(self, inode: int, trashed: bool) -> None:
        """Note that a directory can be undeleted from now on, or not any more."""
        if trashed:
            if inode not in self._usages:
                self.waiting[inode] = None
                next(self._count(inode, SMALL))
            return
        self.waiting.pop(inode, None)
        self._lengths.pop(inode, None)
        if not self._lengths and not self.waiting:
            self._inside = NumberSet()
        self._add(self._usages.pop(inode, Usage(0, 0, 0)), -1)

    @property
    def replaced_files(self) -> int:
        return len(self._replaced)

    def replaced(self, inode: int, length: int) -> None:
        """Note that a file of that length cannot be undeleted, but is kept for its readers
        for a while; -1: not any more."""
        self.replaced_bytes -= self._replaced.pop(inode, 0)
        if length >= 0:
            self._replaced[inode] = length
            self.replaced_bytes += length

    def grown(self, inode: int, length: int) -> None:
        """Note the new length of a file, wherever it is."""
        if self.waiting:
            self._grown[inode] = length
        if inode not in self._inside:
            return  # as nearly always: a search among many deleted directories would take long
        for directory, (inodes, lengths) in self._lengths.items():
            at = bisect_left(inodes, inode)
            if at < len(inodes) and inodes[at] == inode:
                more = max(0, length - lengths[at])
                lengths[at] += more
                self.bytes += more
                usage = self._usages[directory]
                self._usages[directory] = usage._replace(bytes=usage.bytes + more)
                return

    def _add(self, usage: Usage, by: int) -> None:
        self.files += by * usage.files
        self.directories += by * usage.directories
        self.bytes += by * usage.bytes

    def load(self) -> Iterator[None]:
        """Load the directories in the trash and the replaced files, after a start. In slices."""
        yield from self._load_replaced()
        at = b""
        while True:
            met = 0
            with self._store.read() as txn:
                for key, due in txn.scan(at, txn.db.trash_paths):
                    if met >= SLICE:
                        break
                    met += 1
                    at = key + b"\0"
                    row = inode_row(txn, _found(txn, key, due).inode)
                    if row is not None and row.kind == KIND_DIRECTORY:
                        self.changed(unpack_u64(key[-8:]), True)
            yield
            if met < SLICE:
                return

    def _load_replaced(self) -> Iterator[None]:
        at = b""
        met = SLICE
        while met == SLICE:
            met = 0
            with self._store.read() as txn:
                end = pack_trash_key(txn.lived_ns + READERS_NS + 1, 0)
                for key, packed in islice(txn.scan(at, txn.db.trash), SLICE):
                    if key >= end:
                        break
                    met += 1
                    at = key + b"\0"
                    inode = unpack_u64(key[8:])
                    row = inode_row(txn, inode)
                    is_file = row is not None and row.kind == KIND_FILE
                    if row is not None and is_file and not _trash.decode(packed).deleted_ns:
                        self.replaced(inode, row.length)
            yield

    def count(self) -> Iterator[None]:
        """Count the directories that are not counted yet. In slices."""
        while self.waiting:
            inode = next(iter(self.waiting))
            yield from self._count(inode, SLICE)

    def _count(self, inode: int, slice_length: int) -> Iterator[None]:
        directories = 0
        pieces: list[list[tuple[int, int]]] = []
        cursor = lookups.Cursor()
        met = slice_length
        while inode in self.waiting and met == slice_length:
            if pieces:
                yield
            met = 0
            files: list[tuple[int, int]] = []
            with self._store.read() as txn:
                for visit in lookups.walk_below(txn, inode, cursor):
                    if visit.row.kind == KIND_FILE:
                        files.append((visit.inode, visit.row.length))
                        self._inside.add(visit.inode)
                    else:
                        directories += 1
                    cursor = lookups.Cursor(visit.segments, -1, True)
                    met += 1
                    if met >= slice_length:
                        break
            pieces.append(sorted(files))
        # To sort them all at once would hold everything up for a second a million.
        ordered = heapq.merge(*pieces)
        inodes, lengths = array("Q"), array("Q")
        while inode in self.waiting:
            files = list(islice(ordered, SLICE))
            inodes.extend([file for file, _ in files])
            lengths.extend([length for _, length in files])
            if len(files) < SLICE:
                self._counted(inode, directories, inodes, lengths)
            else:
                yield
        yield

    def _counted(
        self, inode: int, directories: int, inodes: array[int], lengths: array[int]
    ) -> None:
        for file, length in self._grown.items():
            at = bisect_left(inodes, file)
            if at < len(inodes) and inodes[at] == file:
                lengths[at] = max(lengths[at], length)
        self._lengths[inode] = inodes, lengths
        usage = self._usages[inode] = Usage(len(inodes), directories, sum(lengths))
        self._add(usage, 1)
        del self.waiting[inode]
        if not self.waiting:
            self._grown.clear()


def rows_from(store: Store, after_ns: int) -> Iterator[tuple[int, int, Trash]]:
    """(due, inode, row) of the trash after that position, the earliest first. The trash
    may change in between."""
    at = pack_trash_key(after_ns + 1, 0)
    while True:
        with store.read() as txn:
            row = next(iter(txn.scan(at, txn.db.trash)), None)
        if row is None:
            return
        at = row[0] + b"\0"
        yield unpack_u64(row[0][:8]), unpack_u64(row[0][8:]), _trash.decode(row[1])


def oldest(txn: Txn, now_ns: int) -> tuple[int, int]:
    """(time of deletion, time of purge) of the first deletion to be purged; zeros if
    the trash is empty."""
    at = pack_trash_key(now_ns, 0)
    if not txn.state.trash_rows:
        return 0, 0
    for _ in range(2):
        for met, (key, value) in enumerate(txn.scan(at, txn.db.trash)):
            if met >= ROWS_MAX:
                break
            trash = _trash.decode(value)
            if trash.deleted_ns:
                return trash.deleted_ns, unpack_u64(key[:8])
        # Very many replaced files are kept for their readers until then.
        at = pack_trash_key(now_ns + READERS_NS, 0)
    return 0, 0


def trashed_chunks(store: Store) -> Iterator[list[int]]:
    """The chunks that only files in the trash have, in slices."""
    for _, inode, _ in rows_from(store, -1):
        for chunks in chunks_of(store, inode):
            yield [handle for handle, references, _ in chunks if references == 1]


#: (handle, files that have it, bytes of it) of some chunks.
Chunks = list[tuple[int, int, int]]


def chunks_of(store: Store, inode: int) -> Iterator[Chunks]:
    """The chunks of a file, or of all files below a directory, in slices."""
    with store.read() as txn:
        row = inode_row(txn, inode)
    if row is None:
        return
    if row.kind == KIND_FILE:
        yield from _chunks_of_file(store, inode)
        return
    cursor = lookups.Cursor()
    while True:
        files: list[int] = []
        met = 0
        with store.read() as txn:
            for visit in lookups.walk_below(txn, inode, cursor):
                cursor = lookups.Cursor(visit.segments, -1, True)
                if visit.row.kind == KIND_FILE:
                    files.append(visit.inode)
                met += 1
                if met >= SLICE:
                    break
        for file in files:
            yield from _chunks_of_file(store, file)
        if met < SLICE:
            return


def _chunks_of_file(store: Store, inode: int) -> Iterator[Chunks]:
    first = 0
    while True:
        chunks: Chunks = []
        with store.read() as txn:
            for number, handle, row in lookups.chunk_rows(txn, inode, first):
                first = number + 1
                chunks.append((handle, row.references, row.length))
                if len(chunks) >= SLICE:
                    break
        yield chunks
        if len(chunks) < SLICE:
            return
