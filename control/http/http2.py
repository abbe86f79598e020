"""HTTP/2 on one connection (RFC 9113), over TLS, with the promises of HTTP/1.1.

h2 reads and writes the frames; :class:`FrameMeter` sees them before it does. One task
reads, one sends, and each request runs its :class:`Exchange` in a task of its own.
Browsers open six connections for HTTP/1.1, which event streams use up; here they
share one.

*Slots.* The connection has a slot, and so has each request under way on it: an address
has no more requests at once over HTTP/2 than over HTTP/1.1.

*Memory.* A client may send 64 KiB of a body before the application asks for it. When
it does, the window of that request is opened wide enough for long distances, for two
requests at a time. The connection's own window has room for all of these, so a body that
no handler reads blocks no other: behind a proxy they may be of different users. The
server stops reading from a client that does not read the replies to its frames.

*Ends.* A request ends with RST_STREAM where a connection of HTTP/1.1 would end: the
others go on. An error of the whole connection ends it with GOAWAY. That frame is made
here, since h2 sends nothing more after one of its own.

Trailers are checked by h2 and dropped. There is no push, no CONNECT, and no WebSocket
(RFC 8441): browsers open a connection of HTTP/1.1 for WebSockets.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import h11
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings

from control.http.connection import TOO_MANY, Connection
from control.http.exchange import BodyEnded, Exchange, Headers, note_request
from control.http.frames import RESET_OVERHEAD, Flooded, FrameMeter
from control.http.heads import (
    UNREAD,
    AnswerFraming,
    Refusal,
    RequestHead,
    date_header,
    read_head,
)
from control.http.limits import BODY_PIECE_BYTES_MAX, HEADER_LINES_MAX
from control.http.slots import PROGRESS_BYTES
from control.http.wire import Buffer

__all__ = ["Http2"]

log = logging.getLogger("control.http")

READ_BYTES = 64 * 1024
OUT_BYTES_MAX = 64 * 1024
"""How many bytes may wait to be sent when a piece of an answer is added. A client that
reads nothing costs three times as many: here, as ciphertext, and in OpenSSL's buffer."""
FIRST_WINDOW_BYTES = 65_535
"""The first window of a request and of the connection, by the protocol."""
WINDOW_BYTES = 1024 * 1024
"""The window of a request whose body the application reads: 20 MiB/s at 50 ms."""
WIDE_MAX = 2
"""How many requests of a connection have such a window at once. So a connection takes at
most 2 MiB, and then it has three slots of its address."""
ENCODER_TABLE_BYTES = 4096
"""The largest table of headers that we keep for a client, which may ask for 4 GiB."""
HEADER_BYTES_MAX = 32 * 1024
"""The largest head, whatever HTTP/1.1 allows: h2 takes up to 12 ms to decode it, and the
event loop waits."""
HEAD_BYTES_MORE = 8 * 1024
"""HTTP/2 counts 32 bytes more for each of the 256 headers than HTTP/1.1."""
REQUESTS_MAX = 10_000
"""How many requests a connection serves, since h2 keeps some bytes for each. Then the
client opens another."""
SENT_FRAME_BYTES_MAX = 64 * 1024
"""The largest frame that is sent, since each is copied; a client may allow 16 MiB."""
REPLY_BYTES_MAX = OUT_BYTES_MAX + 2 * SENT_FRAME_BYTES_MAX
"""How many bytes may wait to be sent when the client's next frames are read. Answers alone
are less, so window updates for them are read in time."""
CLOSE_SECONDS = 1.0
WARNING_SECONDS = 10.0
"""The time between two warnings about connections that were ended, of all clients."""
FULL = Refusal(503, "the server has as many requests under way as it can serve; try again")
SETTINGS = frozenset(SettingCodes)
"""The settings that h2 knows."""
NOT_SENT = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
"""Headers that HTTP/2 does not have."""


_warned = -math.inf


def _warn(address: str, error: Flooded) -> None:
    """Log that a connection was ended, but not each time: a client can cause many a second."""
    global _warned
    now = time.monotonic()
    if now >= _warned + WARNING_SECONDS:
        _warned = now
        log.warning("%s: an HTTP/2 connection was ended: %s", address, error)


class Http2:
    """All requests of one connection."""

    def __init__(self, peer: Connection) -> None:
        self.peer = peer
        self.service = peer.service
        self.limits = limits = peer.limits
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        # A head that is a little too large is answered with 431. Beyond that the connection
        # ends, since later frames cannot be read.
        self.header_bytes_max = min(limits.header_bytes_max, HEADER_BYTES_MAX)
        head_bytes_max = self.header_bytes_max + HEAD_BYTES_MORE
        self.h2.decoder.max_header_list_size = head_bytes_max
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams_max,
                SettingCodes.MAX_HEADER_LIST_SIZE: head_bytes_max,
            },
        )
        self._meter = FrameMeter(self.header_bytes_max)
        self._streams: dict[int, Stream] = {}
        self._nursery: trio.Nursery
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._wake = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._began = trio.current_time()
        self._block = 0
        self._block_began = 0.0
        self._requests = 0
        self._answered = 0
        self.is_dead = False
        self._body_bytes = 0
        self._wide = 0
        self._going = False
        # Read once: after a reset the kernel does not know the client's address any more.
        self.server = peer.server
        self.client = peer.peer
        self._idle_until = self._began + limits.header_seconds

    @property
    def held_by_client(self) -> bool:
        return not any(stream.has_slot for stream in self._streams.values())

    # -- life ------------------------------------------------------------------------

    async def serve(self) -> None:
        self.h2.initiate_connection()
        windows = self.limits.streams_max * FIRST_WINDOW_BYTES
        windows += WIDE_MAX * (WINDOW_BYTES - FIRST_WINDOW_BYTES)
        # Twice, since h2 gives back what was read only when it is half of the window.
        self.h2.increment_flow_control_window(2 * windows - FIRST_WINDOW_BYTES)
        self.collect()
        if self.peer.stopping:
            self._go_away(ErrorCodes.NO_ERROR)  # since the handshake
        async with trio.open_nursery() as sending:
            sending.start_soon(self._send_out, sending.cancel_scope)
            async with trio.open_nursery() as self._nursery:
                await self._read()
                self._nursery.cancel_scope.cancel()
            # A client that reads its last answer slowly gets all of it.
            with trio.move_on_after(CLOSE_SECONDS if self.is_dead else math.inf):
                await self.wait_for_room(0)
            sending.cancel_scope.cancel()
        # Closing now, while the client still sends, would discard answers that are still in
        # the kernel.
        await self.peer.end()

    def stop(self) -> None:
        """Stop: serve no further request, but let those under way end."""
        self._go_away(ErrorCodes.NO_ERROR)

    def hang_up(self, *, reset: bool) -> None:
        """Do nothing, since the reader sees the end of the connection as well."""

    def _go_away(self, code: ErrorCodes) -> None:
        """Send the client the number of the last request; its next needs a new connection."""
        if not self._going:
            self._going = True
            last = self.h2.highest_inbound_stream_id
            self._queue(struct.pack(">BHBBIII", 0, 8, 7, 0, 0, last, code))
        if not self._streams:
            self.peer.close_idle()

    async def _read(self) -> None:
        """Read until the connection is to be closed."""
        self.peer.mark_idle(True)
        while not (self._going or self._meter.client_goes) or self._streams:
            if self._out_bytes > REPLY_BYTES_MAX:
                await self.wait_for_room(REPLY_BYTES_MAX)
                continue  # the last request may have ended meanwhile
            try:
                data = await self.peer.receive(READ_BYTES, self._read_until())
            except trio.TooSlowError:
                self._go_away(ErrorCodes.NO_ERROR)
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data or not await self._take(data):
                return

    def _read_until(self) -> float:
        """When to give up waiting for the client's next frame."""
        if self._meter.in_header_block:
            if self._block != self._meter.header_blocks:
                self._block = self._meter.header_blocks
                self._block_began = trio.current_time()
            return self._block_began + self.limits.header_seconds
        return math.inf if self._streams else self._idle_until

    async def _take(self, data: bytes) -> bool:
        """Handle received bytes. Returns whether the connection goes on."""
        try:
            for piece in self._meter.feed(data):
                for event in self.h2.receive_data(piece):
                    self._handle(event)
                self.collect()
                seconds = trio.current_time() - self._began
                if self._meter.is_flooded(seconds, self._answered, self._body_bytes):
                    raise Flooded("there are too many frames without a request or a body")
                await trio.lowlevel.checkpoint()
        except Flooded as error:
            _warn(self.peer.address, error)
            self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            self.is_dead = True
            return False
        except ProtocolError:
            self.collect()  # h2's own GOAWAY
            self.is_dead = True
            return False
        return True

    # -- sending ---------------------------------------------------------------------

    def collect(self) -> None:
        """Queue the frames that h2 has to send."""
        data = self.h2.data_to_send()
        if data:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)
        self._wake.set()

    async def wait_for_room(self, bytes_max: int) -> None:
        """Return once at most *bytes_max* bytes are queued."""
        while self._out_bytes > bytes_max:
            await self._room.park()

    async def _send_out(self, scope: trio.CancelScope) -> None:
        """Send what is queued. No other task sends, so the cancellation of a request never
        cuts a frame."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                out, self._out = self._out, []
                await self.peer.send([b"".join(out)])
                self._out_bytes -= sum(map(len, out))
                self._room.unpark_all()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()  # the client is gone, or reads nothing

    # -- frames ----------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._take_data(event)
        elif isinstance(event, StreamEnded):
            if stream := self._streams.get(event.stream_id):
                stream.end_body()
        elif isinstance(event, StreamReset):
            if not event.remote_reset:
                # The client made h2 reset it (CVE-2025-8671), which is as much work.
                self._meter.charge(RESET_OVERHEAD)
            if stream := self._streams.get(event.stream_id):
                stream.leave()
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            if isinstance(event, RemoteSettingsChanged):
                # h2 would keep them, and check each again with every later SETTINGS.
                for code in event.changed_settings.keys() - SETTINGS:
                    self.h2.remote_settings.pop(code, None)
            if self.h2.encoder.header_table_size > ENCODER_TABLE_BYTES:
                self.h2.encoder.header_table_size = ENCODER_TABLE_BYTES
            for stream in self._streams.values():
                stream.window.set()

    def _take_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        padding = event.flow_controlled_length - len(event.data)
        if stream is None:
            padding += len(event.data)
        else:
            self._body_bytes += len(event.data)
            stream.take(event.data)
            if event.data:
                self._meter.charge(-1)  # it had bytes of a body
        if padding:
            self.h2.acknowledge_received_data(padding, event.stream_id)

    def _begin(self, event: RequestReceived) -> None:
        """Start the request, or refuse it."""
        self._meter.charge(-1)  # it begins a request
        number = event.stream_id
        if self._going:
            self._meter.charge(RESET_OVERHEAD)
            self.reset(number, ErrorCodes.REFUSED_STREAM)
            return
        self._requests += 1
        if self._requests >= REQUESTS_MAX:
            self._go_away(ErrorCodes.NO_ERROR)
        stream = Stream(self, number, _length(event.headers))
        if not self._streams:
            self.peer.mark_served()
            self.peer.mark_idle(False)
        self._streams[number] = stream
        self._nursery.start_soon(self._run, stream, list(event.headers), event.stream_ended is None)

    async def _run(self, stream: Stream, headers: Headers, has_body: bool) -> None:
        try:
            await stream.run(headers, has_body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has reset it
        finally:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self.peer.admission.remove(stream)
        if not self.is_dead:
            self._answered += stream.close()
            self.collect()
        if not self._streams:
            self._idle_until = trio.current_time() + self.limits.keep_alive_seconds
            self.peer.mark_idle(True)
            self.peer.limit_wait(self._idle_until)
            if self._going or self._meter.client_goes:
                self.peer.close_idle()

    # -- windows ---------------------------------------------------------------------

    def widen(self, number: int) -> bool:
        """Give the body of a request a wide window until :meth:`narrow`, unless as many others
        as allowed have one. Returns whether it has."""
        if self._wide == WIDE_MAX:
            return False
        self._wide += 1
        self.h2.increment_flow_control_window(WINDOW_BYTES - FIRST_WINDOW_BYTES, number)
        return True

    def narrow(self) -> None:
        """Count a request with a wide window as ended."""
        self._wide -= 1

    def reset(self, number: int, code: ErrorCodes) -> None:
        """End the stream, unless the client has just done so."""
        with suppress(StreamClosedError):
            self.h2.reset_stream(number, code)

    def cut(self, number: int) -> None:
        """End a stream for which the client has broken the protocol."""
        self._meter.charge(RESET_OVERHEAD)
        self.reset(number, ErrorCodes.PROTOCOL_ERROR)

    def refuse_more(self) -> None:
        """Serve no further request on this connection."""
        self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)

    def count_sent(self, body_bytes: int) -> None:
        self._body_bytes += body_bytes


class Stream:
    """One request: the :class:`~control.http.exchange.Carrier` of its exchange.

    Attributes:
        body: The bytes that were received and that the application has not read.
        arrived: Set when there is more of it, or its end.
        window: Set when the client may have opened a window.
        has_slot: Whether it has a slot. A request that was refused, or evicted and has
            not ended yet, has none.
    """

    def __init__(self, http2: Http2, number: int, length: int | None) -> None:
        self.number = number
        self.service = http2.service
        self.is_tls = http2.peer.is_tls
        self.server = http2.server
        self.client = http2.client
        self.client_ended = False
        self.abandoned = False
        self.ends_after_answer = False
        self.head = replace(UNREAD, http_version="2")
        self.body = bytearray()
        self.body_cut = False
        self.arrived = trio.Event()
        self.window = trio.Event()
        self.has_slot = False
        self._http2 = http2
        self._peer = http2.peer
        self._body_ended = False
        self._length = length
        self._received_bytes = 0
        self._continue_owed = False
        self._waits = 0
        self._wide = False
        self._moved_bytes = 0
        self._answer_head: list[tuple[bytes, bytes]] | None = None
        self._begun = False
        self._ended = False
        self._gone = False
        self._scope = trio.CancelScope()
        self._exchange: Exchange | None = None

    async def run(self, headers: Headers, has_body: bool) -> None:
        """Serve the request to its end."""
        self._body_ended = self._body_ended or not has_body
        if self._gone:
            return
        with self._scope:
            try:
                self.head = self._read_head(headers)
                self._admit()
            except Refusal as refusal:
                note_request(self, refusal.status, 0, trio.current_time())
                await self.send_refusal(refusal)
                if refusal.status == 431:
                    self._http2.refuse_more()
                return
            self._continue_owed = self.head.expects_continue and not self.body_complete
            self._exchange = Exchange(self)
            await self._exchange.run()

    def _read_head(self, headers: Headers) -> RequestHead:
        if (b":method", b"HEAD") in headers:
            self.head = replace(self.head, method="HEAD")
        bytes_max = self._http2.header_bytes_max
        if sum(len(name) + len(value) + 4 for name, value in headers) > bytes_max:
            raise Refusal(431, f"the headers are larger than {bytes_max} bytes")
        if len(headers) > HEADER_LINES_MAX:
            raise Refusal(431, f"there are more than {HEADER_LINES_MAX} headers")
        return read_head(_as_http1(headers), "2")

    def _admit(self) -> None:
        """Take a slot for the client that sent the request."""
        client = self._peer.client_of(self.head.headers)
        if self.client is not None and client != self.client[0]:
            self.client = (client, 0)  # its port is not known
        admission = self._peer.admission
        if not admission.make_room(client):
            raise TOO_MANY
        if admission.is_full:
            raise FULL
        admission.add(self, client)
        self.has_slot = True

    # -- the slot --------------------------------------------------------------------

    @property
    def held_by_client(self) -> bool:
        return self._waits > 0 or (self._begun and not self._ended)

    def evict(self) -> None:
        """End the request, since another one gets its slot."""
        self._peer.admission.remove(self)
        self.has_slot = False
        self._scope.cancel()

    def _count(self, moved_bytes: int) -> None:
        self._moved_bytes += moved_bytes
        if self._moved_bytes >= PROGRESS_BYTES:
            self._moved_bytes = 0
            self._peer.admission.note_progress(self)

    # -- the body --------------------------------------------------------------------

    @property
    def body_complete(self) -> bool:
        return self._body_ended and not self.body

    def take(self, data: bytes) -> None:
        """Add a part of the body."""
        self.body += data
        self._received_bytes += len(data)
        self.arrived.set()

    def end_body(self) -> None:
        """End the body. It is whole, unless the head announced more.

        h2 compares the two only if the last frame is of the body: not if trailers follow,
        nor if the head ends the stream.
        """
        if self._length is not None and self._received_bytes != self._length:
            self._http2.cut(self.number)
            self.leave()
            return
        self._body_ended = True
        self.arrived.set()

    async def read_body(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._gone:
            self._ask_for_body()
            if not self.body and not self._body_ended:
                await self._wait_for_body()
        if self._gone:
            self.body_cut = True
            raise BodyEnded
        piece = bytes(self.body[:BODY_PIECE_BYTES_MAX])
        del self.body[: len(piece)]
        if piece:
            self._count(len(piece))
            self._http2.h2.acknowledge_received_data(len(piece), self.number)
            self._http2.collect()
        return piece

    def _ask_for_body(self) -> None:
        # A body of unknown length has 0 here.
        large = not 0 < (self.head.body_bytes or 0) <= FIRST_WINDOW_BYTES
        if large and not self._body_ended and not self._wide:
            self._wide = self._http2.widen(self.number)
        if self._continue_owed:
            self._continue_owed = False
            self._http2.h2.send_headers(self.number, [(b":status", b"100")])
        self._http2.collect()

    async def _wait_for_body(self) -> None:
        seconds = self.service.limits.body_stall_seconds
        self.arrived = trio.Event()
        self._waits += 1
        try:
            with trio.move_on_after(seconds) as scope:
                await self.arrived.wait()
        finally:
            self._waits -= 1
        if scope.cancelled_caught:
            raise Refusal(408, f"no byte of the body arrived for {seconds:g} seconds")

    def leave(self) -> None:
        """End the request: the client has reset the stream, or must not get an answer."""
        self._gone = True
        self._drop_body()
        self.window.set()
        if self._waits and not self._begun:
            self.arrived.set()  # the application sees the body end
        elif self._exchange is not None:
            self._exchange.abandon()

    async def finish_body(self, *, keep: bool) -> bool:
        """Do nothing: the rest of the body is dropped when the stream is closed."""
        return keep

    # -- the answer ------------------------------------------------------------------

    def prepare_head(self, status: int, headers: Headers, *, close: bool) -> None:
        lines = [*headers, (b"date", date_header())]
        h11.Response(status_code=status, headers=lines)  # raises the same errors as HTTP/1.1
        self._answer_head = [
            (b":status", b"%d" % status),
            *((name, value) for name, value in lines if name not in NOT_SENT),
        ]

    async def send_answer(
        self, framing: AnswerFraming, pieces: Sequence[Buffer], *, last: bool
    ) -> None:
        await self._send(pieces, last=last)

    async def send_refusal(self, refusal: Refusal) -> None:
        """Send a refusal. This never waits, since a refused request has no slot, so that its
        wait could not be ended. A client without a window for the message gets the status
        alone."""
        self._refuse_gone()
        h2 = self._http2.h2
        kind, body = self.service.explain(self.server, refusal)
        is_head = self.head.method == "HEAD"
        if not is_head and len(body) > min(
            h2.local_flow_control_window(self.number), h2.max_outbound_frame_size
        ):
            body = b""
        lines = [
            (b":status", b"%d" % refusal.status),
            (b"content-type", kind.encode("ascii")),
            (b"content-length", b"%d" % len(body)),
        ]
        alone = is_head or not body
        self._begun = self._ended = True
        h2.send_headers(self.number, lines, end_stream=alone)
        if not alone:
            h2.send_data(self.number, body, end_stream=True)
        self._http2.collect()

    async def _send(self, pieces: Sequence[Buffer], *, last: bool) -> None:
        h2 = self._http2.h2
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        self._refuse_gone()
        if self._answer_head is not None:
            self._begun = True
            self._continue_owed = False
            self._ended = last and not views
            h2.send_headers(self.number, self._answer_head, end_stream=self._ended)
            self._answer_head = None
        for number, view in enumerate(views, 1):
            await self._send_view(view, last=last and number == len(views))
        if last and not self._ended:
            self._ended = True
            h2.end_stream(self.number)
        self._http2.collect()

    async def _send_view(self, view: memoryview, *, last: bool) -> None:
        h2 = self._http2.h2
        while view:
            await self._http2.wait_for_room(OUT_BYTES_MAX)
            self._refuse_gone()
            size = min(len(view), h2.local_flow_control_window(self.number))
            size = min(size, h2.max_outbound_frame_size, SENT_FRAME_BYTES_MAX)
            if size <= 0:
                await self._wait_for_window()
                continue
            self._ended = last and size == len(view)
            h2.send_data(self.number, bytes(view[:size]), end_stream=self._ended)
            self._http2.collect()
            self._http2.count_sent(size)
            self._count(size)
            view = view[size:]

    async def _wait_for_window(self) -> None:
        """Wait until a byte of the answer may be sent. Updates of other windows, and
        settings, do not prolong the wait."""
        self._http2.collect()
        h2 = self._http2.h2
        self._waits += 1
        try:
            with trio.move_on_after(self.service.limits.send_stall_seconds) as scope:
                while not self._gone and h2.local_flow_control_window(self.number) <= 0:
                    self.window = trio.Event()
                    await self.window.wait()
        finally:
            self._waits -= 1
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client reads nothing of the answer")

    def _refuse_gone(self) -> None:
        if self._gone or self._http2.is_dead:
            raise trio.BrokenResourceError("the client has reset the stream")

    def close(self) -> bool:
        """Reset the stream if it is not complete, and give back the window of unread bytes.
        Returns whether the request was answered."""
        self._drop_body()
        if not self._gone and not (self._ended and self._body_ended):
            code = ErrorCodes.NO_ERROR if self._ended else ErrorCodes.INTERNAL_ERROR
            self._http2.h2.reset_stream(self.number, code)
        return self._ended and not self._gone

    def _drop_body(self) -> None:
        """Give back the windows of bytes that no handler will read."""
        if self.body:
            self._http2.h2.acknowledge_received_data(len(self.body), self.number)
            self.body.clear()
        if self._wide:
            self._wide = False
            self._http2.narrow()


def _length(headers: Headers) -> int | None:
    """The announced size of the body; h2 has checked that it is a number."""
    return next((int(value) for name, value in headers if name == b"content-length"), None)


def _as_http1(headers: Headers) -> h11.Request:
    """The same request in the form of HTTP/1.1, checked as strictly.

    Raises:
        Refusal: HTTP/1.1 could not have it.
    """
    method = target = authority = b""
    lines: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name == b":method":
            method = value
        elif name == b":path":
            target = value
        elif name == b":authority":
            authority = value
        elif not name.startswith(b":") and name != b"host":
            lines.append((name, value))
        elif name == b"host":
            authority = authority or value
    if not target.startswith((b"/", b"*")):
        # HTTP/1.1 may have a whole URL here. A proxy that does not expect one here finds
        # another path in it than we do.
        raise Refusal(400, "the request target must be a path that starts with '/'")
    try:
        return h11.Request(method=method, target=target, headers=[(b"host", authority), *lines])
    except h11.LocalProtocolError as error:
        raise Refusal(400, f"bad request: {error}") from None
