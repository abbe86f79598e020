"""How long one waits for a server that was asked for something that may take long.

Three things look the same to whoever waits: a server that is gone or stands still, one
whose disk does not answer, and one that is only busy. So a server that works on a write
or an append says so, every ``PULSE_SECONDS``, with :class:`~.messages.Working`, as long
as its disk gets on; and whoever hears nothing for ``SILENT_SECONDS`` has good reason to go
on without it. However long the chain is, the one next to a server that hangs notices it
first, and names it, since all others go on to be heard.

On a loaded cluster nobody is silent, only slow, and slow ones are waited for: up to
``WORK_SECONDS`` for one answer.

Who is sending cannot listen at the same time. What came in meanwhile tells as well that
the peer is alive, so :class:`Patience` looks how much that is, for all who send.
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

#: How often a server that works on something says so.
PULSE_SECONDS = 0.5
#: Who says nothing for this long is left out: four pulses are missing.
SILENT_SECONDS = 2.0
#: One answer may take so long, of a server that says all the time that it works on it.
WORK_SECONDS = 10.0


class Patience:
    """Those who send, and wait for a peer that may be busy."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[trio.CancelScope, _Wait] = {}
        self._some = trio.Event()

    @contextmanager
    def sending(self, scope: trio.CancelScope, stream: Stream, seconds: float) -> Iterator[None]:
        """The deadline of ``scope``, ``seconds`` from now, is put off whenever something
        arrives on ``stream``."""
        self._waits[scope] = _Wait(stream, seconds, self._clock.monotonic() + WORK_SECONDS)
        self._some.set()
        try:
            yield
        finally:
            del self._waits[scope]

    async def run(self) -> None:
        """For as long as the process runs."""
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
    """How often a server may say of one answer that it works on it."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = int(WORK_SECONDS / PULSE_SECONDS)

    def count(self) -> None:
        """One more. Raises DeadlineExceeded after the last."""
        self._left -= 1
        if self._left < 0:
            raise DeadlineExceeded(f"no answer within {WORK_SECONDS:g} s of work")


async def answer(connection: BulkConnection, seconds: float) -> Message:
    """The next message that is an answer, of a server that is not silent for ``seconds``.

    Raises ``ConnectionError``, ProtocolError, DeadlineExceeded.
    """
    pulses = Pulses()
    while True:
        with deadline(seconds, f"word from {connection.peer}"):
            message = await connection.receive()
        if not isinstance(message, Working):
            return message
        pulses.count()
