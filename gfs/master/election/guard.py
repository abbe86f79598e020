"""Nothing leaves a master after the end of its hold.

A process that was stopped goes on with whatever it was about to do: with answers that were ready,
and with requests that had arrived meanwhile. So the hold is looked at right before bytes are
given to the kernel. What is sent then was read from the store before that, while no other process
could be the master; if the process is stopped between the look and the sending, the answer is
late, but it is that of a time at which its request was under way.
"""

from __future__ import annotations

from collections.abc import Callable

from gfs.io import Buffer, File, Runner, Stream


class Guarded:
    """A stream that is broken once ``may_answer`` is false."""

    def __init__(self, stream: Stream, may_answer: Callable[[], bool]) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._may_answer = may_answer

    def _check(self) -> None:
        if not self._may_answer():
            raise ConnectionResetError("this master's hold has ended")

    async def receive_into(self, buffer: memoryview, least: int = 1) -> int:
        return await self._stream.receive_into(buffer, least)

    async def send_all(self, *buffers: Buffer) -> None:
        self._check()
        await self._stream.send_all(*buffers)

    def send_now(self, data: Buffer) -> int:
        self._check()
        return self._stream.send_now(data)

    async def send_file(
        self, file: File, offset: int, count: int, run: Runner | None = None
    ) -> None:
        self._check()
        await self._stream.send_file(file, offset, count, run)

    def ended(self) -> bool:
        return self._stream.ended()

    def pending(self) -> int:
        return self._stream.pending()

    def close(self) -> None:
        self._stream.close()
