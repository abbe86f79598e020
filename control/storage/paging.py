"""Pages of lists in an order that the file system does not have, in constant memory.

A page is found by reading everything and keeping the first ones after the cursor: no state is kept
between two pages, so any worker can answer the next, and what changes meanwhile is missed or shown
once. Of a folder of 100,000 entries a page takes 0.8 s, so a larger page is cheaper. By name, the
order that the file system has, it takes 10 ms.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from control.api import BadRequest

ItemT = TypeVar("ItemT")

PAGE_DEFAULT = 200
#: A path has at most 1,024 bytes.
CURSOR_LENGTH_MAX = 2048

After = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-]*$",
        max_length=CURSOR_LENGTH_MAX,
        description="`next` of the page before this one",
    ),
]

#: A place in the order: a number or a text, then a text that no other item has.
Place = tuple[int | str, str]


def cursor_of(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def place_of(cursor: str) -> Place | None:
    """Raises BadRequest for a text that is no cursor."""
    if not cursor:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.msgpack.decode(raw, type=tuple[int | str, str])
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise BadRequest("after: is not the `next` of another page") from None


async def first_after(
    items: AsyncGenerator[ItemT, None],
    key: Callable[[ItemT], Place],
    after: Place | None,
    limit: int,
    *,
    reverse: bool = False,
) -> tuple[list[ItemT], str | None]:
    """The first ``limit`` items that come after a place, in order; and the cursor of the next
    page, None if this is the last one. Raises BadRequest if the cursor is of another order."""
    kept: list[tuple[Place, int, ItemT]] = []
    worst: Place | None = None
    is_cut = False
    number = 0
    try:
        async with aclosing(items) as found:
            async for item in found:
                place: Any = key(item)
                if after is not None and (place >= after if reverse else place <= after):
                    continue
                if worst is not None and (place <= worst if reverse else place >= worst):
                    is_cut = True
                    continue
                number += 1
                kept.append((place, number, item))
                if len(kept) >= 2 * limit:
                    kept.sort(key=_place, reverse=reverse)
                    is_cut = is_cut or len(kept) > limit
                    del kept[limit:]
                    worst = kept[-1][0]
    except TypeError:
        raise BadRequest("after: is the `next` of a page in another order") from None
    kept.sort(key=_place, reverse=reverse)
    is_cut = is_cut or len(kept) > limit
    del kept[limit:]
    return [item for _, _, item in kept], cursor_of(kept[-1][0]) if is_cut else None


def _place(row: tuple[Place, int, Any]) -> Any:
    return row[0]
