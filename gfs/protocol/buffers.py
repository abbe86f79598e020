"""Reused, page-aligned packet buffers under one bound.

Memory is allocated when it is first needed and kept for reuse. Because of the bound, a
server or client with 400 transfers at once does not grow with them.
"""

from __future__ import annotations

import mmap

import trio

from gfs.protocol.messages import PACKET_BYTES_MAX


class BufferPool:
    """Hands out buffers of ``PACKET_BYTES_MAX``; ``total_bytes`` of them at most.

    ``acquire`` waits while all are in use. A caller that those who hold the buffers may
    be waiting for (write chains through two servers, in both directions) gives a
    ``patience``: after that many seconds it gets a buffer above the bound, so that
    there is no deadlock.
    """

    def __init__(self, total_bytes: int) -> None:
        self._count_max = max(1, total_bytes // PACKET_BYTES_MAX)
        self._free: list[mmap.mmap] = []
        self._in_use = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def has_free(self) -> bool:
        return self._in_use < self._count_max

    async def acquire(self, patience: float | None = None) -> mmap.mmap:
        if not self.has_free:
            with trio.move_on_after(float("inf") if patience is None else patience):
                while not self.has_free:
                    await self._waiting.park()
        return self._take()

    def acquire_now(self) -> mmap.mmap | None:
        """A buffer, or None if the bound is reached. Does not wait."""
        return self._take() if self.has_free else None

    def _take(self) -> mmap.mmap:
        self._in_use += 1
        return self._free.pop() if self._free else mmap.mmap(-1, PACKET_BYTES_MAX)

    def release(self, buffer: mmap.mmap) -> None:
        """Return ``buffer``, which nobody uses any more, for reuse."""
        if self._in_use <= self._count_max:
            self._free.append(buffer)
        self._in_use -= 1
        self._wake()

    def discard(self, buffer: mmap.mmap) -> None:
        """Give up a buffer that a thread of an abandoned call may still use: it is not
        reused, and its memory is freed when the thread ends its call."""
        self._in_use -= 1
        self._wake()

    def _wake(self) -> None:
        if self.has_free:
            self._waiting.unpark()
