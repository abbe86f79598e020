"""The files below a directory, sorted by path, in pages.

A directory's rows are sorted by name. That is not yet the order of paths: the files in the
directory ``a`` sort as ``a/…``, and so after ``a!`` and ``a.txt``, whose names come later. So an
entry is held back until no entry that is still unread can sort before it; a directory sorts as its
name with a slash. Each name that is held begins with the one held before it: so at most one is
held for each byte of the longest name.

A page begins after any path, or where the last page ended. Each directory on the way is read from
there on. Some directories sort after that place although their names sort before it: they are
looked up one by one, see :func:`_earlier`.

A page reads at most :data:`ROWS_MAX` rows, besides one look-up for each byte of the path that it
begins after, and says where it stopped, which may be in the middle of a chain of directories
without a file. So it takes the loop a few milliseconds whatever the tree looks like, and a tree
costs by its rows, no matter how deep they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gfs.errors import InvalidArgument, NotADirectory, NotFound
from gfs.master.metadata.lookups import ENTRY_BYTES, LIST_LIMIT_MAX, children
from gfs.master.metadata.namespace import entry_of, find, inode_row
from gfs.master.metadata.paths import SEGMENT_BYTES_MAX, join, parse
from gfs.master.metadata.rows import KIND_DIRECTORY, entry_key, unpack_entry
from gfs.master.metadata.store import Txn
from gfs.protocol.messages import PAGE_BYTES_MAX, Entry, ListFiles

#: Rows read for one page.
ROWS_MAX = 1000
#: Sorts after all that is in a directory: no path has this byte.
END = b"\xff"


class _Found(NamedTuple):
    key: bytes  # the name; of a directory with a slash
    inode: int
    kind: int


class _Level:
    """One directory being read."""

    def __init__(self, rows: Iterator[tuple[bytes, int, int]], below: bytes, passed: bytes) -> None:
        self._rows = rows
        #: The start of the paths in it, relative to the listing's directory.
        self.below = below
        #: All that is unread sorts after this, and of what was read only what is held.
        self.passed = passed
        self.is_read = False
        self._held: list[_Found] = []

    def hold(self, name: bytes, inode: int, kind: int) -> None:
        key = name + b"/" if kind == KIND_DIRECTORY else name
        heapq.heappush(self._held, _Found(key, inode, kind))

    def read(self, prefix: bytes) -> None:
        """Read one row."""
        row = next(self._rows, None)
        if row is None or (self.below + row[0])[: len(prefix)] > prefix:
            self.is_read = True
        else:
            self.hold(*row)
            self.passed = row[0]

    def pop(self) -> _Found | None:
        """The next in order, or None if it is not known yet, or there is no more."""
        if self._held and (self.is_read or self._held[0].key <= self.passed):
            return heapq.heappop(self._held)
        return None


def page(txn: Txn, request: ListFiles) -> tuple[list[Entry], bytes]:
    """The entries of a page, and the cursor of the next one; empty if there is none.

    Raises NotFound, NotADirectory (of the path), InvalidName, InvalidArgument.
    """
    if request.limit < 1:
        raise InvalidArgument(f"a page of {request.limit} entries")
    segments = parse(request.path)
    found = find(txn, segments)
    if found is None:
        raise NotFound(f"{request.path}: no such directory")
    if found[1] != KIND_DIRECTORY:
        raise NotADirectory(f"{request.path} is a file")
    inside = request.prefix.rpartition(b"/")[0]
    below = inside + b"/" if inside else b""
    directory = _directory(txn, found[0], inside.split(b"/") if inside else [])
    is_passed_over = any(below.startswith(each) for each in request.without)
    if directory is None or is_passed_over or not _is_ahead(below, request.after):
        return [], b""
    listing = _Listing(txn, request)
    listing.enter(directory, below)
    return listing.page(join(segments).removesuffix("/") + "/")


def _directory(txn: Txn, inode: int, segments: Sequence[bytes]) -> int | None:
    """A directory below another one, if it is there."""
    for segment in segments:
        row = None
        if 0 < len(segment) <= SEGMENT_BYTES_MAX:
            row = txn.get(entry_key(inode, segment), None, txn.db.entries)
        if row is None:
            return None
        inode, kind = unpack_entry(row)
        if kind != KIND_DIRECTORY:
            return None
    return inode


class _Listing:
    def __init__(self, txn: Txn, request: ListFiles) -> None:
        self._txn = txn
        self._request = request
        self._levels: list[_Level] = []

    def enter(self, directory: int, below: bytes) -> None:
        """Begin to read a directory, whose paths begin with ``below``, at the first name that
        can be listed."""
        txn, prefix, after = self._txn, self._request.prefix, self._request.after
        passed = max(_rest(prefix, below), _rest(after, below))
        # A name that is as long as that is above it or below it, and never the same.
        rows = children(txn, directory, passed[: SEGMENT_BYTES_MAX + 1])
        level = _Level(rows, below, passed)
        self._levels.append(level)
        for name in _earlier(passed.partition(b"/")[0][:SEGMENT_BYTES_MAX]):
            if not self._matters(below + name, is_directory=True):
                continue  # a file of this name is not listed either
            row = txn.get(entry_key(directory, name), None, txn.db.entries)
            if row is not None:
                inode, kind = unpack_entry(row)
                if self._matters(below + name, is_directory=kind == KIND_DIRECTORY):
                    level.hold(name, inode, kind)

    def _matters(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether this, or something in it, is to be listed."""
        prefix, after = self._request.prefix, self._request.after
        if not is_directory:
            return path.startswith(prefix) and path > after
        path += b"/"
        return (path.startswith(prefix) or prefix.startswith(path)) and _is_ahead(path, after)

    def page(self, base: str) -> tuple[list[Entry], bytes]:
        """``base`` is before the relative paths."""
        request, levels = self._request, self._levels
        limit = min(request.limit, LIST_LIMIT_MAX)
        rows, room = ROWS_MAX, PAGE_BYTES_MAX
        base_bytes = len(base.encode()) + ENTRY_BYTES
        entries: list[Entry] = []
        last = request.after
        while levels:
            level = levels[-1]
            found = level.pop()
            if found is None and level.is_read:
                levels.pop()
                if levels:
                    name = level.below[len(levels[-1].below) :]
                    levels[-1].passed = max(levels[-1].passed, name + END)
                continue
            if found is None:
                if not rows:
                    return entries, level.below + level.passed
                rows -= 1
                level.read(request.prefix)
                continue
            path = level.below + found.key
            if found.kind == KIND_DIRECTORY:
                if path in request.without:
                    continue
                if not (request.folders and path.startswith(request.prefix)):
                    self.enter(found.inode, path)
                    continue
                if path <= request.after:
                    continue
            row = inode_row(self._txn, found.inode)
            if row is None:
                raise AssertionError(f"{path!r} has inode {found.inode}, which is gone")
            room -= base_bytes + len(path) + len(row.attributes)
            if len(entries) >= limit or (room < 0 and entries):
                return entries, last
            name_of_it = base + path.decode().removesuffix("/")
            entries.append(entry_of(name_of_it, found.inode, row))
            last = path
        return entries, b""


def _is_ahead(directory: bytes, after: bytes) -> bool:
    """Whether paths that begin with this sort after that."""
    return directory > after or after.startswith(directory)


def _rest(path: bytes, below: bytes) -> bytes:
    return path[len(below) :] if path.startswith(below) else b""


def _earlier(start: bytes) -> Iterator[bytes]:
    """The names up to ``start`` that a listing from there must look up: ``start`` itself, and
    each of its beginnings that is followed by a character that sorts before the slash,
    since a directory of that name sorts later. For ``file-1.txt``: ``file``, ``file-1``."""
    for end in range(1, len(start) + 1):
        if start[end : end + 1] < b"/":
            yield start[:end]
