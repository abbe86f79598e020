"""One request and its answer, as the application sees them through ASGI."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import inf
from typing import Any

import trio

from control.http.connection import Connection
from control.http.heads import AnswerFraming, Refusal
from control.http.http1 import BodyEnded, Http1
from control.http.wire import Buffer

log = logging.getLogger("control.http")

LEFT_EARLY = Refusal(400, "the client ended the connection before the answer")
CUT_SHORT = Refusal(400, "the request's body ended before its announced length")
FAILED = Refusal(500, "internal server error")
REQUEST_HEADER = b"x-request-id"
"""The header with the request's id, which the access log and the other logs have."""


async def serve_requests(peer: Connection) -> None:
    """Serve the requests of one connection, one after another, until it is to be closed."""
    http = Http1(peer)
    peer.report_to(http.hang_up, http.stop)
    # Context variables that an application sets must not reach the next request of the
    # connection, so each starts with the context of the first.
    task = trio.lowlevel.current_task()
    context_at_start = task.context.copy()
    while await http.next_request() and await _answer(http):
        task.context = context_at_start.copy()


async def _answer(http: Http1) -> bool:
    exchange = Exchange(http)
    http.abandon = exchange.abandon
    try:
        return await exchange.run()
    finally:
        http.abandon = None


class Exchange:
    """Runs the application for one request, in the task that calls :meth:`run`.

    The head of the answer waits for the first piece of the body and is sent with it; an
    empty piece with ``more_body`` sends the head alone. Pieces may be memoryviews; they
    may be reused when ``send`` returns.
    """

    def __init__(self, http: Http1) -> None:
        self._http = http
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
            self._http.note(self._status, self._sent_bytes, began, self._request)

    async def _run(self) -> bool:
        http = self._http
        head = http.head
        if http.client_ended:
            self._refusal = LEFT_EARLY
            self._scope.deadline = trio.current_time() + http.service.limits.header_seconds
        try:
            with self._scope:
                await http.service.app(self._asgi_scope(), self.receive, self.send)
        except Exception:
            # The path as it was sent: decoded, it could contain line breaks that forge lines
            # of the log. Without the query, which may contain a token.
            path = head.target.partition(b"?")[0].decode("ascii")
            log.exception("%s %s failed", head.method, path)
        return await self._end()

    def _asgi_scope(self) -> dict[str, Any]:
        http = self._http
        head = http.head
        raw_path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": "https" if http.peer.is_tls else "http",
            "path": head.path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": http.client,
            "server": http.peer.server,
            "state": dict(http.service.state),
            "extensions": {"control.refuse": self.refuse},
        }

    async def _end(self) -> bool:
        if self._lost:
            return False
        if self._framing is None:
            refusal = self._refusal or FAILED
            self._status = 0 if refusal is LEFT_EARLY else refusal.status
            await self._http.send_refusal(refusal)
            return await self._http.finish_body(keep=False)
        if not self._ended:
            return False  # shorter than announced: the peer sees the answer end early
        return await self._http.finish_body(keep=not self._framing.close)

    def refuse(self, status: int, message: str) -> None:
        """Cancel the application from another task, since the request is not allowed any more.

        If no answer has begun, the client gets ``status``. Otherwise the connection ends
        before the answer does, so that the client does not take it for a whole one.
        """
        self._cancel(Refusal(status, message))

    def abandon(self) -> None:
        """Cancel the application: the client has left."""
        self._cancel(LEFT_EARLY if self._http.body_complete else CUT_SHORT)

    def _cancel(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._scope.cancel()

    async def receive(self) -> Any:
        """ASGI's ``receive``: the next piece of the body, read from the socket now."""
        http = self._http
        if self._ended or http.body_cut:
            return {"type": "http.disconnect"}
        if self._body_given:
            await trio.sleep_forever()  # until the client leaves, which cancels
        try:
            piece = await http.read_body()
        except BodyEnded:
            return {"type": "http.disconnect"}
        except Refusal as refusal:
            self._cancel(refusal)
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        self._body_given = http.body_complete
        if http.abandoned:
            self.abandon()
        return {"type": "http.request", "body": piece, "more_body": not http.body_complete}

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
        http = self._http
        framing = self._framing
        if framing is None:
            status = int(self._start["status"])
            headers = list(_clean(self._start.get("headers", ())))
            self._request = next((v for name, v in headers if name == REQUEST_HEADER), b"")
            framing = AnswerFraming.decide(http.head, status, headers)
            framing.close |= http.ends_after_answer
            http.prepare_head(status, headers, close=framing.close)
        pieces = framing.frame(piece, last=not more)
        if not more and framing.short:
            raise ValueError(f"the answer ends {framing.bytes_left} bytes before its length")
        if self._framing is None:
            self._framing = framing
            self._status = status
        self._scope.deadline = inf
        try:
            await http.send_answer(framing, pieces, last=not more)
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
