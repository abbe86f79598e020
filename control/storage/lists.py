"""Lists of files and of storage namespaces, sent while they are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
import trio

from control.api import ADMIN, JSON, Call, Response, Route, json_response, scoped, stream_response
from control.storage import listing
from control.storage.cluster import Cluster
from control.storage.keys import VERSIONS
from control.storage.names import DEFAULT, last_segment
from control.storage.permission import OWNER, READ
from control.storage.rows import Space
from control.storage.shapes import (
    AdminFileInfo,
    AdminListQuery,
    FileInfo,
    ListQuery,
    SpaceInfo,
    SpaceListQuery,
)
from control.storage.spaces import Spaces
from gfs.blocks import KIB
from gfs.client import Entry

RowT = TypeVar("RowT", bound=msgspec.Struct)
InfoT = TypeVar("InfoT", bound=FileInfo)

#: A listing is sent in pieces of this size.
LIST_PIECE_BYTES = 32 * KIB
#: What there is of a slow one is sent after this time, so that its connection can be ended.
LIST_PIECE_SECONDS = 1.0
#: A page of files of at most so many is in memory, and names the next one.
LINKED_MAX = 1000
#: Older versions are those of S3 alone.
NOT_LISTED = frozenset({f"{VERSIONS}/"})


class ListRoutes:
    def __init__(self, cluster: Cluster, spaces: Spaces) -> None:
        self._cluster = cluster
        self._spaces = spaces

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "GET",
                "/storage/files",
                self.list_files,
                READ,
                "List files",
                query=ListQuery,
                answer=list[FileInfo],
                errors=[400, 401, 403, 404],
                description=(
                    "All of them, sorted by path. Everybody may list public and visible storage "
                    "namespaces. A failure half-way breaks the connection: an array that is "
                    "closed is whole."
                ),
            ),
            Route(
                "GET",
                "/storage/namespaces",
                self.list_spaces,
                scoped("storage", "namespaces", "read", is_open=True),
                "List storage namespaces",
                query=SpaceListQuery,
                answer=list[SpaceInfo],
                description="The public ones and your own, sorted by name.",
            ),
            Route(
                "GET",
                "/admin/files",
                self.admin_files,
                ADMIN,
                "All files of all storage namespaces",
                query=AdminListQuery,
                answer=list[AdminFileInfo],
                errors=[404],
                description=(
                    f"By namespace and path. With a `limit` of at most {LINKED_MAX}, if there are "
                    'more, the header `Link: <…>; rel="next"` has the next page.'
                ),
            ),
            Route(
                "GET",
                "/admin/namespaces",
                self.admin_spaces,
                ADMIN,
                "All storage namespaces",
                answer=list[SpaceInfo],
            ),
        ]

    async def list_files(self, call: Call) -> Response:
        query = call.query(ListQuery)
        space = self._spaces.readable(call, query.namespace or DEFAULT)
        turn = self._cluster.turn(call.principal)
        places = [(space, query.after)]
        return await json_array(self._rows(places, query.prefix, query.limit, _file_info, turn))

    async def _rows(
        self,
        places: Iterable[tuple[Space, str]],
        prefix: str,
        left: int | None,
        info: Callable[[Space, str, Entry], InfoT],
        turn: AbstractAsyncContextManager[object] | None = None,
    ) -> AsyncGenerator[InfoT, None]:
        """The files of storage namespaces, of each those after a path: ``left`` of them."""
        fs = self._cluster.fs
        for space, after in places:
            found = listing.files(
                fs,
                space.directory,
                prefix=prefix,
                after=after,
                without=NOT_LISTED,
                page=min(left or listing.PAGE, listing.PAGE),
                turn=turn,
            )
            async with aclosing(found) as files:
                async for path, entry in files:
                    yield info(space, path, entry)
                    if left is not None:
                        left -= 1
                        if not left:
                            return

    async def list_spaces(self, call: Call) -> Response:
        query = call.query(SpaceListQuery)
        found = self._spaces.listed_for(call.principal, call.need, query.after)
        return await json_array(_first(found, query.limit))

    async def admin_files(self, call: Call) -> Response:
        query = call.query(AdminListQuery)
        if query.namespace:
            places = [(self._spaces.get(query.namespace), query.after)]
        else:
            name, _, path = query.after.partition("/")
            places = [
                (space, path if space.name == name else "")
                for space in await self._spaces.all()
                if space.name >= name
            ]
        if query.limit is None or query.limit > LINKED_MAX:
            return await json_array(self._rows(places, query.prefix, query.limit, _admin_file_info))
        # One more shows whether it is the last page.
        found = self._rows(places, query.prefix, query.limit + 1, _admin_file_info)
        rows = [row async for row in found]
        response = json_response(rows[: query.limit])
        if len(rows) > query.limit:
            last = rows[query.limit - 1]
            after = last.path if query.namespace else f"{last.namespace}/{last.path}"
            more = msgspec.structs.asdict(msgspec.structs.replace(query, after=after))
            link = urlencode({key: value for key, value in more.items() if value})
            response.headers["Link"] = f'<{call.request.path}?{link}>; rel="next"'
        return response

    async def admin_spaces(self, call: Call) -> Response:
        return await json_array(self._spaces.every())


def _file_info(space: Space, path: str, entry: Entry) -> FileInfo:
    return FileInfo(*_fields(space, path, entry))


def _admin_file_info(space: Space, path: str, entry: Entry) -> AdminFileInfo:
    return AdminFileInfo(*_fields(space, path, entry), entry.attributes.get(OWNER) or None)


def _fields(space: Space, path: str, entry: Entry) -> tuple[str, str, str, int, int, int]:
    return (
        last_segment(path),
        path,
        space.name,
        entry.length,
        entry.created_ns // 10**9,
        entry.modified_ns // 10**9,
    )


async def _first(rows: AsyncGenerator[RowT, None], limit: int | None) -> AsyncGenerator[RowT, None]:
    """The first ``limit`` rows; all if it is None."""
    left = limit
    async with aclosing(rows):
        async for row in rows:
            yield row
            if left is not None:
                left -= 1
                if not left:
                    return


async def json_array(rows: AsyncGenerator[RowT, None]) -> Response:
    """``rows`` as a JSON array: in one piece if it is short, else as they are read.

    A failure before the second piece is answered as an error. After that it breaks the connection,
    so that nobody takes a part for the whole.
    """
    return await stream_response(_json_pieces(rows), JSON, ahead=2)


async def _json_pieces(rows: AsyncGenerator[RowT, None]) -> AsyncGenerator[bytes, None]:
    piece = bytearray(b"[")
    separator = b""
    late = trio.current_time() + LIST_PIECE_SECONDS
    async with aclosing(rows):
        async for row in rows:
            piece += separator
            piece += msgspec.json.encode(row)
            separator = b","
            if len(piece) >= LIST_PIECE_BYTES or trio.current_time() >= late:
                yield bytes(piece)
                piece.clear()
                late = trio.current_time() + LIST_PIECE_SECONDS
    piece += b"]"
    yield bytes(piece)
