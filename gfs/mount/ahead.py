"""Reading ahead of who reads a file in order.

The kernel asks for up to 1 MiB at a time, several at once, and not always in order. A task here
streams the file, and answers are taken from what it has read: a little behind the last answer,
and a few MiB ahead of it.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import aclosing

import trio

from gfs.blocks import MIB
from gfs.client import ExistingFile
from gfs.errors import GfsError

log = logging.getLogger(__name__)

AHEAD_BYTES = 8 * MIB
BEHIND_BYTES = 4 * MIB
#: A read that begins so near the end of the one before is in order.
NEAR_BYTES = 2 * MIB
#: Nobody reads on: the memory is given back.
IDLE_SECONDS = 5.0


class Ahead:
    def __init__(self, nursery: trio.Nursery, file: ExistingFile) -> None:
        self._nursery = nursery
        self._file = file
        self._pieces: deque[tuple[int, bytes]] = deque()
        #: What the stream has read, and who was answered how far.
        self._start = self._end = self._wanted = 0
        self._last_end = 0
        self._in_order = 0
        self._scope: trio.CancelScope | None = None
        self._moved = trio.Condition()

    async def read(self, offset: int, count: int) -> bytes:
        near = abs(offset - self._last_end) <= NEAR_BYTES
        self._last_end = offset + count
        self._in_order = self._in_order + 1 if near else 0
        if self._scope is None or not self._start <= offset <= self._end + AHEAD_BYTES:
            if self._in_order < 2:
                return await self._file.pread(offset, count)
            self.stop()
            self._begin(offset)
        return await self._take(offset, count)

    def _begin(self, offset: int) -> None:
        self._start = self._end = self._wanted = offset
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._run, self._scope, offset)

    def stop(self) -> None:
        """Forget everything: the file has changed, or nobody reads it."""
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None
        self._pieces.clear()

    async def _take(self, offset: int, count: int) -> bytes:
        scope = self._scope
        end = min(offset + count, self._file.length)
        async with self._moved:
            self._wanted = max(self._wanted, end)
            self._moved.notify_all()
            while self._scope is scope and self._end < end:
                await self._moved.wait()
        if self._scope is not scope or offset < self._start:
            return await self._file.pread(offset, count)
        parts = [
            piece
            if at >= offset and at + len(piece) <= end
            else piece[max(0, offset - at) : end - at]
            for at, piece in self._pieces
            if at < end and at + len(piece) > offset
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _run(self, scope: trio.CancelScope, offset: int) -> None:
        with scope:
            try:
                async with aclosing(self._file.stream(offset)) as pieces:
                    async for view in pieces:
                        if self._scope is not scope:
                            break  # stopped while this piece was on its way
                        await self._put(bytes(view))
                await trio.sleep(IDLE_SECONDS)
            except GfsError:
                pass  # who waits reads for itself, and gets the error
            except Exception:
                log.exception("reading ahead failed because of a bug")
        if self._scope is scope:
            self.stop()
        with trio.CancelScope(shield=True):
            async with self._moved:
                self._moved.notify_all()

    async def _put(self, piece: bytes) -> None:
        self._pieces.append((self._end, piece))
        self._end += len(piece)
        async with self._moved:
            self._moved.notify_all()
            with trio.move_on_after(IDLE_SECONDS) as idle:
                while self._end - self._wanted >= AHEAD_BYTES:
                    await self._moved.wait()
            if idle.cancelled_caught:
                self.stop()
        while self._pieces and self._start + len(self._pieces[0][1]) < self._wanted - BEHIND_BYTES:
            self._start += len(self._pieces.popleft()[1])
