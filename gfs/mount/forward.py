"""Reading of who reads a file in order.

The kernel reads ahead by itself: it asks for up to 1 MiB at a time, some of it before the program
does, and not always in order. One stream of the file answers, a request at a time. What the
chunkserver sends meanwhile waits in the socket; from there the bytes go into memory that the answer
is taken from, verified on their way, with no copy between.

That memory is a ring: a byte of the file has its place in it until the one that is ``RING_BYTES``
further on is read. So what was read last is there, too, for requests that have overtaken others, or
begin where none ended.
"""

from __future__ import annotations

import trio

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.client import BlockStream, ExistingFile

STEP_BYTES = 1 * MIB
RING_BYTES = 4 * STEP_BYTES
#: To go on so far after what was read, the stream reads what lies between.
SKIPPED_BYTES_MAX = 8 * MIB
#: A read that begins so near the end of the one before is in order.
NEAR_BYTES = 2 * MIB
#: So many reads in order begin a stream. A small file is read by one.
READS_MIN = 2
#: Nobody reads on: memory and connection are given back.
IDLE_SECONDS = 5.0


class Forward:
    def __init__(self, file: ExistingFile) -> None:
        self._file = file
        self._stream: BlockStream | None = None
        #: Held by who reads from the stream; others wait, first come, first served.
        self._turn = trio.Lock()
        self._reading: BlockStream | None = None
        self._ring = memoryview(b"")
        #: In the ring is what the file has from here to the stream's position.
        self._start = 0
        self._last_end = 0
        self._in_order = 0
        self._read_at = float("-inf")

    async def read(self, offset: int, count: int) -> bytes | memoryview:
        """What there is of ``count`` bytes, at most ``STEP_BYTES``. A view is valid until the next
        checkpoint."""
        is_near = abs(offset - self._last_end) <= NEAR_BYTES
        self._last_end = offset + count
        self._in_order = self._in_order + 1 if is_near else 0
        self._read_at = trio.current_time()
        stream = self._stream
        if stream is None or not self._start <= offset <= stream.position + SKIPPED_BYTES_MAX:
            if self._in_order < READS_MIN:
                return await self._file.pread(offset, count)
            stream = self._begin(offset)
        end = min(offset + count, stream.end)
        async with self._turn:
            while self._stream is stream and stream.position < end:
                await self._read_on(stream, end)
            if self._stream is stream and self._start <= offset:
                return self._held(offset, end)
        # It was stopped, or has failed, which each waits for by itself, or is far beyond by now.
        return await self._file.pread(offset, count)

    def _begin(self, offset: int) -> BlockStream:
        self.stop()
        self._start = offset - offset % BLOCK_BYTES
        self._stream = self._file.blocks(self._start)
        self._ring = memoryview(bytearray(RING_BYTES))
        return self._stream

    async def _read_on(self, stream: BlockStream, end: int) -> None:
        """Whole blocks, and no more than is asked for."""
        at = stream.position % RING_BYTES
        blocks = -(-(end - stream.position) // BLOCK_BYTES)
        count = min(blocks * BLOCK_BYTES, STEP_BYTES, RING_BYTES - at, stream.end - stream.position)
        self._start = max(self._start, stream.position + count - RING_BYTES)
        self._reading, is_read = stream, False
        try:
            await stream.read_into(self._ring[at : at + count])
            is_read = True
        finally:
            self._reading = None
            if self._stream is not stream:
                stream.close()  # it was stopped meanwhile
            elif not is_read:
                self.stop()

    def _held(self, offset: int, end: int) -> bytes | memoryview:
        at, count = offset % RING_BYTES, max(0, end - offset)
        first = self._ring[at : at + count]
        if len(first) == count:
            return first
        return b"".join((first, self._ring[: count - len(first)]))

    def rest(self) -> None:
        """Called now and then."""
        is_idle = self._read_at + IDLE_SECONDS < trio.current_time()
        if is_idle and not self._turn.locked():
            self.stop()

    def stop(self) -> None:
        """Forget everything: the file has changed, or nobody reads it."""
        stream, self._stream = self._stream, None
        self._ring = memoryview(b"")
        if stream is not None and stream is not self._reading:
            stream.close()  # or else who reads from it does
