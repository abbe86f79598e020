"""WebSockets of the control plane, from a client's side."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from limits import HANG_SECONDS
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)


class Refused(Exception):
    """The upgrade was refused: an answer in plain HTTP."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(f"{status} {body!r}")
        self.status_code = status
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        return self.headers.get(name.lower())


class Client:
    """One WebSocket. Pings are answered while somebody receives."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.pings = 0
        self.close_code: int | None = None
        self.close_reason: str | None = None

    async def send(self, data: str | bytes) -> None:
        message: Event = TextMessage(data) if isinstance(data, str) else BytesMessage(data)
        await self.stream.send_all(self.protocol.send(message))

    async def receive(self) -> str | bytes | None:
        """The next whole message; None at the end, when ``close_code`` and
        ``close_reason`` are known."""
        pieces: list[Any] = []
        while True:
            event = await self.event()
            if isinstance(event, TextMessage | BytesMessage):
                pieces.append(event.data)
                if event.message_finished:
                    whole: str | bytes = type(pieces[0])().join(pieces)
                    return whole
            elif isinstance(event, CloseConnection):
                self.close_code, self.close_reason = event.code, event.reason
                if self.protocol.state is ConnectionState.REMOTE_CLOSING:
                    await self.stream.send_all(self.protocol.send(event.response()))
                return None

    async def json(self) -> Any:
        text = await self.receive()
        assert isinstance(text, str), text
        return json.loads(text)

    async def close(self) -> None:
        await self.stream.send_all(self.protocol.send(CloseConnection(1000)))

    async def event(self, *, pings: bool = False) -> Event:
        """The next event; those that are pings are answered, and returned if ``pings``."""
        with trio.fail_after(HANG_SECONDS):
            while True:
                for event in self.protocol.events():
                    if not isinstance(event, Ping):
                        return event
                    self.pings += 1
                    await self.stream.send_all(self.protocol.send(event.response()))
                    if pings:
                        return event
                data = await self.stream.receive_some(65536)
                self.protocol.receive_data(bytes(data) or None)


@asynccontextmanager
async def websocket(
    port: int, path: str, token: str | None = None, *, small: bool = False
) -> AsyncIterator[Client]:
    """A WebSocket that was accepted. Raises Refused.

    ``small``: the system keeps little of what is not read.
    """
    sock = trio.socket.socket()
    if small:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 16 * 1024)
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        client = Client(stream)
        headers = [(b"Authorization", f"Bearer {token}".encode())] if token is not None else []
        request = Request(host="test", target=path, extra_headers=headers)
        await stream.send_all(client.protocol.send(request))
        event = await client.event()
        if isinstance(event, RejectConnection):
            body = b""
            while event.has_body:
                piece = await client.event()
                assert isinstance(piece, RejectData)
                body += piece.data
                if piece.body_finished:
                    break
            found = {name.decode().lower(): value.decode() for name, value in event.headers}
            raise Refused(event.status_code, found, body)
        assert isinstance(event, AcceptConnection), event
        yield client
