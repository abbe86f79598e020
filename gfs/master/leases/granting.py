"""Granting a lease: the paper, sections 3.1 and 4.5.

::

    commit "version n + 1 is attempted"            no other grant can use n + 1
    GrantLease(n -> n + 1) to every live replica   the primary with the lease
    some did not answer: once more, n + 2, without them
    commit "version n + 1 is confirmed"            every lower one is stale now
    answer the client

Two commits, because both shortcuts lose data. If the version became the chunk's
before any replica had it, a grant that reaches nobody would make every replica
stale. If it were not recorded at all before, a master that dies in between
could use it twice, and a replica of the first, failed grant would be taken for one of the second.

A replica that did not answer may or may not have the new version. It must not be taken
for a current one later, without the mutations that the others got: so the others are
raised once more, and a version is confirmed only if all its recipients answered. The
replica that did not answer is stale, whichever version it has.

The first attempt removes the file's digest, durably, before anybody can change a byte.
An existing lease followed such an attempt.

A replica accepts a grant if it has any version from the old to the new one: a version
that was attempted and not confirmed was never used.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial

import trio

from gfs.blocks import CHUNK_BYTES
from gfs.diagnostics import event
from gfs.errors import (
    Busy,
    ChunkUnavailable,
    InvalidArgument,
    LeaseLost,
    NotFound,
    Retryable,
)
from gfs.failures import plural
from gfs.master.leases.copy_on_write import copy_shared_chunk
from gfs.master.leases.version_raise import Order, Raised, raise_version
from gfs.master.master import Master
from gfs.master.metadata import shared_chunks
from gfs.master.metadata.namespace import (
    chunk_handle,
    chunk_row,
    live_file,
    plan_add_chunk,
    plan_attempt_version,
    plan_begin_append,
    plan_confirm_version,
)
from gfs.master.metadata.operations import VersionAttempted
from gfs.master.metadata.rows import FLAG_APPENDED, Chunk, Inode
from gfs.master.rules import placement
from gfs.master.tables import (
    FIRST_LEASED_VERSION,
    LIVE,
    AddressBook,
    Lease,
    Server,
    wants_new_grant,
)
from gfs.protocol.messages import AcquireLease, ChunkLocation, GrantLease, LeaseReply

log = logging.getLogger(__name__)

#: How long a grant waits for a copy of the chunk that is being made: a copy cannot be
#: finished under a lease.
CLONE_WAIT_SECONDS = 3.0
CLONE_POLL_SECONDS = 0.05
#: How long after its start a master waits for a chunkserver to connect, if one replica of a
#: chunk is there already, and if two are. The longest pause between attempts is half a second.
COMING_SECONDS = 2.0
MOST_COME_SECONDS = 1.0
U32_MAX, U64_MAX = 2**32 - 1, 2**64 - 1


class Grants:
    """Grants leases: one at a time for each chunk, and for each file's next chunk."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._locks: dict[tuple[int, int], trio.Lock] = {}

    async def acquire(self, request: AcquireLease) -> LeaseReply:
        """Carry out AcquireLease. Raises NotFound, InvalidArgument, or a retryable
        error if the chunk cannot be mutated now.

        Cancelled, it may leave a version that was attempted and is not used.
        """
        if not (0 < request.inode <= U64_MAX and 0 <= request.index <= U32_MAX):
            raise InvalidArgument(f"chunk {request.index} of inode {request.inode}")
        key = (request.inode, request.index)
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                if self._master.leases.is_held(request.inode):
                    raise Busy("a snapshot is being made of the file: try again in a moment")
                return await self._acquire(request)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(key, None)

    def is_busy(self, inodes: Collection[int]) -> bool:
        """Whether a chunk of one of these files is being granted."""
        return any(inode in inodes for inode, _ in self._locks)

    async def fence(self, handle: int, failed: frozenset[int]) -> None:
        """Revoke all rights to mutate the chunk: when this returns, all replicas except
        those at ``failed`` servers have a version without a lease."""
        master = self._master
        with master.store.read() as txn:
            chunk = chunk_row(txn, handle)
        if chunk is None:
            raise NotFound(f"chunk {handle:x} was deleted")
        await self._grant(0, handle, chunk, failed, lease=False)

    async def elect(self, handle: int, server: Server) -> None:
        """Elect the possibly stale replica at ``server``: it becomes the only current one of
        its chunk.

        Raises a retryable error, or NotFound; the replica may have been elected
        nevertheless, under an attempted version that the server will report.
        """
        master = self._master
        with master.store.read() as txn:
            chunk = chunk_row(txn, handle)
        if chunk is None:
            raise NotFound(f"chunk {handle:x} was deleted")
        # The best there is now: see Goals.may_elect. There is no wait between that check and this.
        await self._grant_to([server], 0, handle, chunk, lease=False, elected=True)

    async def _acquire(self, request: AcquireLease) -> LeaseReply:
        master = self._master
        with master.store.read() as txn:
            row = live_file(txn, request.inode, f"inode {request.inode}")
            handle = chunk_handle(txn, request.inode, request.index)
            chunk = None if handle is None else chunk_row(txn, handle)
        if request.append and not row.flags & FLAG_APPENDED:
            await master.committer.perform(partial(plan_begin_append, inode=request.inode))
        if handle is None or chunk is None:
            if request.index != row.chunks:
                raise InvalidArgument(
                    f"chunk {request.index} of a file of {plural(row.chunks, 'chunk')}: only the "
                    "next one can be added"
                )
            return await self._add(request, row.replication)
        if shared_chunks.is_frozen(chunk):
            return await self._copy_on_write(request, row, handle, chunk)
        now = master.now
        lease = master.leases.current(handle, now)
        if lease is not None and not master.leases.is_usable(lease, now):
            lease = None  # its primary would refuse
        failed = self._failed(request)
        if wants_new_grant(lease, request.version):
            lease = await self._grant(request.inode, handle, chunk, failed)
        if lease is None:
            raise LeaseLost(f"chunk {handle:x}: its lease ended just now: try again")
        return self._reply(handle, lease, _held(row, request.index))

    async def _copy_on_write(
        self, request: AcquireLease, row: Inode, handle: int, chunk: Chunk
    ) -> LeaseReply:
        servers = self._candidates(handle, chunk, self._failed(request), or_failed=True)
        target, lease = await copy_shared_chunk(
            self._master, request.inode, request.index, handle, chunk, servers
        )
        return self._reply(target, lease, _held(row, request.index))

    def _failed(self, request: AcquireLease) -> frozenset[int]:
        known = [self._master.servers.by_id.get(server_id) for server_id in request.failed]
        for server in known:
            if server is not None:
                self._master.servers.failed(server, self._master.now)
        return frozenset(server.index for server in known if server is not None)

    def _reply(self, handle: int, lease: Lease, length: int) -> LeaseReply:
        master = self._master
        book = AddressBook()
        positions = book.positions([master.servers.get(index) for index in lease.chain])
        return LeaseReply(
            id=0,
            servers=book.servers,
            chunk=ChunkLocation(handle, lease.version, length, positions),
            lease_ms=master.leases.remaining_ms(lease, master.now),
        )

    # --- a chunk that is there ---------------------------------------------------------

    async def _grant(
        self, inode: int, handle: int, chunk: Chunk, failed: frozenset[int], lease: bool = True
    ) -> Lease:
        await self._wait_for_clone(handle)
        with self._master.store.read() as txn:
            present = chunk_row(txn, handle)
        if present is None:
            raise NotFound(f"chunk {handle:x} was deleted")
        servers = self._candidates(handle, present, failed, or_failed=lease)
        return await self._grant_to(servers, inode, handle, present, lease)

    async def _grant_to(
        self,
        servers: list[Server],
        inode: int,
        handle: int,
        chunk: Chunk,
        lease: bool,
        elected: bool = False,
    ) -> Lease:
        master = self._master
        gone = master.replica_map.raising[handle] = set()
        try:
            version, chain, sent = raised = await self._raise(
                inode, handle, chunk, servers, lease, elected
            )
            indexes = raised.indexes
            await master.committer.perform(
                partial(plan_confirm_version, handle=handle, version=version),
                partial(master.goals.set_locations, handle, version, indexes, chunk.version, gone),
            )
        finally:
            master.replica_map.raising.pop(handle, None)
        granted = master.leases.granted(handle, version, indexes, inode, sent)
        log.info(
            "chunk %x version %d: %s %s",
            handle,
            version,
            "leased to chunkserver" if lease else "held by",
            ", ".join(server.id for server in chain),
            extra=event(
                "lease_granted" if lease else "version_raised",
                chunk=f"{handle:x}",
                version=version,
                chain=[server.id for server in chain],
            ),
        )
        return granted

    async def _wait_for_clone(self, handle: int) -> None:
        master = self._master
        with trio.move_on_after(CLONE_WAIT_SECONDS):
            while handle in master.goals.repair.active and handle not in master.goals.moves:
                await master.world.clock.sleep(CLONE_POLL_SECONDS)

    def _candidates(
        self, handle: int, chunk: Chunk, failed: frozenset[int], *, or_failed: bool = False
    ) -> list[Server]:
        """The live replicas at servers that did not fail. If there are none, with
        ``or_failed``, those at failed servers: such a server may be back, and no other
        has the chunk."""
        master = self._master
        holders = master.replica_map.locations.get(handle)
        servers = [master.servers.get(index) for index in holders]
        there = [server for server in servers if server.state == LIVE and server.rpc is not None]
        live = [server for server in there if server.index not in failed]
        if or_failed and not live:
            live = there
        staying = [server for server in live if not server.draining]
        if len(staying) >= chunk.replication:
            live = staying  # replicas on drained servers are not needed any more
        if master.replica_map.in_safe_mode and (
            not live or (len(live) < chunk.replication and self._may_more_come(live, failed))
        ):
            raise Busy(
                f"the master is in safe mode: not all replicas of chunk {handle:x} are reported "
                "yet: try again"
            )
        if not live:
            # In the latter case it was committed just now, and the client that asked
            # has disconnected.
            if holders or handle in master.replica_map.raising:
                raise Retryable(f"no replica of chunk {handle:x} can be reached now: try again")
            raise ChunkUnavailable(f"chunk {handle:x} has no good replica now")
        master.rng.shuffle(live)
        return live

    def _may_more_come(self, live: list[Server], failed: frozenset[int]) -> bool:
        """Whether a write waits for servers from before this master's start. Beside two that are
        there not for long: masters may follow one another, and each would wait again for a server
        that hangs, which it cannot know."""
        seconds = COMING_SECONDS if len(live) < 2 else MOST_COME_SECONDS
        return self._master.servers.expects(self._master.now, failed, seconds=seconds)

    async def _raise(
        self,
        inode: int,
        handle: int,
        chunk: Chunk,
        servers: list[Server],
        lease: bool,
        elected: bool,
    ) -> Raised:
        """Raise replicas to a version that is attempted durably before they are asked."""
        committer = self._master.committer

        async def next_order(version: int) -> Order:
            attempt, _reply = await committer.perform(
                partial(plan_attempt_version, handle=handle, inode=inode)
            )
            if not isinstance(attempt, VersionAttempted):
                raise NotFound(f"chunk {handle:x} was deleted")
            grant = partial(
                GrantLease,
                0,
                handle,
                version,
                attempt.version,
                elected=elected,
                length=chunk.length if elected else 0,
            )
            return Order(attempt.version, grant)

        raised = await raise_version(
            self._master, handle, servers, chunk.version, next_order, lease=lease
        )
        if raised is None:
            raise Retryable(f"no chunkserver took a new lease of chunk {handle:x}: try again")
        return raised

    # --- a chunk to be added -------------------------------------------------------------

    async def _add(self, request: AcquireLease, replication: int) -> LeaseReply:
        master = self._master
        if request.index >= U32_MAX:
            raise InvalidArgument("the file has the largest possible number of chunks")
        servers = master.new_chunks.place(
            replication, frozenset(request.failed), "the file's next chunk"
        )
        with master.new_chunks.in_the_making() as (handle, gone):
            version, chain, sent = raised = await self._make(handle, servers)
            indexes = raised.indexes
            placement.require(
                len(chain),
                replication,
                master.settings.replicas_min,
                master.servers.live_count,
                "the file's next chunk",
            )
            await master.committer.perform(
                partial(
                    plan_add_chunk,
                    inode=request.inode,
                    index=request.index,
                    handle=handle,
                    version=version,
                    time_ns=master.world.clock.time_ns(),
                ),
                partial(master.goals.set_locations, handle, version, indexes, version, gone),
            )
        lease = master.leases.granted(handle, version, indexes, request.inode, sent)
        return self._reply(handle, lease, 0)

    async def _make(self, handle: int, servers: list[Server]) -> Raised:
        """Empty replicas of a chunk that nothing refers to yet."""

        async def next_order(version: int) -> Order:
            new_version = version + 1 if version else FIRST_LEASED_VERSION
            return Order(new_version, partial(GrantLease, 0, handle, version, new_version))

        raised = await raise_version(self._master, handle, servers, 0, next_order)
        if raised is None:
            raise Retryable("no chunkserver made an empty replica: try again")
        return raised


def _held(row: Inode, index: int) -> int:
    """How many bytes of a file are in one of its chunks."""
    return max(0, min(row.length - index * CHUNK_BYTES, CHUNK_BYTES))
