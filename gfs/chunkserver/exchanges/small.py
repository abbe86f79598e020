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
from collections.abc import Sequence

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
from gfs.protocol.rpc import Calls, Rpc

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
        for some in writes.values():
            size = sum(len(body) for _, body in some)
            if self._have_room([write for write, _ in some], began, size):
                self._nursery.start_soon(self._write_all, some, size, began)

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
                await self._rpc.room()
                self._rpc.send(*answer)
            node.operations.all_done([message], node.world.clock.monotonic() - began)
        except GfsError as error:
            self._failed(message, error, began)
        finally:
            node.throttle.client_ends()
            self._ended(1)

    # --- writes -----------------------------------------------------------------------

    async def _write_all(self, writes: list[Write], size: int, began: float) -> None:
        """Writes that go on to the same server, or to none."""
        node = self._node
        node.throttle.client_starts()
        try:
            failed: dict[int, GfsError] = {}
            waiting = self._writer.queue(writes, size)
            chain = writes[0][0].chain
            calls = await self._pass_on(writes, size, chain, failed) if chain else None
            failed |= await self._writer.result(waiting)
            if calls is not None:
                await self._hear(writes, calls, failed)
            done = []
            refused: dict[str, list[WriteSmall]] = {}
            for write, body in writes:
                error = failed.get(write.id)
                if error is not None:
                    self._rpc.send_error(write.id, error, node.id)
                    refused.setdefault(f"{error.code} {error}", []).append(write)
                else:
                    self._rpc.send(Done(id=write.id))
                    node.written_bytes += len(body)
                    done.append(write)
            took = node.world.clock.monotonic() - began
            node.operations.all_done(done, took)
            for some in refused.values():
                node.operations.all_done(some, took, failed[some[0].id])
        finally:
            node.throttle.client_ends()
            self._ended(len(writes), size)

    async def _pass_on(
        self,
        writes: list[Write],
        size: int,
        chain: list[ServerAddress],
        failed: dict[int, GfsError],
    ) -> Calls | None:
        """Send them to the next server."""
        requests = [
            (WriteSmall(0, w.handle, w.version, w.sum, w.chain[1:]), body) for w, body in writes
        ]
        seconds = small_write_seconds(max(len(write.chain) for write, _ in writes) - 1, size)
        try:
            return await self._node.links.start(chain[0].address, requests, seconds)
        except (ConnectionError, GfsError) as error:
            failed |= {write.id: _of_server(chain[0], error) for write, _ in writes}
            return None

    async def _hear(self, writes: list[Write], calls: Calls, failed: dict[int, GfsError]) -> None:
        for (write, _), reply in zip(writes, await calls.replies(), strict=True):
            if isinstance(reply, Exception):
                failed[write.id] = _of_server(write.chain[0], reply)
            elif not isinstance(reply[0], Done):
                what = f"{type(reply[0]).__name__} does not answer a write"
                failed[write.id] = _of_server(write.chain[0], ProtocolError(what))


class Waiting:
    """Writes of one batch, which are given to one disk."""

    def __init__(self, writes: list[Write], size: int) -> None:
        self.writes = writes
        self.bytes = size
        self.disk: Disk | None = None
        self.done = trio.Event()
        #: The errors of those that were not written, by the number of the message.
        self.failed: dict[int, GfsError] = {}

    def end(self, failed: dict[int, GfsError]) -> None:
        """``failed`` by handle."""
        self.failed = {w.id: failed[w.handle] for w, _ in self.writes if w.handle in failed}
        self.done.set()

    def fail(self, error: GfsError) -> None:
        self.end({write.handle: error for write, _ in self.writes})


class SmallWriter:
    """Writes what all connections bring. What comes during a call to a disk shares the next."""

    def __init__(self, node: Node) -> None:
        self._node = node
        #: Of writes that are not answered, on all connections.
        self.under_way_bytes = 0
        self._queues: dict[Disk, list[Waiting]] = {}
        self._handles: set[int] = set()
        self._bytes = 0
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For as long as the server runs: a caller may give up, and the write goes on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def queue(self, writes: list[Write], size: int) -> Waiting:
        """Have them written; no two of one chunk. :meth:`result` must follow."""
        waiting = Waiting(writes, size)
        handles = {write.handle for write, _ in writes}
        if len(handles) < len(writes) or not self._handles.isdisjoint(handles):
            waiting.fail(Busy("two writes of one chunk at a time"))
            return waiting
        if self._bytes + size > WAITING_BYTES_MAX:
            waiting.fail(Busy("too many bytes wait for the disks here: try again"))
            return waiting
        try:
            disk = waiting.disk = self._node.store.disks.pick(size)
        except GfsError as error:
            waiting.fail(error)
            return waiting
        disk.written_bytes += size
        self._bytes += size
        self._handles |= handles
        if disk in self._queues:
            self._queues[disk].append(waiting)
        else:
            self._queues[disk] = [waiting]
            self._nursery.start_soon(self._write_all, disk)
        return waiting

    async def result(self, waiting: Waiting) -> dict[int, GfsError]:
        """The errors of those that were not written, by the number of the message. The others are
        as durable as is promised. If it is cancelled, or takes too long, they may be written all
        the same."""
        try:
            with trio.move_on_after(SMALL_DISK_SECONDS + waiting.bytes / BYTES_PER_SECOND_MIN):
                await waiting.done.wait()
        finally:
            if not waiting.done.is_set():
                slow = f"the disk has not written the chunk within {SMALL_DISK_SECONDS:g} s"
                waiting.fail(Busy(slow))
                queue = self._queues.get(waiting.disk) if waiting.disk is not None else None
                if queue is not None and waiting in queue:
                    queue.remove(waiting)
                    self._leave(waiting)
        return waiting.failed

    async def _write_all(self, disk: Disk) -> None:
        queue = self._queues[disk]
        while queue:
            batch = [queue.pop(0)]
            while queue and sum(len(each.writes) for each in (*batch, queue[0])) <= FILES_MAX:
                batch.append(queue.pop(0))
            try:
                await self._write_batch(disk, batch)
            except Exception:
                log.exception("%s: small files were not written: this is a bug", disk.path)
            finally:
                for waiting in batch:
                    self._leave(waiting)
        del self._queues[disk]

    def _leave(self, waiting: Waiting) -> None:
        self._bytes -= waiting.bytes
        self._handles.difference_update(write.handle for write, _ in waiting.writes)

    async def _write_batch(self, disk: Disk, batch: list[Waiting]) -> None:
        made = [
            Made(w.handle, w.version, memoryview(body), w.sum)
            for waiting in batch
            for w, body in waiting.writes
        ]
        failed: dict[int, GfsError] = dict.fromkeys(
            (one.handle for one in made), Busy("the write was ended")
        )
        try:
            failed = await self._node.store.write_new(disk, made)
        finally:
            for waiting in batch:
                if not waiting.done.is_set():
                    waiting.end(failed)


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
