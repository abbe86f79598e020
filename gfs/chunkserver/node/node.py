"""The parts of one chunkserver, and the state of its replicas."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext

import trio

from gfs.blocks import CHUNK_BYTES, MIB, block_count
from gfs.chunkserver.disks import map_disk_error, map_read_error
from gfs.chunkserver.disks.identity import Identity as ServerIdentity
from gfs.chunkserver.files import bad_blocks
from gfs.chunkserver.node.connections import Connections
from gfs.chunkserver.node.disk_opening import DiskOpening
from gfs.chunkserver.node.disk_orders import DiskOrders
from gfs.chunkserver.node.leases import Leases
from gfs.chunkserver.node.pulse import Pulse
from gfs.chunkserver.node.throttle import Throttle
from gfs.chunkserver.replicas import ChunkStore, OpenChunk
from gfs.config import ChunkserverSettings
from gfs.errors import Busy, CorruptReplica, DeadlineExceeded, GfsError, NotFound, StaleVersion
from gfs.io import World
from gfs.metrics import Operations
from gfs.protocol.buffers import BufferPool
from gfs.protocol.credentials import Credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.links import Links
from gfs.protocol.messages import (
    POSSIBLY_STALE,
    GrantLease,
    LookFor,
    LookForReply,
    ReplicaName,
    ReplicaState,
    VerifyChunk,
    VerifyReply,
    WriteChunk,
)
from gfs.protocol.patience import Patience
from gfs.protocol.pool import BulkPool

log = logging.getLogger(__name__)

#: Packet buffers of all exchanges of one server together.
BUFFER_BYTES_MAX = 64 * MIB


class Node:
    """The parts of one chunkserver. It runs no tasks: the service does."""

    def __init__(
        self,
        world: World,
        settings: ChunkserverSettings,
        directories: list[str],
        key: bytes | Credentials,
    ) -> None:
        self.world = world
        self.settings = settings
        self.server = ServerIdentity()
        self.store = ChunkStore(world, settings)
        self.disk_opening = DiskOpening(world, directories, self.store, self.server)
        self.disk_orders = DiskOrders(world, self.store, self.server, self.disk_opening)
        self.leases = Leases(world.clock.elapsed)
        self.throttle = Throttle(world.clock, settings.background_bytes_per_second)
        self.buffers = BufferPool(BUFFER_BYTES_MAX)
        self.identity = Identity(role="chunkserver", peer="", key=key)
        self.pool = BulkPool(world, self.identity)
        self.links = Links(world, self.identity)
        self.pulse = Pulse(world.clock)
        self.patience = Patience(world.clock)
        #: Counted for metrics.
        self.operations = Operations(settings.slow_seconds)
        self.connections = Connections(world.clock)
        self.read_bytes = self.written_bytes = 0
        self.address = ""
        #: Chunks being copied to this server.
        self.cloning: set[int] = set()

    @property
    def id(self) -> str:
        return self.identity.peer

    async def open(self) -> None:
        """Lock and read the disks; one that cannot be used is left out, as long as there is
        another. Raises StartupError."""
        await self.disk_opening.open()
        self.identity.peer = self.server.record.id
        self.identity.cluster = self.server.record.cluster
        self.identity.term = self.server.record.term

    async def close(self) -> None:
        """Close the disks. Calls that hang are left until the process ends."""
        self.pool.close()
        await self.disk_opening.close()

    async def writable(self, request: WriteChunk) -> OpenChunk:
        """The replica that a write is for; it is made at the start of an upload."""
        is_new = request.mode == "upload" and request.offset == 0
        if not is_new:
            self.store.inventory.check_fit(request.handle)
        disk = self.store.open_chunks.disk_of(request.handle)
        is_open = self.store.open_chunks.opened(request.handle) is not None
        with nullcontext() if disk is None or is_open else self.pulse.on_disk(disk):
            if is_new:
                return await self.store.create(request.handle, request.version)
            return await self.store.open_chunks.get(request.handle)

    async def verify(self, request: VerifyChunk) -> VerifyReply:
        """The state of this replica. A bad one is reported with the next heartbeat."""
        inventory = self.store.inventory
        reply = VerifyReply(id=request.id, state="missing", version=0, length=0, bad_blocks=[])
        try:
            while not await self._verify(request, reply):
                pass
        except NotFound:
            reply.state = "missing"
        except (Busy, DeadlineExceeded):
            raise  # its state is not known
        except (GfsError, OSError):
            # If its disk has failed, it is missing and not damaged.
            reply.state = "corrupt" if request.handle in inventory else "missing"
        if inventory.is_incomplete(request.handle):
            reply.state = "corrupt"
        if request.handle in inventory.bad and reply.state == "good" and request.blocks:
            del inventory.bad[request.handle]  # it was repaired, or a write was under way
        if request.handle in inventory.possibly_stale and reply.state == "good":
            reply.state = POSSIBLY_STALE
        return reply

    async def _verify(self, request: VerifyChunk, reply: VerifyReply) -> bool:
        """False if the replica was moved, replaced or deleted meanwhile: what was found is not
        about the one that is here now."""
        async with self.store.open_chunks.using(request.handle) as chunk:
            file = chunk.file
            reply.version, reply.length, reply.state = file.version, file.length, "good"
            reply.bad_blocks = []
            if request.sums:
                reply.sums = file.sums(0, block_count(reply.length))
            try:
                if file.version < request.version:
                    reply.state = "stale"
                elif request.blocks:
                    await self._verify_blocks(chunk, reply)
            except (GfsError, OSError):
                if not chunk.dropped:
                    raise
            return not chunk.dropped

    async def look_for(self, request: LookFor) -> LookForReply:
        """The known states of these replicas, and whether a ``stat`` finds their files."""
        store, wrong = self.store, dict[int, bool]()
        handles = [name.handle for name in request.replicas]
        for disk in list(store.disks.used.values()):
            try:
                wrong.update(await disk.run(store.inventory.looks_wrong, disk, handles))
            except OSError as error:
                log.info("%s cannot be checked: %s", disk.path, error)
        return LookForReply(request.id, [self._known(name, wrong) for name in request.replicas])

    def _known(self, name: ReplicaName, wrong: Mapping[int, bool]) -> ReplicaState:
        inventory, handle = self.store.inventory, name.handle
        replica = inventory.get(handle)
        if replica is None:
            return ReplicaState(handle, "missing")
        state = "good"
        if handle in wrong:
            state = "corrupt" if wrong[handle] else "missing"
        if state == "good":
            if handle in inventory.bad:
                state = inventory.bad[handle].kind
            elif inventory.is_incomplete(handle):
                state = "corrupt"
            elif replica.version < name.version:
                state = "stale"
            elif handle in inventory.possibly_stale:
                state = POSSIBLY_STALE
        return ReplicaState(handle, state, replica.version, replica.length)

    async def _verify_blocks(self, chunk: OpenChunk, reply: VerifyReply) -> None:
        file, disk = chunk.file, chunk.disk
        wrong = await disk.run(self.store.inventory.looks_wrong, disk, [file.handle])
        if wrong and not wrong[0][1]:
            reply.state = "missing"
            if not chunk.dropped:
                self.store.open_chunks.lose(file.handle)
            return
        if not wrong:
            bad = await self.bad_blocks(chunk)
            if not bad:
                return
            reply.bad_blocks = bad[:1000]
        reply.state = "corrupt"
        self.store.open_chunks.mark_unfit(chunk)

    async def bad_blocks(
        self, chunk: OpenChunk, first: int = 0, count: int | None = None
    ) -> list[int]:
        """The blocks that certainly fail: a write under way may make a good one fail
        for a moment, so a failure counts if it remains while writes are held off.

        Raises CorruptReplica if a sector cannot be read, DiskFailed, and others."""
        try:
            try:
                bad = await chunk.disk.run(bad_blocks, chunk.file, first, count)
            except StaleVersion:  # it was cut meanwhile
                bad = [first]
            if bad:
                async with chunk.mutex:
                    bad = await chunk.disk.run(bad_blocks, chunk.file, first, count)
            return bad
        except OSError as error:
            raise map_read_error(error, f"chunk {chunk.file.handle:016x}") from error

    async def grant(self, order: GrantLease) -> None:
        """Raise the replica's version as the master ordered, then take the lease."""
        while not await self._grant(order):
            pass
        if order.lease_ms:
            self.leases.grant(order.handle, order.lease_ms)
        else:
            self.leases.revoke(order.handle)

    async def _grant(self, order: GrantLease) -> bool:
        """False if the replica was replaced or deleted while this waited for it."""
        if order.version == 0:
            chunk = await self.store.create(order.handle, order.new_version)
        else:
            self.store.inventory.check_fit(order.handle, possibly_stale=order.elected)
            chunk = await self.store.open_chunks.get(order.handle)
        chunk.users += 1
        try:
            chunk.preempt(order.new_version)
            async with chunk.mutex:
                if chunk.dropped:
                    return False
                try:
                    await self._raise_version(chunk, order)
                finally:
                    # It may have been raised or made even if this failed.
                    if order.version == 0:
                        await self.store.give_up(chunk)
                    if chunk.file.made:
                        self.store.open_chunks.note(chunk)
                return True
        finally:
            chunk.users -= 1
            self.store.open_chunks.close_if_unused(chunk)

    async def revoke(self, handle: int, patience: float = 0.0) -> None:
        """Revoke the lease. When this returns, no write under it is under way: a copy
        made from now on misses no acknowledged write. A write under way may take
        ``patience`` seconds to end, so that all replicas have it."""
        chunk = self.store.open_chunks.opened(handle)
        if chunk is None:
            self.leases.revoke(handle)
            return
        chunk.users += 1
        try:
            with trio.move_on_after(patience):
                async with chunk.mutex:
                    self.leases.revoke(handle)
            self.leases.revoke(handle)
            chunk.preempt()
            async with chunk.mutex:
                pass
        finally:
            chunk.users -= 1
            self.store.open_chunks.close_if_unused(chunk)

    async def _raise_version(self, chunk: OpenChunk, order: GrantLease) -> None:
        file = chunk.file
        if order.version and not order.version <= file.version <= order.new_version:
            # It is older: this replica missed a mutation and must not become current.
            raise StaleVersion(
                f"chunk {file.handle:016x} has version {file.version} here, "
                f"not {order.version}: stale"
            )
        store, disk = self.store, chunk.disk
        await store.move_out(chunk)
        file = chunk.file
        try:
            # It must be durable before it becomes the chunk's version: if all replicas
            # lost it in a power cut, none would be current any more.
            await store.durability.wait_for_room(disk)
            is_possibly_stale = order.handle in store.inventory.possibly_stale
            if is_possibly_stale:
                await self._lengthen(chunk, order)
            else:
                # Before the version is raised: if this fails, the replica did not take part.
                await store.durability.record_intent(chunk, order.new_version)
            await disk.run(file.set_version, order.new_version)
            if order.version == 0:
                await disk.run(file.commit if disk.journal.sync else file.save)
            await store.durability.sync_journal(disk)
            if is_possibly_stale:
                # At the end: until then no other version of it may be elected.
                await store.durability.accept_elected(chunk)
        except OSError as error:
            raise map_disk_error(error, f"chunk {file.handle:016x}") from error

    async def _lengthen(self, chunk: OpenChunk, order: GrantLease) -> None:
        """Extend an elected replica with zeros in place of its lost writes, so that it
        can be read to its end. If earlier bytes are missing, the replica is corrupt."""
        file, intent = chunk.file, self.store.inventory.possibly_stale.get(order.handle)
        if intent is None or file.length >= order.length:
            return
        if file.length < intent.length:
            self.store.inventory.mark_bad(order.handle)
            raise CorruptReplica(f"chunk {order.handle:016x}: the replica here was cut short")
        await chunk.disk.run(file.pad, min(order.length, CHUNK_BYTES))
