"""Record append (the paper, 3.3): each record is stored at least once, in one piece, at
an offset that the primary chooses.

All appends of one client to one file go through one :class:`Appender`: it knows the
chunk that is being filled, its primary and chain, and sends the records that have
arrived since the last answer in one request. It asks the master for the lease, once for
each chunk and after failures, for the next chunk when one is full, and, every
``location_seconds``, whether the path still leads to the same file.

A failure is handled as in a write in place (:mod:`gfs.client.mutate`): the master
grants a higher version to the remaining replicas, and the same frames, with the same
ids, are sent again. Some of them may then be stored twice.

Reading searches the bytes of a chunk for frames (:mod:`gfs.protocol.records`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

import trio

from gfs.blocks import CHUNK_BYTES, MIB, Buffer
from gfs.client.core import ClientCore
from gfs.client.items import all_of, look_at_data
from gfs.client.mutate import set_length
from gfs.client.publish import PublishOptions
from gfs.client.read import FileMap, check_path
from gfs.client.transfer import put, stream
from gfs.diagnostics import asked_for
from gfs.errors import (
    AlreadyExists,
    Busy,
    ChunkUnavailable,
    DiskFull,
    GfsError,
    InvalidArgument,
    IsADirectory,
    LeaseLost,
    MasterUnavailable,
    NotFound,
    ProtocolError,
    Retryable,
    StaleVersion,
    from_wire,
)
from gfs.protocol import records
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.frames import encode_head
from gfs.protocol.messages import (
    AcquireLease,
    AppendRecords,
    AppendReply,
    Failure,
    LeaseReply,
    Locate,
    LocateReply,
    ServerAddress,
)
from gfs.protocol.patience import answer

#: Records of one request, unless a single one is larger.
BATCH_BYTES = min(1 * MIB, records.FRAME_BYTES_MAX)
BATCH_RECORDS = 1024
#: After a batch of so much the next is sent before it is answered, so many requests at a time.
#: Smaller ones gather: each costs the servers a millisecond, however small it is.
AHEAD_BYTES_MIN = BATCH_BYTES // 4
REQUESTS_MAX = 2
#: Bound of one appender's records that wait to be sent; beyond it callers wait.
WAITING_BYTES_MAX = 32 * MIB
PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 1.0
#: Idle appenders that are kept.
IDLE_MAX = 256
#: The sequence of a record is its appender's number, then the record's.
RECORDS_MAX_BITS = 40


class Record(NamedTuple):
    """One record of a file. ``client`` and ``sequence`` identify it: an append that was
    retried may be stored twice, with the same ones."""

    offset: int
    data: bytes
    client: str
    sequence: int


class _Pending:
    """One caller's record, framed."""

    __slots__ = ("data", "done", "error", "head", "offset")

    def __init__(self, head: bytes, data: memoryview) -> None:
        self.head = head
        self.data = data
        self.done = trio.Event()
        self.offset = -1
        self.error: Exception | None = None

    @property
    def size(self) -> int:
        return len(self.head) + len(self.data)


@dataclass(frozen=True)
class _Lease:
    handle: int
    version: int
    chain: list[ServerAddress]


@dataclass
class _Flight:
    """Requests on one connection that are not answered: their records, in order."""

    batches: deque[list[_Pending]]
    unanswered: int = 0
    #: Whether nothing more is sent.
    ended: bool = False


class _ChainBroken(Exception):
    """``server`` is the id of the failed server, empty if none failed."""

    def __init__(self, error: Exception, server: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.server = server
        self.code = error.code if isinstance(error, GfsError) else ""


class Appends:
    """The appenders of one client, by path."""

    def __init__(self, core: ClientCore, nursery: trio.Nursery) -> None:
        self._core = core
        self._nursery = nursery
        self._appenders: dict[tuple[str, bool], Appender] = {}
        self._made = 0

    async def append(self, path: str, given: Iterable[Buffer], create: bool) -> list[int]:
        """See :meth:`gfs.client.Client.append_many`."""
        check_path(path)
        data = [_checked(record) for record in all_of(given, look_at_data)]
        appender = self._appenders.pop((path, create), None)
        if appender is None:
            self._made += 1
            appender = Appender(self._core, path, self._made, create)
        self._appenders[path, create] = appender  # the last used are the last in order
        if len(self._appenders) > IDLE_MAX:
            self._forget_idle()
        return await appender.append(data, self._nursery)

    def _forget_idle(self) -> None:
        for key, appender in list(self._appenders.items()):
            if not appender.users:
                del self._appenders[key]
                return


def _checked(record: Buffer) -> memoryview:
    with memoryview(record) as given:
        if given.nbytes > records.RECORD_BYTES_MAX:
            raise InvalidArgument(
                f"a record of {given.nbytes} bytes: at most {records.RECORD_BYTES_MAX} "
                "(a quarter of a chunk)"
            )
        # A cancelled caller may change a mutable buffer.
        return memoryview(record if isinstance(record, bytes) else given.tobytes())


class Appender:
    """One file being appended to. Records that arrive while a request is under way go with the
    next one; that is sent before the answer has come if the first one is large, so that the
    link to the primary is not idle while the servers write."""

    def __init__(self, core: ClientCore, path: str, number: int, create: bool) -> None:
        self._core = core
        self._path = path
        self._create = create
        self._client = bytes.fromhex(core.master.id)
        self._next = number << RECORDS_MAX_BITS
        self.users = 0
        self._waiting: deque[_Pending] = deque()
        self._waiting_bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._sending = False
        #: What is to be placed next.
        self._batch: list[_Pending] = []
        #: Set when a record came, or an answer.
        self._news = trio.Event()
        self._inode = 0
        self._index = 0
        self._known_until = float("-inf")
        self._lease: _Lease | None = None
        #: The end of the last lease of this chunk: (version, failed server).
        self._broken = (0, "")

    async def append(self, data: list[memoryview], nursery: trio.Nursery) -> list[int]:
        self.users += 1
        mine: list[_Pending] = []
        try:
            for record in data:
                while self._waiting and self._waiting_bytes + len(record) > WAITING_BYTES_MAX:
                    await self._room.park()
                mine.append(self._enqueue(record))
                if not self._sending:
                    self._sending = True
                    nursery.start_soon(self._send_all)
            for pending in mine:
                await pending.done.wait()
        except BaseException:
            self._take_back(mine)
            raise
        finally:
            self.users -= 1
        for pending in mine:
            if pending.error is not None:
                raise pending.error
        return [pending.offset for pending in mine]

    def _enqueue(self, record: memoryview) -> _Pending:
        head = records.encode_head(self._client, self._next, record)
        self._next += 1
        pending = _Pending(head, record)
        self._waiting.append(pending)
        self._waiting_bytes += pending.size
        self._news.set()
        return pending

    def _take_back(self, given_up: list[_Pending]) -> None:
        for pending in given_up:
            if pending in self._waiting:
                self._waiting.remove(pending)
                self._waiting_bytes -= pending.size
        self._room.unpark_all()

    # --- sending --------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """Send until no record waits any more. Every waiting caller gets an answer or an error."""
        try:
            while self._waiting:
                self._batch = self._take_batch()
                try:
                    await self._send()
                except GfsError as error:
                    _fail(self._batch, error)
        except BaseException:
            _fail(
                [*self._batch, *self._waiting],
                ChunkUnavailable(f"{self._path}: the client is being closed"),
            )
            self._waiting.clear()
            raise
        finally:
            self._sending = False

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._waiting and len(batch) < BATCH_RECORDS:
            if batch and size + self._waiting[0].size > BATCH_BYTES:
                break
            pending = self._waiting.popleft()
            size += pending.size
            batch.append(pending)
        self._waiting_bytes -= size
        self._room.unpark_all()
        return batch

    async def _send(self) -> None:
        """Send until all of the batch is placed. Raises the error for its callers."""
        clock = self._core.world.clock
        give_up = clock.monotonic() + self._core.settings.retry_seconds
        pause, failures = PAUSE_SECONDS_MIN, 0
        while self._batch:
            try:
                await self._send_once()
                failures = 0
                give_up = clock.monotonic() + self._core.settings.retry_seconds
                continue
            except _ChainBroken as broken:
                last = broken.error
                if self._lease is not None:
                    self._broken = (self._lease.version, broken.server)
                self._lease = None
                self._core.suspect(broken.server, broken.code)
            except (Busy, LeaseLost, StaleVersion, DiskFull) as error:
                last = error
            except MasterUnavailable:
                raise  # it was waited for already
            except Retryable as error:
                last = error
            failures += 1
            if failures > 2 and clock.monotonic() + pause > give_up:
                if isinstance(last, DiskFull):
                    raise last
                raise ChunkUnavailable(f"{self._path}: appends keep failing: {last}") from last
            if failures > 1:
                await clock.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _send_once(self) -> None:
        """Send once. The batch is then what has no place yet."""
        await self._find()
        if self._lease is None:
            self._lease = await self._acquire()
        if await self._exchange(self._lease):
            await self._next_chunk()

    async def _find(self) -> None:
        """The file at the path now; created if there is none and ``create`` was given."""
        now = self._core.world.clock.monotonic()
        if now < self._known_until:
            return
        while True:
            try:
                request = Locate(id=0, path=self._path, inode=0, first=0, count=0)
                entry = (await self._core.master.ask(request, LocateReply)).entry
                break
            except NotFound:
                if not self._create:
                    raise
                try:
                    await put(
                        self._core,
                        b"",
                        self._path,
                        options=PublishOptions(),
                        replication=0,
                        progress=None,
                    )
                except AlreadyExists:
                    continue
        if entry.kind == "directory":
            raise IsADirectory(f"{self._path}: is a directory")
        if entry.inode != self._inode:
            self._inode, self._lease, self._broken = entry.inode, None, (0, "")
            # The file may be longer by now: then that chunk is full, and the primary answers so.
            self._index = entry.length // CHUNK_BYTES
        self._known_until = now + self._core.settings.location_seconds

    async def _acquire(self) -> _Lease:
        version, failed = self._broken
        request = AcquireLease(
            *self._core.master.stamp(),
            inode=self._inode,
            index=self._index,
            version=version,
            failed=[failed] if failed else [],
            append=True,
        )
        try:
            reply = await self._core.master.ask(request, LeaseReply)
        except NotFound:
            self._known_until = float("-inf")  # deleted: the path may be another file's
            raise LeaseLost(f"{self._path}: the file was deleted") from None
        chain = [reply.servers[n] for n in reply.chunk.servers]
        if not chain:
            raise ProtocolError("a lease without servers")
        return _Lease(reply.chunk.handle, reply.chunk.version, chain)

    async def _next_chunk(self) -> None:
        """The chunk is full: report its length to the master before it adds the next."""
        self._lease, self._broken = None, (0, "")
        self._index += 1
        try:
            await set_length(self._core, self._inode, self._index * CHUNK_BYTES)
        except NotFound:
            self._known_until = float("-inf")

    async def _exchange(self, lease: _Lease) -> bool:
        """Send the batch, and if it is large what comes after it, to the primary; whether the
        chunk is full. Raises _ChainBroken, or an error that a new lease does not resolve."""
        flight = _Flight(deque([self._batch]))
        address = lease.chain[0].address
        connection: BulkConnection | None = None
        try:
            connection = await self._connect(lease)
            await self._transmit(connection, lease, flight)
            size = sum(pending.size for pending in self._batch)
            if size < AHEAD_BYTES_MIN or connection.version < AppendRecords.FOLLOWS_SINCE:
                return await self._hear(connection, lease, flight)
            return await self._go_on(connection, lease, flight)
        finally:
            if connection is not None:
                if flight.unanswered:
                    connection.close()
                else:
                    self._core.pool.release(connection, address)
            self._land(flight)

    async def _go_on(self, connection: BulkConnection, lease: _Lease, flight: _Flight) -> bool:
        """Send the next request before the last one is answered, as long as records come."""
        full = False
        errors: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def send_more() -> None:
                try:
                    while await self._room_to_send(flight):
                        flight.batches.append(self._take_batch())
                        await self._transmit(connection, lease, flight, follows=True)
                except (_ChainBroken, GfsError) as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(send_more)
            try:
                while flight.batches and not full:
                    full = await self._hear(connection, lease, flight)
                    self._news.set()
            except (_ChainBroken, GfsError) as error:
                errors.append(error)
            # Not by being cancelled: a record that came just now would be sent twice.
            flight.ended = True
            self._news.set()
            if full or errors:
                nursery.cancel_scope.cancel()
        if errors:
            raise errors[0]
        return full

    async def _room_to_send(self, flight: _Flight) -> bool:
        """Wait until there is something to send, and not too much under way. False: look first
        whether the path still leads to the same file."""
        while not flight.ended and (not self._waiting or len(flight.batches) >= REQUESTS_MAX):
            self._news = trio.Event()
            await self._news.wait()
        return not flight.ended and self._core.world.clock.monotonic() < self._known_until

    def _land(self, flight: _Flight) -> None:
        """What has no place yet is sent again, in the same order."""
        first, *others = flight.batches or [[]]
        self._batch = first
        for pending in reversed([pending for batch in others for pending in batch]):
            self._waiting.appendleft(pending)
            self._waiting_bytes += pending.size

    async def _connect(self, lease: _Lease) -> BulkConnection:
        primary = lease.chain[0]
        try:
            return await self._core.pool.acquire(primary.address)
        except (ConnectionError, GfsError) as error:
            raise _ChainBroken(error, primary.id) from error

    async def _transmit(
        self, connection: BulkConnection, lease: _Lease, flight: _Flight, follows: bool = False
    ) -> None:
        """Send the last batch of the flight."""
        primary, batch = lease.chain[0], flight.batches[-1]
        size = sum(pending.size for pending in batch)
        request = AppendRecords(
            self._core.message_id(),
            lease.handle,
            lease.version,
            self._inode,
            lease.chain[1:],
            follows,
        )
        buffers: list[Buffer] = []
        for pending in batch:
            buffers.append(pending.head)
            if pending.data:
                buffers.append(pending.data)
        if size <= BATCH_BYTES:
            buffers = [b"".join(buffers)]
        seconds = self._core.settings.stall_seconds
        flight.unanswered += 1
        try:
            with (
                deadline(seconds, f"progress at {primary.address}") as scope,
                self._core.patience.sending(scope, connection.stream, seconds),
            ):
                await connection.send_frames(encode_head(request, size), *buffers)
        except (ConnectionError, GfsError) as error:
            raise _ChainBroken(error, primary.id) from error

    async def _hear(self, connection: BulkConnection, lease: _Lease, flight: _Flight) -> bool:
        """The answer for the first batch of the flight; whether the chunk is full."""
        primary = lease.chain[0]
        try:
            message = await answer(connection, self._core.settings.stall_seconds)
        except (ConnectionError, GfsError) as error:
            raise _ChainBroken(error, primary.id) from error
        if isinstance(message, Failure):
            raise _meaning(message, primary.id)
        if not isinstance(message, AppendReply):
            raise _ChainBroken(ProtocolError(f"{type(message).__name__}"), primary.id)
        batch = flight.batches[0]
        if not 0 <= message.placed <= len(batch) or (message.placed < len(batch)) != message.full:
            raise ProtocolError(f"{message} to an append of {len(batch)} records")
        flight.unanswered -= 1
        at = self._index * CHUNK_BYTES + message.offset
        for pending in batch[: message.placed]:
            pending.offset = at
            at += pending.size
            pending.done.set()
        if message.full:
            flight.batches[0] = batch[message.placed :]
        else:
            flight.batches.popleft()
        return message.full


def _meaning(failure: Failure, primary: str) -> Exception:
    """The _ChainBroken for a Failure."""
    error = from_wire(failure.code, failure.message, failure.server)
    if isinstance(error, (InvalidArgument, Busy)):
        return error
    nobody = isinstance(error, LeaseLost) or (
        # The primary has a higher version: the master knows it.
        isinstance(error, StaleVersion) and failure.server == primary
    )
    return _ChainBroken(error, "" if nobody else failure.server)


def _fail(batch: list[_Pending], error: Exception) -> None:
    for pending in batch:
        if not pending.done.is_set():
            pending.error = error
            pending.done.set()


# --- reading ------------------------------------------------------------------------------


async def read_records(
    core: ClientCore, path: str, start: int, duplicates: bool
) -> AsyncGenerator[Record, None]:
    """See :meth:`gfs.client.Client.records`."""
    if start < 0:
        raise InvalidArgument(f"{path}: records from {start} on")
    request = core.present_request()
    with asked_for(request):
        file = await FileMap.open(core, path)
    async with aclosing(records_of(core, file, start, duplicates, request=request)) as found:
        async for record in found:
            yield record


async def records_of(
    core: ClientCore, file: FileMap, start: int, duplicates: bool, *, request: int = 0
) -> AsyncGenerator[Record, None]:
    """The records of a file as it was opened; one request id for all of it, as for a stream."""
    request = request or core.present_request()
    end, seen = file.entry.length, records.SeenRecords()
    while start < end:
        base = start - start % CHUNK_BYTES
        stop = min(end, base + CHUNK_BYTES)
        scanner = records.RecordScanner(start - base)
        async with aclosing(stream(core, file, start, stop - start, request=request)) as pieces:
            async for piece in pieces:
                for frame in scanner.feed(piece):
                    if seen.add(frame.client, frame.sequence) or duplicates:
                        yield _record(base, frame)
        for frame in scanner.end():
            if seen.add(frame.client, frame.sequence) or duplicates:
                yield _record(base, frame)
        start = stop


def _record(base: int, frame: records.Frame) -> Record:
    return Record(base + frame.offset, frame.data, frame.client.hex(), frame.sequence)
