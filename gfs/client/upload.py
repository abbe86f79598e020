"""Writing a new file: reserve, write chunks, publish.

An upload holds the bytes it has sent until every replica has acknowledged them,
and no others. So when a chain breaks, the chunk is continued after the last
acknowledged byte on the remaining replicas, under a higher version, and the source
is never read again; and when none remains, on those that come back within
``retry_seconds``. Nothing of the file is in the namespace before
:meth:`Upload.publish`, one transaction at the master.

Memory: packets are filled in buffers of the client's pool. When the pool is
empty, an upload first waits for its own acknowledgements, and then works with a
small buffer of its own, one packet at a time: 400 writers need the pool and
64 KiB each, and none waits for another writer.

Per MiB: one buffer filled by the caller, 16 digests, one ``sendmsg`` or a few,
one acknowledgement received every packet. No task: acknowledgements are read
when the window is full and at the end.
"""

from __future__ import annotations

import logging
import mmap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, Buffer, FileDigest, packet_sums
from gfs.client.core import OF_REPLICAS, RELEASE_SECONDS, ClientCore
from gfs.client.publish import PublishOptions, join_request, publish_request
from gfs.client.small import put_small
from gfs.errors import (
    ChunkUnavailable,
    DeadlineExceeded,
    DiskFull,
    GfsError,
    LeaseLost,
    NotFound,
    ProtocolError,
    invariant,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.frames import encode_frame, encode_head
from gfs.protocol.messages import (
    PACKET_BYTES_MAX,
    PACKETS_IN_FLIGHT_MIN,
    SMALL_BYTES_MAX,
    Entry,
    Failure,
    Packet,
    PacketAck,
    PublishReply,
    Recover,
    RecoverReply,
    ServerAddress,
    Working,
    WriteChunk,
)
from gfs.protocol.patience import answer

log = logging.getLogger(__name__)

#: A writer's own buffer, when the pool is empty.
OWN_BUFFER_BYTES = BLOCK_BYTES
#: Chains tried for one chunk, while there are servers for one, before the upload gives up.
RECOVERIES_MAX = 8
#: Between two attempts to find one that has the acknowledged bytes.
PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 1.0


class ChainBroken(Exception):
    """A write chain failed; ``server`` is the id of the failed server, empty if none
    failed: the servers end an exchange whose writer pauses for long. ``code`` is that of
    its answer, if there was one."""

    def __init__(self, message: str, server: str, code: str = "") -> None:
        super().__init__(message)
        self.server = server
        self.code = code


@dataclass(slots=True)
class OutPacket:
    """A packet that is not acknowledged everywhere yet."""

    offset: int
    data: memoryview
    sums: bytes
    pooled: mmap.mmap | None
    last: bool = False
    flush: bool = False
    #: Bytes that may be missing before ``offset``.
    hole: int = 0
    number: int = -1


@dataclass(slots=True)
class ChainWriter:
    """One exchange after another with the write chain of one chunk.

    Shared by uploads and mutations in place; knows nothing of the master.
    """

    core: ClientCore
    handle: int
    mode: str
    version: int = 0
    chain: list[ServerAddress] = field(default_factory=list)
    packets: deque[OutPacket] = field(default_factory=deque)
    acked: int = 0  # bytes from the chunk's start that every replica holds
    #: The ids of the servers that have them.
    holders: set[str] = field(default_factory=set)
    length: int = 0  # the replicas' length, once the last packet is acknowledged
    done: bool = False
    #: How often its chain broke since a packet was acknowledged, or a server waited for, and since
    #: when none of its holders can be reached.
    breaks: int = 0
    alone_since: float | None = None
    _connection: BulkConnection | None = None
    _next_number: int = 0

    async def transmit(self, packet: OutPacket) -> None:
        """Send one packet, opening the exchange with the first. Raises ChainBroken."""
        head = b""
        try:
            if self._connection is None:
                self._connection = await self.core.pool.acquire(self.chain[0].address)
                self._next_number = 0
                head = encode_frame(
                    WriteChunk(
                        id=self.core.message_id(),
                        version=self.version,
                        handle=self.handle,
                        offset=packet.offset,
                        mode=self.mode,
                        chain=self.chain[1:],
                        primary=True,
                    )
                )
            packet.number = self._next_number
            self._next_number += 1
            message = Packet(
                id=packet.number,
                offset=packet.offset,
                last=packet.last,
                sums=packet.sums,
                flush=packet.flush,
                hole=packet.hole,
            )
            head += encode_head(message, len(packet.data))
            seconds, stream = self.core.settings.stall_seconds, self._connection.stream
            with (
                deadline(seconds, f"progress at {self.chain[0].address}") as scope,
                self.core.patience.sending(scope, stream, seconds),
            ):
                await self._connection.send_frames(head, packet.data)
        except (ConnectionError, GfsError) as error:
            await self._hear_why()
            raise self._broken(error) from error

    async def _hear_why(self) -> None:
        """The failed server, if the primary named it before it closed the connection."""
        if self._connection is None:
            return
        with trio.move_on_after(0.5):
            try:
                while not self.done:
                    self._take(await self._connection.receive())
            except (ConnectionError, ProtocolError):
                return

    def _broken(self, error: BaseException) -> ChainBroken:
        self.hang_up()
        return ChainBroken(f"chunkserver {self.chain[0].id}: {error}", self.chain[0].id)

    async def receive_ack(self) -> None:
        """Wait for the next acknowledgement and release its packets. Raises ChainBroken."""
        try:
            if self._connection is None:
                raise ConnectionResetError("the exchange is not open")
            message = await answer(self._connection, self.core.settings.stall_seconds)
        except (ConnectionError, GfsError) as error:
            raise self._broken(error) from error
        self._take(message)

    def _take(self, message: object) -> None:
        if isinstance(message, Working):
            return
        if isinstance(message, Failure):
            paused = message.code == DeadlineExceeded.code
            server = message.server or ("" if paused else self.chain[0].id)
            if message.code == LeaseLost.code:
                server = ""  # no server failed: ask the master for a new lease
            self.hang_up()
            raise ChainBroken(message.message, server, message.code)
        if not isinstance(message, PacketAck) or message.id >= self._next_number:
            raise self._broken(ProtocolError(f"{message!r} instead of an acknowledgement"))
        while self.packets and self.packets[0].number <= message.id:
            packet = self.packets.popleft()
            self.acked = packet.offset + len(packet.data)
            self.holders = {server.id for server in self.chain}
            self.breaks, self.alone_since = 0, None
            self.let_go(packet)
            if packet.last:
                self.length = message.length
                self._finish()

    def let_go(self, packet: OutPacket) -> None:
        packet.data.release()
        if packet.pooled is not None:
            self.core.buffers.release(packet.pooled)

    def _finish(self) -> None:
        self.done = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self.core.pool.release(connection, self.chain[0].address)

    def hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """Hang up and release all packets."""
        self.hang_up()
        while self.packets:
            self.let_go(self.packets.popleft())


def _full(broken: ChainBroken) -> DiskFull:
    return DiskFull(f"no chunkserver has room for the file: {broken}")


class Upload:
    """One new file that is being uploaded. Used by one task.

    Fill what :meth:`buffer` gives, :meth:`advance`, and in the end
    :meth:`publish` or :meth:`abort`.
    """

    def __init__(
        self, core: ClientCore, replication: int = 0, small: bool = True, again: bool = False
    ) -> None:
        """``small``: it may go with other small ones. ``again``: the caller has all bytes still,
        so that it is quicker to begin again than to wait for servers that have some of them."""
        self._core = core
        self._is_small = small
        self._again = again
        self._replication = replication
        self._chunks: list[ChainWriter] = []
        self._unfinished: deque[ChainWriter] = deque()
        self._in_flight_bytes = 0
        self._buffer: mmap.mmap | bytearray | None = None
        #: What fills it, where it is: the caller's own bytes, which nobody can change.
        self._lent: memoryview | None = None
        self._room = 0
        self._filled = 0
        self._offset = 0  # in the chunk being written, of the buffer's first byte
        self.length = 0
        #: None once a packet ended inside a block: its sums are not the stored ones.
        self._digest: FileDigest | None = FileDigest()
        self._ended = False
        core.uploads += 1

    # --- filling ------------------------------------------------------------------

    async def buffer(self) -> memoryview:
        """Free space, at least one byte, to be filled from its start.

        Release the view before :meth:`advance` says how much was filled.
        """
        if self._buffer is not None and self._filled == self._room:
            await self._send_buffer(last=self._offset + self._filled == CHUNK_BYTES)
        if self._buffer is None:
            await self._take_buffer()
        assert self._buffer is not None
        return memoryview(self._buffer)[self._filled : self._room]

    def advance(self, count: int) -> None:
        invariant(0 <= count <= self._room - self._filled, "no more than the free space")
        self._filled += count
        self.length += count

    async def write(self, data: Buffer) -> None:
        """Copy ``data`` into buffers, sending those that are full. Of ``bytes`` whole packets are
        sent from where they are."""
        with memoryview(data) as given:
            if not given.nbytes:
                return  # what is empty cannot be cast
            source = given.cast("B")
        with source:
            done = 0
            while done < len(source):
                with await self.buffer() as free:
                    count = min(len(free), len(source) - done)
                    piece = source[done : done + count]
                    # A buffer of the pool is kept for them all the same: they count as its memory.
                    if count == PACKET_BYTES_MAX and type(data) is bytes:
                        self._lent = piece
                    else:
                        free[:count] = piece
                        piece.release()
                self.advance(count)
                done += count

    async def flush(self) -> None:
        """Wait until everything written is on all replicas (not yet published)."""
        if self._filled or (self._offset and self._in_flight_bytes):
            await self._send_buffer(last=False, flush=True)
        while self._in_flight_bytes:
            await self._drain_one()

    async def _take_buffer(self) -> None:
        pooled = self._core.buffers.acquire_now()
        if pooled is None and self._in_flight_bytes:
            await self.flush()
            pooled = self._core.buffers.acquire_now()
        self._buffer = pooled if pooled is not None else bytearray(OWN_BUFFER_BYTES)
        self._room = min(len(self._buffer), CHUNK_BYTES - self._offset)
        self._filled = 0

    # --- sending ------------------------------------------------------------------

    async def _send_buffer(self, last: bool, flush: bool = False) -> None:
        buffer, self._buffer = self._buffer, None
        pooled = buffer if isinstance(buffer, mmap.mmap) else None
        count, self._filled, self._room = self._filled, 0, 0
        lent, self._lent = self._lent, None
        view = lent or memoryview(buffer if buffer is not None else b"")[:count]
        packet = OutPacket(
            offset=self._offset,
            data=view,
            sums=packet_sums(self._offset, view) if count else b"",
            pooled=pooled,
            last=last,
            # The small buffer is this writer's only one: wait for its acknowledgement.
            flush=flush or (pooled is None and not last),
        )
        self._digest_packet(packet)
        try:
            chunk = await self._current_chunk()
        except BaseException:
            view.release()
            if pooled is not None:
                self._core.buffers.release(pooled)
            raise
        self._offset = 0 if last else self._offset + count
        chunk.packets.append(packet)
        self._in_flight_bytes += count
        try:
            await chunk.transmit(packet)
        except ChainBroken as broken:
            await self._recover(chunk, broken)
        await self._keep_to_window(packet.flush and not flush)

    def _digest_packet(self, packet: OutPacket) -> None:
        """Called once for each packet, however often it is sent."""
        if packet.sums and packet.offset % BLOCK_BYTES:
            self._digest = None
        elif self._digest is not None:
            self._digest.update(packet.sums)

    async def _keep_to_window(self, empty: bool) -> None:
        limit = 0 if empty else self._core.settings.window_bytes
        while self._in_flight_bytes > limit:
            if not empty and sum(len(c.packets) for c in self._unfinished) < PACKETS_IN_FLIGHT_MIN:
                return
            await self._drain_one()

    async def _drain_one(self) -> None:
        """Receive one acknowledgement for the oldest chunk that waits for one."""
        while self._unfinished and not self._unfinished[0].packets:
            if not self._unfinished[0].done:
                break
            self._unfinished.popleft()
        for chunk in self._unfinished:
            if chunk.packets:
                await self._receive_ack(chunk)
                return

    async def _receive_ack(self, chunk: ChainWriter) -> None:
        try:
            await chunk.receive_ack()
        except ChainBroken as broken:
            await self._recover(chunk, broken)
        self._count_in_flight()

    def _count_in_flight(self) -> None:
        self._in_flight_bytes = sum(len(p.data) for c in self._unfinished for p in c.packets)

    async def _current_chunk(self) -> ChainWriter:
        if self._offset and self._chunks:
            return self._chunks[-1]
        reserved, self._replication = await self._core.reserve(self._replication)
        chunk = ChainWriter(self._core, reserved.handle, "upload")
        self._use(chunk, reserved.handle, reserved.version, reserved.chain)
        self._chunks.append(chunk)
        self._unfinished.append(chunk)
        return chunk

    def _use(
        self, chunk: ChainWriter, handle: int, version: int, chain: list[ServerAddress]
    ) -> None:
        chunk.handle, chunk.version, chunk.chain = handle, version, chain
        self._core.master.reservations[handle] = (version, 0, [server.id for server in chain])

    # --- recovery -----------------------------------------------------------------

    async def _recover(self, chunk: ChainWriter, broken: ChainBroken) -> None:
        """Continue on the remaining replicas, and send all unacknowledged bytes again.

        Raises ChunkUnavailable if no server has the acknowledged bytes any more, none with them
        has come back within ``retry_seconds``, or after so many attempts without a further
        acknowledgement; DiskFull if the last server was full.
        """
        pause = PAUSE_SECONDS_MIN
        while chunk.breaks < RECOVERIES_MAX:
            chunk.breaks += 1
            how = "without it" if broken.server else "with all servers"
            log.warning("chunk %016x: %s; continuing %s", chunk.handle, broken, how)
            self._core.suspect(broken.server, broken.code)
            if broken.code in OF_REPLICAS:
                chunk.holders.discard(broken.server)
            chunk.hang_up()
            try:
                await self._new_chain(chunk, broken.server)
                for packet in list(chunk.packets):
                    await chunk.transmit(packet)
                return
            except ChainBroken as again:
                broken = again
            except ChunkUnavailable as error:
                if broken.code == DiskFull.code:
                    raise _full(broken) from error
                if not self._may_wait(chunk, pause):
                    raise
                await self._core.world.clock.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
                await self._claim(chunk)
                broken = ChainBroken("no server with its acknowledged bytes was there", "")
        if broken.code == DiskFull.code:
            raise _full(broken)
        raise ChunkUnavailable(f"the write of a chunk failed {RECOVERIES_MAX} times: {broken}")

    def _may_wait(self, chunk: ChainWriter, pause: float) -> bool:
        """Whether a server with the acknowledged bytes may come back in time."""
        if self._again or not chunk.holders:
            return False
        now = self._core.world.clock.monotonic()
        if chunk.alone_since is None:
            chunk.alone_since = now
        return now + pause <= chunk.alone_since + self._core.settings.retry_seconds

    async def _claim(self, chunk: ChainWriter) -> None:
        """Reserve the chunk again, which the master has given up, on all that have its
        acknowledged bytes."""
        chunk.breaks = 0
        reservation = chunk.version, 0, sorted(chunk.holders)
        self._core.master.reservations[chunk.handle] = reservation
        await self._core.master.claim()

    async def _new_chain(self, chunk: ChainWriter, failed: str) -> None:
        try:
            reply = await self._core.master.ask(
                Recover(
                    id=0,
                    client=self._core.master.id,
                    handle=chunk.handle,
                    version=chunk.version,
                    failed=[failed] if failed else [],
                ),
                RecoverReply,
            )
        except (ChunkUnavailable, NotFound) as error:
            if chunk.acked:
                raise ChunkUnavailable(
                    f"all chunkservers that held the first {chunk.acked} bytes of a chunk "
                    f"are gone: write the file again ({error})"
                ) from error
            # No byte of it was acknowledged: use another chunk.
            self._core.master.reservations.pop(chunk.handle, None)
            reserved, _ = await self._core.reserve(self._replication)
            self._use(chunk, reserved.handle, reserved.version, reserved.chain)
            return
        chain = [reply.servers[index] for index in reply.chunk.servers]
        self._use(chunk, reply.chunk.handle, reply.chunk.version, chain)

    # --- the end ------------------------------------------------------------------

    async def publish(self, path: str, options: PublishOptions) -> PublishReply:
        """Make the complete file visible. Acknowledged when this returns.

        Raises AlreadyExists, FileChanged and the other errors of the namespace; the upload is
        over in any case.
        """
        try:
            reply = await self._publish_small(path, options)
            if reply is None:
                await self._finish_chunks()
                reply = await self._publish(path, options)
        except BaseException:
            await self.abort()
            raise
        self._end()
        return reply

    async def _publish_small(self, path: str, options: PublishOptions) -> PublishReply | None:
        """A file of which nothing was sent goes with other small ones, if that can be done."""
        if not self._is_small or self._chunks or self.length > SMALL_BYTES_MAX:
            return None
        with memoryview(self._buffer or b"")[: self._filled] as view:
            data = bytes(view)
        return await put_small(self._core, path, data, options, self._replication)

    async def _finish_chunks(self) -> None:
        # With nothing left to send, an empty last packet ends the exchange.
        if self._filled or self._offset:
            await self._send_buffer(last=True)
        for chunk in list(self._unfinished):
            while not chunk.done:
                await self._receive_ack(chunk)
        self._unfinished.clear()

    async def _publish(self, path: str, options: PublishOptions) -> PublishReply:
        invariant(sum(c.length for c in self._chunks) == self.length, "all bytes are in chunks")
        digest = b"" if self._digest is None else self._digest.digest()
        clock = self._core.world.clock
        give_up = clock.monotonic() + self._core.settings.retry_seconds
        pause = PAUSE_SECONDS_MIN
        while True:
            request, body = publish_request(
                self._core, path, options, self._replication, self._chunks, digest
            )
            try:
                return await self._core.master.ask(request, PublishReply, body)
            except ChunkUnavailable:
                # The only server of a chunk may come back.
                if self._again or clock.monotonic() + pause > give_up:
                    raise
            await clock.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def join(
        self, path: str, options: PublishOptions, files: Sequence[Entry]
    ) -> PublishReply:
        """Make a file visible that has the chunks of these instead of bytes of its own."""
        await self.abort()
        request, body = join_request(self._core, path, options, self._replication, files)
        return await self._core.master.ask(request, PublishReply, body)

    async def abort(self) -> None:
        """Discard the upload: the file does not become visible. Never raises."""
        if self._ended:
            return
        handles = [chunk.handle for chunk in self._chunks]
        self._end()
        with trio.move_on_after(RELEASE_SECONDS, shield=True):
            await self._core.release(handles)

    def _end(self) -> None:
        self._ended = True
        self._core.uploads -= 1
        for chunk in self._chunks:
            self._core.master.reservations.pop(chunk.handle, None)
            chunk.abandon()
        buffer, self._buffer = self._buffer, None
        if isinstance(buffer, mmap.mmap):
            self._core.buffers.release(buffer)
