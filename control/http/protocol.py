"""HTTP/1.1 on one connection, one request at a time.

h11 reads the head of each request and writes the head of each answer: there the
attacks are. A body framed by its length is only counted, here, because h11 would copy
each of its bytes three times and make two events for each piece; one in chunks is read by
:class:`ChunkedBody`, which is stricter. So h11 never sees the end of an exchange, and
each exchange gets a new ``h11.Connection``, which is cheaper (2 µs) than leading the old
one through its states.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import format_date_time

import h11
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.events import Response as StreamResponse
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection

from control.http.chunks import ChunkedBody
from control.http.exchange import BodyEnded, Exchange
from control.http.heads import (
    Refusal,
    RequestHead,
    error_answer,
    read_head,
    refuse_loose_lines,
    refuse_many_lines,
)
from control.http.limits import BODY_PIECE_BYTES_MAX, DRAIN_BYTES_MAX
from control.http.websocket import ConnectionTasks, WebSocketStream

if TYPE_CHECKING:
    from control.http.connection import Connection

__all__ = ["Http1"]

REASONS = {int(status): status.phrase.encode("ascii") for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WEBSOCKET_END_SECONDS = 1.0
PINGS_UNANSWERED_MAX = 3
HEAD_READ_BYTES = 8 * 1024
"""h11 keeps what is read with a head until the exchange ends, so it is not much."""
CHUNKS_READ_BYTES = 64 * 1024
WEBSOCKET_READ_BYTES = 2 * 1024
"""So much is taken apart at once: up to 340 frames, of 15 µs each."""
CHUNKS_AT_ONCE = 100


class Http1(H11Protocol):
    """Reads requests, hands each to an :class:`Exchange`, and frames its answer."""

    connection: h11.Connection | H11WSConnection

    def __init__(self, peer: Connection, *args: Any) -> None:
        super().__init__(*args)
        self.peer = peer
        self.limits = peer.limits
        self.head: RequestHead
        self._buffered = b""
        self._body_left = 0
        self._chunks: ChunkedBody | None = None
        self._body_complete = True
        self._continue_owed = False
        self._waits_for_body = False
        self._ended_while_reading = False
        self.body_cut = False
        self._exchange: Exchange | None = None
        self._websocket_reader: trio.CancelScope | None = None
        self._first = True
        # Whatever an application leaves in context variables must not reach the next
        # request of the connection, so each starts from the context of its beginning.
        self._task = trio.lowlevel.current_task()
        self._context_at_start = self._task.context.copy()

    async def serve_request(self) -> bool:
        """Serve the next request; whether another may follow on this connection."""
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
        self._exchange = Exchange(self)
        try:
            keep = await self._exchange.run()
        finally:
            self._exchange = None
        if keep:
            self._task.context = self._context_at_start.copy()
        return keep

    # -- the head --------------------------------------------------------------------

    def _name_client(self) -> None:
        client = self.peer.begin_request(self.head.headers)
        if self.client is not None and client != self.client[0]:
            self.client = (client, 0)  # nobody knows its port

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
        connection = self.connection = h11.Connection(
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
            return self.connection.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                message = f"the headers are larger than {self.limits.header_bytes_max} bytes"
            else:
                message = f"bad request: {error}"
            raise Refusal(error.error_status_hint, message) from None

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a request whose framing is lost, so that the client can read it."""
        await self.peer.send([error_answer(refusal.status, refusal.message)])
        await self.peer.linger()

    # -- the body --------------------------------------------------------------------

    def _begin_body(self) -> None:
        head = self.head
        self._body_left = head.body_bytes or 0
        self._body_complete = head.body_bytes == 0
        self._continue_owed = head.expects_continue and not self._body_complete
        self._buffered = self.connection.trailing_data[0]
        self._chunks = None
        if head.body_bytes is None:
            self._chunks = ChunkedBody()
            self._chunks.feed(self._buffered)
            self._buffered = b""  # until the last chunk is read

    @property
    def body_complete(self) -> bool:
        """Whether the application has been given the whole body."""
        return self._body_complete

    @property
    def abandoned(self) -> bool:
        """Whether the client left while its last bytes were being read."""
        return self._ended_while_reading and self._body_complete

    async def read_body(self) -> bytes:
        """The next piece of the body, ``b""`` after the last.

        Raises:
            BodyEnded: The client ended its side before.
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
        """As many chunks as are here, up to a bound, so that tiny ones cost little.

        Whoever sends chunks of one byte must not hold up the loop either, hence the
        checkpoint; it comes before anything is taken, so that a cancelled call takes
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
    def keeps_after_answer(self) -> bool:
        """Whether the next request can be found behind what is unread of the body."""
        if self._body_complete:
            return True
        if self._continue_owed or self.body_cut or self._chunks is not None:
            return False
        return self._body_left - len(self._buffered) <= DRAIN_BYTES_MAX

    async def finish_body(self, *, keep: bool) -> bool:
        """After the answer: read and drop the rest; whether the connection can go on."""
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

    def answer_head(self, status: int, headers: list[tuple[bytes, bytes]], close: bool) -> bytes:
        """The bytes of an answer's head.

        Raises:
            h11.LocalProtocolError: A header is malformed.
        """
        headers = [*headers, (b"date", _date())]
        if close:
            headers.append((b"connection", b"close"))
        reason = REASONS.get(status, b"")
        data: bytes = self.connection.send(
            h11.Response(status_code=status, headers=headers, reason=reason)
        )
        return data

    def hang_up(self, *, reset: bool) -> None:
        """The client has ended its side; see :meth:`Connection.hang_up`.

        If the application waits for the body it will be told by its end. Otherwise it
        is cancelled: nobody waits for its answer. A client that had ended its side
        already when the request began may still be reading, so such a request runs,
        for a while; sending to a client that does not read brings a reset.
        """
        if self._websocket_reader is not None:
            self._websocket_reader.cancel()
        elif self._waits_for_body and not reset:
            self._ended_while_reading = True
        elif self._exchange is not None:
            self._exchange.abandon()

    # -- WebSocket -------------------------------------------------------------------

    async def _serve_websocket(self) -> None:
        assert isinstance(self.connection, h11.Connection)
        async with self.task_group as group:
            assert isinstance(group, ConnectionTasks)
            self.connection = H11WSConnection(self.connection)
            self.stream = stream = WebSocketStream(
                self.app,
                self.config,
                self.context,
                group,
                self.ssl,
                self.client,
                self.server,
                self.stream_send,
                STREAM_ID,
            )
            with trio.CancelScope() as self._websocket_reader:
                await self._read_websocket(stream)
            group.nursery.cancel_scope.deadline = trio.current_time() + WEBSOCKET_END_SECONDS
            await self.handle(Closed())
        if not stream.handshake.accepted:
            await self.peer.linger()

    async def _read_websocket(self, stream: WebSocketStream) -> None:
        await stream.handle(
            StreamRequest(
                stream_id=STREAM_ID,
                headers=[*filter(_is_no_extension, self.head.headers)],
                http_version=self.head.http_version,
                method="GET",
                raw_path=self.head.target,
                state=self.connection_state,
            )
        )
        await self._handle_events()
        while not stream.closed:
            ping_seconds = stream.ping_seconds or self.limits.websocket_ping_seconds
            patience = PINGS_UNANSWERED_MAX * ping_seconds
            try:
                data = await self.peer.receive(WEBSOCKET_READ_BYTES, trio.current_time() + patience)
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            await self.handle(RawData(data))
            await trio.lowlevel.checkpoint()

    async def stream_send(self, event: StreamEvent) -> None:
        """What the WebSocket stream says to the client."""
        if isinstance(event, StreamResponse) and event.status_code != 101:
            headers = [*event.headers, (b"connection", b"close")]
            event = StreamResponse(event.stream_id, headers, event.status_code)
        await super().stream_send(event)

    def stop(self) -> None:
        """The server stops: a WebSocket is told, a request under way may end."""
        if isinstance(self.stream, WebSocketStream) and self._websocket_reader is not None:
            self.task_group.spawn(self.stream.going_away)

    def end_websocket(self) -> None:
        """Read nothing more: all has been said, or the client is gone."""
        if self._websocket_reader is not None:
            self._websocket_reader.cancel()


def _is_no_extension(header: tuple[bytes, bytes]) -> bool:
    """The only extension is compression: 64 KiB of it may be 64 MiB of a message."""
    return header[0] != b"sec-websocket-extensions"


_date_second = 0
_date_bytes = b""


def _date() -> bytes:
    """The Date header, made once a second."""
    global _date_second, _date_bytes
    now = int(time.time())
    if now != _date_second:
        _date_second, _date_bytes = now, format_date_time(now).encode("ascii")
    return _date_bytes
