"""The routes of the documentation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec
import trio
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter

from control.api import JSON, NO_STORE, Call, Content, Response, Route
from control.api.installed import SYSTEM
from control.documentation.openapi import describe
from control.errors import NoSuchThing
from control.identity.access import PUBLIC
from gfs import __version__

_SYSTEM_SUMMARY = "Health, metrics and this documentation."
_PAGE = "page.html"
_HTML = "text/html; charset=utf-8"
#: The page's files and their types: Swagger UI, and what starts it. Nothing else is served.
_SCRIPT = "text/javascript; charset=utf-8"
_ASSETS = {
    "page.js": _SCRIPT,
    "swagger-ui-bundle.js": _SCRIPT,
    "swagger-ui.css": "text/css; charset=utf-8",
}
#: The page holds a token in its memory: nothing but its own files runs in it or
#: learns from it, and no other page can put it in a frame.
_GUARD = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_UNCHANGED = {304: "The copy at hand is still right"}
_CONDITION = {"If-None-Match": "The ETag of a copy that is at hand."}


def documentation_routes(
    table: Sequence[tuple[str, Route]],
    summaries: Mapping[str, str],
    converters: Mapping[str, type[BaseConverter]],
) -> list[Route]:
    """The document and the page about every route of ``table``, for the application to add
    to it.

    Args:
        table: the routes, each with its module's name; read when a request asks for it.
        summaries: a line about each module.
        converters: kinds of path parameters that modules have made.
    """
    documentation = _Documentation(table, summaries, converters)
    return [
        Route(
            "GET",
            "/",
            _front,
            PUBLIC,
            "Leads a browser to the page about this API",
            headers={"Accept": "With `text/html`, as browsers send it; else there is nothing here"},
            answer=Content("text/html"),
            errors=[404],
            others={302: "The page is at `Location`"},
        ),
        Route(
            "GET",
            "/openapi.json",
            documentation.document,
            PUBLIC,
            "This API as an OpenAPI 3.1 document",
            headers=_CONDITION,
            answer=dict[str, Any],
            others=_UNCHANGED,
        ),
        Route(
            "GET",
            "/docs",
            _page,
            PUBLIC,
            "This API as a page for people",
            headers=_CONDITION,
            answer=Content("text/html"),
            others=_UNCHANGED,
        ),
        Route(
            "GET",
            "/docs/{file}",
            _asset,
            PUBLIC,
            "A file of that page",
            headers=_CONDITION,
            answer=Content("text/*"),
            others=_UNCHANGED,
        ),
    ]


class _Documentation:
    def __init__(
        self,
        table: Sequence[tuple[str, Route]],
        summaries: Mapping[str, str],
        converters: Mapping[str, type[BaseConverter]],
    ) -> None:
        self._table = table
        self._summaries = {SYSTEM: _SYSTEM_SUMMARY, **summaries}
        self._converters = converters

    @cached_property
    def _document(self) -> bytes:
        """Made when the first request asks for it: by then all routes are there."""
        return msgspec.json.encode(
            describe(self._table, self._summaries, __version__, self._converters)
        )

    async def document(self, call: Call) -> Response:
        if "_document" not in vars(self):
            await trio.to_thread.run_sync(lambda: self._document)  # it takes 30 ms
        return _conditional(call, self._document, JSON)


async def _front(call: Call) -> Response:
    if "text/html" not in (call.header("Accept") or "").lower():
        raise NotFound
    return Response(b"", 302, {"Location": "/docs", "Vary": "Accept", **NO_STORE})


async def _page(call: Call) -> Response:
    return _conditional(call, _file(_PAGE), _HTML)


async def _asset(call: Call) -> Response:
    name = call.params["file"]
    kind = _ASSETS.get(name)
    if kind is None:
        raise NoSuchThing("the documentation has no such file")
    # Swagger UI is 2 MB: to read and digest it once takes some milliseconds.
    data = await trio.to_thread.run_sync(_file, name)
    return _conditional(call, data, kind)


@cache
def _file(name: str) -> bytes:
    """Digested, too. Of the package that carries Swagger UI nothing is imported."""
    if name.startswith("swagger-ui"):
        package = metadata.distribution("flask-swagger-ui")
        data = Path(str(package.locate_file(f"flask_swagger_ui/dist/{name}"))).read_bytes()
    else:
        data = resources.files("control.documentation").joinpath(name).read_bytes()
    _entity_tag(data)
    return data


@cache
def _entity_tag(data: bytes) -> str:
    """A strong ETag (RFC 9110, 8.8.3). Kept: there are few, and they never change."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _conditional(call: Call, data: bytes, kind: str) -> Response:
    """``data``, or 304 to who has it. Caches ask each time: an upgrade is seen at once."""
    etag = _entity_tag(data)
    headers = {"ETag": etag, "Cache-Control": "no-cache", **_GUARD}
    known = (call.header("If-None-Match") or "").split(",")
    if {tag.strip().removeprefix("W/") for tag in known} & {etag, "*"}:
        return Response(b"", status=304, headers=headers)
    return Response(data, headers=headers, content_type=kind)
