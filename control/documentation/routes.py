"""The routes of the documentation."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec
import trio
from werkzeug.exceptions import NotFound

from control.api import JSON, NO_STORE, PUBLIC, Call, Content, NoSuchThing, Response, Route
from control.api.internals import SYSTEM
from control.documentation.openapi import describe
from gfs import __version__

_SYSTEM_SUMMARY = "Health, metrics and this documentation."
_PAGE = "page.html"
_HTML = "text/html; charset=utf-8"
#: What the page has in the place of the nonce.
_NONCE = b"NONCE"
#: The page's files and their types: Swagger UI, and what starts it. Nothing else is served.
_SCRIPT = "text/javascript; charset=utf-8"
_ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": _SCRIPT,
    "swagger-ui-bundle.js": _SCRIPT,
    "swagger-ui.css": "text/css; charset=utf-8",
}
#: The page has a token in its memory: so only the scripts run in it that have the nonce of this
#: one answer (``'self'`` has users' files, too), it sends data to no other host, and no other page
#: can put it in a frame. Swagger UI sets HTML, which its DOMPurify has cleaned; no text becomes a
#: script or the address of one.
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types default dompurify"
)
_GUARD = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_UNCHANGED = {304: "The client's copy is still current"}
_CONDITION = {"If-None-Match": "The ETag of the client's copy."}


def documentation_routes(
    table: Sequence[tuple[str, Route]],
    summaries: Mapping[str, str],
    kinds: Mapping[str, str],
) -> list[Route]:
    """The routes of the document and the page about every route of ``table``, to which the
    application adds them.

    Args:
        table: the routes, each with its module's name; read when a request asks for it.
        summaries: a line about each module.
        kinds: what the kinds of path parameters match.
    """
    documentation = _Documentation(table, summaries, kinds)
    front = Route(
        "GET",
        "/",
        _front,
        PUBLIC,
        "Redirect to the page about this API",
        headers={"Accept": "If it takes no HTML, as `application/json`, the answer is 404"},
        answer=Content("text/html"),
        errors=[404],
        others={302: "The page is at `Location`"},
    )
    # The console has a page of its own there.
    has_front = any(route.path == "/" for _, route in table)
    return [
        *([] if has_front else [front]),
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
            answer=Content("text/html"),
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
        kinds: Mapping[str, str],
    ) -> None:
        self._table = table
        self._summaries = {SYSTEM: _SYSTEM_SUMMARY, **summaries}
        self._kinds = kinds

    @cached_property
    def _document(self) -> bytes:
        """The document, generated for the first request, when all routes are known."""
        return msgspec.json.encode(describe(self._table, self._summaries, __version__, self._kinds))

    async def document(self, call: Call) -> Response:
        if "_document" not in vars(self):
            await trio.to_thread.run_sync(lambda: self._document)  # it takes 30 ms
        return _conditional(call, self._document, JSON)


async def _front(call: Call) -> Response:
    accepted = call.request.accept_mimetypes
    if accepted and not accepted.accept_html:
        raise NotFound
    return Response(b"", 302, {"Location": "/docs", "Vary": "Accept", **NO_STORE})


async def _page(call: Call) -> Response:
    nonce = secrets.token_urlsafe(16)
    headers = {**_GUARD, "Content-Security-Policy": _POLICY.format(nonce=nonce), **NO_STORE}
    data = _file(_PAGE).replace(_NONCE, nonce.encode())
    return Response(data, headers=headers, content_type=_HTML)


async def _asset(call: Call) -> Response:
    name = call.params["file"]
    kind = _ASSETS.get(name)
    if kind is None:
        raise NoSuchThing("the documentation has no such file")
    # Swagger UI is 2 MB: reading it and computing its digest takes some milliseconds.
    data = await trio.to_thread.run_sync(_file, name)
    return _conditional(call, data, kind)


@cache
def _file(name: str) -> bytes:
    """A file and its digest, read from the package of Swagger UI without importing it."""
    if name.startswith("swagger-ui"):
        package = metadata.distribution("flask-swagger-ui")
        data = Path(str(package.locate_file(f"flask_swagger_ui/dist/{name}"))).read_bytes()
    else:
        data = resources.files("control.documentation").joinpath(name).read_bytes()
    _entity_tag(data)
    return data


@cache
def _entity_tag(data: bytes) -> str:
    """A strong ETag (RFC 9110, 8.8.3). It is cached: there are few files, which never change."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _conditional(call: Call, data: bytes, kind: str) -> Response:
    """``data``, or 304 if the client has it. Caches revalidate each time, so they notice an
    upgrade at once."""
    etag = _entity_tag(data)
    headers = {"ETag": etag, "Cache-Control": "no-cache", **_GUARD}
    known = (call.header("If-None-Match") or "").split(",")
    if {tag.strip().removeprefix("W/") for tag in known} & {etag, "*"}:
        return Response(b"", status=304, headers=headers)
    return Response(data, headers=headers, content_type=kind)
