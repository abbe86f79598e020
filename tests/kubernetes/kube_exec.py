"""A plain client of exec, for tests of the stand-in kubelet: bytes in, bytes out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

import trio
from apiserver import Identity
from kube_api import Object
from kubelet_exec import CLOSE, RESIZE, STATUS, STDIN, STDOUT
from limits import HANG_SECONDS
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


class Exec:
    """A command under way."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        #: What it has printed, by channel.
        self.printed: dict[int, bytes] = {}
        self.status: Object | None = None
        self._looked_at = 0

    @property
    def protocol(self) -> str:
        return str(self._connection.subprotocol)

    @property
    def output(self) -> str:
        return self.printed.get(STDOUT, b"").decode()

    @property
    def exit_code(self) -> int | None:
        """None: it has not said."""
        if self.status is None:
            return None
        if self.status["status"] == "Success":
            return 0
        return int(self.status["details"]["causes"][0]["message"])

    async def send(self, text: str) -> None:
        await self._message(STDIN, text.encode())

    async def close_input(self) -> None:
        await self._message(CLOSE, bytes([STDIN]))

    async def resize(self, columns: int, rows: int) -> None:
        await self._message(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    async def until(self, text: str) -> None:
        """Until it has printed this, after what was waited for before."""
        with trio.move_on_after(HANG_SECONDS) as scope:
            while (at := self.output.find(text, self._looked_at)) < 0:
                assert await self._receive(), f"it ended: {self.output!r} {self.status}"
            self._looked_at = at + len(text)
        assert not scope.cancelled_caught, f"no {text!r} in {self.output!r}"

    async def end(self) -> None:
        with trio.fail_after(HANG_SECONDS):
            while await self._receive():
                pass

    async def _message(self, channel: int, data: bytes) -> None:
        await self._connection.send_message(bytes([channel]) + data)

    async def _receive(self) -> bool:
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            return False
        assert isinstance(message, bytes)
        channel, data = message[0], message[1:]
        if channel == STATUS:
            self.status = json.loads(data)
        self.printed[channel] = self.printed.get(channel, b"") + data
        return True


@asynccontextmanager
async def executing(
    identity: Identity, pod: Object, *command: str, terminal: bool = False, protocol: str = V4
) -> AsyncIterator[Exec]:
    """``command`` in the first container of ``pod``. It ends with the block."""
    about = pod["metadata"]
    asked = [("command", word) for word in command]
    asked += [("stdin", "1"), ("stdout", "1"), ("stderr", str(int(not terminal)))]
    asked += [("tty", str(int(terminal))), ("container", pod["spec"]["containers"][0]["name"])]
    target = f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}/exec?{urlencode(asked)}"
    address = urlsplit(identity.server)
    stream = await trio.open_ssl_over_tcp_stream(
        address.hostname or "", address.port or 443, ssl_context=identity.tls()
    )
    try:
        async with trio.open_nursery() as nursery:
            connection = await wrap_client_stream(
                nursery,
                stream,
                address.netloc,
                target,
                subprotocols=[protocol],
                extra_headers=[(b"Authorization", f"Bearer {identity.token}".encode())],
            )
            yield Exec(connection)
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
