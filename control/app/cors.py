"""Cross-origin requests from browsers (the Fetch standard, "CORS protocol").

Closed unless origins are configured: a browser then lets only pages of the same
origin read answers. Configured origins may send credentials.
"""

from __future__ import annotations

from collections.abc import Sequence

from quart import Response
from werkzeug.datastructures import Headers

METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
REQUEST_HEADERS = "Content-Type, Authorization, X-File-Size, X-Transfer-Id, Range"
EXPOSED = (
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, "
    "Last-Modified, Retry-After, WWW-Authenticate, X-Kept, X-Kept-Until"
)
#: How long browsers may cache a preflight.
PREFLIGHT_SECONDS = 600


class Cors:
    """The rights of the configured origins."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def mark(self, headers: Headers, origin: str | None) -> None:
        """Allow pages of ``origin`` to read this answer, if it is configured."""
        if not self._origins:
            return
        headers.add("Vary", "Origin")
        if origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = EXPOSED

    def preflight(self, allowed: str, origin: str | None) -> Response:
        """The answer to ``OPTIONS``; ``allowed`` are the methods of the path."""
        response = Response(b"", status=200, headers={"Allow": allowed})
        if origin in self._origins:
            response.headers["Access-Control-Allow-Methods"] = METHODS
            response.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
            response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response
