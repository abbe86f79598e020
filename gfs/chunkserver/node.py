"""What one chunkserver is made of, and the exchanges that clients ask of it."""

from __future__ import annotations

import logging

import trio

from gfs.blocks import MIB
from gfs.chunkserver.identity import IdentityFile
from gfs.chunkserver.leases import Leases
from gfs.chunkserver.read import serve_read
from gfs.chunkserver.store import ChunkStore, OpenChunk, map_disk_error
from gfs.chunkserver.throttle import Throttle
from gfs.chunkserver.write import WriteExchange
from gfs.config import ChunkserverSettings
from gfs.errors import GfsError, NotFound, StaleVersion
from gfs.io import World
from gfs.protocol.buffers import BufferPool
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import (
    Done,
    Failure,
    GrantLease,
    Message,
    Ping,
    ReadChunk,
    VerifyChunk,
    VerifyReply,
    WriteChunk,
)
from gfs.protocol.pool import BulkPool

log = logging.getLogger(__name__)

#: Packet buffers of all exchanges of one server together.
BUFFER_BYTES_MAX = 64 * MIB
#: A connection nobody uses is ended after this long; the pools' limit is below.
CONNECTION_IDLE_SECONDS = 90.0
#: How long a peer that was told of a failure may take to hang up.
HANG_UP_SECONDS = 1.0


class Node:
    """One chunkserver's parts. No task of its own: the service runs them."""

    def __init__(
        self, world: World, settings: ChunkserverSettings, directories: list[str], key: bytes
    ) -> None:
        self.world = world
        self.settings = settings
        self.identity_file = IdentityFile(world.files, directories)
        self.store = ChunkStore(world, directories, settings.disk_threads, settings.reserve_bytes)
        self.leases = Leases(world.clock.monotonic)
        self.throttle = Throttle(world.clock, settings.background_bytes_per_second)
        self.buffers = BufferPool(BUFFER_BYTES_MAX)
        self.identity = Identity(role="chunkserver", peer="", key=key)
        self.pool = BulkPool(world, self.identity)
        self.sync = settings.durability == "fsync"
        self.address = ""
        #: Chunks being copied to this server.
        self.cloning: set[int] = set()
        #: Connections between two exchanges, and since when.
        self._idle: dict[BulkConnection, float] = {}

    @property
    def id(self) -> str:
        return self.identity.peer

    def open(self) -> None:
        """Lock the disks, read identity and inventory. Blocks. Raises StartupError."""
        self.identity_file.open(self.world)
        self.identity.peer = self.identity_file.record.id
        self.identity.cluster = self.identity_file.record.cluster
        self.store.load()

    def close(self) -> None:
        self.pool.close()
        self.identity_file.close()

    # --- exchanges ------------------------------------------------------------------

    async def serve(self, connection: BulkConnection) -> None:
        """All exchanges of one connection, one after another."""
        while True:
            self._idle[connection] = self.world.clock.monotonic()
            try:
                message = await connection.receive_or_end()
            finally:
                del self._idle[connection]
            if message is None:
                return
            self.throttle.client_starts()
            try:
                if not await self._exchange(connection, message):
                    return
            finally:
                self.throttle.client_ends()

    async def end_idle(self) -> None:
        """Close the connections nobody uses. Runs for as long as the server does:
        one task for all costs less than a deadline for each exchange."""
        while True:
            await self.world.clock.sleep(CONNECTION_IDLE_SECONDS / 4)
            oldest = self.world.clock.monotonic() - CONNECTION_IDLE_SECONDS
            for connection in [c for c, since in self._idle.items() if since < oldest]:
                connection.close()

    async def _exchange(self, connection: BulkConnection, message: Message) -> bool:
        if isinstance(message, WriteChunk):
            return await WriteExchange(self, connection, message).run()
        with deadline(self.settings.idle_seconds * 4, "taking of the answer"):
            if isinstance(message, ReadChunk):
                return await serve_read(self, connection, message)
            await connection.send(await self._answer(message))
        return True

    async def _answer(self, message: Message) -> Message:
        if isinstance(message, VerifyChunk):
            return await self.verify(message)
        if isinstance(message, Ping):
            return Done(id=message.id)
        name = type(message).__name__
        return Failure(id=message.id, code="protocol", message=f"{name} is not served here")

    async def say_and_hang_up(self, connection: BulkConnection, failure: Failure) -> None:
        """Send ``failure`` and let the peer read it: what it still sends is thrown
        away for a moment, since closing on unread data would cut the answer off."""
        with trio.move_on_after(HANG_UP_SECONDS):
            try:
                await connection.send(failure)
                sink = memoryview(bytearray(256 * 1024))
                while await connection.stream.receive_into(sink):
                    pass
            except ConnectionError:
                pass
        connection.close()

    # --- replicas -------------------------------------------------------------------

    async def writable(self, request: WriteChunk) -> OpenChunk:
        """The replica a write is for, made if it is the start of an upload."""
        if request.mode == "upload" and request.offset == 0:
            return await self.store.create(request.handle, request.version)
        self.store.check_fit(request.handle)
        return await self.store.get(request.handle)

    async def verify(self, request: VerifyChunk) -> VerifyReply:
        """What is true of this replica. Finding it unfit marks it for the heartbeat."""
        reply = VerifyReply(id=request.id, state="missing", version=0, length=0, bad_blocks=[])
        try:
            async with self.store.using(request.handle) as chunk:
                file = chunk.file
                reply.version, reply.length, reply.state = file.version, file.length, "good"
                if file.version < request.version:
                    reply.state = "stale"
                elif request.blocks:
                    await self._verify_blocks(chunk, reply)
        except NotFound:
            reply.state = "missing"
        except GfsError:
            reply.state = "corrupt"
        if request.handle in self.store.bad and reply.state == "good" and request.blocks:
            del self.store.bad[request.handle]  # it was repaired, or a write was under way
        return reply

    async def _verify_blocks(self, chunk: OpenChunk, reply: VerifyReply) -> None:
        file, disk = chunk.file, chunk.disk
        wrong = await self.store.run(disk, self.store.looks_right, disk, [file.handle])
        if not wrong:
            bad = await self.bad_blocks(chunk)
            if not bad:
                return
            reply.bad_blocks = bad[:1000]
            wrong = [(file.handle, "corrupt")]
        reply.state = wrong[0][1]
        self.store.mark_bad(file.handle, reply.state)

    async def bad_blocks(
        self, chunk: OpenChunk, first: int = 0, count: int | None = None
    ) -> list[int]:
        """Blocks that truly fail: a write under way may make a good one look bad
        for a moment, so a finding counts when it stands with writes held off."""
        run = self.store.run
        try:
            try:
                bad = await run(chunk.disk, chunk.file.bad_blocks, first, count)
            except StaleVersion:  # it was cut meanwhile
                bad = [first]
            if bad:
                async with chunk.mutex:
                    bad = await run(chunk.disk, chunk.file.bad_blocks, first, count)
            return bad
        except OSError as error:
            raise map_disk_error(error, f"chunk {chunk.file.handle:016x}") from error

    async def grant(self, order: GrantLease) -> None:
        """Raise the replica's version as the master ordered, then take the lease."""
        if order.version == 0:
            chunk = await self.store.create(order.handle, order.new_version)
        else:
            self.store.check_fit(order.handle)
            chunk = await self.store.get(order.handle)
        chunk.users += 1
        try:
            chunk.preempt(order.new_version)
            async with chunk.mutex:
                await self._raise_version(chunk, order)
                self.store.note(chunk)
        finally:
            chunk.users -= 1
            self.store.close_if_unused(chunk)
        if order.lease_ms:
            self.leases.grant(order.handle, order.lease_ms)
        else:
            self.leases.revoke(order.handle)

    async def revoke(self, handle: int) -> None:
        """Give the lease up. When this returns, nothing ordered under it is under way:
        a copy made from now on misses nothing that is acknowledged."""
        self.leases.revoke(handle)
        chunk = self.store.opened(handle)
        if chunk is None:
            return
        chunk.users += 1
        try:
            chunk.preempt()
            async with chunk.mutex:
                pass
        finally:
            chunk.users -= 1
            self.store.close_if_unused(chunk)

    async def _raise_version(self, chunk: OpenChunk, order: GrantLease) -> None:
        file = chunk.file
        if order.version and not order.version <= file.version <= order.new_version:
            # Older: this replica missed a mutation and must not look current.
            raise StaleVersion(
                f"chunk {file.handle:016x} has version {file.version} here, "
                f"not {order.version}: stale"
            )
        try:
            # Durable before it is the chunk's version: were it lost by all
            # replicas in a power cut, none would be current any more.
            await self.store.run(chunk.disk, file.set_version, order.new_version, self.sync)
            if order.version == 0:
                await self.store.run(chunk.disk, file.commit, self.sync)
        except OSError as error:
            raise map_disk_error(error, f"chunk {file.handle:016x}") from error
