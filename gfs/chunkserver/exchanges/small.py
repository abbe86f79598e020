"""Small requests, many at a time over one connection (the client's, or the server's before).

What one ``recv`` brought is one batch. Reads of open files that the page cache has are
answered on the spot. Writes that go on to the same server are passed on in one ``send``, and
share one hop to a thread meanwhile with all others that wait for that disk. Readers of files
with appended records ask for the states of replicas, which have their lengths.

A write is of a whole new chunk that is not published yet: nobody else writes to it, there is
no lease, and nothing to repair when it fails. What it leaves then is garbage.

Time: a server, and its disk, has as long as :func:`~gfs.protocol.patience.small_write_seconds`
says. The client writes the file again then, by an exchange: without the server that is named,
unless that has answered that it is busy, or its disk slow.

Bounds: ``WAITING_MAX`` requests of one connection at a time, of which ``READS_MAX`` hold their
answer; and of all connections ``WAITING_BYTES_MAX`` of writes that are under way, and as much
that is given to the disks. More is refused as Busy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from gfs.blocks import Buffer, block_sum
from gfs.chunkserver.disks import Disk
from gfs.chunkserver.exchanges.read import read_open, read_small
from gfs.chunkserver.node import Node
from gfs.chunkserver.replicas import Made
from gfs.errors import (
    Busy,
    CorruptReplica,
    GfsError,
    InvalidArgument,
    ProtocolError,
    ReplicaUnavailable,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import (
    SMALL_BYTES_MAX,
    Done,
    Message,
    ReadChunk,
    ServerAddress,
    VerifyChunk,
    WriteSmall,
)
from gfs.protocol.patience import (
    BYTES_PER_SECOND_MIN,
    SMALL_DISK_SECONDS,
    small_write_seconds,
)
from gfs.protocol.rpc import SWEEP_SECONDS, Reply, Rpc, Take

WAITING_MAX = 4096
READS_MAX = 64
WAITING_BYTES_MAX = 64 * 1024 * 1024
#: New files that one call to a disk makes: each is open meanwhile.
FILES_MAX = 128

Write = tuple[WriteSmall, bytes]

log = logging.getLogger(__name__)


class SmallRequests:
    """All of one connection."""

    def __init__(self, node: Node, connection: BulkConnection, writer: SmallWriter) -> None:
        self._node = node
        self._writer = writer
        self._connection = connection
        self._rpc = Rpc(connection, self._take)
        node.connections.idle[connection] = node.world.clock.monotonic()
        self._nursery: trio.Nursery
        self._waiting = 0
        self._reading = trio.CapacityLimiter(READS_MAX)

    async def run(self) -> None:
        """Until the connection ends."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._rpc.run()
                nursery.cancel_scope.cancel()
        finally:
            self._node.connections.idle.pop(self._connection, None)

    def _take(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        node, connection = self._node, self._connection
        began = node.world.clock.monotonic()
        connection.exchanges += len(batch)
        node.connections.idle[connection] = began
        reads: list[ReadChunk] = []
        writes: dict[str, list[Write]] = {}
        for message, body in batch:
            if type(message) is ReadChunk and message.length <= SMALL_BYTES_MAX:
                reads.append(message)
            elif type(message) is VerifyChunk and not (message.blocks or message.sums):
                if self._have_room([message], began):
                    self._nursery.start_soon(self._answer, message, began)
            elif type(message) is WriteSmall:
                error = _wrong(message, body)
                if error is not None:
                    self._failed(message, error, began)
                else:
                    following = message.chain[0].address if message.chain else ""
                    writes.setdefault(following, []).append((message, body))
            else:
                error = ProtocolError(f"{type(message).__name__} is no small request")
                self._failed(message, error, began)
        if reads:
            node.throttle.client_starts()
            try:
                self._read_all(reads, began)
            finally:
                node.throttle.client_ends()
        for following, some in writes.items():
            size = sum(len(body) for _, body in some)
            if self._have_room([write for write, _ in some], began, size):
                self._write(following, some, size, began)

    def _have_room(self, messages: Sequence[Message], began: float, size: int = 0) -> bool:
        is_free = self._writer.under_way_bytes + size <= WAITING_BYTES_MAX
        if is_free and self._waiting + len(messages) <= WAITING_MAX:
            self._waiting += len(messages)
            self._writer.under_way_bytes += size
            self._connection.busy = True
            return True
        busy = Busy("too many small requests wait here: try again")
        for message in messages:
            self._rpc.send_error(message.id, busy, self._node.id)
        took = self._node.world.clock.monotonic() - began
        self._node.operations.all_done(messages, took, busy)
        return False

    def _ended(self, count: int, size: int = 0) -> None:
        self._waiting -= count
        self._writer.under_way_bytes -= size
        self._connection.busy = self._waiting > 0

    def _failed(self, message: Message, error: GfsError, began: float) -> None:
        node = self._node
        self._rpc.send_error(message.id, error, node.id)
        took = node.world.clock.monotonic() - began
        node.operations.done(type(message), message.id, took, error)

    # --- reads ------------------------------------------------------------------------

    def _read_all(self, reads: list[ReadChunk], began: float) -> None:
        node = self._node
        done: list[ReadChunk] = []
        for read in reads:
            try:
                answer = read_open(node, read)
            except GfsError as error:
                self._failed(read, error, began)
                continue
            if answer is not None:
                self._rpc.send(*answer)
                node.read_bytes += read.length
                done.append(read)
            elif self._have_room([read], began):
                self._nursery.start_soon(self._answer, read, began)
        node.operations.all_done(done, node.world.clock.monotonic() - began)

    async def _answer(self, message: ReadChunk | VerifyChunk, began: float) -> None:
        """The file may have to be opened, or the page cache lacks the bytes."""
        node = self._node
        node.throttle.client_starts()
        try:
            async with self._reading:
                if isinstance(message, VerifyChunk):
                    answer: tuple[Message, Buffer] = await node.verify(message), b""
                else:
                    answer = await read_small(node, message)
                    node.read_bytes += message.length
                await self._rpc.outgoing.room()
                self._rpc.send(*answer)
            node.operations.all_done([message], node.world.clock.monotonic() - began)
        except GfsError as error:
            self._failed(message, error, began)
        finally:
            node.throttle.client_ends()
            self._ended(1)

    # --- writes -----------------------------------------------------------------------

    def _write(self, following: str, writes: list[Write], size: int, began: float) -> None:
        """Have them written here, and on the servers after this one, the first of which is at
        ``following``; they are answered when both is done. No task waits for that: it would cost
        as much as a few writes do."""
        node = self._node
        node.throttle.client_starts()
        batch = Batch(writes, size, partial(self._written, began))
        self._writer.queue(batch)
        if following:
            requests = [
                (WriteSmall(0, w.handle, w.version, w.sum, w.chain[1:]), body) for w, body in writes
            ]
            seconds = small_write_seconds(max(len(write.chain) for write, _ in writes) - 1, size)
            batch.awaits(len(writes))
            self._writer.pass_on(following, requests, seconds, batch.take)
        batch.part_ended()

    def _written(self, began: float, batch: Batch) -> None:
        node = self._node
        done = []
        refused: dict[str, list[WriteSmall]] = {}
        for write, body in batch.writes:
            error = batch.failed.get(write.id)
            if error is not None:
                self._rpc.send_error(write.id, error, node.id)
                refused.setdefault(f"{error.code} {error}", []).append(write)
            else:
                node.written_bytes += len(body)
                done.append(write)
        self._rpc.send_all([Done(write.id) for write in done])
        took = node.world.clock.monotonic() - began
        node.operations.all_done(done, took)
        for some in refused.values():
            node.operations.all_done(some, took, batch.failed[some[0].id])
        node.throttle.client_ends()
        self._ended(len(batch.writes), batch.bytes)


class Batch:
    """Writes that came together, and go on to the same server or to none. ``ended`` is called once,
    when they are, or are not, on this server and on those after it."""

    def __init__(self, writes: list[Write], size: int, ended: Callable[[Batch], None]) -> None:
        self.writes = writes
        self.bytes = size
        #: The errors of those that are not written, by the number of the message.
        self.failed: dict[int, GfsError] = {}
        self._ended = ended
        #: Its beginning, the disk, and the answers of the next server.
        self._parts = 2
        self.disk: Disk | None = None
        self._is_settled = False
        #: Until when the disk may write them.
        self.until = math.inf

    def awaits(self, answers: int) -> None:
        self._parts += answers

    def part_ended(self) -> None:
        self._parts -= 1
        if not self._parts:
            self._ended(self)

    def take(self, index: int, reply: Reply) -> None:
        """What the next server says of one."""
        write, _ = self.writes[index]
        if not isinstance(reply, Exception) and not isinstance(reply[0], Done):
            reply = ProtocolError(f"{type(reply[0]).__name__} does not answer a write")
        if isinstance(reply, Exception):
            self.failed[write.id] = _of_server(write.chain[0], reply)
        self.part_ended()

    def settle(self, failed: Mapping[int, GfsError]) -> None:
        """The disk has written all but the ``failed``, by handle. What comes of it later does not
        count."""
        if not self._is_settled:
            self._is_settled = True
            for write, _ in self.writes:
                if write.handle in failed:
                    self.failed.setdefault(write.id, failed[write.handle])
            self.part_ended()

    def fail(self, error: GfsError) -> None:
        self.settle({write.handle: error for write, _ in self.writes})


class SmallWriter:
    """Writes what all connections bring. What comes during a call to a disk shares the next."""

    def __init__(self, node: Node) -> None:
        self._node = node
        #: Of writes that are not answered, on all connections.
        self.under_way_bytes = 0
        self._queues: dict[Disk, list[Batch]] = {}
        #: What the disks have, or are to have, oldest first.
        self._given: dict[Batch, None] = {}
        self._some_given = trio.lowlevel.ParkingLot()
        self._handles: set[int] = set()
        self._bytes = 0
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For as long as the server runs: a caller may give up, and the write goes on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                if not self._given:
                    await self._some_given.park()
                await trio.sleep(SWEEP_SECONDS)
                now = trio.current_time()
                for batch in [each for each in self._given if each.until <= now]:
                    self._give_up(batch)

    def queue(self, batch: Batch) -> None:
        """Have them written; no two of one chunk. Those that do not fail are as durable as is
        promised then. What takes too long fails, and may be written all the same."""
        handles = {write.handle for write, _ in batch.writes}
        if len(handles) < len(batch.writes) or not self._handles.isdisjoint(handles):
            batch.fail(Busy("two writes of one chunk at a time"))
            return
        if self._bytes + batch.bytes > WAITING_BYTES_MAX:
            batch.fail(Busy("too many bytes wait for the disks here: try again"))
            return
        try:
            disk = batch.disk = self._node.store.disks.pick(batch.bytes)
        except GfsError as error:
            batch.fail(error)
            return
        disk.space.written_bytes += batch.bytes
        self._bytes += batch.bytes
        self._handles |= handles
        seconds = SMALL_DISK_SECONDS + batch.bytes / BYTES_PER_SECOND_MIN
        batch.until = trio.current_time() + seconds
        self._given[batch] = None
        self._some_given.unpark_all()
        if disk in self._queues:
            self._queues[disk].append(batch)
        else:
            self._queues[disk] = [batch]
            self._nursery.start_soon(self._write_all, disk)

    def pass_on(
        self, address: str, requests: Sequence[tuple[Message, Buffer]], seconds: float, take: Take
    ) -> None:
        """Send them to the next server. ``take`` gets each answer, or error."""
        if not self._node.links.start_now(address, requests, seconds, take):
            self._nursery.start_soon(self._node.links.ask, address, requests, seconds, take)

    def _give_up(self, batch: Batch) -> None:
        batch.fail(Busy(f"the disk has not written the chunk within {SMALL_DISK_SECONDS:g} s"))
        del self._given[batch]
        queue = self._queues.get(batch.disk) if batch.disk is not None else None
        if queue is not None and batch in queue:
            queue.remove(batch)
            self._leave(batch)

    async def _write_all(self, disk: Disk) -> None:
        queue = self._queues[disk]
        while queue:
            batches = [queue.pop(0)]
            while queue and sum(len(each.writes) for each in (*batches, queue[0])) <= FILES_MAX:
                batches.append(queue.pop(0))
            try:
                await self._write_batches(disk, batches)
            except Exception:
                log.exception("%s: small files were not written: this is a bug", disk.path)
            finally:
                for batch in batches:
                    self._leave(batch)
        del self._queues[disk]

    def _leave(self, batch: Batch) -> None:
        self._given.pop(batch, None)
        self._bytes -= batch.bytes
        self._handles.difference_update(write.handle for write, _ in batch.writes)

    async def _write_batches(self, disk: Disk, batches: list[Batch]) -> None:
        made = [
            Made(w.handle, w.version, memoryview(body), w.sum)
            for batch in batches
            for w, body in batch.writes
        ]
        failed: dict[int, GfsError] = dict.fromkeys(
            (one.handle for one in made), Busy("the write was ended")
        )
        try:
            failed = await self._node.store.write_new(disk, made)
        finally:
            for batch in batches:
                batch.settle(failed)


def _wrong(write: WriteSmall, body: bytes) -> GfsError | None:
    if not (0 < write.version < 1 << 32 and 0 <= write.handle < 1 << 64 and body):
        return InvalidArgument(f"a write of {len(body)} bytes, version {write.version}")
    if block_sum(body) != write.sum:
        return CorruptReplica(f"chunk {write.handle:016x}: its bytes arrived damaged")
    return None


def _of_server(server: ServerAddress, error: BaseException) -> GfsError:
    """The error of a server after this one, which names it."""
    if not isinstance(error, GfsError):
        error = ReplicaUnavailable(f"chunkserver {server.id}: {error}")
    if not getattr(error, "server", ""):
        error.__dict__["server"] = server.id
    return error
