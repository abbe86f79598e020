"""The connections of clients, and of other chunkservers, to this one."""

from __future__ import annotations

import trio

from gfs.io import Clock
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Failure, Message

#: A connection that nobody uses is closed after this long; the pools' limit is below.
IDLE_SECONDS = 90.0
#: How long a peer that was sent a failure may take to close the connection.
HANG_UP_SECONDS = 1.0


class Connections:
    """The open connections, and which of them wait for their next exchange."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.open: set[BulkConnection] = set()
        #: The connections between two exchanges, and since when.
        self.idle: dict[BulkConnection, float] = {}

    async def close_idle(self) -> None:
        """Close idle connections. Runs as long as the server: one task for all costs
        less than a deadline for each exchange."""
        while True:
            await self._clock.sleep(IDLE_SECONDS / 4)
            oldest = self._clock.monotonic() - IDLE_SECONDS
            for connection in [c for c, since in self.idle.items() if since < oldest]:
                connection.close()

    async def answer_briefly(self, connection: BulkConnection, answer: Message) -> None:
        """Send a message that fits into the socket's buffer, if the peer has read
        everything before; a peer that has not is idle, and its connection is closed as
        such."""
        self.idle[connection] = self._clock.monotonic()
        await connection.send(answer)

    async def fail_and_hang_up(self, connection: BulkConnection, failure: Failure) -> None:
        """Send ``failure``, then discard for a moment what the peer still sends, since
        closing with unread data would reset the connection before the peer has read the
        failure."""
        with trio.move_on_after(HANG_UP_SECONDS):
            try:
                await connection.send(failure)
                sink = memoryview(bytearray(256 * 1024))
                while await connection.stream.receive_into(sink):
                    pass
            except ConnectionError:
                pass
        connection.close()
