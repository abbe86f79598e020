"""Pages of a walk over files and their chunks, for ``gfs fsck`` and ``locate``; and of the garbage.

The walk needs constant memory: its whole state is in the cursor, which the client
keeps. A page is bounded in chunks, in bytes, and in visited entries.
"""

from __future__ import annotations

import msgspec

from gfs.errors import InvalidArgument
from gfs.master.master import Master
from gfs.master.metadata import Txn, lookups
from gfs.master.metadata.namespace import find, inode_row
from gfs.master.metadata.paths import join, parse
from gfs.master.metadata.rows import KIND_FILE
from gfs.master.tables import AddressBook
from gfs.protocol.messages import (
    FsckChunk,
    FsckPage,
    FsckPageReply,
    GarbageReplica,
    ListGarbage,
    ListGarbageReply,
)

#: Entries visited in one slice of a walk: a few milliseconds.
WALK_SLICE = 500
GARBAGE_PAGE_MAX = 500


class FsckWalk:
    """Builds one page of a walk over files and their chunks."""

    def __init__(self, master: Master, txn: Txn, request: FsckPage) -> None:
        self._master = master
        self._txn = txn
        self._path = request.path
        self._root = parse(request.path)
        self._limit = max(1, request.limit)
        self._again = request.again
        self._book = AddressBook()
        self._chunks: list[FsckChunk] = []
        self._files = 0
        try:
            self._cursor = (
                msgspec.msgpack.decode(request.cursor, type=lookups.Cursor)
                if request.cursor
                else lookups.Cursor()
            )
        except msgspec.DecodeError:
            raise InvalidArgument("the cursor is not one that the master returned") from None

    def page(self) -> FsckPageReply:
        if self._again:
            return self._those_again()
        if self._cursor.chunk >= 0 and not self._go_on_with_file():
            return self._reply(self._cursor)
        for met, visit in enumerate(lookups.walk(self._txn, self._path, self._cursor), 1):
            segments = visit.segments[len(self._root) :]
            if visit.row.kind == KIND_FILE:
                self._files += 1
                stopped = self._take_file(visit.segments, visit.inode, visit.row.length, 0)
                if stopped >= 0:
                    return self._reply(lookups.Cursor(segments, stopped, True))
            if met >= WALK_SLICE or self._is_full():
                return self._reply(lookups.Cursor(segments, -1, True))
        return self._reply(None)

    def _those_again(self) -> FsckPageReply:
        for name in self._again:
            if self._is_full():
                break
            row = inode_row(self._txn, name.inode)
            chunk = None
            if row is not None and row.kind == KIND_FILE:
                chunk = next(
                    lookups.file_chunks(self._txn, name.inode, row.length, name.index), None
                )
            if chunk is None or chunk.number != name.index:
                chunk = lookups.FileChunk(name.index, handle=0, version=0, length=0, goal=0)
            self._take_chunk("", name.inode, chunk)
        return self._reply(None)

    def _go_on_with_file(self) -> bool:
        """Continue with the file in which the last page ended; False if this page ends
        in it, too."""
        segments = self._root + self._cursor.segments
        found = find(self._txn, segments)
        row = None if found is None else inode_row(self._txn, found[0])
        if found is not None and row is not None and row.kind == KIND_FILE:
            stopped = self._take_file(segments, found[0], row.length, self._cursor.chunk)
            self._cursor.chunk = stopped
        else:
            self._cursor.chunk = -1
        return self._cursor.chunk < 0

    def _take_file(self, segments: list[bytes], inode: int, length: int, first: int) -> int:
        """Take chunks while there is room; returns the first that was not taken, or -1."""
        path = join(segments)
        for chunk in lookups.file_chunks(self._txn, inode, length, first):
            if self._is_full():
                return chunk.number
            self._take_chunk(path, inode, chunk)
        return -1

    def _is_full(self) -> bool:
        return bool(self._chunks) and (len(self._chunks) >= self._limit or self._book.room <= 4096)

    def _take_chunk(self, path: str, inode: int, chunk: lookups.FileChunk) -> None:
        master = self._master
        holders = [master.servers.get(i) for i in master.replica_map.locations.get(chunk.handle)]
        positions = self._book.positions(holders)
        damaged = [] if holders else master.replica_map.damaged_holders(chunk.handle, chunk.version)
        lease = master.leases.current(chunk.handle, master.now)
        found = FsckChunk(
            path=path,
            index=chunk.number,
            handle=chunk.handle,
            version=chunk.version,
            length=chunk.length,
            goal=chunk.goal,
            servers=positions,
            damaged=self._book.positions(damaged),
            inode=inode,
        )
        if lease is not None:
            found.lease_ms = master.leases.remaining_ms(lease, master.now)
            found.primary = master.servers.get(lease.primary).id
        self._book.room -= 32 + len(path.encode()) + len(found.primary)
        self._chunks.append(found)

    def _reply(self, cursor: lookups.Cursor | None) -> FsckPageReply:
        raw = b"" if cursor is None else msgspec.msgpack.encode(cursor)
        return FsckPageReply(0, self._book.servers, self._chunks, self._files, raw)


def garbage_page(master: Master, request: ListGarbage) -> ListGarbageReply:
    limit = max(1, min(request.limit, GARBAGE_PAGE_MAX))
    found, more = master.replica_map.garbage.page(request.after, limit)
    replicas = [
        GarbageReplica(
            master.servers.get(index).id,
            handle,
            known.version,
            known.kind,
            master.replica_map.garbage.is_kept(index, handle),
        )
        for handle, index, known in found
    ]
    return ListGarbageReply(0, replicas, more)
