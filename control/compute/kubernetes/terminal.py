"""A command with a PTY in a running container.

The protocol is that of ``kubectl``: the first byte of a binary message names its channel.
``v5.channel.k8s.io`` adds a channel to say that another one has ended; servers without it
(before 1.30) choose ``v4``. How the command ended comes as a ``Status`` on a channel of
its own, before or after the last output; so output is read until the connection ends.

Nothing is read ahead: a slow reader slows down the command through TCP (some
128 KiB at each hop), the API server and the kubelet, to the PTY. Input waits in the same
way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import msgspec
import trio
import trio_websocket

from control.compute.backend import Impossible
from control.compute.kubernetes.client import Api, Refused, open_stream, translated
from control.compute.kubernetes.manifests import CONTAINER, POD
from control.compute.kubernetes.shapes import Problem

V5 = "v5.channel.k8s.io"
PROTOCOLS = (V5, "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
MESSAGE_BYTES_MAX = 1024 * 1024
SEND_BYTES = 32 * 1024
#: How long the rest of the output is read once the exit code is known.
DRAIN_SECONDS = 5.0
LEAVE_SECONDS = 1.0


class KubernetesTerminal:
    """See :class:`control.compute.backend.Terminal`."""

    def __init__(self, stream: trio_websocket.WebSocketConnection) -> None:
        self._stream = stream
        self._exit_code: int | None = None
        self._deadline = math.inf

    @property
    def exit_code(self) -> int | None:
        return self._exit_code

    async def receive(self) -> bytes:
        with trio.move_on_at(self._deadline):
            while True:
                try:
                    message = await self._stream.get_message()
                except trio_websocket.ConnectionClosed:
                    break
                data = message.encode() if isinstance(message, str) else message
                channel, rest = data[:1], data[1:]
                if channel in (b"\x01", b"\x02") and rest:
                    return rest
                if channel == b"\x03":
                    self._exit_code = _exit_code(rest)
                    self._deadline = trio.current_time() + DRAIN_SECONDS
        return b""

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), SEND_BYTES):
            await self._send(STDIN, data[start : start + SEND_BYTES])

    async def resize(self, columns: int, rows: int) -> None:
        await self._send(RESIZE, msgspec.json.encode({"Width": columns, "Height": rows}))

    async def end_input(self) -> None:
        """End the input of the command."""
        if self._stream.subprotocol == V5:
            await self._send(CLOSE, bytes([STDIN]))

    async def _send(self, channel: int, data: bytes) -> None:
        # Input after the end is dropped; receive() reports the end.
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            await self._stream.send_message(bytes([channel]) + data)


@asynccontextmanager
async def terminal(
    api: Api, namespace: str, command: list[str], columns: int, rows: int
) -> AsyncGenerator[KubernetesTerminal, None]:
    """See :meth:`control.compute.backend.Backend.exec`."""
    query = [
        ("container", CONTAINER),
        ("stdin", "true"),
        ("stdout", "true"),
        ("tty", "true"),
        *(("command", each) for each in command),
    ]
    path = f"/api/v1/namespaces/{namespace}/pods/{POD}/exec"
    async with contextlib.AsyncExitStack() as stack:
        with translated(), _running():
            stream = await stack.enter_async_context(
                open_stream(api, path, query, PROTOCOLS, message_bytes_max=MESSAGE_BYTES_MAX)
            )
        opened = KubernetesTerminal(stream)
        await opened.resize(columns, rows)
        yield opened
        with trio.move_on_after(LEAVE_SECONDS):
            await opened.end_input()


@contextlib.contextmanager
def _running() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        if refused.status == 404:
            raise Impossible("the container does not run") from None
        raise


def _exit_code(status: bytes) -> int | None:
    try:
        problem = msgspec.json.decode(status, type=Problem)
    except msgspec.DecodeError:
        return None
    if problem.status == "Success":
        return 0
    cause = problem.cause("ExitCode")
    said = (cause.message if cause else None) or ""
    return int(said) if said.isascii() and said.isdigit() else None
