"""One request and its answer, as the application sees them through ASGI.

An HTTP/1.1 connection carries them: to an exchange it is a :class:`Carrier`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import trio

from control.http.access_log import Access, Note
from control.http.heads import AnswerFraming, Explained, Refusal, RequestHead, in_json
from control.http.limits import HttpLimits
from control.http.wire import Buffer

__all__ = [
    "Address",
    "Application",
    "BodyEnded",
    "Carrier",
    "Exchange",
    "Service",
    "note_request",
]

log = logging.getLogger("control.http")

LEFT_EARLY = Refusal(400, "the client ended the connection before the answer")
CUT_SHORT = Refusal(400, "the request's body ended before its announced length")
FAILED = Refusal(500, "internal server error")
REQUEST_HEADER = b"x-request-id"
"""The header with the request's id, which the access log and the other logs have."""

Address = tuple[str, int]
Headers = Sequence[tuple[bytes, bytes]]
Application = Callable[[dict[str, Any], Callable[[], Any], Callable[[Any], Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that all connections of one server share.

    Attributes:
        state: The state that the application's startup has left for its requests.
        stopping: Set when the server stops.
        note: Logs a request that has ended; None if there is no access log.
    """

    app: Application
    limits: HttpLimits
    state: Mapping[str, Any]
    stopping: trio.Event
    note: Note | None

    def explain(self, server: Address | None, refusal: Refusal) -> Explained:
        """The body of a refusal. The application may have its own for one of its ports."""
        explain = getattr(self.app, "explain_refusal", None)
        found = explain(server[1], refusal) if explain is not None and server else None
        return found or in_json(refusal)


def note_request(
    carrier: Carrier, status: int, sent_bytes: int, began: float, request: bytes = b""
) -> None:
    """Log a request that has ended; ``began`` is by Trio's clock."""
    if carrier.service.note is not None:
        head = carrier.head
        carrier.service.note(
            Access(
                client=carrier.client[0] if carrier.client else "-",
                method=head.method,
                target=head.target,
                protocol=f"HTTP/{head.http_version}",
                headers=head.headers,
                status=status,
                sent_bytes=sent_bytes,
                seconds=trio.current_time() - began,
                request=request.decode("latin-1"),
            )
        )


class BodyEnded(Exception):
    """The client ended its side before its body was complete."""


class Carrier(Protocol):
    """Carries one request and its answer.

    Attributes:
        head: The request's head.
        is_tls: Whether the bytes are encrypted.
        client: Address and port of the client, as far as they are known.
        server: Address and port that the client connected to.
        body_cut: Whether the client ended its side before its body was complete.
    """

    service: Service
    head: RequestHead
    is_tls: bool
    client: Address | None
    server: Address | None
    body_cut: bool

    @property
    def client_ended(self) -> bool:
        """Whether the client had ended its side when the request began."""

    @property
    def body_complete(self) -> bool:
        """Whether the application has been given the whole body."""

    @property
    def abandoned(self) -> bool:
        """Whether the client left while its last bytes were being read."""

    @property
    def ends_after_answer(self) -> bool:
        """Whether no further request can follow this one."""

    async def read_body(self) -> bytes:
        """The next piece of the body, ``b""`` after the last.

        Raises:
            BodyEnded: The client ended its side before the end of the body.
            Refusal: The body stalls, or is malformed.
        """

    def prepare_head(self, status: int, headers: Headers, *, close: bool) -> None:
        """Keep the head of the answer for the first :meth:`send_answer`.

        Raises:
            h11.LocalProtocolError: A header is malformed.
        """

    async def send_answer(
        self, framing: AnswerFraming, pieces: Sequence[Buffer], *, last: bool
    ) -> None:
        """Send *pieces* of an answer; the first call sends its head before them.

        Raises:
            trio.BrokenResourceError: The client is gone.
        """

    async def send_refusal(self, refusal: Refusal) -> None:
        """Send a whole answer that refuses the request."""

    async def finish_body(self, *, keep: bool) -> bool:
        """Read and drop the rest of the body after the answer. Returns whether the
        connection can go on."""


class Exchange:
    """Runs the application for one request, in the task that calls :meth:`run`.

    The head of the answer waits for the first piece of the body and is sent with it; an
    empty piece with ``more_body`` sends the head alone. Pieces may be memoryviews; they
    may be reused when ``send`` returns.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._scope = trio.CancelScope()
        self._refusal: Refusal | None = None
        self._start: Any = None
        self._framing: AnswerFraming | None = None
        self._ended = False
        self._lost = False
        self._body_given = False
        self._status = 0
        self._sent_bytes = 0
        self._request = b""

    async def run(self) -> bool:
        """Run the application to its end. Returns whether the connection can go on."""
        began = trio.current_time()
        try:
            return await self._run()
        finally:
            note_request(self._carrier, self._status, self._sent_bytes, began, self._request)

    async def _run(self) -> bool:
        carrier = self._carrier
        head = carrier.head
        if carrier.client_ended:
            self._refusal = LEFT_EARLY
            self._scope.deadline = trio.current_time() + carrier.service.limits.header_seconds
        try:
            with self._scope:
                await carrier.service.app(self._asgi_scope(), self.receive, self.send)
        except Exception:
            # The path as it was sent: decoded, it could contain line breaks that forge lines
            # of the log. Without the query, which may contain a token.
            path = head.target.partition(b"?")[0].decode("ascii")
            log.exception("%s %s failed", head.method, path)
        return await self._end()

    def _asgi_scope(self) -> dict[str, Any]:
        carrier = self._carrier
        head = carrier.head
        raw_path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": "https" if carrier.is_tls else "http",
            "path": head.path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": carrier.client,
            "server": carrier.server,
            "state": dict(carrier.service.state),
            "extensions": {"control.refuse": self.refuse},
        }

    async def _end(self) -> bool:
        if self._lost:
            return False
        if self._framing is None:
            refusal = self._refusal or FAILED
            self._status = 0 if refusal is LEFT_EARLY else refusal.status
            await self._carrier.send_refusal(refusal)
            return await self._carrier.finish_body(keep=False)
        if not self._ended:
            return False  # shorter than announced: the peer sees the answer end early
        return await self._carrier.finish_body(keep=not self._framing.close)

    def refuse(self, status: int, message: str) -> None:
        """Cancel the application from another task, since the request is not allowed any more.

        If no answer has begun, the client gets ``status``. Otherwise the connection ends
        before the answer does, so that the client does not take it for a whole one.
        """
        self._cancel(Refusal(status, message))

    def abandon(self) -> None:
        """Cancel the application: the client has left."""
        self._cancel(LEFT_EARLY if self._carrier.body_complete else CUT_SHORT)

    def _cancel(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._scope.cancel()

    async def receive(self) -> Any:
        """ASGI's ``receive``: the next piece of the body, read from the socket now."""
        carrier = self._carrier
        if self._ended or carrier.body_cut:
            return {"type": "http.disconnect"}
        if self._body_given:
            await trio.sleep_forever()  # until the client leaves, which cancels
        try:
            piece = await carrier.read_body()
        except BodyEnded:
            return {"type": "http.disconnect"}
        except Refusal as refusal:
            self._cancel(refusal)
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        self._body_given = carrier.body_complete
        if carrier.abandoned:
            self.abandon()
        return {"type": "http.request", "body": piece, "more_body": not carrier.body_complete}

    async def send(self, message: Any) -> None:
        """ASGI's ``send``."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self._ended:
            await self._send_piece(message.get("body", b""), bool(message.get("more_body")))
        else:
            raise ValueError(f"an application cannot send {kind} at this point of its answer")

    async def _send_piece(self, piece: Buffer, more: bool) -> None:
        carrier = self._carrier
        framing = self._framing
        if framing is None:
            status = int(self._start["status"])
            headers = list(_clean(self._start.get("headers", ())))
            self._request = next((v for name, v in headers if name == REQUEST_HEADER), b"")
            framing = AnswerFraming.decide(carrier.head, status, headers)
            framing.close |= carrier.ends_after_answer
            carrier.prepare_head(status, headers, close=framing.close)
        pieces = framing.frame(piece, last=not more)
        if not more and framing.short:
            raise ValueError(f"the answer ends {framing.bytes_left} bytes before its length")
        if self._framing is None:
            self._framing = framing
            self._status = status
        self._scope.deadline = inf
        try:
            await carrier.send_answer(framing, pieces, last=not more)
            self._sent_bytes += 0 if framing.suppressed else memoryview(piece).nbytes
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost = True
            self._scope.cancel()
        if more or self._lost:
            await trio.lowlevel.checkpoint()
        else:
            self._ended = True


def _clean(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        yield bytes(name).lower(), bytes(value).strip()
