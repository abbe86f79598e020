"""One transaction over the records, and which database belongs to which table."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol

import lmdb

#: LMDB allows 511; by() looks for a key plus one byte.
KEY_BYTES_MAX = 500


class Handles(NamedTuple):
    rows: lmdb._Database
    entries: lmdb._Database


class Named(Protocol):
    """A :class:`control.records.Table`, for one who only opened its databases."""

    name: str


class TableHandles(dict[Named, Handles]):
    """The databases of every table that the store was opened with."""

    def __missing__(self, table: Named) -> Handles:
        raise LookupError(f"table {table.name!r} is in no Schema that the records were opened with")


class Txn:
    """A transaction; every method of Table takes one first.

    It reads one state of the store however long it lasts, and belongs to the
    thread it was made in. Use it in a ``with`` statement; a read transaction
    that is kept open makes the file grow, so never hold one over an await.
    """

    __slots__ = ("get", "handles", "is_write", "raw")

    def __init__(self, raw: lmdb.Transaction[bytes], handles: TableHandles, is_write: bool) -> None:
        self.raw = raw
        #: Bound once: every request reads two or three rows.
        self.get = raw.get
        self.handles = handles
        self.is_write = is_write

    def used_bytes(self) -> int:
        """In pages of all tables and indexes; some microseconds for each of them."""
        stats = [self.raw.stat(database) for pair in self.handles.values() for database in pair]
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
        # For readers only; whoever made a write transaction commits it first. The store has a
        # reader free again when nobody holds what is let go of here: an error's traceback may
        # hold this for long.
        self.raw.abort()
        del self.raw, self.get
