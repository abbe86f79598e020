"""All files of a storage namespace, sorted by path, in constant memory.

The file system lists one directory at a time, sorted by name. That is not yet
the order of paths: the files in the directory ``a`` sort as ``a/…``, and so
after ``a!`` and ``a.txt``, whose names come later. So an entry is held back
until no entry that is still unread can sort before it; a directory sorts as its
name with a slash. Each name that is held begins with the one held before it: so
at most one is held for each byte of the longest name.

A listing that begins in the middle, after a path or at a prefix, reads each
directory from there on. Some directories sort after that place although their names
sort before it: they are looked up one by one, see :func:`_earlier`.

One page of the file system's listing is kept for each directory that is being read.
The listing is not a snapshot: it shows some of the files that are created or deleted
while it runs.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Iterator
from typing import Generic, Protocol, TypeVar

from control.errors import BadRequest
from control.storage.names import SEGMENT_BYTES_MAX, check_path
from gfs.errors import InvalidName, NotADirectory, NotFound


class Item(Protocol):
    """The attributes of an entry that a listing uses."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...


ItemT = TypeVar("ItemT", bound=Item)
FoundT = TypeVar("FoundT", bound=Item, covariant=True)


class Source(Protocol[FoundT]):
    """The calls of the file system's client that a listing uses."""

    def scan(self, path: str, after: str) -> AsyncGenerator[FoundT, None]: ...
    async def stat(self, path: str) -> FoundT: ...


class _Level(Generic[ItemT]):
    """One directory being read."""

    def __init__(self, scan: AsyncGenerator[ItemT, None], prefix: bytes, start: bytes) -> None:
        self.scan = scan
        #: The start of the paths in it, relative to the listing's directory.
        self.prefix = prefix
        self._held: list[tuple[bytes, ItemT]] = []
        #: All later entries sort after this.
        self._next = start
        self._ended = False

    def hold(self, name: bytes, item: ItemT) -> None:
        key = name + b"/" if item.kind == "directory" else name
        heapq.heappush(self._held, (key, item))

    def add(self, name: bytes, item: ItemT) -> None:
        """Take the next entry that was read."""
        self.hold(name, item)
        self._next = name

    def end(self) -> None:
        self._ended = True

    def pop(self) -> tuple[bytes, ItemT] | None:
        """The next entry in order, or None if it is not known yet."""
        if self._held and (self._ended or self._held[0][0] <= self._next):
            return heapq.heappop(self._held)
        return None

    @property
    def is_done(self) -> bool:
        return self._ended and not self._held


async def files(
    source: Source[ItemT],
    directory: str,
    *,
    prefix: str = "",
    after: str = "",
    folders: bool = False,
    without: frozenset[str] = frozenset(),
) -> AsyncGenerator[tuple[str, ItemT], None]:
    """(path, entry) of all files below ``directory``, by the bytes of the path.

    Args:
        source: lists the entries of a directory by the bytes of their names.
        directory: where to begin; paths are relative to it.
        prefix: list only paths that begin with it; other directories are not read.
        after: list only paths that sort after it.
        folders: list a folder whose path begins with ``prefix`` as its path with a slash,
            and nothing in it.
        without: paths of folders, with a slash, that are not listed.

    A directory that does not exist, or not any more, counts as empty.
    """
    raw_prefix, raw_after = _raw(prefix), _raw(after)
    inside = prefix.rpartition("/")[0]
    if not _may_be_folder(inside) or f"{inside}/".startswith(tuple(without)):
        return
    start = f"{directory}/{inside}" if inside else directory
    below = _raw(inside) + b"/" if inside else b""
    if not (below > raw_after or raw_after.startswith(below)):
        return
    levels = [await _open(source, start, below, raw_prefix, raw_after)]
    try:
        while levels:
            level = levels[-1]
            found = level.pop()
            if found is None:
                if level.is_done:
                    await levels.pop().scan.aclose()
                else:
                    await _read_one(level, raw_prefix, raw_after)
                continue
            key, item = found
            path = level.prefix + key
            if item.kind == "directory" and path.decode() in without:
                continue
            if item.kind == "directory" and folders and path.startswith(raw_prefix):
                if path > raw_after:
                    yield path.decode(), item
            elif item.kind == "directory":
                levels.append(await _open(source, item.path, path, raw_prefix, raw_after))
            else:
                yield path.decode(), item
    finally:
        while levels:
            await levels.pop().scan.aclose()


async def _open(
    source: Source[ItemT], directory: str, below: bytes, prefix: bytes, after: bytes
) -> _Level[ItemT]:
    """Begin to read ``directory``, whose paths begin with ``below``, at the first name that
    can be listed or sort before a listed one."""
    start = max(_segment(prefix, below), _segment(after, below))
    level: _Level[ItemT] = _Level(source.scan(directory, start.decode()), below, start)
    for name in _earlier(start):
        if not _matters(below + name, True, prefix, after):
            continue  # a file of this name is not listed either
        try:
            item = await source.stat(f"{directory}/{name.decode()}")
        except (NotFound, NotADirectory, InvalidName):
            continue
        if _matters(below + name, item.kind == "directory", prefix, after):
            level.hold(name, item)
    return level


def _segment(path: bytes, below: bytes) -> bytes:
    """The part of ``path`` in the directory ``below``, cut to the length of a name.

    Names above that are compared with all of ``path`` when they are read.
    """
    if not path.startswith(below):
        return b""
    segment = path[len(below) :].partition(b"/")[0][:SEGMENT_BYTES_MAX]
    try:
        segment.decode()
    except UnicodeDecodeError as error:
        return segment[: error.start]
    return segment


def _earlier(start: bytes) -> Iterator[bytes]:
    """The names up to ``start`` that a listing from there must look up: ``start`` itself, and
    each of its beginnings that is followed by a character that sorts before the slash,
    since a directory of that name sorts later. For ``file-1.txt``: ``file``, ``file-1``."""
    for end in range(1, len(start) + 1):
        if start[end : end + 1] < b"/":
            yield start[:end]


async def _read_one(level: _Level[ItemT], prefix: bytes, after: bytes) -> None:
    """Read on to the next entry that is to be listed, or to the end."""
    try:
        async for item in level.scan:
            name = item.path.rpartition("/")[2].encode()
            path = level.prefix + name
            if path[: len(prefix)] > prefix:
                break  # and so do all that follow
            if _matters(path, item.kind == "directory", prefix, after):
                level.add(name, item)
                return
    except (NotFound, NotADirectory):
        pass
    level.end()


def _matters(path: bytes, is_directory: bool, prefix: bytes, after: bytes) -> bool:
    if not is_directory:
        return path.startswith(prefix) and path > after
    path += b"/"
    if not (path.startswith(prefix) or prefix.startswith(path)):
        return False
    return path > after or after.startswith(path)


def _may_be_folder(path: str) -> bool:
    try:
        return not path or bool(check_path(path))
    except BadRequest:
        return False


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
