"""Look-ups in the namespace: stat, pages of a listing, walks in slices.

Each look-up runs in one read transaction, in the loop, and its time depends on its page
and not on the size of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gfs.blocks import CHUNK_BYTES
from gfs.errors import FileChanged, InvalidArgument, NotADirectory, NotFound
from gfs.master.metadata.namespace import entry_of, find, inode_row, lookup
from gfs.master.metadata.paths import join, parse
from gfs.master.metadata.rows import (
    KIND_DIRECTORY,
    KIND_FILE,
    Chunk,
    Inode,
    chunk_of,
    entry_key,
    pack_file_chunk_key,
    pack_u64,
    unpack_chunk,
    unpack_entry,
    unpack_file_chunk_key,
    unpack_inode,
    unpack_u64,
)
from gfs.master.metadata.store import Txn
from gfs.protocol.messages import PAGE_BYTES_MAX, Entry

#: The size limit of an Entry on the wire without its path and its attributes (which are
#: as long in the inode's row).
ENTRY_BYTES = 64
LIST_LIMIT_MAX = 10_000


def stat(txn: Txn, path: str) -> Entry:
    """The entry of a path. Raises InvalidName, NotFound or NotADirectory."""
    inode, _ = lookup(txn, path)
    row = txn.get(pack_u64(inode), b"", txn.db.inodes)
    return entry_of(path if path[-1:] != "/" else join(parse(path)), inode, unpack_inode(row))


def list_page(txn: Txn, path: str, after: str, limit: int) -> tuple[list[Entry], bool]:
    """Up to ``limit`` entries whose names are greater than ``after``, in the
    order of their bytes, and whether there are more. Fewer than ``limit`` when
    they would not fit into one reply."""
    if limit < 1:
        raise InvalidArgument(f"a page of {limit} entries")
    segments = parse(path)
    found = find(txn, segments)
    if found is None:
        raise NotFound(f"{path}: no such directory")
    if found[1] != KIND_DIRECTORY:
        raise NotADirectory(f"{path} is a file")
    base = join(segments).removesuffix("/") + "/"
    base_bytes = len(base.encode()) + ENTRY_BYTES
    entries: list[Entry] = []
    room = PAGE_BYTES_MAX
    try:
        start = after.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("the name to list from is not valid UTF-8") from None
    for name, inode, _ in children(txn, found[0], start):
        row = unpack_inode(txn.get(pack_u64(inode), b"", txn.db.inodes))
        room -= base_bytes + len(name) + len(row.attributes)
        if len(entries) >= min(limit, LIST_LIMIT_MAX) or (room < 0 and entries):
            return entries, True
        entries.append(entry_of(base + name.decode(), inode, row))
    return entries, False


def children(txn: Txn, directory: int, after: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, inode, kind) of a directory's entries after ``after``, by name."""
    prefix = pack_u64(directory)
    # The first possible key after a name is that name with a zero byte.
    start = prefix + after + b"\0" if after else prefix
    for key, value in txn.scan(start, txn.db.entries):
        if key[:8] != prefix:
            return
        inode, kind = unpack_entry(value)
        yield key[8:], inode, kind


def open_file(txn: Txn, path: str, inode: int) -> tuple[int, Inode]:
    """The file at ``path``; or, if ``inode`` is given, that file, whatever its present
    name is, and also if it was replaced lately.

    Raises NotFound, IsADirectory, or FileChanged if the file is gone and another one has the path.
    """
    if inode == 0:
        inode, _ = lookup(txn, path)
        row = inode_row(txn, inode)
    else:
        row = inode_row(txn, inode)
        if row is None:
            raise _gone(txn, path)
    if row is None:
        raise NotFound(f"{path}: no such file or directory")
    return inode, row


def _gone(txn: Txn, path: str) -> NotFound | FileChanged:
    try:
        lookup(txn, path)
    except (OSError, ValueError):
        return NotFound(f"{path}: the file was deleted")
    return FileChanged(f"{path}: the file was replaced by another one")


class FileChunk(NamedTuple):
    number: int  # its index in the file
    handle: int
    version: int
    length: int
    goal: int


def file_chunks(txn: Txn, inode: int, length: int, first: int) -> Iterator[FileChunk]:
    """The chunks of a file from number ``first``; ``length`` is the file's. The first comes from
    its key: nearly all files have no other, and a cursor costs as much as all the rest."""
    start = pack_file_chunk_key(inode, first)
    value = txn.get(start, None, txn.db.file_chunks)
    if value is not None:
        yield _file_chunk(txn, value, first, length)
        start = pack_file_chunk_key(inode, first + 1)
    for key, value in txn.scan(start, txn.db.file_chunks):
        owner, index = unpack_file_chunk_key(key)
        if owner != inode:
            return
        yield _file_chunk(txn, value, index, length)


def _file_chunk(txn: Txn, value: bytes, index: int, length: int) -> FileChunk:
    version, _, _, _, goal = unpack_chunk(txn.get(value, b"", txn.db.chunks))
    held = min(CHUNK_BYTES, max(0, length - index * CHUNK_BYTES))
    return FileChunk(index, unpack_u64(value), version, held, goal)


def chunk_rows(txn: Txn, inode: int, first: int) -> Iterator[tuple[int, int, Chunk]]:
    """(number, handle, row) of a file's chunks from number ``first``."""
    for key, value in txn.scan(pack_file_chunk_key(inode, first), txn.db.file_chunks):
        owner, index = unpack_file_chunk_key(key)
        if owner != inode:
            return
        yield index, unpack_u64(value), chunk_of(txn.get(value, b"", txn.db.chunks))


def shared_chunks(txn: Txn, inode: int, length: int) -> Iterator[int]:
    """How many bytes of a file are in each of its chunks that other files have as well."""
    for index, _, chunk in chunk_rows(txn, inode, 0):
        if chunk.references > 1:
            yield min(CHUNK_BYTES, max(0, length - index * CHUNK_BYTES))


# --- walking a tree ----------------------------------------------------------------


class Visit(NamedTuple):
    """One entry of a walk. ``segments`` is its path."""

    segments: list[bytes]
    inode: int
    row: Inode


class Cursor(msgspec.Struct, array_like=True, gc=False):
    """The position of a walk: the segments, below its root, of the last entry that was
    visited, and for a file the first chunk not returned yet (-1: all were)."""

    segments: list[bytes] = []
    chunk: int = -1
    started: bool = False


def walk(txn: Txn, path: str, cursor: Cursor) -> Iterator[Visit]:
    """All entries after ``cursor`` at and below ``path``, by name, each directory
    before its contents.

    It keeps only one position per level. Entries that are moved while a walk is between
    two transactions may be visited twice or not at all, as in any file system; all
    others are visited once.
    """
    root = parse(path)
    found = find(txn, root)
    if found is None:
        raise NotFound(f"{path}: no such file or directory")
    inode, kind = found
    if not cursor.started:
        row = inode_row(txn, inode)
        if row is not None:
            yield Visit(root, inode, row)
    if kind == KIND_DIRECTORY:
        yield from _walk_below(txn, root, _resume(txn, inode, cursor))


def walk_below(txn: Txn, directory: int, cursor: Cursor) -> Iterator[Visit]:
    """As :func:`walk`, of the contents of a directory, which need not be in the
    namespace; the paths are relative to it."""
    yield from _walk_below(txn, [], _resume(txn, directory, cursor))


def _resume(txn: Txn, directory: int, cursor: Cursor) -> list[tuple[int, bytes]]:
    """The open directories of a walk, each with the name last visited in it."""
    stack = []
    for segment in cursor.segments:
        stack.append((directory, segment))
        row = txn.get(entry_key(directory, segment), None, txn.db.entries)
        if row is None:
            return stack
        directory, kind = unpack_entry(row)
        if kind == KIND_FILE:
            return stack
    stack.append((directory, b""))
    return stack


def _walk_below(txn: Txn, root: list[bytes], stack: list[tuple[int, bytes]]) -> Iterator[Visit]:
    while stack:
        directory, after = stack[-1]
        child = next(children(txn, directory, after), None)
        if child is None:
            stack.pop()
            continue
        name, inode, kind = child
        stack[-1] = (directory, name)
        row = inode_row(txn, inode)
        if row is not None:
            yield Visit([*root, *[at[1] for at in stack]], inode, row)
        if kind == KIND_DIRECTORY:
            stack.append((inode, b""))
