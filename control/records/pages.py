"""Reading a whole table without keeping the event loop to oneself."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator

import trio

from control.records.store import Records
from control.records.table import RowT, Table

#: Rows that are read before other tasks run: some milliseconds.
PAGE_ROWS = 256


async def in_pages(
    records: Records, table: Table[RowT], page_rows: int = PAGE_ROWS
) -> AsyncGenerator[list[RowT], None]:
    """All rows by key, a page at a time, so that other tasks run in between. The rows of a page are
    of one moment; those of later pages are newer."""
    after: str | None = ""
    while after is not None:
        with records.read() as txn:
            page = list(itertools.islice(table.scan(txn, after=after), page_rows))
        yield page
        after = table.key(page[-1]) if len(page) == page_rows else None
        await trio.lowlevel.checkpoint()
