"""A shell in a container, over a WebSocket.

The shell's output is sent in binary frames, as fast as the client reads: nothing is buffered
here, so a client that reads slowly slows down the shell, as a terminal does. Frames of the
client, text or binary, are input, except for a text frame ``{"type":"resize","cols","rows"}``.
The WebSocket ends with the shell: closed with 1000 if the shell ended by itself, with 1011
and the reason if its container ended, or the connection to it. A container has at most
:data:`TERMINALS_MAX` of them in each worker process.
"""

from __future__ import annotations

import signal
from typing import Annotated, Literal

import msgspec
import trio
from msgspec import Meta

from control.api import ApiError, BadRequest, Call, Socket, Unavailable
from control.compute.backend import TERM, Backend, Terminal, as_answers
from control.compute.requests import Containers
from control.compute.rows import Container
from control.compute.streams.counted import Counted

TERMINAL_PING_SECONDS = 5.0
#: How many terminals one container has in one process: each costs this machine or its node a
#: process or two that the container's own limits do not count.
TERMINALS_MAX = 16
#: A login shell in the user's home directory: bash if the image has it. The encoding is UTF-8,
#: also in an image that does not set it.
SHELL = [
    "/bin/sh",
    "-c",
    f"export TERM={TERM} LANG=${{LANG:-C.UTF-8}}; cd; "
    "command -v bash >/dev/null && exec bash -l; exec sh -l",
]
#: Exit codes of a shell that was killed, as when its container ends; None: not known.
_KILLED = (None, 128 + signal.SIGHUP, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
#: How long after that the end of its container may be reported.
_ENDING_SECONDS = 2.0
_STOPPED = "the container was stopped, restarted or deleted: the terminal ended with it"
_BROKE = "the connection to the container broke: open the terminal again"
_RESIZE_LENGTH_MAX = 200


class _Resize(msgspec.Struct):
    type: Literal["resize"]
    cols: Annotated[int, Meta(ge=1, le=1000)]
    rows: Annotated[int, Meta(ge=1, le=1000)]


class Terminals:
    def __init__(self, containers: Containers, backend: Backend) -> None:
        self._containers = containers
        self._backend = backend
        self._open = Counted(TERMINALS_MAX, "terminals")

    async def open(self, call: Call, socket: Socket) -> None:
        """Serve a terminal until the shell ends or the client leaves."""
        row = self._containers.own(call)
        if row.shown != "running":
            raise BadRequest(f"the container is {row.shown}, not running: start it first")
        try:
            with self._open.one_more(row.id), as_answers():
                async with self._backend.exec(self._containers.spec(row), SHELL) as terminal:
                    await socket.accept(TERMINAL_PING_SECONDS)
                    await self._converse(row, socket, terminal)
                    await self._check_ended_by_itself(row, terminal)
        except ApiError:
            # A shell breaks when its container ends.
            if socket.accepted and self._containers.is_over(row):
                raise BadRequest(_STOPPED) from None
            raise

    async def _check_ended_by_itself(self, row: Container, terminal: Terminal) -> None:
        """Raises ApiError if the shell did not end by itself."""
        if not self._containers.is_over(row) and terminal.exit_code not in _KILLED:
            return
        with trio.move_on_after(_ENDING_SECONDS):
            await self._containers.until_not_running(row)
            raise BadRequest(_STOPPED)
        if terminal.exit_code is None:
            raise Unavailable(_BROKE)

    async def _converse(self, row: Container, socket: Socket, terminal: Terminal) -> None:
        async def end_with_the_run() -> None:
            await self._containers.until_over(row)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_type, socket, terminal)
            nursery.start_soon(end_with_the_run)
            try:
                while output := await terminal.receive():
                    await socket.send(output)
            finally:
                # Cancelled by Trio for an error, the other tasks' frames would keep that, and the
                # error this one's, with all that the terminal has in memory.
                nursery.cancel_scope.cancel()


async def _type(socket: Socket, terminal: Terminal) -> None:
    while True:
        typed = await socket.receive()
        resize = _resize(typed)
        if resize is not None:
            await terminal.resize(resize.cols, resize.rows)
        elif typed:
            data = typed.encode() if isinstance(typed, str) else typed
            # A text takes up to four times as much, and the terminal may let wait.
            del typed
            await terminal.send(data)


def _resize(typed: str | bytes) -> _Resize | None:
    if not isinstance(typed, str) or len(typed) > _RESIZE_LENGTH_MAX or typed[:1] != "{":
        return None
    try:
        return msgspec.json.decode(typed, type=_Resize)
    except (msgspec.DecodeError, RecursionError):
        return None
