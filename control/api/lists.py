"""Long lists are read, sorted and answered in pieces, so that others are served in between.

Some 1,000 entries take 10 ms from the records to JSON; a list of all users or sessions
may have a hundred times as many.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

import msgspec
import trio
from quart import Response

from control.api.call import JSON, NO_STORE, json_response

T = TypeVar("T")

PIECE_ROWS = 250


async def in_order(rows: Sequence[T], key: Callable[[T], Any], *, reverse: bool = False) -> list[T]:
    """``rows`` sorted; equal ones stay in their order."""
    runs = []
    for start in range(0, len(rows), PIECE_ROWS):
        runs.append(sorted(rows[start : start + PIECE_ROWS], key=key, reverse=reverse))
        await trio.lowlevel.checkpoint()
    found = []
    for row in heapq.merge(*runs, key=key, reverse=reverse):
        found.append(row)
        if len(found) % PIECE_ROWS == 0:
            await trio.lowlevel.checkpoint()
    return found


def json_array(rows: Sequence[T], info: Callable[[T], msgspec.Struct | None]) -> Response:
    """What ``info`` makes of each of ``rows`` as a JSON array; None: nothing."""
    if len(rows) <= PIECE_ROWS:
        return json_response([found for row in rows if (found := info(row)) is not None])
    return Response(_pieces(rows, info), headers=NO_STORE, content_type=JSON)


async def _pieces(
    rows: Sequence[T], info: Callable[[T], msgspec.Struct | None]
) -> AsyncGenerator[bytes, None]:
    start = b"["
    for first in range(0, len(rows), PIECE_ROWS):
        found = [
            msgspec.json.encode(made)
            for row in rows[first : first + PIECE_ROWS]
            if (made := info(row)) is not None
        ]
        if found:
            yield start + b",".join(found)
            start = b","
        await trio.lowlevel.checkpoint()
    yield b"]" if start == b"," else b"[]"
