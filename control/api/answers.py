"""Responses of handlers: JSON, long lists, and bodies that are generated while they are sent.

Reading and encoding 1,000 entries of a list takes 10 ms; a list of all users or
sessions may have a hundred times as many. So lists are sorted and encoded in pieces, and
other requests are served in between.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
import trio
from quart import Response

T = TypeVar("T")

JSON = "application/json"
#: An answer depends on the user, and may be a secret. Caches keep no answers to requests with
#: ``Authorization``, but they do not know ``?token=``.
NO_STORE = {"Cache-Control": "no-store"}
PIECE_ROWS = 250


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] = NO_STORE) -> Response:
    """``value`` as JSON. No cache keeps it, unless ``headers`` are others."""
    return Response(msgspec.json.encode(value), status, dict(headers), content_type=JSON)


async def stream_response(
    pieces: AsyncGenerator[bytes, None], content_type: str, *, ahead: int = 1
) -> Response:
    """A body of ``pieces``, each generated when the one before it is sent.

    The first ``ahead`` are generated before the status is sent, so a failure in them is
    answered as an error. If there are no more, the answer has a length. ``pieces`` is
    closed whatever happens to the response.
    """
    first: list[bytes] = []
    while len(first) < ahead:
        piece = await anext(pieces, None)
        if piece is None:
            return Response(b"".join(first), headers=NO_STORE, content_type=content_type)
        first.append(piece)
    body = _joined(first, pieces)
    # A generator that was never started would not close ``pieces`` when it is closed, for
    # instance after a HEAD, or if the client has left.
    await anext(body)
    return Response(body, headers=NO_STORE, content_type=content_type)


async def _joined(
    first: Sequence[bytes], rest: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield b""
        for piece in first:
            yield piece
        async for piece in rest:
            yield piece


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
    """The results of ``info`` for ``rows`` as a JSON array, without those that are None."""
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
