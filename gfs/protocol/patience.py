"""How long to wait for a server whose answer may take long.

A process that waits cannot distinguish a server that is gone or hangs, one whose disk
does not answer, and one that is only busy. So a server that works on a write or an
append sends :class:`~.messages.Working` every ``PULSE_SECONDS``, as long as its disk
makes progress; and a process that receives nothing for ``SILENT_SECONDS`` continues
without the server. However long the chain is, the neighbour of a server that hangs
notices it first, and names it, since all other servers go on sending.

On a loaded cluster servers are slow but not silent, and slow servers are waited for: up
to ``WORK_SECONDS`` for one answer.

A task that sends cannot receive at the same time. Bytes that arrive meanwhile also show
that the peer is alive, so :class:`Patience` watches, for all tasks that send, whether
any have arrived.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from gfs.errors import DeadlineExceeded
from gfs.io import Clock, Stream
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import Message, Working

#: The interval at which a server that works on a request sends Working.
PULSE_SECONDS = 0.5
#: A server that sends nothing for this long is left out: four pulses are missing.
SILENT_SECONDS = 2.0
#: The limit for one answer of a server that keeps sending Working.
WORK_SECONDS = 10.0
#: A disk that takes longer for a small write is left out, and how much longer each server
#: waits for those after it than these may take.
SMALL_DISK_SECONDS = 1.0
SMALL_STEP_SECONDS = 0.5
#: A network or disk that is slower than this for many small files is not waited for.
BYTES_PER_SECOND_MIN = 4 * 1024 * 1024


def small_write_seconds(after: int, size: int) -> float:
    """How long to wait for small writes of so many bytes together by a server with so many
    ``after`` it in the chain: the one before a server that hangs notices it first, and names it."""
    step = SMALL_STEP_SECONDS + size / BYTES_PER_SECOND_MIN
    return SMALL_DISK_SECONDS + step * (after + 1)


class Patience:
    """The tasks that send to a peer that may be busy."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[trio.CancelScope, _Wait] = {}
        self._some = trio.Event()

    @contextmanager
    def sending(self, scope: trio.CancelScope, stream: Stream, seconds: float) -> Iterator[None]:
        """Set the deadline of ``scope`` to ``seconds`` from now, and extend it whenever
        something arrives on ``stream``."""
        self._waits[scope] = _Wait(stream, seconds, self._clock.monotonic() + WORK_SECONDS)
        self._some.set()
        try:
            yield
        finally:
            del self._waits[scope]

    async def run(self) -> None:
        """Extend the deadlines. Runs as long as the process."""
        while True:
            await self._some.wait()
            while self._waits:
                await self._clock.sleep(PULSE_SECONDS / 2)
                now = self._clock.monotonic()
                for scope, wait in self._waits.items():
                    if wait.has_come() and now < wait.until:
                        scope.deadline = trio.current_time() + wait.seconds
            self._some = trio.Event()


class _Wait:
    __slots__ = ("_seen", "_stream", "seconds", "until")

    def __init__(self, stream: Stream, seconds: float, until: float) -> None:
        self._stream = stream
        self._seen = stream.pending()
        self.seconds = seconds
        self.until = until

    def has_come(self) -> bool:
        before, self._seen = self._seen, self._stream.pending()
        return self._seen != before


class Pulses:
    """Counts the Working messages for one answer, which are limited."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = int(WORK_SECONDS / PULSE_SECONDS)

    def count(self) -> None:
        """Count one more. Raises DeadlineExceeded after the last that is allowed."""
        self._left -= 1
        if self._left < 0:
            raise DeadlineExceeded(f"no answer within {WORK_SECONDS:g} s of work")


async def answer(connection: BulkConnection, seconds: float) -> Message:
    """The next message other than Working. ``seconds`` is how long the server may be silent.

    Raises ``ConnectionError``, ProtocolError, DeadlineExceeded.
    """
    pulses = Pulses()
    while True:
        with deadline(seconds, f"message from {connection.peer}"):
            message = await connection.receive()
        if not isinstance(message, Working):
            return message
        pulses.count()
