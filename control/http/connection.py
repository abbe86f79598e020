"""One client's connection: who may wait for what, and how it ends.

One task serves a connection and runs the application in it, request after request.
Hypercorn starts a task per request and a timer task per idle time, and reads ahead to
notice a client that leaves; here nothing is read before the application asks for it,
and the server's hang-up watch (see ``server.py``) calls :meth:`Connection.hang_up`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from control.http.heads import AnswerFraming, Refusal
from control.http.limits import HttpLimits
from control.http.protocol import Http1
from control.http.websocket import ConnectionTasks
from control.http.wire import Buffer, Wire

if TYPE_CHECKING:
    from control.http.server import Server

__all__ = ["Connection"]

log = logging.getLogger("control.http")

LINGER_PIECE_BYTES = 256 * 1024
JOIN_BYTES_MAX = 64 * 1024
ENCRYPT_BYTES_MAX = 256 * 1024


class Connection(TCPServer):
    """Serve one accepted socket; ``await connection.run()`` returns when it is closed.

    Attributes:
        client_ended: The client has ended its side.
        unfinished: An answer that was begun and is not yet all sent.
    """

    def __init__(self, server: Server, sock: socket.socket, address: str) -> None:
        self.wire = wire = Wire(sock, server.limits.send_stall_seconds, self._get_on)
        self.limits: HttpLimits = server.limits
        self._server = server
        self._reading: trio.CancelScope | None = None
        self._idle = False
        self._served = False
        self._send_was_cut = False
        self._scope = trio.CancelScope()
        self._address = address
        self._client = address
        self.client_ended = False
        self.unfinished: AnswerFraming | None = None
        stream: Any = wire
        if server.tls is not None:
            stream = trio.SSLStream(wire, server.tls, server_side=True)
        super().__init__(server.app, server.config, server.context, ConnectionState({}), stream)
        self.state = server.lifespan_state
        self.http: Http1 | None = None

    @property
    def stopping(self) -> bool:
        """Whether the server stops, so that no further request is taken."""
        return self._server.stopping

    async def run(self) -> None:
        try:
            with self._scope:
                if await self._shake_hands():
                    self.http = self._make_protocol()
                    while await self.http.serve_request():
                        pass
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone, or treated as gone
        except Exception:
            log.exception("a connection failed")  # a mistake of ours; the others go on
        finally:
            self._server.forget(self)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._close()

    async def _shake_hands(self) -> bool:
        if not isinstance(self.stream, trio.SSLStream):
            return True
        try:
            with trio.fail_after(self.limits.header_seconds):
                await self.stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError):
            return False
        return True

    def _make_protocol(self) -> Http1:
        sock = self.wire.sock
        return Http1(
            self,
            self.app,
            self.config,
            self.context,
            ConnectionTasks(),
            ConnectionState(self.state),
            self._server.tls is not None,
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
            self.protocol_send,
        )

    # -- moving bytes ----------------------------------------------------------------

    async def receive(self, bytes_max: int, deadline: float) -> bytes:
        """Read from the client; ``b""`` once it has ended.

        Raises:
            trio.TooSlowError: Nothing came until *deadline*, or the wait was ended by
                :meth:`close_idle`.
            trio.BrokenResourceError: The connection is gone.
        """
        with trio.CancelScope(deadline=deadline) as self._reading:
            return bytes(await self.stream.receive_some(bytes_max))
        raise trio.TooSlowError

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send *buffers* in order; see :meth:`Wire.send_buffers` for the contract.

        If cancelled, nobody knows how much of them is sent, so that whatever followed
        would be taken by the peer for the rest of them: nothing can be sent afterwards.
        """
        if self._send_was_cut:
            raise trio.BrokenResourceError("an earlier send was cancelled half-way")
        self._send_was_cut = True
        if isinstance(self.stream, trio.SSLStream):
            for piece in _for_tls(buffers):
                await self.stream.send_all(piece)
        else:
            await self.wire.send_buffers(buffers)
        self._send_was_cut = False

    async def protocol_send(self, event: Event) -> None:
        """What Hypercorn's WebSocket code sends through."""
        if isinstance(event, RawData):
            async with self.send_lock:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.send([event.data])
                    return
            self.end_websocket()
        elif isinstance(event, Closed):
            self.end_websocket()

    def end_websocket(self) -> None:
        """End the exchange: the peer is gone or all has been said."""
        if self.http is not None:
            self.http.end_websocket()

    # -- the slot --------------------------------------------------------------------

    @property
    def held_by_client(self) -> bool:
        """Whether it is the client that this connection does not get on for."""
        return self.wire.waits > 0 or self.unfinished is not None

    def _get_on(self) -> None:
        self._server.got_on(self)

    def mark_idle(self, idle: bool) -> None:
        """Tell the server whether this connection waits for its next request."""
        if idle is not self._idle:
            self._idle = idle
            if idle and self._client != self._address:
                self._client = self._address
                self._server.move(self, self._address)
            self._server.got_on(self, idle=idle and self._served)

    def begin_request(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of the client that a request with *headers* is of.

        Behind a proxy the slot is that client's for the time of the request.

        Raises:
            Refusal: That client has too many of them.
        """
        self._served = True
        client = self._server.proxies.client(self._address, headers)
        if client != self._client:
            if not self._server.move(self, client):
                raise Refusal(429, "too many connections of your address; end some, or wait")
            self._client = client
        return client

    def evict(self) -> None:
        """Close now, for another connection: its client is slow."""
        self._server.forget(self)
        if not self._idle:
            self.wire.reset()  # what it does not read would stay in the kernel's buffers
        self._scope.cancel()

    # -- being told ------------------------------------------------------------------

    def close_idle(self) -> None:
        """End the wait for the next request; the connection then closes."""
        if self._idle and self._reading is not None:
            self._reading.cancel()

    def stop(self) -> None:
        """The server stops: end now if idle, otherwise after the present exchange."""
        self.close_idle()
        if self.http is not None:
            self.http.stop()

    def hang_up(self, *, reset: bool) -> None:
        """The client has ended its side (or, if *reset*, both)."""
        self.client_ended = True
        if self.http is not None:
            self.http.hang_up(reset=reset)

    # -- the end ---------------------------------------------------------------------

    async def linger(self) -> None:
        """Read and drop what the client still sends, within the limits.

        Closing a socket with unread bytes resets the connection, and a reset makes the
        client's system throw away the answer it has not read yet.
        """
        left = self.limits.linger_bytes
        with trio.move_on_after(self.limits.linger_seconds):
            if not isinstance(self.stream, trio.SSLStream):
                self.wire.end_sending()
            while left > 0:
                data = await self.wire.receive_some(LINGER_PIECE_BYTES)
                if not data:
                    return
                left -= len(data)

    async def _close(self) -> None:
        """Close, and never let half an answer look like a whole one.

        TLS ends with a word of its own (``close_notify``), which is said only after
        whole answers. Without TLS an answer that lasts until the connection ends can be
        told from its beginning only by a reset.
        """
        try:
            if self.unfinished is None and not self._send_was_cut:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.stream.aclose()
            elif self.unfinished is not None and self.unfinished.until_close:
                self.wire.reset()
        finally:
            await self.wire.aclose()


def _for_tls(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """*buffers* in the pieces that are encrypted at once.

    A small head goes into one TLS record with what follows it, if that is small too. A
    large buffer is cut, because its ciphertext is a second copy and the others wait
    while it is made.
    """
    views = [memoryview(piece).cast("B") for piece in buffers]
    if len(views) > 1 and sum(view.nbytes for view in views) <= JOIN_BYTES_MAX:
        yield b"".join(views)
        return
    for view in views:
        for start in range(0, view.nbytes, ENCRYPT_BYTES_MAX):
            yield view[start : start + ENCRYPT_BYTES_MAX]
