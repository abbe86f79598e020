"""One request and its answer, as the application sees them through ASGI."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.protocol.h11 import STREAM_ID
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.utils import UnexpectedMessageError

from control.http.heads import AnswerFraming, Refusal, RequestHead, error_answer

if TYPE_CHECKING:
    from control.http.protocol import Http1
    from control.http.wire import Buffer

__all__ = ["BodyEnded", "Exchange"]

log = logging.getLogger("control.http")

LEFT_EARLY = Refusal(400, "the client ended the connection before the answer")
CUT_SHORT = Refusal(400, "the request's body ended before its announced length")
FAILED = Refusal(500, "internal server error")


class BodyEnded(Exception):
    """The client ended its side before its body was complete."""


class Exchange(HTTPStream):
    """Runs the application for one request, in the connection's own task.

    The head of the answer waits for the first piece of the body and leaves with it; an
    empty piece with ``more_body`` sends the head alone. Pieces may be memoryviews; they
    are sent from where they are and may be reused when ``send`` returns.
    """

    def __init__(self, http: Http1) -> None:
        super().__init__(
            http.app,
            http.config,
            http.context,
            http.task_group,
            http.ssl,
            http.client,
            http.server,
            http.stream_send,
            STREAM_ID,
        )
        self._http = http
        self._head: RequestHead = http.head
        self._scope = trio.CancelScope()
        self._refusal: Refusal | None = None
        self._framing: AnswerFraming | None = None
        self._start: Any = None
        self._lost = False
        self._body_given = False

    async def run(self) -> bool:
        """Run the application to its end; whether the connection can go on."""
        if self._http.peer.client_ended:
            self._refusal = LEFT_EARLY
            self._scope.deadline = trio.current_time() + self._http.limits.header_seconds
        try:
            with self._scope:
                await self.app(
                    self._asgi_scope(),  # type: ignore[arg-type]
                    self.receive,
                    self.app_send,
                    trio.to_thread.run_sync,
                    trio.from_thread.run,
                )
        except Exception:
            # The path as it was sent: decoded it could hold line breaks that look like
            # lines of the log. Without the query, which may hold a token.
            path = self._head.target.partition(b"?")[0].decode("ascii")
            log.exception("%s %s failed", self._head.method, path)
        return await self._end()

    def _asgi_scope(self) -> dict[str, Any]:
        head = self._head
        raw_path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": self.scheme,
            "path": head.path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": self._http.connection_state.copy(),
            "extensions": {"control.refuse": self.refuse},
        }

    async def _end(self) -> bool:
        if self._lost:
            return False
        if self._framing is None:
            refusal = self._refusal or FAILED
            answer = error_answer(
                refusal.status, refusal.message, with_body=self._head.method != "HEAD"
            )
            await self._http.peer.send([answer])
            return await self._http.finish_body(keep=False)
        if self.state is not ASGIHTTPState.CLOSED:
            return False  # less than was promised: the peer sees the connection end early
        return await self._http.finish_body(keep=not self._framing.close)

    def refuse(self, status: int, message: str) -> None:
        """Cancel the application, which may not go on, from another task.

        Answered with ``status`` if nothing is answered yet; else the connection ends
        before the answer does, so that nobody takes it for the whole.
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
        if self.state is ASGIHTTPState.CLOSED or http.body_cut:
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

    async def app_send(self, message: Any) -> None:
        """ASGI's ``send``."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and self._unfinished:
            await self._send_piece(message.get("body", b""), bool(message.get("more_body")))
        else:
            raise UnexpectedMessageError(self.state, kind)

    @property
    def _unfinished(self) -> bool:
        return self.state is not ASGIHTTPState.CLOSED

    async def _send_piece(self, piece: bytes | memoryview, more: bool) -> None:
        buffers: list[Buffer] = []
        framing = self._framing
        if framing is None:
            framing = self._decide_framing(buffers)
        buffers += framing.frame(piece, last=not more)
        if not more and framing.short:
            raise ValueError(f"the answer ends {framing.bytes_left} bytes before its length")
        self._framing = self._http.peer.unfinished = framing
        self._scope.deadline = inf
        self.state = ASGIHTTPState.RESPONSE
        try:
            if buffers:
                await self._http.peer.send(buffers)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost = True
            self._scope.cancel()
        if more or self._lost:
            await trio.lowlevel.checkpoint()
        else:
            self.state = ASGIHTTPState.CLOSED
            self._http.peer.unfinished = None

    def _decide_framing(self, buffers: list[Buffer]) -> AnswerFraming:
        status = int(self._start["status"])
        headers = list(_clean(self._start.get("headers", ())))
        framing = AnswerFraming.decide(self._head, status, headers)
        if self._http.peer.stopping or not self._http.keeps_after_answer:
            framing.close = True
        buffers.append(self._http.answer_head(status, headers, framing.close))
        return framing


def _clean(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        yield bytes(name).lower(), bytes(value).strip()
