"""The interface to Quart: requests pull their bodies, and need no extra tasks.

Quart starts two tasks per request, one of which copies the whole body into memory as
fast as it arrives, whether the handler reads it or not. Here the handler reads the
socket, and the client keeps the bytes that the handler does not read. Quart's ``BODY_TIMEOUT`` and
``RESPONSE_TIMEOUT`` are not used, because the server bounds each stall instead of the
whole transfer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioRequest
from werkzeug.datastructures import Headers
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from control.http.texts import Parameters, RequestHeaders

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class BodyCutShort(ConnectionError):
    """The client ended the connection before its body was complete."""

    def __init__(self) -> None:
        super().__init__("the request's body ended before it was complete; send it again")


class PulledBody:
    """The body of one request: ``async for piece in body`` gives its bytes as they come.

    Each piece is read from the connection when it is asked for, at most 256 KiB at a
    time. The body can be read once.
    """

    def __init__(
        self, expected_content_length: int | None = None, max_content_length: int | None = None
    ) -> None:
        self.expected_bytes = expected_content_length
        self.bytes_max = max_content_length
        self._receive: Receive | None = None
        self._ended = False
        self._kept: bytes | None = None

    def pull_from(self, receive: Receive) -> None:
        """Read the pieces from ASGI's *receive*."""
        self._receive = receive

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece.

        Raises:
            BodyCutShort: The client has left.
        """
        while not self._ended:
            if self._receive is None:
                break
            message = await self._receive()
            if message["type"] != "http.request":
                raise BodyCutShort
            self._ended = not message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            if piece:
                return piece
        raise StopAsyncIteration

    async def read_all(self, bytes_max: int | None) -> bytes:
        """The whole body, or what is left of it. It is kept for further calls.

        Raises:
            RequestEntityTooLarge: It has more than *bytes_max* bytes. If its announced
                length is larger, nothing of it is read.
            BodyCutShort: The client has left.
        """
        if self._kept is not None:
            return self._kept
        if bytes_max is not None and (self.expected_bytes or 0) > bytes_max:
            raise RequestEntityTooLarge
        pieces: list[bytes] = []
        size = 0
        async for piece in self:
            size += len(piece)
            if bytes_max is not None and size > bytes_max:
                raise RequestEntityTooLarge
            pieces.append(piece)
        self._kept = b"".join(pieces)
        return self._kept

    def __await__(self) -> Generator[Any, None, bytes]:
        return self.read_all(self.bytes_max).__await__()

    def clear(self) -> None:
        """Drop what :meth:`read_all` kept."""
        self._kept = b""

    def append(self, data: bytes) -> None:
        """Add bytes by hand; for requests made in tests."""
        self._kept = (self._kept or b"") + data

    def set_complete(self) -> None:
        """End a body made by hand."""
        self._ended = True
        self._kept = self._kept or b""


class StreamingRequest(TrioRequest):
    """Quart's request with a :class:`PulledBody`, and bounds for each text of its head that is
    read (:mod:`.texts`)."""

    body_class = PulledBody  # type: ignore[assignment]
    body: PulledBody  # type: ignore[assignment]
    headers: RequestHeaders
    args: Parameters
    parameter_storage_class = Parameters

    async def get_data(  # type: ignore[override]
        self,
        cache: bool = True,
        as_text: bool = False,
        parse_form_data: bool = False,
        *,
        limit: int | None = None,
    ) -> str | bytes:
        """The whole body, of at most *limit* bytes.

        Args:
            cache: Keep it for the next call.
            as_text: Decode it as UTF-8.
            parse_form_data: Parse it as a form first.
            limit: In bytes; by default the application's ``MAX_CONTENT_LENGTH``.

        Raises:
            RequestEntityTooLarge: It is larger.
            BadRequest: *as_text* is set, and the body is not UTF-8.
            BodyCutShort: The client has left.
        """
        if parse_form_data:
            await self.form
        data = await self.body.read_all(limit if limit is not None else self.max_content_length)
        if not cache:
            self.body.clear()
        if not as_text:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise BadRequest("the body is not valid UTF-8") from None


class HttpConnection:
    """Runs Quart's handler for one request in the task that calls it."""

    def __init__(self, app: QuartTrio, scope: dict[str, Any]) -> None:
        self.app = app
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        request = self.make_request()
        if isinstance(request.body, PulledBody):
            request.body.pull_from(receive)
        response = await self.app.handle_request(request)
        await self._send_response(send, response)

    def make_request(self) -> Any:
        """Quart's request for the scope."""
        scope = self.scope
        headers = RequestHeaders()
        headers["Remote-Addr"] = (scope.get("client") or ["<local>"])[0]
        for name, value in scope["headers"]:
            headers.add(name.decode("latin1").title(), value.decode("latin1"))
        return self.app.request_class(
            scope.get("method", "GET"),  # one that asks for a WebSocket is always a GET
            scope["scheme"],
            scope["path"],
            scope["query_string"],
            headers,
            scope["root_path"],
            scope["http_version"],
            scope,  # type: ignore[arg-type]
            max_content_length=self.app.config["MAX_CONTENT_LENGTH"],
            body_timeout=self.app.config["BODY_TIMEOUT"],
            send_push_promise=_push_nothing,
        )

    async def _send_response(self, send: Send, response: Any) -> None:
        start = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": encoded(response.headers),
        }
        body = response.response
        last = b""
        if isinstance(body, DataBody):
            await send(start)
            last = bytes(body.data[body.begin : body.end])
        else:
            await self._send_pieces(send, start, body)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_pieces(self, send: Send, start: dict[str, Any], body: Any) -> None:
        """Send a body that is generated while it is sent; a HEAD request gets none of it."""
        if not hasattr(body, "__aenter__"):  # of a plain Werkzeug response
            await send(start)
            for piece in body:
                await _send_piece(send, piece)
            return
        # The body may have begun, and release resources when it is closed.
        async with body as pieces:
            await send(start)
            if self.scope["method"] == "HEAD":
                return
            async for piece in pieces:
                await _send_piece(send, piece)


def encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """*headers* in the form of ASGI."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _push_nothing(path: str, headers: Headers) -> None:
    """Do nothing, since browsers accept no pushes any more."""


async def _send_piece(send: Send, piece: str | bytes | memoryview) -> None:
    data = piece.encode() if isinstance(piece, str) else piece
    await send({"type": "http.response.body", "body": data, "more_body": True})
