"""What a multiplexed connection has to send, and the task that sends it: see
:mod:`gfs.protocol.rpc`."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from gfs.blocks import Buffer
from gfs.io import Stream

REPLY_BYTES_MAX = 8 * 1024 * 1024
REQUEST_BYTES_MAX = 8 * 1024 * 1024
#: More than this is left to the writer: to copy it takes long.
SENT_AT_ONCE_BYTES_MAX = 256 * 1024


class Outgoing:
    """``callers`` wait for room for their requests."""

    def __init__(self, stream: Stream, callers: trio.lowlevel.ParkingLot) -> None:
        self._stream = stream
        self._callers = callers
        #: Headers, heads and bodies.
        self.pieces: list[Buffer] = []
        self.reply_bytes = 0
        self.request_bytes = 0
        #: A batch is being handled: its answers are sent together.
        self.gathers = False
        self._writer_parked: trio.lowlevel.Task | None = None
        #: Tasks that wait until the peer has taken some replies.
        self._full = trio.lowlevel.ParkingLot()

    async def write(self) -> None:
        """Send what is queued, until cancelled. Raises ``ConnectionError``."""
        while True:
            if not self.pieces:
                self._writer_parked = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._unpark_writer)
            pieces, self.pieces = self.pieces, []
            if self.request_bytes >= REQUEST_BYTES_MAX:
                self._callers.unpark_all()
            self.reply_bytes = self.request_bytes = 0
            self._full.unpark_all()
            await self._stream.send_all(b"".join(pieces))

    def _unpark_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer_parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def room(self) -> None:
        """Return once the replies that wait for the peer are within their bound."""
        while self.reply_bytes > REPLY_BYTES_MAX:
            await self._full.park()

    def queue(
        self,
        pieces: Sequence[Buffer],
        reply_bytes: int = 0,
        request_bytes: int = 0,
        together: bool = False,
    ) -> None:
        """``together``: of several messages, which are sent at once. A single one waits for those
        that other tasks queue in this turn of the loop."""
        if reply_bytes:
            self.reply_bytes += reply_bytes
        if request_bytes:
            self.request_bytes += request_bytes
        self.pieces += pieces
        if together:
            self.send_queued()
        elif not self.gathers:
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writer_parked is not None:
            task, self._writer_parked = self._writer_parked, None
            trio.lowlevel.reschedule(task)

    def send_queued(self) -> None:
        """Send what is queued without the writer, which costs two turns of the loop. It is woken
        for what the peer does not take at once."""
        if not self.pieces or self._writer_parked is None:
            return  # a writer that is awake sends it
        if self.reply_bytes + self.request_bytes <= SENT_AT_ONCE_BYTES_MAX:
            data = b"".join(self.pieces)
            try:
                sent = self._stream.send_now(data)
            except ConnectionError:
                sent = 0  # the writer meets it, too, and ends the connection
            if sent == len(data):
                self.pieces.clear()
                self.reply_bytes = self.request_bytes = 0
                return
            self.pieces = [memoryview(data)[sent:]]
        self._wake_writer()

    def clear(self) -> None:
        """The connection has ended: drop what is queued."""
        self.pieces.clear()
        self.reply_bytes = self.request_bytes = 0
        self._full.unpark_all()
