"""Serves the built files of the console.

What protects the page:

- It has a session's token, in its memory and in ``sessionStorage``, which only this origin and
  this tab can read. The API takes no cookie for a change, so other sites can cause none.
- Only scripts with the nonce of this answer run, and what they load; ``'self'`` would include
  the files of users, which have the same origin. Texts cannot become HTML or scripts (Trusted
  Types). Users' files are served with a policy of their own that puts them in a sandbox.
- Nothing is loaded from another host, and no other page can put this one in a frame.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from werkzeug.exceptions import NotFound

from control.api import NO_STORE, PUBLIC, Call, Content, Module, NoSuchThing, Response, Route

log = logging.getLogger(__name__)

BUILT = Path(__file__).parent / "built"
PAGE = "index.html"
#: What the built page has in the place of the nonce.
NONCE = b"NONCE"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}' 'strict-dynamic'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_GUARD = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: The name of each file but the page has a digest of its content.
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}
NOT_BUILT = "the console is not built, so / leads to /docs: `make console` builds it"


class File(NamedTuple):
    data: bytes
    #: The same, compressed with gzip.
    packed: bytes
    kind: str


class Console(Module):
    """The pages for people."""

    name = "console"
    summary = "The console: pages for people, who open it in a browser"
    #: Where the files are.
    built = BUILT

    _files: Mapping[str, File] = {}

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "GET",
                "/",
                self.front,
                PUBLIC,
                "The console",
                headers={"Accept": "If it takes no HTML, as `application/json`, the answer is 404"},
                answer=Content("text/html"),
                errors=[404],
                others={302: "The console is not built: the API is described at `Location`"},
            ),
            Route(
                "GET",
                "/console/{file}",
                self.asset,
                PUBLIC,
                "A file of the console",
                headers={"Accept-Encoding": "With `gzip` it is sent compressed"},
                answer=Content("text/*"),
            ),
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if not await self._loaded():
            log.warning(NOT_BUILT)
        task_status.started()

    async def front(self, call: Call) -> Response:
        accepted = call.request.accept_mimetypes
        if accepted and not accepted.accept_html:
            raise NotFound
        page = (await self._loaded()).get(PAGE)
        if page is None:
            return Response(b"", 302, {"Location": "/docs", "Vary": "Accept", **NO_STORE})
        nonce = secrets.token_urlsafe(16)
        policy = {"Content-Security-Policy": _POLICY.format(nonce=nonce)}
        headers = {**_GUARD, **policy, "Vary": "Accept", **NO_STORE}
        return Response(
            page.data.replace(NONCE, nonce.encode()), 200, headers, content_type=page.kind
        )

    async def asset(self, call: Call) -> Response:
        name = call.params["file"]
        file = (await self._loaded()).get(name)
        if file is None or name == PAGE:
            raise NoSuchThing("the console has no such file: load the page again")
        headers = {**_GUARD, **_FOR_GOOD, "Vary": "Accept-Encoding"}
        if "gzip" in (call.header("Accept-Encoding") or ""):
            headers["Content-Encoding"] = "gzip"
            return Response(file.packed, 200, headers, content_type=file.kind)
        return Response(file.data, 200, headers, content_type=file.kind)

    async def _loaded(self) -> Mapping[str, File]:
        """The files by their names: half a megabyte, read once. Empty until they are built."""
        if not self._files:
            self._files = await trio.to_thread.run_sync(_read, self.built)
        return self._files


def _read(directory: Path) -> dict[str, File]:
    found = {}
    for path in directory.glob("*.gz"):
        name = path.stem
        kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
        found[name] = File((directory / name).read_bytes(), path.read_bytes(), kind)
    return found
