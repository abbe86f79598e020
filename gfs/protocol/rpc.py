"""A control connection: many requests in flight both ways, answered in any order.

What makes it fast is batching at both ends and no task per request:

* everything that one ``recv`` brought is decoded at once and handed to the
  handler as one batch; what the handler answers on the spot leaves in one send;
* a caller suspends itself with ``wait_task_rescheduled``; the reader wakes it;
* what is queued (:mod:`gfs.protocol.outgoing`) is joined, and sent by the task that has queued
  it if the peer takes it at once; else by the writer.

Sketch for one look-up, one at a time: 2 sends, 2 receives, 4 task switches,
about 150 µs for both processes; with 16 in flight everything but the decoding
(1 µs) and the look-up itself is shared by the batch.

Bounds: at most ``REPLY_BYTES_MAX`` of replies queued (and as much again being
sent, and the answers to one batch), then no more requests are handled, until the peer has
read some. Requests do not count for it: two sides that send each other large requests must
both go on reading. So only one side of a connection may give large answers (the master, or
the chunkserver that was connected to). At most ``CALLS_MAX`` calls wait at once, and
``REQUEST_BYTES_MAX`` of requests, then callers queue; the handler gets at most
``BATCH_MAX`` requests at a time; after ``REQUESTS_PER_YIELD`` requests the reader lets the
other tasks run, so that one busy peer does not starve the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

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
from gfs.errors import DeadlineExceeded, GfsError, InvalidArgument, OlderRelease, from_wire
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.frames import FrameDecoder, encode_head
from gfs.protocol.messages import HEAD_BYTES_MAX, REPLIES, Failure, Message
from gfs.protocol.outgoing import REQUEST_BYTES_MAX, Outgoing

RECEIVE_BYTES = 256 * 1024
CALLS_MAX = 4096
#: How often the deadlines of waiting calls are checked.
SWEEP_SECONDS = 0.25
#: A call waits for so long before the peer is asked whether it is there; so long between questions.
PROBE_SECONDS = 1.0
BATCH_MAX = 64
REQUESTS_PER_YIELD = 512

_REPLIES = frozenset(REPLIES)

#: Called with every batch of requests. Must not block. It answers with
#: :meth:`Rpc.send`, now or later.
Handler = Callable[["Rpc", list[tuple[Message, bytes]]], None]

#: A message and its body, or why there is none.
Reply = tuple[Message, bytes] | Exception
#: Gets the place of a request among those that were sent together, and its reply, when that is
#: here. Must neither block nor raise.
Take = Callable[[int, Reply], None]


class Calls:
    """Requests that were sent together, and their replies."""

    def __init__(self, rpc: Rpc, count: int, each: Take | None) -> None:
        self._rpc = rpc
        self._each = each
        self._replies: list[Reply | None] = [None] * count
        self._left = count
        self._waiting: trio.lowlevel.Task | None = None
        self.numbers: list[int] = []

    def take(self, index: int, reply: Reply) -> None:
        self._replies[index] = reply
        if self._each is not None:
            self._each(index, reply)
        self._left -= 1
        if not self._left and self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)

    async def replies(self) -> list[Reply]:
        """Each in the place of its request, when all are here."""
        if self._left:
            self._waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        return [reply for reply in self._replies if reply is not None]

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiting = None
        self.drop()
        return trio.lowlevel.Abort.SUCCEEDED

    def drop(self) -> None:
        """Nobody waits for the replies."""
        for number in self.numbers:
            self._rpc.forget(number)


def _wake(task: trio.lowlevel.Task, _: int, reply: Reply) -> None:
    if isinstance(reply, Exception):
        trio.lowlevel.reschedule(task, outcome.Error(reply))
    else:
        trio.lowlevel.reschedule(task, outcome.Value(reply))


def check_known(peer: str, version: int, kind: type[Message]) -> None:
    """Raise OlderRelease if a peer that speaks that version of the protocol does not know that
    message."""
    if version < kind.SINCE:
        raise OlderRelease(
            f"{peer} is of an older release, which does not know {kind.__name__}: upgrade it first"
        )


def _ignore(_: int, reply: Reply) -> None:
    pass


def refuse_all(rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
    """The handler of a side that serves no requests."""
    for message, _ in batch:
        name = type(message).__name__
        rpc.send(Failure(id=message.id, code="protocol", message=f"{name} is not served here"))


class Rpc:
    """One multiplexed connection. Frames are sent and received only while ``run`` is running.

    ``silent_seconds``: a peer that sends nothing at all for so long after a call is gone, and the
    connection ends. Where an answer may take longer than that, ``probe`` makes a request that the
    peer answers at once: it is sent while calls wait.
    """

    def __init__(
        self,
        connection: BulkConnection,
        handler: Handler = refuse_all,
        *,
        silent_seconds: float = math.inf,
        probe: Callable[[], Message] | None = None,
    ) -> None:
        self.peer = connection.peer
        self.peer_cluster = connection.peer_cluster
        self.peer_term = connection.peer_term
        self.version = connection.version
        self._stream = connection.stream
        self._read_ahead = connection.take_read_ahead()
        self._handler = handler
        self._queued_callers = trio.lowlevel.ParkingLot()
        self.outgoing = Outgoing(connection.stream, self._queued_callers)
        self._queue = self.outgoing.queue  # of every message: found in one step
        self._silent_seconds = silent_seconds
        self._probe = probe
        #: When the first call after the peer's last bytes was made.
        self._silent_since: float | None = None
        self._ids = itertools.count(1)
        #: For calls that belong to no request of a client.
        self._requests = itertools.count(connection.first_request)
        #: Who gets the reply, as which of those it waits for; within how long, until when, and
        #: what was asked.
        self._calls: dict[int, tuple[Take, int, float, float, type[Message]]] = {}
        #: The task that checks deadlines, while there is none.
        self._sweeper = trio.lowlevel.ParkingLot()
        self._error: BaseException | None = None
        self.closed = False
        #: It ended because the peer sent nothing.
        self.was_silent = False

    async def run(self) -> None:
        """Send and receive frames until the connection ends; returns then, however it ended.

        Calls that still wait get ``ConnectionError``. A peer that breaks the
        protocol is cut off.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._sweep)
                try:
                    await self._read()
                except (ConnectionError, GfsError) as error:
                    self._error = self._error or error
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _read(self) -> None:
        decoder = FrameDecoder()
        buffer = bytearray(RECEIVE_BYTES)
        view = memoryview(buffer)
        data: Buffer = self._read_ahead
        outgoing = self.outgoing
        unyielded = 0
        while True:
            requests = []
            for frame in decoder.feed(data):
                if type(frame[0]) in _REPLIES:
                    self._answer(*frame)
                else:
                    requests.append(frame)
            for at in range(0, len(requests), BATCH_MAX):
                batch = requests[at : at + BATCH_MAX]
                outgoing.gathers = True
                self._handler(self, batch)
                outgoing.gathers = False
                outgoing.send_queued()
                unyielded += len(batch)
                if unyielded >= REQUESTS_PER_YIELD:
                    unyielded = 0
                    await trio.lowlevel.checkpoint()
                await outgoing.room()
            count = await self._stream.receive_into(view)
            if not count:
                return
            self._silent_since = None
            data = view[:count]

    async def _write(self) -> None:
        try:
            await self.outgoing.write()
        except ConnectionError as error:
            self._error = self._error or error
            self.close()

    def send(self, message: Message, body: Buffer = b"") -> None:
        """Queue a frame; the body must not change any more. After the connection has ended, it is
        dropped."""
        if self.closed:
            return
        head = encode_head(message, len(body))
        is_reply = type(message) in _REPLIES
        self._queue((head, body), reply_bytes=len(head) + len(body) if is_reply else 0)

    def send_all(self, messages: Iterable[Message]) -> None:
        """As :meth:`send` of each, together."""
        self.outgoing.gathers = True
        for message in messages:
            self.send(message)
        self.outgoing.gathers = False
        self.outgoing.send_queued()

    def send_error(self, request_id: int, error: GfsError, server: str = "") -> None:
        """``server`` has failed, unless the error names another one."""
        server = getattr(error, "server", "") or server
        self.send(Failure(id=request_id, code=error.code, message=str(error), server=server))

    async def call(
        self, message: Message, body: Buffer = b"", seconds: float = 10.0
    ) -> tuple[Message, bytes]:
        """Send a request (its ``id`` is set here) and wait for its reply.

        Raises the error a Failure carries, ``ConnectionError`` when the
        connection ends first, DeadlineExceeded after ``seconds`` (up to
        ``SWEEP_SECONDS`` late). After a cancellation or DeadlineExceeded the peer may
        still have carried out the request.
        """
        until = await self._room_for_call(seconds)
        take = partial(_wake, trio.lowlevel.current_task())
        (number,) = self._begin([(message, body)], seconds, until, take)

        def abort(_: object) -> trio.lowlevel.Abort:
            self.forget(number)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: tuple[Message, bytes] = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    async def start(
        self,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float = 10.0,
        each: Take | None = None,
    ) -> Calls:
        """Send requests together, each as by :meth:`call`. Raises as ``call`` if none of them
        was sent."""
        return self._start(requests, seconds, await self._room_for_call(seconds), each)

    def start_now(
        self,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float,
        each: Take | None = None,
    ) -> Calls | None:
        """As :meth:`start`, sent before this returns; None if a call has to wait now."""
        if self.closed or not self._has_room:
            return None
        return self._start(requests, seconds, trio.current_time() + seconds, each)

    def _start(
        self,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float,
        until: float,
        each: Take | None = None,
    ) -> Calls:
        calls = Calls(self, len(requests), each)
        calls.numbers = self._begin(requests, seconds, until, calls.take)
        return calls

    @property
    def _has_room(self) -> bool:
        return len(self._calls) < CALLS_MAX and self.outgoing.request_bytes < REQUEST_BYTES_MAX

    @property
    def waits(self) -> bool:
        """Whether replies are waited for."""
        return bool(self._calls)

    async def _room_for_call(self, seconds: float) -> float:
        """Until when the reply must come."""
        # A call that is cancelled before it starts is not sent.
        await trio.lowlevel.checkpoint_if_cancelled()
        until = trio.current_time() + seconds
        while not self._has_room:  # there is room after the end
            with deadline(until - trio.current_time(), f"room for a call to {self.peer}"):
                await self._queued_callers.park()
        if self.closed:
            raise self._ended()
        return until

    def _begin(
        self,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float,
        until: float,
        take: Take,
    ) -> list[int]:
        """Send them; returns their numbers. What is the same for all of them is done once."""
        of_task = request.get()
        numbers: list[int] = []
        frames: list[Buffer] = []
        size = 0
        try:
            for index, (message, body) in enumerate(requests):
                kind = type(message)
                if self.version < kind.SINCE:
                    check_known(self.peer, self.version, kind)
                of = of_task or request_of(message.id) or next(self._requests) & REQUEST_MASK
                number = message.id = of << CALL_BITS | next(self._ids) & CALL_MASK
                head = _encode(message, len(body))
                frames += (head, body)
                size += len(head) + len(body)
                self._calls[number] = take, index, seconds, until, kind
                numbers.append(number)
        except BaseException:
            for number in numbers:
                self.forget(number)
            raise
        if self._silent_since is None:
            self._silent_since = trio.current_time()
        if self._sweeper:
            self._sweeper.unpark()
        self._queue(frames, request_bytes=size, together=len(numbers) > 1)
        return numbers

    def forget(self, number: int) -> None:
        """The caller has given up."""
        if self._calls.pop(number, None) is not None:
            self._let_next_call()

    def _let_next_call(self) -> None:
        if self._queued_callers:
            self._queued_callers.unpark()

    async def _sweep(self) -> None:
        """End the calls whose deadline has passed: one task looks at all of them,
        since a cancel scope for each costs more than the rest of a look-up. A connection on
        which nobody waits costs nothing."""
        probed_at = -math.inf
        while True:
            is_silent = self._silent_since is not None and self._silent_seconds < math.inf
            if not self._calls and not is_silent:
                await self._sweeper.park()
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            late = [number for number, call in self._calls.items() if call[3] <= now]
            for number in late:
                take, index, seconds, _, kind = self._calls.pop(number)
                what = f"no answer from {self.peer} to {kind.__name__} within {seconds:g} s"
                error = DeadlineExceeded(what)
                error.request = request_name(request_of(number))
                take(index, error)
                self._let_next_call()
            if self._silent_since is not None and now >= self._silent_since + self._silent_seconds:
                silence = f"{self.peer} has sent nothing for {self._silent_seconds:g} s"
                self._error = self._error or ConnectionResetError(silence)
                self.was_silent = True
                self.close()
                return
            # Ask the peer whether it is there, if the oldest call waits for long and it is time.
            oldest = next(iter(self._calls.values()), None)
            if self._probe is not None and oldest is not None:
                _, _, seconds, until, _ = oldest
                if now >= max(until - seconds, probed_at) + PROBE_SECONDS:
                    probed_at = now
                    self._begin([(self._probe(), b"")], PROBE_SECONDS, now + PROBE_SECONDS, _ignore)

    def _answer(self, message: Message, body: bytes) -> None:
        call = self._calls.pop(message.id, None)
        if call is None:
            return  # the caller gave up; a late answer is not an error
        take, index = call[:2]
        self._let_next_call()
        if type(message) is Failure:
            error = from_wire(message.code, message.message, message.server)
            error.request = request_name(request_of(message.id))
            take(index, error)
        else:
            take(index, (message, body))

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
            self.outgoing.clear()
        calls, self._calls = self._calls, {}
        for take, index, *_ in calls.values():
            take(index, self._ended())
        self._queued_callers.unpark_all()


def _encode(message: Message, body_bytes: int) -> bytes:
    """Header and head of a request. Raises InvalidArgument for a message that the peer would
    end the connection for."""
    try:
        head = encode_head(message, body_bytes)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        name = type(message).__name__
        raise InvalidArgument(f"{name} cannot be sent: {error}") from None
    if len(head) > HEAD_BYTES_MAX:
        raise InvalidArgument(f"{type(message).__name__} of {len(head)} bytes is too long to send")
    return head
