"""One WebSocket on a connection: ``wsproto`` reads and writes the frames.

The application runs in a task of its own beside the reader and the pings. What the client
sends waits for the application, one message at a time, so a client that sends faster than the
application reads is slowed down by TCP. It waits as the bytes that came: a text may take four
times as much, and frames of two bytes twenty times. The only extension, compression, is never
accepted: 64 KiB of it may be 64 MiB of a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from control.http.connection import Connection
from control.http.heads import AnswerFraming, Refusal, RequestHead, in_json
from control.http.service import Address, Headers

log = logging.getLogger("control.http")

END_SECONDS = 1.0
"""How long the application may take to end after the WebSocket has ended."""
READ_BYTES = 2 * 1024
"""How much is decoded at once: up to 340 frames, of 15 µs each."""
PINGS_UNANSWERED_MAX = 3
#: After so many bytes of output the client is pinged again. A ping by the clock alone may
#: have megabytes before it, in the buffers of both systems, and a client that reads those
#: slowly would look dead. At three pings of 5 s this allows a client of 4 KiB/s.
PING_BYTES = 64 * 1024
ACCEPTED = 101
HANDSHAKE = {
    b"connection",
    b"upgrade",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-protocol",
}
"""The headers of the handshake."""
BAD_HANDSHAKE = Refusal(
    400, "bad WebSocket handshake; send version 13 and a key, and no data before the answer"
)
REFUSED = Refusal(403, "the WebSocket was refused")
FAILED = Refusal(500, "internal server error")


class WebSocket:
    """One WebSocket between client and application.

    Args:
        connection: The connection on which *head* came; nothing else uses it afterwards.
        client: Address and port, as far as they are known.
        answer_head: Encodes an answer's head from its status and headers.

    Attributes:
        status: The status of the answer; 0 if there is none yet.
        sent_bytes: The size of all messages to the client.
    """

    def __init__(
        self,
        connection: Connection,
        head: RequestHead,
        client: Address | None,
        answer_head: Callable[[int, Headers], bytes],
    ) -> None:
        self._connection = connection
        self._head = head
        self._client = client
        self._answer_head = answer_head
        self._frames = WSConnection(ConnectionType.SERVER)
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._to_app, self._messages = trio.open_memory_channel[dict[str, Any]](1)
        self._message = bytearray()
        self._refusal: Any = None
        self._refusal_framing: AnswerFraming | None = None
        self._ping_seconds = connection.limits.websocket_ping_seconds
        self._bytes_since_ping = 0
        self.status = 0
        self.sent_bytes = 0
        self._closing = False
        self._ended = False
        self._broken = False

    @property
    def _accepted(self) -> bool:
        return self.status == ACCEPTED

    async def run(self, early: bytes) -> None:
        """Serve the WebSocket to its end. ``early`` is what the client has sent after the head."""
        if not early and self._shake_hands():
            # The first message, also if the client leaves before the application has begun.
            self._to_app.send_nowait({"type": "websocket.connect"})
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._run_app)
                try:
                    with self._reading:
                        await self._read()
                finally:
                    self._ended = True
                self._nursery.cancel_scope.deadline = trio.current_time() + END_SECONDS
                code = CloseReason.NORMAL_CLOSURE if self._closing else CloseReason.ABNORMAL_CLOSURE
                await self._to_app.send({"type": "websocket.disconnect", "code": int(code)})
        else:
            await self._refuse(BAD_HANDSHAKE)
        _forget(self._frames)
        if not self._accepted:
            await self._connection.linger()
        elif self._broken:
            # Bytes that the client still sends must not make it lose our close frame.
            await self._connection.end()

    def stop(self) -> None:
        """Close the WebSocket, since the server stops."""
        if self._accepted and not self._ended:
            assert self._nursery is not None
            self._closing = True
            self._nursery.start_soon(self._send, CloseConnection(CloseReason.GOING_AWAY))

    def end_reading(self) -> None:
        """Stop reading: everything was sent, or the client is gone."""
        self._reading.cancel()

    # -- the handshake ---------------------------------------------------------------

    def _shake_hands(self) -> bool:
        """Whether the handshake can be accepted."""
        if self._head.http_version != "1.1" or self._head.body_bytes != 0:
            return False
        headers = [header for header in self._head.headers if header[0] in HANDSHAKE]
        try:
            self._frames.initiate_upgrade_connection([*headers, (b"host", b"here")], b"/")
        except RemoteProtocolError:
            return False
        return True

    @property
    def _subprotocols(self) -> list[str]:
        values = [v for name, v in self._head.headers if name == b"sec-websocket-protocol"]
        return [text.strip() for text in b",".join(values).decode("latin-1").split(",") if text]

    async def _accept(self, message: Any) -> None:
        self._ping_seconds = message.get("ping_seconds") or self._ping_seconds
        answer = self._frames.send(
            AcceptConnection(
                subprotocol=message.get("subprotocol"),
                extra_headers=list(message.get("headers", ())),
            )
        )
        self.status = ACCEPTED
        await self._send_bytes([answer])
        assert self._nursery is not None
        self._nursery.start_soon(self._send_pings)

    async def _refuse(self, refusal: Refusal) -> None:
        kind, body = in_json(refusal)
        headers = [
            (b"content-type", kind.encode("ascii")),
            (b"content-length", b"%d" % len(body)),
        ]
        self._refusal = {"status": refusal.status, "headers": headers}
        await self._send_refusal(body, last=True)

    async def _send_refusal(self, body: bytes, *, last: bool) -> None:
        """Answer in plain HTTP, a piece at a time."""
        head = b""
        framing = self._refusal_framing
        if framing is None:
            status, headers = int(self._refusal["status"]), list(self._refusal["headers"])
            framing = self._refusal_framing = AnswerFraming.decide(self._head, status, headers)
            head = self._answer_head(status, headers)
            self.status = status
        await self._send_bytes([head, *framing.frame(body, last=last)])
        self._closing = last

    # -- the application -------------------------------------------------------------

    async def _run_app(self) -> None:
        head = self._head
        raw_path, _, query = head.target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"spec_version": "2.3", "version": "3.0"},
            "scheme": "wss" if self._connection.is_tls else "ws",
            "http_version": head.http_version,
            "path": head.path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": self._client,
            "server": self._connection.server,
            "state": dict(self._connection.service.state),
            "subprotocols": self._subprotocols,
            "extensions": {"websocket.http.response": {}},
        }
        assert self._nursery is not None
        try:
            try:
                await self._connection.service.app(scope, self._app_receive, self._app_send)
            except Exception:
                log.exception("the WebSocket %s failed", raw_path.decode("ascii"))
            if not self._ended and not self.status:
                await self._refuse(FAILED)
            elif not self._ended and self._accepted and not self._closing:
                await self._send(CloseConnection(CloseReason.INTERNAL_ERROR))
        finally:
            self._nursery.cancel_scope.cancel()

    async def _app_receive(self) -> dict[str, Any]:
        """ASGI's ``receive``."""
        message = await self._messages.receive()
        text = message.get("text")
        return message if text is None else {**message, "text": text.decode()}

    async def _app_send(self, message: Any) -> None:
        """ASGI's ``send``; after the end it does nothing, so that the application can end."""
        # Sending to the kernel's buffer, or to a client that is gone, does not wait: without
        # this an application that only sends would block all other tasks.
        await trio.lowlevel.checkpoint()
        if self._ended:
            return
        kind = message["type"]
        if self._accepted:
            if kind == "websocket.send":
                data, text = message.get("bytes"), message.get("text")
                await self._send(TextMessage(text) if data is None else BytesMessage(bytes(data)))
                return
            if kind == "websocket.close":
                self._closing = True
                code = int(message.get("code", CloseReason.NORMAL_CLOSURE))
                await self._send(CloseConnection(code, message.get("reason")))
                return
        elif kind == "websocket.http.response.body" and self._refusal and not self._closing:
            await self._send_refusal(
                bytes(message.get("body", b"")), last=not message.get("more_body", False)
            )
            return
        elif not self.status:
            if kind == "websocket.accept":
                await self._accept(message)
                return
            if kind == "websocket.http.response.start":
                self._refusal = message
                return
            if kind == "websocket.close":
                await self._refuse(REFUSED)
                return
        raise ValueError(f"an application cannot send {kind} at this point of a WebSocket")

    # -- the client ------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the WebSocket has ended, or the client is gone or silent."""
        while not self._ended:
            patience = PINGS_UNANSWERED_MAX * self._ping_seconds
            try:
                data = await self._connection.receive(READ_BYTES, trio.current_time() + patience)
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            if not self._accepted:
                self._ended = True  # the application may still be about to accept
                if not self.status:
                    await self._refuse(BAD_HANDSHAKE)
                return
            self._frames.receive_data(data)
            await self._handle_frames()
            await trio.lowlevel.checkpoint()

    async def _handle_frames(self) -> None:
        bytes_max = self._connection.limits.websocket_message_bytes_max
        for event in self._frames.events():
            if isinstance(event, Message):
                data = _bytes_of(event.data)
                if len(self._message) + len(data) > bytes_max:
                    await self._break_off(CloseReason.MESSAGE_TOO_BIG)
                    return
                self._message += data
                if event.message_finished:
                    kind = "text" if isinstance(event, TextMessage) else "bytes"
                    message, self._message = bytes(self._message), bytearray()
                    await self._to_app.send({"type": "websocket.receive", kind: message})
            elif isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, CloseConnection):
                if self._frames.state is ConnectionState.REMOTE_CLOSING:
                    await self._send(event.response())
                elif self._frames.state is ConnectionState.OPEN:
                    await self._break_off(event.code)  # not by a frame: one is malformed
                self._ended = True
                return

    async def _break_off(self, code: int) -> None:
        """Close the WebSocket, and send the client the reason."""
        self._broken = self._ended = True
        await self._send(CloseConnection(code))

    async def _send(self, event: Event) -> None:
        """Send one event; it is dropped if it is not allowed any more, as after a close."""
        try:
            data = self._frames.send(event)
        except LocalProtocolError:
            return
        await self._send_bytes([data])
        if isinstance(event, Message):
            size = len(_bytes_of(event.data))
            self._bytes_since_ping += size
            self.sent_bytes += size
            if self._bytes_since_ping >= PING_BYTES:
                await self._send(Ping())
        elif isinstance(event, Ping):
            self._bytes_since_ping = 0

    async def _send_bytes(self, buffers: list[Any]) -> None:
        async with self._sending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._connection.send(buffers)
                return
        self.end_reading()

    async def _send_pings(self) -> None:
        while not self._ended:
            await self._send(Ping())
            await trio.sleep(self._ping_seconds)


def _forget(frames: WSConnection) -> None:
    """End the parser of wsproto: a generator that has itself, by the object whose attribute it
    is, would stay in memory with the bytes that it has not parsed."""
    if frames.connection is not None:
        frames.connection._proto._parse_more.close()


def _bytes_of(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)
