"""One client's connection: its bytes, its slot, and how it ends.

One task serves a connection. Bytes are read only when it asks for them; the
server's watch (see ``hangups.py``) notices a client that leaves meanwhile, and calls
:meth:`Connection.hang_up`.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import trio

from control.http.admission import Admission
from control.http.hangups import HangUps
from control.http.heads import AnswerFraming, Refusal
from control.http.service import Address, Service
from control.http.wire import Buffer, Wire

log = logging.getLogger("control.http")

LINGER_PIECE_BYTES = 256 * 1024
END_SECONDS = 1.0
"""How long the client has to answer the end of TLS."""
JOIN_BYTES_MAX = 64 * 1024
ENCRYPT_BYTES_MAX = 256 * 1024
TOO_MANY = Refusal(429, "too many connections of your address; end some, or wait")


class Connection:
    """Serve one accepted socket; ``await connection.run(...)`` returns when it is closed.

    Attributes:
        address: The address of the peer; behind a proxy that of the proxy.
        client_ended: Whether the client has ended its side.
        unfinished: Whether an answer was begun and is not sent completely.
    """

    def __init__(
        self,
        service: Service,
        admission: Admission,
        hang_ups: HangUps,
        sock: socket.socket,
        address: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.service = service
        self.limits = service.limits
        self.admission = admission
        self.wire = wire = Wire(sock, service.limits.send_stall_seconds, self._note_progress)
        self.stream: trio.abc.Stream = wire
        if tls is not None:
            self.stream = trio.SSLStream(wire, tls, server_side=True)
        self.is_tls = tls is not None
        self.client_ended = False
        self.unfinished: AnswerFraming | None = None
        self._hang_ups = hang_ups
        self.address = address
        self._client = address
        self._on_hang_up: Callable[[bool], None] | None = None
        self._on_stop: Callable[[], None] | None = None
        self._reading: trio.CancelScope | None = None
        self._idle = False
        self._served = False
        self._send_was_cut = False
        self._scope = trio.CancelScope()

    @property
    def stopping(self) -> bool:
        """Whether the server stops, so that no further request is served."""
        return self.service.stopping.is_set()

    @property
    def peer(self) -> Address | None:
        """Address and port of the other end."""
        return _address(self.wire.sock.getpeername())

    @property
    def server(self) -> Address | None:
        """Address and port of this end."""
        return _address(self.wire.sock.getsockname())

    def admit(self) -> None:
        """Take a slot and start the watch. Raises OSError if the kernel cannot watch it."""
        self._hang_ups.add(self.wire.sock.fileno(), self)
        self.admission.add(self, self.address)

    def _leave(self) -> None:
        """Free the slot and end the watch, before the socket is closed."""
        self.admission.remove(self)
        self._hang_ups.remove(self.wire.sock.fileno())

    async def run(self, serve: Callable[[Connection], Awaitable[None]]) -> None:
        """Serve the client to the end, by *serve*, which calls :meth:`report_to`."""
        try:
            with self._scope:
                if await self._shake_hands():
                    await serve(self)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or reads nothing
        except Exception:
            log.exception("a connection failed")  # a bug; the other connections go on
        finally:
            self._leave()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._close()
            # What they belong to has this connection: together they would stay in memory.
            self._on_hang_up = self._on_stop = None

    async def _shake_hands(self) -> bool:
        """Begin TLS, where it is used; False if that failed."""
        if isinstance(self.stream, trio.SSLStream):
            try:
                with trio.fail_after(self.limits.header_seconds):
                    await self.stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError):
                return False
        return True

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

        If this is cancelled, it is not known how much was sent, and the peer would take
        any later bytes for the rest of it. So nothing can be sent afterwards.
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

    # -- the slot --------------------------------------------------------------------

    @property
    def held_by_client(self) -> bool:
        """Whether the connection makes no progress because of its client."""
        return self._on_hang_up is None or self.wire.waits > 0 or self.unfinished is not None

    def _note_progress(self) -> None:
        self.admission.note_progress(self)

    def mark_idle(self, idle: bool) -> None:
        """Record whether this connection waits for its next request from now on."""
        if idle is not self._idle:
            self._idle = idle
            if idle and self._client != self.address:
                self._client = self.address
                self.admission.move(self, self.address)
            self.admission.note_progress(self, idle=idle and self._served)

    def begin_request(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of the client that sent a request with *headers*.

        Behind a proxy the slot counts for that client while the request is served. From now on
        the connection may be kept idle.

        Raises:
            Refusal: That client has too many slots.
        """
        self._served = True
        client = self.admission.proxies.client(self.address, headers)
        if client != self._client:
            if not self.admission.move(self, client):
                raise TOO_MANY
            self._client = client
        return client

    def evict(self) -> None:
        """Close now, for another connection: this one is idle, or its client is slow."""
        self._leave()
        if not self._idle:
            self.wire.reset()  # or unread bytes would stay in the kernel's buffers
        self._scope.cancel()

    # -- events ----------------------------------------------------------------------

    def report_to(self, hang_up: Callable[[bool], None], stop: Callable[[], None]) -> None:
        """From now on call *hang_up* when the client has ended its side (True: both), and *stop*
        when the server stops."""
        self._on_hang_up, self._on_stop = hang_up, stop

    def close_idle(self) -> None:
        """End the wait for the next request; the connection then closes."""
        if self._idle and self._reading is not None:
            self._reading.cancel()

    def stop(self) -> None:
        """The server stops: end now if idle, otherwise after the present exchange."""
        self.close_idle()
        if self._on_stop is not None:
            self._on_stop()

    def hang_up(self, *, reset: bool) -> None:
        """The client has ended its side (or, if *reset*, both)."""
        self.client_ended = True
        if self._on_hang_up is not None:
            self._on_hang_up(reset)

    # -- the end ---------------------------------------------------------------------

    async def end(self) -> None:
        """Send the end of the connection, and wait until the client has read it.

        Does nothing if a send was cut, since the answer cannot end properly then.
        """
        if self._send_was_cut:
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(self.stream, trio.SSLStream):
                with trio.move_on_after(END_SECONDS):
                    await self.stream.unwrap()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.wire.end_sending()
            await self.linger()

    async def linger(self) -> None:
        """Read and drop the bytes that the client still sends, within the limits.

        Closing a socket with unread bytes resets the connection, and a reset makes the
        client's system drop the answer that it has not read yet. So the connection stays
        open while the client reads the answer and may still send.
        """
        if not isinstance(self.stream, trio.SSLStream):
            self.wire.end_sending()
        left = self.limits.linger_bytes
        queued = math.inf
        while True:
            with trio.move_on_after(self.limits.linger_seconds):
                while left > 0:
                    data = await self.wire.receive_some(LINGER_PIECE_BYTES)
                    if not data:
                        return
                    left -= len(data)
                return
            before, queued = queued, self.wire.queued_bytes()
            if queued >= before or (not queued and before == math.inf):
                return  # it reads nothing, or has read everything

    async def _close(self) -> None:
        """Close so that half an answer never looks like a whole one.

        TLS ends with an alert of its own (``close_notify``), which is sent only after
        whole answers. Without TLS an answer that lasts until the connection ends can be
        distinguished from its beginning only by a reset.
        """
        try:
            if self.unfinished is None and not self._send_was_cut:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.stream.aclose()
            elif self.unfinished is not None and self.unfinished.until_close:
                self.wire.reset()
        finally:
            await self.wire.aclose()


def _address(place: Any) -> Address | None:
    return (place[0], place[1]) if isinstance(place, tuple) else None


def _for_tls(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """*buffers* in pieces that are encrypted at once.

    A small head shares a TLS record with the next buffer, if that is small too. A
    large buffer is cut, because its ciphertext is a second copy, and other connections
    wait while it is encrypted.
    """
    views = [memoryview(piece).cast("B") for piece in buffers]
    if len(views) > 1 and sum(view.nbytes for view in views) <= JOIN_BYTES_MAX:
        yield b"".join(views)
        return
    for view in views:
        for start in range(0, view.nbytes, ENCRYPT_BYTES_MAX):
            yield view[start : start + ENCRYPT_BYTES_MAX]
