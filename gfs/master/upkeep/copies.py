"""Copies that chunkservers are ordered to make, for repair, salvage and balance, and the leases
that are revoked so that a chunk can be copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import trio

from gfs.blocks import CHUNK_BYTES
from gfs.diagnostics import event
from gfs.errors import CorruptReplica, GfsError, NotFound, ProtocolError, StaleVersion, from_wire
from gfs.master.master import Master
from gfs.master.metadata.namespace import chunk_row
from gfs.master.tables import Clone
from gfs.master.upkeep.passes import guarded
from gfs.protocol.messages import (
    CloneChunk,
    CloneChunks,
    CloneChunksReply,
    ReplicaName,
    RevokeLease,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

#: The least deadline of a copy. One of 64 MiB takes far less, unless its servers serve
#: clients meanwhile.
CLONE_SECONDS = 60
REVOKE_SECONDS = 2.0


class Copies:
    """``act`` starts what an ended copy leaves room for."""

    def __init__(self, master: Master, nursery: trio.Nursery, act: Callable[[], None]) -> None:
        self._master = master
        self._nursery = nursery
        self._act = act
        self._revoking: set[int] = set()
        #: Set, and replaced by another one, when an order ends.
        self.order_ended = trio.Event()

    def start(self, order: list[Clone]) -> None:
        self._nursery.start_soon(self._copy, order)

    def start_revoking(self) -> None:
        """Leases of chunks that are to be copied."""
        for handle in list(self._master.leases.to_revoke):
            if handle not in self._revoking:
                self._revoking.add(handle)
                self._nursery.start_soon(self._revoke, handle)

    def _copy_seconds(self) -> int:
        """The deadline of an order to copy: longer if all copies of one server share a limit."""
        limit = self._master.store.state.repair.bytes_per_second
        most = self._master.planner.limits.per_server * CHUNK_BYTES
        return CLONE_SECONDS + (most // limit if limit > 0 else 0)

    async def _copy(self, order: list[Clone]) -> None:
        """Have the copies of one order made."""
        rpc = order[0].target.rpc
        failed: dict[int, Exception] = {}
        try:
            if rpc is None:
                raise ConnectionResetError("its connection ended")
            if order[0].salvage:
                await _salvage(rpc, order[0], self._copy_seconds())
            else:
                failed = await _copy_all(rpc, order, self._copy_seconds())
        except (GfsError, ConnectionError) as caught:
            failed = {clone.handle: caught for clone in order}
        for clone in order:
            error = failed.get(clone.handle)
            is_to_blame = isinstance(error, (CorruptReplica, StaleVersion, NotFound))
            if is_to_blame and not clone.salvage:
                self._suspect_source(clone, getattr(error, "server", ""))
        self._master.balancer.order_ended(order)
        self._master.planner.order_ended(order, failed)
        self._act()
        self.order_ended.set()
        self.order_ended = trio.Event()

    def _suspect_source(self, clone: Clone, server_id: str) -> None:
        """Suspect the source of a copy that failed because of it, unless a client
        writes to the chunk by now."""
        with self._master.store.read() as txn:
            row = chunk_row(txn, clone.handle)
        if row is None or row.version != clone.version:
            return
        for server in clone.sources:
            if not server_id or server.id == server_id:
                self._master.replica_map.suspect(server, clone.handle, blocks=True)

    async def _revoke(self, handle: int) -> None:
        """End a lease, so that its chunk can be copied. If the primary does not answer,
        the lease has to expire."""
        master = self._master
        try:
            lease = master.leases.current(handle, master.now)
            primary = None if lease is None else master.servers.get(lease.primary)
            if lease is None or primary is None or primary.rpc is None:
                return
            await primary.rpc.call(RevokeLease(id=0, handle=handle), seconds=REVOKE_SECONDS)
            now = master.leases.current(handle, master.now)
            if now is not None and now.version == lease.version:
                master.leases.drop(handle)
            log.info(
                "the lease of chunk %x is revoked",
                handle,
                extra=event("lease_revoked", chunk=f"{handle:x}", version=lease.version),
            )
        except (GfsError, ConnectionError) as error:
            log.info("the lease of chunk %x could not be revoked: %s", handle, error)
        finally:
            self._revoking.discard(handle)
            master.leases.to_revoke.pop(handle, None)
        clone = guarded(partial(master.planner.plan_released, handle), None)
        if clone is not None:
            self.start([clone])


async def _salvage(rpc: Rpc, clone: Clone, seconds: int) -> None:
    # The server itself knows its replicas.
    sources = [server.address for server in clone.sources if server is not clone.target]
    order = CloneChunk(0, clone.handle, clone.version, sources, True, clone.length, seconds)
    await rpc.call(order, seconds=seconds)


async def _copy_all(rpc: Rpc, order: list[Clone], seconds: int) -> dict[int, Exception]:
    """Returns the failures, by handle."""
    names = [ReplicaName(clone.handle, clone.version) for clone in order]
    source, *others = [server.address for server in order[0].sources]
    # The first source is what the copies of one order share.
    request = CloneChunks(0, source, names, seconds, others if len(order) == 1 else [])
    reply, _ = await rpc.call(request, seconds=seconds)
    if not isinstance(reply, CloneChunksReply):
        raise ProtocolError(f"{type(reply).__name__} as the answer to an order to copy")
    return {each.handle: from_wire(each.code, each.message, each.server) for each in reply.failures}
