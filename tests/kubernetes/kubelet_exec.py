"""A command that a stand-in kubelet runs, and the WebSocket it talks through.

The subprotocol is ``v4.channel.k8s.io``. The first byte of a message names its
channel: 0 input, 1 output, 3 how it ended (a Status as JSON), 4 the size of the terminal
(JSON). ``v5.channel.k8s.io`` says no more of terminals, and who asks for none is given one
all the same. An empty message of output comes first, so that a client knows the
connection stands.

Commands run on this machine, with a true PTY, in the pod's scratch directory, which is also
``$ROOT``. What is read ahead is bounded: a client that does not read stops the command by the
terminal between.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import termios
from pathlib import Path

import h11
import trio
from kube_api import Object
from limits import HANG_SECONDS
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
)
from wsproto.utilities import LocalProtocolError

STDIN, STDOUT, STATUS, RESIZE = 0, 1, 3, 4
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")

KIB = 1024
READ_BYTES = 32 * KIB


class Socket:
    """The server's end of a WebSocket with channels."""

    def __init__(self, stream: trio.abc.Stream, received: bytes) -> None:
        self._stream = stream
        self._received = received
        self._ws = WSConnection(ConnectionType.SERVER)
        self._sending = trio.Lock()
        self._partial = bytearray()

    async def accept(self, request: h11.Request, protocols: tuple[str, ...]) -> None:
        """In the first of ``protocols`` that the client speaks."""
        self._ws.initiate_upgrade_connection(list(request.headers), request.target.decode())
        (event,) = self._ws.events()
        assert isinstance(event, Request)
        protocol = next(each for each in protocols if each in event.subprotocols)
        await self._send(AcceptConnection(subprotocol=protocol))
        if self._received:
            self._ws.receive_data(self._received)
        await self.send(STDOUT, b"")

    async def send(self, channel: int, data: bytes) -> None:
        await self._send(BytesMessage(data=bytes([channel]) + data))

    async def receive(self) -> list[bytes] | None:
        """Messages with their channel in front; None when the client went."""
        while True:
            messages = []
            for event in self._ws.events():
                if isinstance(event, Ping):
                    await self._send(event.response())
                elif isinstance(event, CloseConnection):
                    with contextlib.suppress(trio.BrokenResourceError):
                        await self._send(event.response())
                    return None
                elif isinstance(event, BytesMessage):
                    self._partial += event.data
                    if event.message_finished:
                        messages.append(bytes(self._partial))
                        self._partial.clear()
            if messages:
                return messages
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                return None
            self._ws.receive_data(data)

    async def close(self) -> None:
        await self._send(CloseConnection(code=1000))

    async def _send(self, event: object) -> None:
        async with self._sending:
            try:
                data = self._ws.send(event)
            except LocalProtocolError as error:
                # The client has closed while we were about to say something.
                raise trio.ClosedResourceError(str(error)) from error
            await self._stream.send_all(data)


class Command:
    """One command, between its terminal and a socket."""

    def __init__(self, socket: Socket, directory: Path, command: list[str]) -> None:
        self._socket = socket
        self._directory = directory
        self._command = command
        self._master = -1

    async def run(self) -> None:
        """Returns when it has ended and the client knows, or the client has gone."""
        async with contextlib.AsyncExitStack() as stack:
            process, terminal = await self._start(stack)
            stack.push_async_callback(_end, process)
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    await self._listen(terminal)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                async with trio.open_nursery() as pumps:
                    pumps.start_soon(self._pump, terminal)
                    await process.wait()
                    # What its children still print; and the client may read slowly.
                    pumps.cancel_scope.deadline = trio.current_time() + HANG_SECONDS
                code = process.returncode or 0
                await self._end(_failure(code) if code else {"status": "Success", "metadata": {}})
                nursery.cancel_scope.cancel()

    async def _start(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[trio.Process, trio.lowlevel.FdStream]:
        self._master, slave = os.openpty()
        stream = trio.lowlevel.FdStream(self._master)
        stack.push_async_callback(trio.aclose_forcefully, stream)
        try:
            # setsid makes the terminal that of the command, whose signals it then sends. Of
            # tests in the background of a shell it would inherit that ^C is ignored.
            process = await trio.lowlevel.open_process(
                ["env", "--default-signal=INT", "setsid", "--ctty", *self._command],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=self._directory,
                env=self._environment(),
            )
        finally:
            os.close(slave)
        return process, stream

    def _environment(self) -> dict[str, str]:
        home = self._directory / "root"
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home if home.exists() else self._directory),
            "ROOT": str(self._directory),
            "TERM": "xterm-256color",
        }

    async def _pump(self, output: trio.abc.ReceiveStream) -> None:
        # A terminal whose other end is closed fails instead of ending.
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await output.receive_some(READ_BYTES):
                await self._socket.send(STDOUT, data)

    async def _listen(self, stdin: trio.abc.SendStream) -> None:
        """Returns when the client has gone."""
        while (messages := await self._socket.receive()) is not None:
            for message in messages:
                channel, data = message[0], message[1:]
                if channel == STDIN and data:
                    # Nobody reads any more: the command is ending.
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await stdin.send_all(data)
                elif channel == RESIZE:
                    size = json.loads(data)
                    packed = struct.pack("HHHH", size["Height"], size["Width"], 0, 0)
                    fcntl.ioctl(self._master, termios.TIOCSWINSZ, packed)

    async def _end(self, status: Object) -> None:
        await self._socket.send(STATUS, json.dumps(status).encode())
        await self._socket.close()


async def _end(process: trio.Process) -> None:
    """The command and what it started, but for what made a group of its own: that gets
    the hang-up of its terminal."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # It may not lead its group yet.
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()


def _failure(code: int) -> Object:
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
