"""Reused, page-aligned packet buffers under one bound.

Memory is taken when it is first needed and kept for reuse; the bound is what
keeps a server or a client with 400 transfers at once from growing with them.
"""

from __future__ import annotations

import mmap

import trio

from gfs.protocol.messages import PACKET_BYTES_MAX


class BufferPool:
    """Hands out buffers of ``PACKET_BYTES_MAX``; ``total_bytes`` of them at most.

    ``acquire`` waits while all are in use. A caller whose holders may be waiting
    for it (write chains through two servers, in both directions) gives a
    ``patience``: after that many seconds it gets a buffer above the bound rather
    than a deadlock.
    """

    def __init__(self, total_bytes: int) -> None:
        self._count_max = max(1, total_bytes // PACKET_BYTES_MAX)
        self._free: list[mmap.mmap] = []
        self._in_use = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def in_use(self) -> int:
        return self._in_use

    async def acquire(self, patience: float | None = None) -> mmap.mmap:
        if self._in_use >= self._count_max:
            with trio.move_on_after(float("inf") if patience is None else patience):
                while self._in_use >= self._count_max:
                    await self._waiting.park()
        return self._take()

    def acquire_now(self) -> mmap.mmap | None:
        """A buffer, or None if the bound is reached. Does not wait."""
        return None if self._in_use >= self._count_max else self._take()

    def _take(self) -> mmap.mmap:
        self._in_use += 1
        return self._free.pop() if self._free else mmap.mmap(-1, PACKET_BYTES_MAX)

    def release(self, buffer: mmap.mmap) -> None:
        """Nobody uses it any more: the next one may have it."""
        if self._in_use <= self._count_max:
            self._free.append(buffer)
        self._in_use -= 1
        self._wake()

    def discard(self, buffer: mmap.mmap) -> None:
        """A thread whose call was given up may use it still: nobody else gets it, and its
        memory goes when the thread lets go of it."""
        self._in_use -= 1
        self._wake()

    def _wake(self) -> None:
        if self._in_use < self._count_max:
            self._waiting.unpark()
