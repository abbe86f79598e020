"""The output of a container: as text, or line by line over a WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from control.api import Call, Response, Socket, stream_response
from control.compute.backend import Backend, as_answers
from control.compute.requests import Containers, LogsQuery
from control.compute.rows import Container
from control.compute.streams.counted import Counted

TEXT = "text/plain; charset=utf-8"
#: How many readers one container has in one process: each holds a connection to the backend
#: for as long as it reads.
READERS_MAX = 16


class Logs:
    def __init__(self, containers: Containers, backend: Backend) -> None:
        self._containers = containers
        self._backend = backend
        self._open = Counted(READERS_MAX, "readers of its logs")

    def _lines(self, call: Call, row: Container, *, follow: bool) -> AsyncGenerator[str, None]:
        tail = call.query(LogsQuery).tail
        return self._backend.logs(self._containers.spec(row), tail, follow=follow)

    async def get(self, call: Call) -> Response:
        """The last lines, as they are now."""
        row = self._containers.own(call)
        pieces = self._pieces(row, self._lines(call, row, follow=False))
        with as_answers():
            return await stream_response(pieces, TEXT)

    async def _pieces(
        self, row: Container, lines: AsyncGenerator[str, None]
    ) -> AsyncGenerator[bytes, None]:
        with self._open.one_more(row.id):
            async with aclosing(lines):
                async for line in lines:
                    yield line.rstrip("\r\n").encode() + b"\n"

    async def follow(self, call: Call, socket: Socket) -> None:
        """The last lines, then those to come, until the container or the client ends."""
        row = self._containers.own(call)
        with self._open.one_more(row.id):
            await self._follow(call, row, socket)

    async def _follow(self, call: Call, row: Container, socket: Socket) -> None:
        lines = self._lines(call, row, follow=True)

        async def end_with_the_container() -> None:
            await self._containers.until_deleted(row)
            nursery.cancel_scope.cancel()

        with as_answers():
            async with aclosing(lines), trio.open_nursery() as nursery:
                await socket.accept()
                nursery.start_soon(end_with_the_container)
                async for line in lines:
                    await socket.send(line.rstrip("\r\n"))
                nursery.cancel_scope.cancel()
