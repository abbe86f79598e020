"""A transaction over the records, and the databases of each table."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol, TypeAlias

import lmdb

#: LMDB allows 511; Table.by() looks for a key plus one byte.
KEY_BYTES_MAX = 500


#: What a transaction has changed: place and key → the row as it is stored; None: deleted.
Changes: TypeAlias = dict[tuple[str, bytes], bytes | None]


class Handles(NamedTuple):
    #: SCHEMA.TABLE.
    place: str
    rows: lmdb._Database
    entries: lmdb._Database


class Named(Protocol):
    """The part of a :class:`control.records.Table` that opening its databases needs."""

    name: str


class TableHandles(dict[Named, Handles]):
    """The databases of every table that the store was opened with."""

    def __missing__(self, table: Named) -> Handles:
        raise LookupError(f"table {table.name!r} is in no Schema that the records were opened with")


class Txn:
    """A transaction; every method of Table takes one first.

    It reads one state of the store however long it lasts, and belongs to the
    thread that created it. Use it in a ``with`` statement; a read transaction
    that is kept open makes the file grow, so never hold one over an await.
    """

    __slots__ = ("changes", "get", "handles", "is_write", "raw")

    def __init__(
        self,
        raw: lmdb.Transaction[bytes],
        handles: TableHandles,
        is_write: bool,
        changes: Changes | None = None,
    ) -> None:
        self.raw = raw
        #: Only where the rows are a copy of PostgreSQL's: what to commit there.
        self.changes = changes
        #: Bound once: every request reads two or three rows.
        self.get = raw.get
        self.handles = handles
        self.is_write = is_write

    def put(self, table: Named, key: bytes, data: bytes) -> None:
        """Store a row, but none of its index entries, which every copy makes by itself."""
        place, rows, _ = self.handles[table]
        self.raw.put(key, data, db=rows)
        if self.changes is not None:
            self.changes[place, key] = data

    def delete(self, table: Named, key: bytes) -> None:
        """Delete a row, but none of its index entries."""
        place, rows, _ = self.handles[table]
        self.raw.delete(key, db=rows)
        if self.changes is not None:
            self.changes[place, key] = None

    def used_bytes(self) -> int:
        """The size of all tables and indexes; costs some microseconds for each of them."""
        pairs = [(each.rows, each.entries) for each in self.handles.values()]
        stats = [self.raw.stat(database) for pair in pairs for database in pair]
        return sum(
            (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"]
            for stat in stats
        )

    def __enter__(self) -> Txn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # This ends readers; a write transaction is committed before. The reader's slot is free
        # only when nothing references the transaction any more, and the traceback of an
        # error may reference this object for long.
        self.raw.abort()
        del self.raw, self.get
