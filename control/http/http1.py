"""HTTP/1.1 on one connection, one request at a time.

h11 reads the head of each request and writes the head of each answer, since most attacks
aim at these. A body with a length is only counted, here, because h11 would copy
each of its bytes three times and make two events for each piece; a body in chunks is read
by :class:`ChunkedBody`, which is stricter. So h11 never sees the end of an exchange, and
each exchange gets a new ``h11.Connection``, which is cheaper (2 µs) than leading the old
one through its states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import h11
import trio

from control.http.access_log import Access
from control.http.chunks import ChunkedBody
from control.http.connection import Connection
from control.http.heads import (
    UNREAD,
    AnswerFraming,
    Refusal,
    date_header,
    error_answer,
    read_head,
    refuse_loose_lines,
    refuse_many_lines,
)
from control.http.limits import BODY_PIECE_BYTES_MAX, DRAIN_BYTES_MAX
from control.http.service import Headers
from control.http.websocket import WebSocket
from control.http.wire import Buffer

REASONS = {int(status): status.phrase.encode("ascii") for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_READ_BYTES = 8 * 1024
"""How much is read at once with a head: h11 keeps it until the exchange ends."""
CHUNKS_READ_BYTES = 64 * 1024
CHUNKS_AT_ONCE = 100


class BodyEnded(Exception):
    """The client ended its side before its body was complete."""


class Http1:
    """Reads the requests of one connection, one after another, and frames their answers.

    Attributes:
        head: The present request's head.
        client: Address and port of the client, as far as they are known.
        body_cut: Whether the client ended its side before its body was complete.
        abandon: Called when the client leaves during a request; None between requests.
    """

    def __init__(self, peer: Connection) -> None:
        self.peer = peer
        self.service = peer.service
        self.limits = peer.limits
        self.client = self._peer_address = peer.peer
        self.head = UNREAD
        self.body_cut = False
        self._h11: h11.Connection
        self._buffered = b""
        self._body_left = 0
        self._chunks: ChunkedBody | None = None
        self._body_complete = True
        self._continue_owed = False
        self._continue_first = False
        self._waits_for_body = False
        self._ended_while_reading = False
        self._answer_head: bytes | None = None
        self.abandon: Callable[[], None] | None = None
        self._websocket: WebSocket | None = None
        self._first = True

    @property
    def client_ended(self) -> bool:
        """Whether the client has ended its side."""
        return self.peer.client_ended

    def note(self, status: int, sent_bytes: int, began: float, request: bytes = b"") -> None:
        """Log a request that has ended; ``began`` is by Trio's clock."""
        if self.service.note is not None:
            head = self.head
            self.service.note(
                Access(
                    client=self.client[0] if self.client else "-",
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

    async def next_request(self) -> bool:
        """Read the head of the next request. Returns False when the connection is to be closed:
        there is none, or it was answered here, as a WebSocket is."""
        self.head = UNREAD
        try:
            request = await self._read_request()
            if request is None:
                return False
            self.head = read_head(request)
            self._name_client()
        except Refusal as refusal:
            await self._refuse(refusal)
            return False
        self._begin_body()
        if self.head.is_websocket:
            await self._serve_websocket()
            return False
        return True

    # -- the head --------------------------------------------------------------------

    def _name_client(self) -> None:
        client = self.peer.begin_request(self.head.headers)
        self.client = self._peer_address
        if self.client is not None and client != self.client[0]:
            self.client = (client, 0)  # its port is not known

    async def _read_request(self) -> h11.Request | None:
        accepted = trio.current_time()
        data = self._buffered
        if data:
            await trio.lowlevel.checkpoint()
        else:
            data = await self._wait_for_request(accepted)
            if not data:
                return None
        began = accepted if self._first else trio.current_time()
        deadline = began + self.limits.header_seconds
        connection = self._h11 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=self.limits.header_bytes_max
        )
        size = 0
        received = bytearray()
        while True:
            size += len(data)
            received += data
            refuse_many_lines(received)
            connection.receive_data(data)
            event = self._next_event()
            if isinstance(event, h11.Request):
                self._first = False
                refuse_loose_lines(received[: size - len(connection.trailing_data[0])])
                return event
            if event is not h11.NEED_DATA:
                return None
            room = max(self.limits.header_bytes_max + 1 - size, 1)
            try:
                data = await self.peer.receive(min(room, HEAD_READ_BYTES), deadline)
            except trio.TooSlowError:
                raise Refusal(
                    408,
                    "the request's headers did not arrive within "
                    f"{self.limits.header_seconds:g} seconds",
                ) from None

    async def _wait_for_request(self, now: float) -> bytes:
        if self.peer.stopping:
            return b""
        limits = self.limits
        patience = limits.header_seconds if self._first else limits.keep_alive_seconds
        self.peer.mark_idle(True)
        try:
            return await self.peer.receive(
                min(HEAD_READ_BYTES, self.limits.header_bytes_max + 1), now + patience
            )
        except trio.TooSlowError:
            return b""
        finally:
            self.peer.mark_idle(False)

    def _next_event(self) -> Any:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                message = f"the headers are larger than {self.limits.header_bytes_max} bytes"
            else:
                message = f"bad request: {error}"
            raise Refusal(error.error_status_hint, message) from None

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a request whose framing is lost, so that the client can read it."""
        self.note(refusal.status, 0, trio.current_time())
        explained = self.service.explain(self.peer.server, refusal)
        await self.peer.send([error_answer(refusal.status, explained)])
        await self.peer.linger()

    # -- the body --------------------------------------------------------------------

    def _begin_body(self) -> None:
        head = self.head
        self._body_left = head.body_bytes or 0
        self._body_complete = head.body_bytes == 0
        self._continue_owed = head.expects_continue and not self._body_complete
        # No body is to be waited for; but botocore, which expects this for empty objects, too,
        # takes an answer without it for that of its next request on the connection as well.
        self._continue_first = head.expects_continue and self._body_complete
        self._buffered = self._h11.trailing_data[0]
        self._chunks = None
        if head.body_bytes is None:
            self._chunks = ChunkedBody()
            self._chunks.feed(self._buffered)
            self._buffered = b""  # until the last chunk is read

    @property
    def body_complete(self) -> bool:
        """Whether the application has the whole body."""
        return self._body_complete

    @property
    def abandoned(self) -> bool:
        """Whether the client left while its last bytes were being read."""
        return self._ended_while_reading and self._body_complete

    async def read_body(self) -> bytes:
        """The next piece of the body, ``b""`` after the last.

        Raises:
            BodyEnded: The client ended its side before the end of the body.
            Refusal: The body stalls, or its chunks are malformed.
        """
        try:
            return await self._next_piece()
        except BodyEnded:
            self.body_cut = True
            raise

    async def _next_piece(self) -> bytes:
        if self._body_complete:
            return b""
        if self._chunks is not None:
            return await self._read_chunked(self._chunks)
        if self._buffered:
            piece = self._buffered[: self._body_left]
            self._buffered = self._buffered[self._body_left :]
        else:
            piece = await self._receive_body(min(self._body_left, BODY_PIECE_BYTES_MAX))
        self._body_left -= len(piece)
        self._body_complete = self._body_left == 0
        return piece

    async def _read_chunked(self, chunks: ChunkedBody) -> bytes:
        """As many chunks as have arrived, up to a bound, so that tiny ones cost little.

        A client that sends chunks of one byte must not block the loop either, hence the
        checkpoint. It comes before anything is read, so that a cancelled call reads
        nothing.
        """
        await trio.lowlevel.checkpoint()
        pieces: list[bytes] = []
        while len(pieces) < CHUNKS_AT_ONCE:
            if piece := chunks.next_piece():
                pieces.append(piece)
            elif chunks.complete:
                self._body_complete = True
                self._buffered = chunks.rest
                break
            elif pieces:
                break
            else:
                chunks.feed(await self._receive_body(CHUNKS_READ_BYTES))
        return b"".join(pieces)

    async def _receive_body(self, bytes_max: int) -> bytes:
        if self._continue_owed:
            self._continue_owed = False
            await self.peer.send([CONTINUE])
        self._waits_for_body = True
        try:
            data = await self.peer.receive(
                bytes_max, trio.current_time() + self.limits.body_stall_seconds
            )
        except trio.TooSlowError:
            raise Refusal(
                408,
                f"no byte of the body arrived for {self.limits.body_stall_seconds:g} seconds",
            ) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise BodyEnded from None
        finally:
            self._waits_for_body = False
        if not data:
            raise BodyEnded
        return data

    @property
    def ends_after_answer(self) -> bool:
        """Whether the server stops, or the next request cannot be found behind what is
        unread of the body."""
        if self.peer.stopping:
            return True
        if self._body_complete:
            return False
        if self._continue_owed or self.body_cut or self._chunks is not None:
            return True
        return self._body_left - len(self._buffered) > DRAIN_BYTES_MAX

    async def finish_body(self, *, keep: bool) -> bool:
        """Read and drop the rest of the body after the answer. Returns whether the
        connection can go on."""
        if not keep:
            if not self._body_complete or self._buffered:
                await self.peer.linger()
            return False
        if self._body_complete:
            return True
        with trio.move_on_after(self.limits.linger_seconds) as scope:
            try:
                while await self.read_body():
                    pass
            except (BodyEnded, Refusal):
                return False
        return not scope.cancelled_caught

    # -- the answer ------------------------------------------------------------------

    def prepare_head(self, status: int, headers: Headers, *, close: bool) -> None:
        """Keep the head of the answer for the first :meth:`send_answer`.

        Raises:
            h11.LocalProtocolError: A header is malformed.
        """
        self._answer_head = self._head_bytes(status, headers, close=close)

    def _head_bytes(self, status: int, headers: Headers, *, close: bool) -> bytes:
        lines = [*headers, (b"date", date_header())]
        if close:
            lines.append((b"connection", b"close"))
        reason = REASONS.get(status, b"")
        data = self._h11.send(h11.Response(status_code=status, headers=lines, reason=reason))
        return data or b""

    async def send_answer(
        self, framing: AnswerFraming, pieces: Sequence[Buffer], *, last: bool
    ) -> None:
        """Send *pieces* of an answer; the first call sends its head before them.

        Raises:
            trio.BrokenResourceError: The client is gone.
        """
        self.peer.unfinished = framing
        self._continue_owed = False  # the client would take it for a part of the answer
        if self._answer_head is not None:
            pieces = [self._answer_head, *pieces]
            self._answer_head = None
            if self._continue_first:
                self._continue_first = False
                pieces = [CONTINUE, *pieces]
        if pieces:
            await self.peer.send(pieces)
        if last:
            self.peer.unfinished = None

    async def send_refusal(self, refusal: Refusal) -> None:
        """Send a whole answer that refuses the request."""
        with_body = self.head.method != "HEAD"
        explained = self.service.explain(self.peer.server, refusal)
        await self.peer.send([error_answer(refusal.status, explained, with_body=with_body)])

    def hang_up(self, reset: bool) -> None:
        """Handle that the client has ended its side; see :meth:`Connection.hang_up`.

        An application that waits for the body sees it end. Otherwise it is cancelled, since
        nobody waits for its answer. A client that had ended its side already when the
        request began may still be reading, so such a request runs for a while; if the
        client does not read, sending fails with a reset.
        """
        if self._websocket is not None:
            self._websocket.end_reading()
        elif self._waits_for_body and not reset:
            self._ended_while_reading = True
        elif self.abandon is not None:
            self.abandon()

    def stop(self) -> None:
        """Stop: close a WebSocket, but let a request under way end."""
        if self._websocket is not None:
            self._websocket.stop()

    async def _serve_websocket(self) -> None:
        head_bytes = functools.partial(self._head_bytes, close=True)
        self._websocket = WebSocket(self.peer, self.head, self.client, head_bytes)
        began = trio.current_time()
        try:
            await self._websocket.run(self._buffered)
        finally:
            self.note(self._websocket.status, self._websocket.sent_bytes, began)
            self._websocket = None
