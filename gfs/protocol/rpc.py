"""A control connection: many requests in flight both ways, answered in any order.

What makes it fast is batching at both ends and no task per request:

* everything that one ``recv`` brought is decoded at once and handed to the
  handler as one batch; what the handler answers on the spot leaves in one send;
* a caller parks itself with ``wait_task_rescheduled``; the reader wakes it;
* the writer joins whatever is queued.

Sketch for one look-up, one at a time: 2 sends, 2 receives, 4 task switches,
about 150 µs for both processes; with 16 in flight everything but the decoding
(1 µs) and the look-up itself is shared by the batch.

Bounds: at most ``REPLY_BYTES_MAX`` of replies queued (and as much again being
sent), then no more is read, until the peer has read some. Requests do not count
for it: two sides that send each other large requests must both go on reading.
So only one side of a connection may give large answers (here: the master). At
most ``CALLS_MAX`` calls wait at once, then callers
queue; after ``REQUESTS_PER_YIELD`` requests the reader lets the other tasks run,
so that one busy peer does not starve the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import outcome
import trio

from gfs.blocks import Buffer
from gfs.diagnostics import (
    CALL_BITS,
    CALL_MASK,
    REQUEST_MASK,
    request,
    request_name,
    request_of,
)
from gfs.errors import DeadlineExceeded, GfsError, InvalidArgument, ProtocolError, from_wire
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.frames import FrameDecoder, encode_frame
from gfs.protocol.messages import HEAD_BYTES_MAX, REPLIES, Failure, Message

RECEIVE_BYTES = 256 * 1024
REPLY_BYTES_MAX = 8 * 1024 * 1024
CALLS_MAX = 4096
#: How often deadlines of waiting calls are looked at.
SWEEP_SECONDS = 0.25
REQUESTS_PER_YIELD = 512

_REPLIES = frozenset(REPLIES)

#: Called with every batch of requests. Must not block. It answers with
#: :meth:`Rpc.send`, now or later.
Handler = Callable[["Rpc", list[tuple[Message, bytes]]], None]


def refuse_all(rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
    """The handler of a side that serves no requests."""
    for message, _ in batch:
        name = type(message).__name__
        rpc.send(Failure(id=message.id, code="protocol", message=f"{name} is not served here"))


class Rpc:
    """One multiplexed connection. ``run`` must be running for anything to move."""

    def __init__(self, connection: BulkConnection, handler: Handler = refuse_all) -> None:
        self.peer = connection.peer
        self.peer_role = connection.peer_role
        self.peer_id = connection.peer_id
        self.peer_cluster = connection.peer_cluster
        self.peer_term = connection.peer_term
        self._stream = connection.stream
        self._read_ahead = connection.take_read_ahead()
        self._handler = handler
        self._out: list[bytes] = []
        self._reply_bytes = 0
        self._writer_parked: trio.lowlevel.Task | None = None
        self._room = trio.Event()
        self._ids = itertools.count(1)
        #: For calls that are made for no request of somebody else.
        self._requests = itertools.count(connection.first_request)
        self._calls: dict[int, tuple[trio.lowlevel.Task, float, str]] = {}
        self._queued_callers = trio.lowlevel.ParkingLot()
        self._error: BaseException | None = None
        self.closed = False

    async def run(self) -> None:
        """Move frames until the connection ends; returns then, however it ended.

        Calls that still wait get ``ConnectionError``. A peer that breaks the
        protocol is cut off.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._sweep)
                try:
                    await self._read()
                except (ConnectionError, ProtocolError) as error:
                    self._error = self._error or error
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _read(self) -> None:
        decoder = FrameDecoder()
        buffer = bytearray(RECEIVE_BYTES)
        view = memoryview(buffer)
        data: Buffer = self._read_ahead
        unyielded = 0
        while True:
            requests = []
            for frame in decoder.feed(data):
                if type(frame[0]) in _REPLIES:
                    self._answer(*frame)
                else:
                    requests.append(frame)
            if requests:
                self._handler(self, requests)
                unyielded += len(requests)
                if unyielded >= REQUESTS_PER_YIELD:
                    unyielded = 0
                    await trio.lowlevel.checkpoint()
            while self._reply_bytes > REPLY_BYTES_MAX:
                self._room = trio.Event()
                await self._room.wait()
            count = await self._stream.receive_into(view)
            if not count:
                return
            data = view[:count]

    async def _write(self) -> None:
        while True:
            if not self._out:
                self._writer_parked = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._unpark_writer)
            out, self._out = self._out, []
            self._reply_bytes = 0
            self._room.set()
            try:
                await self._stream.send_all(out[0] if len(out) == 1 else b"".join(out))
            except ConnectionError as error:
                self._error = self._error or error
                self.close()
                return

    def _unpark_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer_parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def send(self, message: Message, body: Buffer = b"") -> None:
        """Queue a frame. After the connection has ended, it goes nowhere."""
        if self.closed:
            return
        frame = encode_frame(message, body)
        if type(message) in _REPLIES:
            self._reply_bytes += len(frame)
        self._queue(frame)

    def _queue(self, frame: bytes) -> None:
        self._out.append(frame)
        if self._writer_parked is not None:
            task, self._writer_parked = self._writer_parked, None
            trio.lowlevel.reschedule(task)

    def send_error(self, request_id: int, error: GfsError) -> None:
        server = getattr(error, "server", "")
        self.send(Failure(id=request_id, code=error.code, message=str(error), server=server))

    async def call(
        self, message: Message, body: Buffer = b"", seconds: float = 10.0
    ) -> tuple[Message, bytes]:
        """Send a request (its ``id`` is set here) and wait for its reply.

        Raises the error a Failure carries, ``ConnectionError`` when the
        connection ends first, DeadlineExceeded after ``seconds`` (up to
        ``SWEEP_SECONDS`` late). When it is cancelled or too late, the peer may
        still have carried it out.
        """
        # A call that is cancelled before it starts is not sent.
        await trio.lowlevel.checkpoint_if_cancelled()
        until = trio.current_time() + seconds
        while len(self._calls) >= CALLS_MAX:
            with deadline(until - trio.current_time(), f"room for a call to {self.peer}"):
                await self._queued_callers.park()
        if self.closed:
            raise self._ended()
        of = request.get() or next(self._requests) & REQUEST_MASK
        request_id = message.id = of << CALL_BITS | next(self._ids) & CALL_MASK
        frame = _encode(message, body)

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._calls[request_id]
            self._queued_callers.unpark()
            return trio.lowlevel.Abort.SUCCEEDED

        self._calls[request_id] = (
            trio.lowlevel.current_task(),
            until,
            f"{type(message).__name__} within {seconds:g} s",
        )
        self._queue(frame)
        reply: tuple[Message, bytes] = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    async def _sweep(self) -> None:
        """End the calls whose deadline has passed: one task looks at all of them,
        since a cancel scope for each costs more than the rest of a look-up."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            late = [number for number, call in self._calls.items() if call[1] <= now]
            for number in late:
                task, _, name = self._calls.pop(number)
                error = DeadlineExceeded(f"no answer from {self.peer} to {name}")
                error.request = request_name(request_of(number))
                trio.lowlevel.reschedule(task, outcome.Error(error))
                self._queued_callers.unpark()

    def _answer(self, message: Message, body: bytes) -> None:
        call = self._calls.pop(message.id, None)
        if call is None:
            return  # the caller gave up; a late answer is no error
        task = call[0]
        self._queued_callers.unpark()
        if type(message) is Failure:
            error = from_wire(message.code, message.message, message.server)
            error.request = request_name(request_of(message.id))
            trio.lowlevel.reschedule(task, outcome.Error(error))
        else:
            trio.lowlevel.reschedule(task, outcome.Value((message, body)))

    def _ended(self) -> ConnectionError:
        if isinstance(self._error, ConnectionError):
            return ConnectionResetError(str(self._error))
        if self._error is not None:
            return ConnectionResetError(f"the connection to {self.peer} broke: {self._error}")
        return ConnectionResetError(f"{self.peer} ended the connection")

    def close(self) -> None:
        """End the connection now; waiting calls get ``ConnectionError``."""
        if not self.closed:
            self.closed = True
            self._stream.close()
            self._out.clear()
            self._reply_bytes = 0
            self._room.set()
        calls, self._calls = self._calls, {}
        for task, _, _ in calls.values():
            trio.lowlevel.reschedule(task, outcome.Error(self._ended()))
        self._queued_callers.unpark_all()


def _encode(message: Message, body: Buffer) -> bytes:
    """The frame of a request, or InvalidArgument: this side's fault is told here,
    before the peer cuts the connection for it."""
    name = type(message).__name__
    try:
        frame = encode_frame(message, body)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"{name} cannot be sent: {error}") from None
    if len(frame) - len(body) > HEAD_BYTES_MAX:
        raise InvalidArgument(f"{name} of {len(frame)} bytes is too long to send")
    return frame
