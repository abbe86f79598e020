"""The write chain: one exchange writes a run of bytes to all replicas of a chunk.

::

    client ──packets──> primary ──packets──> secondary ──packets──> secondary
           <───acks────         <───acks────           <───acks────

Each server receives a packet into one buffer, passes it on as it arrives, verifies it
against the client's sums and writes it, all from that buffer; then takes the next. The
sockets' buffers are the pipeline: while this server writes packet n, the next
one receives it and the client sends n + 1. Of an upload, packets that have arrived
meanwhile are written together: a hop to a thread and back is about a quarter of what a
packet costs, since both threads then compete for the interpreter. An acknowledgement is
sent back once this server *and* all after it have the packet; the one for the last packet
once all have committed their heads.

Sketch per MiB and server: receive 0.25 ms, send 0.25 ms, hash 0.08 ms, new page
cache 0.6 ms, one thread hop 0.1 to 0.5 ms, a dozen Python steps. With three servers and
a client on two cores the copies bound it at about 450 MiB/s.

A failure anywhere ends the exchange at every server: each commits what it has
verified and names the server that failed, as far as it knows. Acknowledged bytes are on
all servers; bytes beyond them are dropped by the next exchange of an upload (``cut``).

*Late packets.* A connection that was given up may still deliver packets, however much
later: the kernel of a dead process goes on sending. A secondary accepts a packet as
long as its version is right, so a late one could overwrite data that was written and
acknowledged since. So a primary that passed on a packet and got no acknowledgement for
it orders nothing more under that version: it gives up its lease, and the next write has
a new version, which the secondaries get with the grant. That happens once for each
broken exchange, and costs other exchanges nothing. In an upload the client orders the
writes, and has the version raised itself.

*Gaps.* Before a write past the end of a replica, the gap is filled with zeros, a hole
that takes no space. Only the primary decides where the gap begins, when the write has
its turn: another write into the gap is ordered before or after it, and its bytes are
kept. All replicas must have one length for that, or zeros would overwrite bytes that
one of them has and the primary lacks.

*Level.* After exchanges that succeeded all replicas have the primary's length. Before the
first gap or append under a new version, and after a broken exchange, the primary asks all
for their lengths. The longest replica has everything that was ever acknowledged, even if a
machine came back without its last writes. The primary fetches from it the bytes that it
lacks itself; bytes that others lack are sent down the chain first. So bytes are never
dropped, and replicas differ only in their lengths.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, TypeVar

import trio

from gfs.blocks import CHUNK_BYTES, KIB, block_sum, block_sums, packet_sums
from gfs.chunkserver.disks import map_disk_error
from gfs.chunkserver.exchanges.chain import (
    SMALL_PACKET_BYTES,
    ChainBroken,
    Downstream,
    asked,
    length_at,
)
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.node import Answering, Node
from gfs.chunkserver.packs import PackedFile
from gfs.chunkserver.replicas import OpenChunk
from gfs.diagnostics import message_id
from gfs.errors import (
    CorruptReplica,
    DeadlineExceeded,
    DiskFull,
    GfsError,
    InvalidArgument,
    LeaseLost,
    ProtocolError,
    StaleVersion,
)
from gfs.io import ReadFailed
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import Watch
from gfs.protocol.messages import (
    PACKET_BYTES_MAX,
    Failure,
    Message,
    Packet,
    PacketAck,
    ReadChunk,
    ReadReply,
    ServerAddress,
    WriteChunk,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

#: By how many packets the acknowledgements of the next server may lag, for each server after
#: this one: the next one's lag as well, and if no more than that were on their way to it, the
#: link between them would be idle whenever it has them all. And at most: a sender without
#: memory has four packets in flight.
ACK_LAG, ACK_LAG_MAX = 2, 3
#: What is passed on of a packet before the rest of it has arrived, at least.
PIECE_BYTES = 256 * KIB
#: So many packets of an upload, at most, are written in one thread hop if they have arrived.
PACKETS_AT_ONCE = 4
#: How long an exchange waits for its turn before it fails; its client then asks for a
#: new version, which ends the write under way, whose writer may have stopped.
TURN_SECONDS = 4.0
#: How long a packet waits for a buffer before it takes one above the bound.
BUFFER_PATIENCE_SECONDS = 0.5


class _Held(NamedTuple):
    """A packet that was received and is not written yet; ``buffer``, if it has one, is the
    pool's."""

    packet: Packet
    view: memoryview
    buffer: mmap.mmap | None


class Upstream(Protocol):
    """The source of an exchange's packets, which gets the acknowledgements."""

    #: The peer that waits for the exchange, and is sent pulses; None if there is none.
    answering: Answering | None

    @property
    def body_bytes(self) -> int: ...

    async def receive(self) -> Message: ...

    async def receive_some(self, target: memoryview, least: int) -> int: ...

    def pending(self) -> int:
        """The bytes that have arrived and were not received yet, or most of them."""

    async def send(self, message: Message) -> None: ...

    async def refuse(self, failure: Failure) -> None:
        """Send the failure that ends the exchange: nothing more is received."""


class FromConnection:
    """A client, or the server before this one in the chain."""

    def __init__(self, node: Node, connection: BulkConnection) -> None:
        self._node = node
        self._connection = connection
        self.answering: Answering | None = Answering(connection)
        self.send = self.answering.send
        self.receive = connection.receive
        self.receive_some = connection.receive_some
        self.pending = connection.stream.pending

    @property
    def body_bytes(self) -> int:
        return self._connection.body_bytes

    async def refuse(self, failure: Failure) -> None:
        await self._node.connections.fail_and_hang_up(self._connection, failure)


class WriteExchange:
    """One exchange at one server.

    ::

        run sends the result to the upstream, errors included
        _take_turn   one exchange at a time per replica, held to lease and deadlines
        _transfer    packet after packet: receive, pass on, persist, acknowledge
        _persist verify, write, and sync as ``durability`` requires
    """

    def __init__(self, node: Node, upstream: Upstream, request: WriteChunk) -> None:
        self._node = node
        self._upstream = upstream
        self._request = request
        self._watch = Watch()
        self._downstream: Downstream | None = None
        self._lag = min(ACK_LAG * len(request.chain), ACK_LAG_MAX)
        #: The last packet that was passed on, completely or in part, and the last one
        #: that all servers after this one acknowledged.
        self._passed_on = -1
        self._relayed = -1
        #: How many packets this server sent ahead of those from upstream; and from which byte
        #: on other replicas lack what this one has.
        self._ahead = 0
        self._low = CHUNK_BYTES
        #: Whether all replicas are known to be of one length.
        self._is_level = False
        self._prepared = False
        #: Whether nobody else has what an upload writes here: so a death of this process must not
        #: lose what was acknowledged of it. (With "fsync" each commit would wait for the disk.)
        self._is_only_one = (
            request.mode == "upload"
            and request.primary
            and not request.chain
            and node.settings.durability == "replicated"
        )
        self._next_offset = request.offset

    async def run(self) -> bool:
        """True if the exchange succeeded and the connection can carry another."""
        request = self._request
        try:
            if request.chain:
                self._downstream = Downstream(self._node, self._watch, request.chain[0])
            _check_request(request)
            with self._answering():
                while not await self._take_turn(await self._node.writable(request)):
                    pass
        except ChainBroken as broken:
            await self._fail(broken.failure)
        except GfsError as error:
            await self._fail(
                Failure(
                    id=request.id,
                    code=error.code,
                    message=f"chunkserver {self._node.id}: {error}",
                    server=self._node.id,
                )
            )
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise  # the upstream is gone and cannot be answered
            known = map_disk_error(error, f"chunk {request.handle:016x}")
            await self._fail(
                Failure(id=0, code=known.code, message=str(known), server=self._node.id)
            )
        else:
            self._finish_downstream(clean=True)
            return True
        finally:
            self._finish_downstream(clean=False)
        return False

    def _finish_downstream(self, clean: bool) -> None:
        if self._downstream is not None:
            self._downstream.finish(clean)

    async def _fail(self, failure: Failure) -> None:
        log.info("write of chunk %016x failed: %s", self._request.handle, failure.message)
        failure.id = self._request.id
        self._finish_downstream(clean=False)
        await self._upstream.refuse(failure)

    def _answering(self) -> AbstractContextManager[None]:
        """Send the upstream pulses while the disk makes progress."""
        answering = self._upstream.answering
        if answering is None:
            return nullcontext()
        answering.disk = self._node.store.open_chunks.disk_of(self._request.handle)
        return self._node.pulse.given(answering, self._request.id)

    async def _take_turn(self, chunk: OpenChunk) -> bool:
        """Wait for this replica's turn, then carry out the exchange. False if the file
        was replaced or given up during the wait.

        One exchange at a time per replica is what gives all replicas the primary's order.
        One with a higher version ends the one before it.
        """
        request = self._request
        if self._upstream.answering is not None:
            self._upstream.answering.disk = chunk.disk
        chunk.users += 1
        try:
            await self._acquire(chunk)
            try:
                if chunk.dropped:
                    return False
                chunk.watch, chunk.watch_version = self._watch, request.version
                # Until it succeeds: a broken exchange leaves replicas of different lengths.
                self._is_level = chunk.level_version == request.version
                chunk.level_version = 0
                with self._watch.scope:
                    # Only now: the lease may have been revoked while this write waited.
                    self._check_lease()
                    # Here, too: a write that is refused must not unpack a replica.
                    if request.mode == "mutate" or request.version < chunk.file.version:
                        _check_version(chunk.file, request)
                    try:
                        if isinstance(chunk.file, PackedFile):
                            # No call that ends at once: the disk would seem to make progress.
                            with self._node.pulse.on_disk(chunk.disk):
                                await self._node.store.move_out(chunk)
                        await self._record_intent(chunk)
                        await self._transfer(chunk)
                        # Replicas are level if they were before, or are new.
                        if self._is_level:
                            chunk.level_version = request.version
                    finally:
                        self._fence(chunk)
                        await self._leave(chunk)
                self._check_ended(chunk)
                return True
            finally:
                chunk.watch = None
                chunk.mutex.release()
        finally:
            chunk.users -= 1
            self._node.store.open_chunks.close_if_unused(chunk)

    async def _acquire(self, chunk: OpenChunk) -> None:
        if not chunk.mutex.locked():
            chunk.mutex.acquire_nowait()
            return
        chunk.preempt(self._request.version)
        with trio.move_on_after(TURN_SECONDS) as scope:
            await chunk.mutex.acquire()
        if scope.cancelled_caught:
            late = f"the previous write did not end within {TURN_SECONDS:g} s"
            raise ChainBroken(Failure(id=0, code=DeadlineExceeded.code, message=late))

    def _check_ended(self, chunk: OpenChunk) -> None:
        """Raise the error if a newer exchange or a deadline has ended this one."""
        if not self._watch.scope.cancelled_caught:
            return
        if chunk.watch is None:
            raise LeaseLost("a newer grant of this chunk ended the write")
        if self._downstream is not None and self._downstream.awaited:
            raise self._downstream.broken(self._watch.error())
        # The writer paused: no server of the chain has failed.
        idle = self._watch.error()
        raise ChainBroken(Failure(id=0, code=idle.code, message=str(idle)))

    def _check_lease(self) -> None:
        request = self._request
        if request.mode == "mutate" and request.primary:
            self._node.leases.check(request.handle)

    async def _record_intent(self, chunk: OpenChunk) -> None:
        """Usually the grant has done it. An upload needs no record: the chunk is new."""
        if self._request.mode == "mutate":
            with self._node.pulse.on_disk(chunk.disk):
                await self._node.store.durability.record_intent(chunk, chunk.file.version)

    def _fence(self, chunk: OpenChunk) -> None:
        """Give up the lease if packets of this exchange that were passed on may still
        arrive, so that nothing more is ordered under this version. Called before the
        next exchange has its turn."""
        request = self._request
        if (
            self._relayed < self._passed_on
            and request.mode == "mutate"
            and request.primary
            and request.version == chunk.file.version
        ):
            log.info("chunk %016x: a write was cut short: giving up the lease", request.handle)
            self._node.leases.revoke(request.handle)

    async def _leave(self, chunk: OpenChunk) -> None:
        """Commit, however the exchange ended, so that a crash leaves all verified bytes."""
        file = chunk.file
        chunk.mutated_at = self._node.world.clock.monotonic()
        if not chunk.dropped:
            if file.uncommitted:
                with trio.CancelScope(shield=True):
                    try:
                        await self._on_disk(chunk, file.commit)
                    except OSError as error:
                        log.error("chunk %016x: %s", file.handle, error)
            if file.made:
                self._node.store.open_chunks.note(chunk)
            else:
                self._node.store.open_chunks.forget(file.handle)

    async def _on_disk(self, chunk: OpenChunk, function: Callable[..., T], *args: object) -> T:
        try:
            with self._node.pulse.on_disk(chunk.disk):
                return await chunk.disk.run(function, *args)
        except (CorruptReplica, ReadFailed):
            self._mark_unfit(chunk)
            raise

    def _mark_unfit(self, chunk: OpenChunk) -> None:
        """What the replica had before fails its checksum, or cannot be read. If there are others,
        they get the next version without it; writes to the last one would always fail, and the
        master would not know why. Of an upload nobody has anything yet."""
        if self._request.mode == "mutate":
            self._node.store.open_chunks.mark_unfit(chunk)

    async def _transfer(self, chunk: OpenChunk) -> None:
        """Receive, pass on and persist packet after packet, and acknowledge them."""
        buffers = self._node.buffers
        number, packet = await self._receive_head()
        if self._request.primary and packet.hole:
            await self._level(chunk)
        if self._downstream is not None:
            await self._open_chain(chunk, self._downstream)
        held: list[_Held] = []
        try:
            while True:
                self._size_hole(chunk, packet)
                await self._receive_packet(packet, held)
                if not self._waits_for_next(held):
                    await self._persist(chunk, held)
                    for one in held:
                        if one.buffer is not None:
                            buffers.release(one.buffer)
                    held.clear()
                    await self._acknowledge(chunk, number, packet.last or packet.flush)
                    if packet.last:
                        return
                previous = number
                number, packet = await self._receive_head()
                if number != previous + 1:
                    raise ProtocolError(f"packet {number} after packet {previous}")
        finally:
            for one in held:
                if one.buffer is not None:
                    buffers.discard(one.buffer)  # it may be written still, by a thread that hangs

    def _waits_for_next(self, held: list[_Held]) -> bool:
        """Whether the next packet is written together with those that are held: it is here
        already, so nothing waits for it, and the thread is crossed to once for all."""
        packet, view, _ = held[-1]
        return (
            len(held) < PACKETS_AT_ONCE
            and self._request.mode == "upload"
            and not packet.last
            and not packet.flush
            and self._node.buffers.has_free
            and self._upstream.pending() >= max(1, min(len(view), PIECE_BYTES))
        )

    async def _receive_packet(self, packet: Packet, held: list[_Held]) -> None:
        """Add the packet to ``held``, and pass it on."""
        count = self._upstream.body_bytes
        if count <= SMALL_PACKET_BYTES:
            one = _Held(packet, memoryview(bytearray(count)), None)
        else:
            buffer = await self._node.buffers.acquire(BUFFER_PATIENCE_SECONDS)
            one = _Held(packet, memoryview(buffer)[:count], buffer)
        held.append(one)
        await self._pass_on(packet, one.view)

    async def _open_chain(self, chunk: OpenChunk, downstream: Downstream) -> None:
        request = self._request
        await downstream.open(
            WriteChunk(
                id=request.id,
                version=request.version,
                handle=request.handle,
                offset=request.offset,
                mode=request.mode,
                chain=request.chain[1:],
                primary=False,
            )
        )
        await self._catch_up(chunk, downstream)

    def _size_hole(self, chunk: OpenChunk, packet: Packet) -> None:
        """The primary decides how many bytes are missing before the packet: at most as
        many as its sender allows, which knows what was acknowledged before."""
        if self._request.primary and packet.hole:
            _check_version(chunk.file, self._request)
            packet.hole = min(packet.hole, max(0, packet.offset - chunk.file.length))

    async def _receive_head(self) -> tuple[int, Packet]:
        self._watch.expect(self._node.settings.idle_seconds, "packet")
        answering = self._upstream.answering
        if answering is None:
            message = await self._upstream.receive()
        else:
            answering.rests = True
            message = await self._upstream.receive()
            answering.rests = False
        if not isinstance(message, Packet):
            raise ProtocolError(f"{type(message).__name__} in the middle of a write")
        if self._request.mode == "upload" and message.offset != self._next_offset:
            raise InvalidArgument(f"a packet at {message.offset}, expected {self._next_offset}")
        if not 0 <= message.offset <= CHUNK_BYTES:
            raise InvalidArgument(f"a packet at {message.offset} of a chunk")
        hole = message.hole
        if hole and (self._request.mode != "mutate" or not 0 < hole <= message.offset):
            raise InvalidArgument(f"a hole of {hole} bytes before {message.offset}")
        self._next_offset = message.offset + self._upstream.body_bytes
        return message.id, message

    async def _acknowledge(self, chunk: OpenChunk, number: int, now: bool) -> None:
        """Acknowledge to the upstream the packets that this replica and all after it have.

        No task receives from the downstream server: its acknowledgements are received
        here, some packets late, so that it can work meanwhile. A sender keeps
        more packets than that in flight before it waits.

        The primary acknowledges a mutation only while it holds the lease: once that has
        expired, a copy of the chunk may be under way, and would miss this write.
        """
        if self._downstream is None:
            self._check_lease()
            await self._upstream.send(PacketAck(id=number, length=chunk.file.length))
            return
        due = number + self._ahead - (0 if now else self._lag)
        while self._relayed < due:
            ack = await self._downstream.receive_ack()
            self._relayed, ack.id = ack.id, ack.id - self._ahead
            self._check_lease()
            if ack.id >= 0:
                await self._upstream.send(ack)

    async def _pass_on(self, packet: Packet, view: memoryview) -> None:
        """Receive the body into ``view``, and send the next server each piece as it arrives:
        a server further down the chain has a packet no later for that (the paper, 3.2)."""
        downstream, total, done = self._downstream, len(view), 0
        least = total if downstream is None else PIECE_BYTES
        while True:
            self._watch.expect(self._node.settings.idle_seconds, "rest of the packet")
            count = await self._upstream.receive_some(view[done:], min(least, total - done))
            while done + count < total and self._upstream.pending():
                count += await self._upstream.receive_some(view[done + count :], 1)
            piece = view[done : done + count]
            if downstream is not None and not done:
                packet.id += self._ahead
                self._passed_on = packet.id
                await downstream.send(packet, total, piece)
            elif downstream is not None:
                await downstream.send_more(piece)
            done += count
            if done == total:
                break
        self._watch.rest()

    async def _persist(self, chunk: OpenChunk, held: list[_Held]) -> None:
        """Verify and write the packets, as durably as ``durability`` requires."""
        disk, durability = chunk.disk, self._node.store.durability
        self._take_room(chunk, sum(len(one.view) for one in held))
        with self._node.pulse.on_disk(disk):
            await durability.wait_for_room(disk)
            try:
                await disk.run(self._write, chunk.file, held)
            except (CorruptReplica, ReadFailed):
                if all(packet_sums(one.packet.offset, one.view) == one.packet.sums for one in held):
                    self._mark_unfit(chunk)  # and no packet was damaged on the way
                raise
            if chunk.file.unfinished:
                await durability.sync_journal(disk)
                await disk.run(chunk.file.finish)
            elif held[-1].packet.last:
                await durability.sync_journal(disk)

    def _take_room(self, chunk: OpenChunk, count: int) -> None:
        """Prevent that many writers use up the reserve between two measurements."""
        reserve, space = self._node.settings.reserve_bytes, chunk.disk.space
        if reserve and not space.has_room(reserve):
            raise DiskFull(f"chunk {chunk.file.handle:016x}: the disk is full to its reserve")
        space.written_bytes += count
        self._node.written_bytes += count

    def _write(self, file: ChunkFile, held: list[_Held]) -> None:
        """Blocks. Verify and write packet after packet; with the last, commit."""
        for one in held:
            self._write_packet(file, one.packet, one.view)
        if self._is_only_one:
            file.commit()

    def _write_packet(self, file: ChunkFile, packet: Packet, view: memoryview) -> None:
        if packet_sums(packet.offset, view) != packet.sums:
            raise CorruptReplica(
                f"chunk {file.handle:016x}: a packet at {packet.offset} arrived damaged"
            )
        if not self._prepared:
            _prepare(file, self._request)
            self._prepared = True
        _check_version(file, self._request)
        # With "replicated", a power cut makes a replica shorter, and not stale.
        start = packet.offset - packet.hole
        if start > file.length or (packet.hole and start < file.length):
            raise StaleVersion(
                f"chunk {file.handle:016x} has {file.length} bytes here, not {start}"
            )
        if packet.hole:
            file.pad(packet.offset)
        file.write(packet.offset, view, packet.sums)
        if packet.last and not file.unfinished:
            file.commit()

    # --- replicas of one length ---------------------------------------------------------

    async def _level(self, chunk: OpenChunk) -> None:
        """Make this replica as long as the longest one; note from which byte on others lack it."""
        if self._is_level:
            return
        self._watch.rest()
        request = self._request
        _check_version(chunk.file, request)
        lengths = [
            await length_at(self._node, server, request.handle, request.version)
            for server in request.chain
        ]
        for server, length in zip(request.chain, lengths, strict=True):
            if length > chunk.file.length:
                await self._fetch(chunk, server, length)
        self._low = min([chunk.file.length, *lengths])
        self._is_level = True

    async def _fetch(self, chunk: OpenChunk, server: ServerAddress, end: int) -> None:
        """Append the bytes of another replica up to ``end``."""
        file, request = chunk.file, self._request
        while file.length < end:
            at = file.length
            count = min(PACKET_BYTES_MAX - at % PACKET_BYTES_MAX, end - at)
            question = ReadChunk(message_id(), request.handle, request.version, at, count)
            async with asked(self._node, server, question) as (connection, reply):
                if not isinstance(reply, ReadReply) or connection.body_bytes != count:
                    raise ProtocolError(f"{type(reply).__name__} instead of {count} bytes")
                data = await connection.read_body()
                if (block_sums(data) if reply.whole else block_sum(data)) != reply.sums:
                    raise CorruptReplica(f"bytes at {at} fail their checksum")
            self._watch.rest()
            self._take_room(chunk, count)
            await self._on_disk(chunk, file.write, at, data, packet_sums(at, data))
        await self._on_disk(chunk, file.commit)

    async def _catch_up(self, chunk: OpenChunk, downstream: Downstream) -> None:
        """Send first the bytes that other replicas may lack."""
        file, at = chunk.file, self._low
        while at < file.length:
            count = min(PACKET_BYTES_MAX - at % PACKET_BYTES_MAX, file.length - at)
            self._watch.rest()
            data = await self._on_disk(chunk, file.read_verified, at, count)
            self._passed_on = self._ahead
            self._ahead += 1
            packet = Packet(self._passed_on, at, False, packet_sums(at, data))
            await downstream.send(packet, count, memoryview(data))
            at += count


def _check_request(request: WriteChunk) -> None:
    """Refuse numbers that a chunk file cannot hold."""
    if request.mode not in ("upload", "mutate"):
        raise InvalidArgument(f"a write of mode {request.mode!r}")
    if not (
        0 < request.version < 1 << 32
        and 0 <= request.handle < 1 << 64
        and 0 <= request.offset <= CHUNK_BYTES
    ):
        raise InvalidArgument(
            f"a write at {request.offset} of version {request.version} of chunk {request.handle:x}"
        )


def _check_version(file: ChunkFile, request: WriteChunk) -> None:
    if file.version != request.version:
        raise StaleVersion(
            f"chunk {file.handle:016x} has version {file.version} here, not {request.version}"
        )


def _prepare(file: ChunkFile, request: WriteChunk) -> None:
    """Blocks. Bring the replica to the state in which the exchange starts."""
    if request.mode == "mutate":
        _check_version(file, request)
        return
    if file.length < request.offset:
        raise StaleVersion(
            f"chunk {file.handle:016x} has {file.length} bytes here, not {request.offset}"
        )
    file.set_version(request.version)
    file.cut(request.offset)
