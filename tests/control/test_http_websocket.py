"""What a client's messages take in memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from http_served import Client, connected, get, running
from limits import wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from control.http import HttpLimits

MIB = 1024 * 1024


class Deaf:
    """An application that accepts, takes *messages* and reads nothing more."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.taken: list[str] = []
        self.serves = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            return
        self.serves += 1
        try:
            await receive()
            await send({"type": "websocket.accept"})
            for _ in range(self.messages):
                self.taken.append((await receive()).get("text") or "the end")
            await trio.sleep_forever()
        finally:
            self.serves -= 1

    async def end(self) -> None:
        """Everything that the server does for clients that have left is done."""

        async def has_ended() -> bool:
            return not self.serves

        await wait_until(has_ended, "end of all handlers")
        await trio.testing.wait_all_tasks_blocked(0.01)


async def upgraded(client: Client) -> WSConnection:
    peer = WSConnection(ConnectionType.CLIENT)
    await client.send(peer.send(Request("test", "/")))
    peer.receive_data(await client.until(b"\r\n\r\n"))
    assert isinstance(next(peer.events()), AcceptConnection)
    return peer


async def test_a_message_is_measured_in_bytes() -> None:
    app = Deaf(2)
    limits = HttpLimits(websocket_message_bytes_max=3000, graceful_seconds=0)
    async with running(limits, app=app) as (port, _), connected(port) as client:
        peer = await upgraded(client)
        await client.send(peer.send(TextMessage("€" * 1000)))
        await client.send(peer.send(TextMessage("€" * 1001)))
        await client.rest()
        await app.end()
    assert app.taken == ["€" * 1000, "the end"]


@pytest.mark.parametrize("text", ["x" * (MIB // 8), ("\U0001f600" + "x" * 1020) * 128])
async def test_of_what_nobody_takes_little_is_kept(text: str) -> None:
    """Also of a text that takes four times as many bytes in memory as it has."""
    app = Deaf(0)
    async with (
        running(app=app) as (port, _),
        connected(port) as client,
        trio.open_nursery() as nursery,
    ):
        peer = await upgraded(client)
        frames = b"".join(peer.send(TextMessage(text)) for _ in range(32))
        tracemalloc.start()
        try:
            nursery.start_soon(client.send, frames)
            await trio.testing.wait_all_tasks_blocked(0.01)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        nursery.cancel_scope.cancel()
    size = len(text.encode())
    assert size < peak < 6 * size


@pytest.mark.parametrize("piece", ["xy", ""])
async def test_a_message_of_many_frames_takes_no_more_than_its_bytes(piece: str) -> None:
    app, frame = Deaf(0), TextMessage(piece, message_finished=False)
    async with running(app=app) as (port, _), connected(port) as client:
        peer = await upgraded(client)
        frames = b"".join(peer.send(frame) for _ in range(20_000))
        tracemalloc.start()
        try:
            await client.send(frames)
            await trio.testing.wait_all_tasks_blocked(0.01)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 20_000 * len(piece) < kept < 400_000


async def test_a_client_that_leaves_at_once_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """It may be gone before its handler has begun."""
    app = Deaf(1)
    handshake = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    async with running(app=app) as (port, _):
        for _ in range(20):
            async with connected(port) as client:
                await client.send(
                    get("/", *handshake, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
                )
        await app.end()
    assert not caplog.records
