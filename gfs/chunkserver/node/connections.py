"""The connections of clients, and of other chunkservers, to this one."""

from __future__ import annotations

import trio

from gfs.io import Clock
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Failure, Message

#: A connection that nobody uses is closed after this long; the pools' limit is below.
IDLE_SECONDS = 90.0
#: How long a peer that was sent a failure may take to hang up.
HANG_UP_SECONDS = 1.0


class Connections:
    """All that are open, and which of them wait for their next exchange."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.open: set[BulkConnection] = set()
        #: Those between two exchanges, and since when.
        self.idle: dict[BulkConnection, float] = {}

    async def close_idle(self) -> None:
        """Close those that nobody uses. Runs for as long as the server does: one task for
        all costs less than a deadline for each exchange."""
        while True:
            await self._clock.sleep(IDLE_SECONDS / 4)
            oldest = self._clock.monotonic() - IDLE_SECONDS
            for connection in [c for c, since in self.idle.items() if since < oldest]:
                connection.close()

    async def answer_briefly(self, connection: BulkConnection, answer: Message) -> None:
        """Send what fits into the buffer of any peer that took what was sent before; one
        that did not is idle, and is closed as such."""
        self.idle[connection] = self._clock.monotonic()
        await connection.send(answer)

    async def fail_and_hang_up(self, connection: BulkConnection, failure: Failure) -> None:
        """Send ``failure`` and let the peer read it: what it still sends is thrown away for a
        moment, since closing on unread data would cut the answer off."""
        with trio.move_on_after(HANG_UP_SECONDS):
            try:
                await connection.send(failure)
                sink = memoryview(bytearray(256 * 1024))
                while await connection.stream.receive_into(sink):
                    pass
            except ConnectionError:
                pass
        connection.close()
