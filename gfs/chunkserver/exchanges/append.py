"""Record append at the primary (the paper, 3.3).

::

    client ─records─┐
    client ─records─┼─> queue ─> one exchange (gfs.chunkserver.exchanges.write) ─> all replicas
    client ─records─┘       its offsets are chosen when its turn comes

*Group commit.* Requests that arrive while an exchange is under way wait, and are
carried together by the next one: the fixed cost (two thread hops, one round trip down
the chain, the writes of sums and slot) is paid for a batch, not for each record. The
first waiting request's task carries the batch; no task is started.

*Gathering.* Clients that wait for each answer would form two halves, each of which
waits while the other one is carried, and pay the fixed cost twice. So a small batch
first waits until as many requests have arrived as were in the last exchange or waiting
behind it, for no longer than that exchange took: their answers come no later than they
would in halves. A single client does not wait.

*Atomic.* A record is acknowledged when every replica has acknowledged the exchange with all
of it. A record whose exchange was cut short may be stored completely, in part, or not:
its client tries again, and a reader recognizes it by the frame
(:mod:`gfs.protocol.records`).

*Level.* The offset is the primary's length, so all replicas must have that length: see
:mod:`gfs.chunkserver.exchanges.write`.

*Full.* A record that does not fit into the rest of the chunk goes to the next chunk: the
rest becomes a hole, on all replicas, and the answer reports it.

*Bounds.* Bodies of all appends of one server: ``WAITING_BYTES_MAX``; they are received
only when there is room, so the client's send waits. Requests for one chunk:
``WAITING_MAX``, then Busy. A batch: ``BATCH_BYTES`` or one request.

Sketch, one record of 100 bytes alone: 3 servers x (1 receive, 1 thread hop, 3
writes), 5 sends: about 1 ms. 100 in a batch: 1.5 ms. Processor time: each server 0.4
ms an exchange (of which the disk is 0.02, the thread hop 0.04), the primary 0.07 more
for each request. So the number of requests that share an exchange matters; the cost of
reading back and verifying the tail block (0.01 ms) does not. Measured with ``python -m
bench.append``: see docs/design.md.
"""

from __future__ import annotations

from collections import deque

import trio

from gfs.blocks import CHUNK_BYTES, KIB, MIB, packet_sums
from gfs.chunkserver.exchanges.write import WriteExchange
from gfs.chunkserver.node import Answering, Node
from gfs.chunkserver.replicas import OpenChunk
from gfs.errors import (
    Busy,
    GfsError,
    InvalidArgument,
    LeaseLost,
)
from gfs.protocol import records
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    PACKET_BYTES_MAX,
    AppendedChunk,
    AppendRecords,
    AppendReply,
    Failure,
    Message,
    Packet,
    WriteChunk,
)

WAITING_BYTES_MAX = 64 * MIB
WAITING_MAX = 1024
BATCH_BYTES = 4 * MIB
#: A batch that is smaller than this waits for clients that are expected to send again,
SMALL_BATCH_BYTES = 256 * KIB
#: for as long as the last exchange took, and not longer than this.
GATHER_SECONDS_MAX = 0.004
#: Frames are verified in the loop up to this size: a thread hop costs as much.
VERIFY_INLINE_BYTES = 1 * MIB
#: The most chunks whose new lengths one heartbeat reports; others wait for the next.
REPORTED_MAX = 1024


class Waiting:
    """One client's records that are to be appended to the chunk."""

    def __init__(self, request: AppendRecords, body: memoryview) -> None:
        self.request = request
        self.body = body
        self.sizes: list[int] = []
        #: Set when there is an answer, or when this task has to carry the next batch.
        self.woken = trio.Event()
        self.answer: Message | None = None


class Queue:
    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self.led = False
        #: Set when the wanted number of requests waits.
        self.enough = trio.Event()
        self.wanted = 0

    def add(self, waiting: Waiting) -> None:
        self.waiting.append(waiting)
        if len(self.waiting) == self.wanted:
            self.enough.set()

    async def gather(self, wanted: int, seconds: float) -> None:
        """Wait until ``wanted`` requests wait, for ``seconds`` at most."""
        if len(self.waiting) < wanted:
            self.wanted, self.enough = wanted, trio.Event()
            with trio.move_on_after(seconds):
                await self.enough.wait()
            self.wanted = 0


class Appends:
    """All appends that this server orders as a primary."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queues: dict[int, Queue] = {}
        self._bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._unreported: dict[int, AppendedChunk] = {}

    # --- what is reported to the master -------------------------------------------------

    def unreported(self) -> list[AppendedChunk]:
        """The lengths of all replicas that were not reported to the master yet."""
        return list(self._unreported.values())[:REPORTED_MAX]

    def reported(self, chunks: list[AppendedChunk]) -> None:
        for chunk in chunks:
            if self._unreported.get(chunk.handle) is chunk:
                del self._unreported[chunk.handle]

    # --- one request --------------------------------------------------------------------

    async def serve(self, connection: BulkConnection, request: AppendRecords) -> bool:
        """Answer one request. False if the connection cannot be used again."""
        node = self._node
        count = connection.body_bytes
        is_in_order, connection.appended = connection.appended or not request.follows, False
        try:
            if not is_in_order:
                raise LeaseLost("the append before this one failed: send both again")
            if self._bytes and self._bytes + count > WAITING_BYTES_MAX:
                await self._wait_for_room(count)
            self._bytes += count
            try:
                waiting = Waiting(request, memoryview(bytearray(count)))
                answering = Answering(connection)
                # Also while they arrive, which may take long on a slow link.
                with node.pulse.given(answering, request.id):
                    await self._receive(connection, waiting)
                    answering.disk = node.store.open_chunks.disk_of(request.handle)
                    answer = await self._append(waiting)
            finally:
                self._bytes -= count
                self._room.unpark_all()
        except GfsError as error:
            answer = Failure(id=request.id, code=error.code, message=f"{node.id}: {error}")
            if connection.body_bytes:
                await node.connections.fail_and_hang_up(connection, answer)
                return False
        connection.appended = isinstance(answer, AppendReply)
        answer.id = request.id
        await node.connections.answer_briefly(connection, answer)
        return True

    async def _wait_for_room(self, count: int) -> None:
        """Wait for room in memory. Raises Busy if there is none for long."""
        with trio.move_on_after(self._node.settings.idle_seconds) as scope:
            while self._bytes and self._bytes + count > WAITING_BYTES_MAX:
                await self._room.park()
        if scope.cancelled_caught:
            raise Busy("too many appends wait on this server: try again")

    async def _receive(self, connection: BulkConnection, waiting: Waiting) -> None:
        """Receive the records. Small ones arrive with their request."""
        body = waiting.body
        if connection.held_bytes >= len(body):
            await connection.receive_body(body)
        else:
            with deadline(self._node.settings.idle_seconds, "rest of the records"):
                await connection.receive_body(body)
        try:
            if len(body) <= VERIFY_INLINE_BYTES:
                waiting.sizes = records.split_frames(body)
            else:
                waiting.sizes = await self._node.world.run_blocking(records.split_frames, body)
        except ValueError as error:
            raise InvalidArgument(f"the records arrived damaged: {error}") from None
        if not waiting.sizes:
            raise InvalidArgument("an append without a record")

    async def _append(self, waiting: Waiting) -> Message:
        """Carry the batch with this request, or wait for the task that does."""
        handle = waiting.request.handle
        queue = self._queues.setdefault(handle, Queue())
        if len(queue.waiting) >= WAITING_MAX:
            raise Busy(f"{WAITING_MAX} appends to chunk {handle:016x} wait: try again")
        queue.add(waiting)
        if queue.led:
            try:
                # The leading task's exchange has deadlines.
                await waiting.woken.wait()
            except BaseException:
                if waiting in queue.waiting:
                    queue.waiting.remove(waiting)
                if waiting.woken.is_set() and waiting.answer is None:
                    self._hand_over(handle, queue)
                raise
            if waiting.answer is not None:
                return waiting.answer
        queue.led = True
        try:
            await self._carry(queue)
        finally:
            self._hand_over(handle, queue)
        assert waiting.answer is not None
        return waiting.answer

    def _hand_over(self, handle: int, queue: Queue) -> None:
        if queue.waiting:
            queue.waiting[0].woken.set()
        else:
            queue.led = False
            self._queues.pop(handle, None)

    async def _carry(self, queue: Queue) -> None:
        """Carry one exchange, with as many requests as it takes from the queue's head."""
        request = queue.waiting[0].request
        batch = Batch(queue)
        exchange = AppendExchange(self._node, batch, request)
        try:
            await exchange.run()
        except BaseException:
            lost = "the append was cut short: try again"
            batch.failure = Failure(id=0, code=LeaseLost.code, message=lost)
            raise
        finally:
            if batch.failure is not None:
                batch.take_all()
            batch.answer()
        if batch.failure is None and exchange.length:
            self._unreported[request.handle] = AppendedChunk(
                request.handle, request.version, request.inode, exchange.length
            )


class Batch:
    """The records of one exchange: as its upstream, it delivers them like a connection."""

    #: Each request has its own.
    answering: Answering | None = None

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.taken: list[tuple[Waiting, AppendReply]] = []
        self.failure: Failure | None = None
        self.body_bytes = 0
        self._body = memoryview(b"")
        self._records = memoryview(b"")
        self._hole = 0
        #: Offset and size of the packets that follow; that of the hole has none.
        self._ranges: deque[tuple[int, int]] = deque()
        self._number = -1

    # --- who gets which place ----------------------------------------------------------

    def choose(self, length: int) -> None:
        """Give the waiting records their offsets, from ``length`` of the chunk on."""
        at, full = length, False
        pieces: list[memoryview] = []
        while self._may_take(at - length):
            waiting = self._queue.waiting.popleft()
            begin, placed = at, 0
            for size in waiting.sizes:
                full = full or at + size > CHUNK_BYTES
                if full:
                    break
                records.place(waiting.body[at - begin :], at)
                at += size
                placed += 1
            if placed:
                pieces.append(waiting.body[: at - begin])
            reply = AppendReply(0, begin, placed, placed < len(waiting.sizes))
            self.taken.append((waiting, reply))
        self._records = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        self._hole = CHUNK_BYTES - at if full else 0

    def _may_take(self, count: int) -> bool:
        waiting = self._queue.waiting
        if not waiting:
            return False
        if not self.taken:
            return True
        first, request = self.taken[0][0].request, waiting[0].request
        return (
            (request.version, request.chain) == (first.version, first.chain)
        ) and count < BATCH_BYTES

    async def gather(self, wanted: int, seconds: float) -> None:
        """Wait for ``wanted`` requests, if the batch is small."""
        if sum(len(waiting.body) for waiting in self._queue.waiting) < SMALL_BATCH_BYTES:
            await self._queue.gather(wanted, seconds)

    @property
    def requests(self) -> int:
        """How many requests were taken or have come meanwhile."""
        return len(self.taken) + len(self._queue.waiting)

    def take_all(self) -> None:
        """Take all requests for the same chain as the first: they get its failure."""
        while self._may_take(0):
            self.taken.append((self._queue.waiting.popleft(), AppendReply(0, 0, 0, False)))

    def answer(self) -> None:
        """Wake all tasks of this batch."""
        for waiting, reply in self.taken:
            waiting.answer = self.failure or reply
            waiting.woken.set()

    # --- the packets -------------------------------------------------------------------

    def plan(self, start: int, are_level: bool) -> bool:
        """Plan the packets: the records, from ``start`` of the chunk on, then the hole.
        False if there is nothing to send, also not what other replicas lack: that is
        followed by an empty packet."""
        self._start = at = start
        end = start + len(self._records)
        while at < end:
            count = min(PACKET_BYTES_MAX - at % PACKET_BYTES_MAX, end - at)
            self._ranges.append((at, count))
            at += count
        if self._hole:
            self._ranges.append((CHUNK_BYTES, 0))
        elif not self._ranges and not are_level:
            self._ranges.append((end, 0))
        return bool(self._ranges)

    async def receive(self) -> Message:
        """The next packet of the plan. The last one is answered when everything is committed."""
        at, count = self._ranges.popleft()
        last = not self._ranges
        self._number += 1
        self._body = self._records[at - self._start :][:count]
        sums = packet_sums(at, self._body)
        self.body_bytes = count
        return Packet(self._number, at, last, sums, hole=0 if count else self._hole)

    def pending(self) -> int:
        return self.body_bytes

    async def receive_some(self, target: memoryview, least: int) -> int:
        target[:] = self._body
        self.body_bytes = 0
        return len(target)

    async def send(self, message: Message) -> None:
        """Ignore an acknowledgement: the batch is answered when the exchange ends."""

    async def refuse(self, failure: Failure) -> None:
        self.failure = failure


class AppendExchange(WriteExchange):
    """The exchange of one batch, at the primary."""

    def __init__(self, node: Node, batch: Batch, request: AppendRecords) -> None:
        write = WriteChunk(
            id=request.id,
            version=request.version,
            handle=request.handle,
            offset=0,
            mode="mutate",
            chain=request.chain,
            primary=True,
        )
        super().__init__(node, batch, write)
        self._batch = batch
        #: The length of all replicas when the exchange succeeded.
        self.length = 0

    async def _transfer(self, chunk: OpenChunk) -> None:
        file = chunk.file
        await self._level(chunk)
        await self._gather(chunk)
        self._batch.choose(file.length)
        clock = self._node.world.clock
        began = clock.monotonic()
        if self._batch.plan(file.length, self._low >= file.length):
            await super()._transfer(chunk)
        chunk.appended_at = clock.monotonic()
        chunk.append_seconds = chunk.appended_at - began
        chunk.appenders = self._batch.requests
        self.length = file.length

    async def _gather(self, chunk: OpenChunk) -> None:
        now = self._node.world.clock.monotonic()
        if now < chunk.appended_at + GATHER_SECONDS_MAX:
            seconds = min(chunk.append_seconds, GATHER_SECONDS_MAX)
            await self._batch.gather(chunk.appenders, seconds)
