"""One WebSocket: the interface of the handler of a route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from control.http.asgi import HttpConnection, Receive, Send, encoded

NORMAL = 1000
OUR_FAULT = 1011
#: A close code of this plus the HTTP status of the refusal: 4401, 4403.
REFUSED = 4000
#: How long a client may take to answer our close frame. Closing the connection earlier
#: would make its system drop bytes that it has not read yet.
CLOSE_SECONDS = 2.0


class SocketClosed(ConnectionError):
    """The client has ended the WebSocket, or is gone."""


class Socket:
    """One WebSocket. A handler can refuse it with plain HTTP until it calls :meth:`accept`.

    Nothing is queued: ``send`` waits until the kernel has taken the message, so a
    client that reads slowly delays only its own handler. A handler whose client has
    left is cancelled within a second, whatever it waits for.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._sending = trio.Lock()
        self._ended = False
        self.accepted = False
        #: Called by accept().
        self.when_accepted: Callable[[], None] | None = None

    async def accept(self, ping_seconds: float | None = None) -> None:
        """Answer 101. The client is pinged every *ping_seconds*, and after each 64 KiB of
        output; one that is silent for three times as long is disconnected."""
        message: dict[str, Any] = {"type": "websocket.accept", "headers": []}
        if ping_seconds is not None:
            message["ping_seconds"] = ping_seconds
        await self._send(message)
        self.accepted = True
        if self.when_accepted is not None:
            self.when_accepted()

    async def send(self, data: str | bytes) -> None:
        """Send one message, text or binary. Raises SocketClosed."""
        async with self._sending:
            if self._ended:
                raise SocketClosed("the WebSocket is closed")
            kind = "text" if isinstance(data, str) else "bytes"
            await self._send({"type": "websocket.send", kind: data})

    async def receive(self) -> str | bytes:
        """The next message, of 1 MiB at most. Raises SocketClosed."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self._ended = True
            raise SocketClosed("the client has ended the WebSocket")
        text = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Send a close frame, and wait up to 2 s for the client's."""
        async with self._sending:
            if self._ended or not self.accepted:
                return
            self._ended = True
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        with trio.move_on_after(CLOSE_SECONDS):
            while (await self._receive())["type"] == "websocket.receive":
                pass


class SocketConnection(HttpConnection):
    """Runs the application's handler of one WebSocket in the task that calls it."""

    async def __call__(self, receive: Receive, send: Send) -> None:
        request = self.make_request()
        request.body.set_complete()
        await receive()  # websocket.connect
        refusal = await self.app.handle_socket(  # type: ignore[attr-defined]
            request, Socket(receive, send)
        )
        if refusal is not None:
            await send(
                {
                    "type": "websocket.http.response.start",
                    "status": refusal.status_code,
                    "headers": encoded(refusal.headers),
                }
            )
            body = await refusal.get_data(as_text=False)
            await send({"type": "websocket.http.response.body", "body": body})
