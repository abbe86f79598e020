"""WebSocket connections: Hypercorn's, with refusals in JSON and an end that is bounded."""

from __future__ import annotations

from types import TracebackType
from typing import cast

import trio
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import ASGISendEvent
from wsproto.events import CloseConnection, Message, Ping
from wsproto.events import Event as WebSocketEvent
from wsproto.frame_protocol import CloseReason

from control.http.heads import error_body

__all__ = ["ConnectionTasks", "WebSocketStream"]

#: After so much of output the client is pinged again. One that reads slowly answers what
#: it has read: pings that are sent by the clock alone may have megabytes before them, in
#: the buffers of both systems, and a client that works through those would look dead.
#: At three pings of 5 s this is a client of 4 KiB/s.
PING_BYTES = 64 * 1024
REFUSALS = {
    400: "bad WebSocket handshake; send version 13 and a key, and no data before the answer",
    403: "the WebSocket was refused",
    500: "internal server error",
}


class ConnectionTasks(TaskGroup):
    """The tasks of one WebSocket: its application and its pings.

    A plain request needs no such group, its application runs in the connection's task.
    """

    @property
    def nursery(self) -> trio.Nursery:
        nursery = self._nursery
        assert nursery is not None
        return nursery

    async def __aexit__(  # type: ignore[override]
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Keep a cancellation of these tasks among them: Hypercorn's forgets that the
        nursery has dealt with it, and one WebSocket that ends would end the server."""
        manager = self._nursery_manager
        assert manager is not None
        try:
            return await manager.__aexit__(kind, error, trace)
        finally:
            self._nursery_manager = self._nursery = None


class WebSocketStream(WSStream):
    """One WebSocket between client and application.

    Attributes:
        ping_seconds: How often the client is pinged. The application may say it, as
            ``ping_seconds`` beside what ASGI has in the message that accepts.
    """

    ping_seconds: float | None = None
    _bytes_since_ping = 0

    async def app_send(self, message: ASGISendEvent | None) -> None:
        # Sending into the kernel's buffer, or to a client that is gone, waits for nothing:
        # without this an application that only sends would hold up all the others.
        await trio.lowlevel.checkpoint()
        if message is not None and message["type"] == "websocket.accept":
            self.ping_seconds = cast(dict[str, float], message).get("ping_seconds")
        try:
            await super().app_send(message)
        finally:
            if message is None:
                cast(ConnectionTasks, self.task_group).nursery.cancel_scope.cancel()

    async def _send_pings(self) -> None:
        seconds = self.ping_seconds or self.config.websocket_ping_interval
        assert seconds is not None
        while not self.closed:
            await self._send_wsproto_event(Ping())
            await trio.sleep(seconds)

    async def _send_wsproto_event(self, event: WebSocketEvent) -> None:
        await super()._send_wsproto_event(event)
        if isinstance(event, Message):
            self._bytes_since_ping += len(event.data)
            if self._bytes_since_ping >= PING_BYTES:
                await self._send_wsproto_event(Ping())
        elif isinstance(event, Ping):
            self._bytes_since_ping = 0
        if isinstance(event, CloseConnection) and event.code == CloseReason.MESSAGE_TOO_BIG:
            # Hypercorn reads on until the client closes, and keeps what it reads.
            await self.send(StreamClosed(self.stream_id))

    async def going_away(self) -> None:
        """Tell the client that the server stops."""
        if self.state is ASGIWebsocketState.CONNECTED:
            await self._send_wsproto_event(CloseConnection(code=CloseReason.GOING_AWAY))

    async def _send_error_response(self, status_code: int) -> None:
        if status_code == 400:
            # Refused by the server: the application may still be about to accept.
            self.closed = True
        body = error_body(REFUSALS.get(status_code, "the WebSocket was refused"))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        await self.send(Response(self.stream_id, headers, status_code))
        await self.send(Body(self.stream_id, body))
        await self.send(EndBody(self.stream_id))
