"""``gfs drain``, if :mod:`gfs.master.rules.drain_admission` allows it; and ``gfs
disk``, which is forwarded to the chunkserver."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import trio

from gfs.errors import Busy, DrainRefused, ProtocolError, ReplicaUnavailable
from gfs.master.master import Master
from gfs.master.metadata import Txn
from gfs.master.metadata.namespace import Planned
from gfs.master.metadata.operations import DrainSet
from gfs.master.metadata.rows import DRAINING, NOT_DRAINING, unpack_chunk, unpack_u64
from gfs.master.replicas import SLICE
from gfs.master.rules.drain_admission import Needs, Remaining, why_not
from gfs.master.service.status import server_status
from gfs.master.tables import LIVE, Server
from gfs.protocol.messages import DiskOrder, DiskOrderReply, Done, Drain, DrainReply

#: Reading a disk of a million replicas takes minutes.
DISK_ORDER_SECONDS = 600.0


async def drain(master: Master, request: Drain) -> DrainReply:
    """Carry out Drain; it is durable when this returns.

    Raises NotFound, DrainRefused, or Busy while the master is in safe mode. Cancelled,
    it may still be carried out.
    """
    server = master.replica_map.find_server(request.server)
    if request.cancel:
        await _set(master, server, NOT_DRAINING)
    else:
        await _drain(master, server, request.fewer_racks)
    return DrainReply(id=0, server=server_status(master, server))


async def order_disk(master: Master, request: DiskOrder) -> DiskOrderReply:
    """Have the chunkserver carry out the order; returns its reply or raises its error.

    Raises NotFound, DeadlineExceeded, ReplicaUnavailable if the server is not connected, or
    loses its connection meanwhile: then it may have carried the order out.
    """
    server = master.replica_map.find_server(request.server)
    if server.rpc is None:
        raise ReplicaUnavailable(
            f"chunkserver {server.id} is {server.state}: it reads all its disks when it is started"
        )
    order = DiskOrder(0, server.id, request.path, request.action, _taken(master, server))
    try:
        reply, _ = await server.rpc.call(order, seconds=DISK_ORDER_SECONDS)
    except ConnectionError as error:
        raise ReplicaUnavailable(
            f"no answer from chunkserver {server.id}, which may have carried out the order: "
            f"{error}; look at gfs status --disks before you repeat it",
            server.id,
        ) from error
    if not isinstance(reply, DiskOrderReply):
        raise ProtocolError(f"{type(reply).__name__} as the answer to an order")
    master.membership.set_disks(server, reply.disks)
    return DiskOrderReply(id=0, disks=reply.disks)


def _taken(master: Master, server: Server) -> list[int]:
    """The file systems that disks of other servers on its machine are on."""
    machine = server.address.rpartition(":")[0]
    others = [
        each
        for each in master.replica_map.servers.by_id.values()
        if each is not server and each.address.rpartition(":")[0] == machine
    ]
    return sorted({disk.device for each in others for disk in each.disks if disk.device})


async def _drain(master: Master, server: Server, fewer_racks: bool) -> None:
    if server.draining:
        return
    if master.drains.is_deciding:
        raise Busy("another chunkserver is about to be drained: try again")
    master.drains.is_deciding = True
    try:
        await _check(master, server, fewer_racks)
        await _set(master, server, DRAINING)
    finally:
        master.drains.is_deciding = False


async def _set(master: Master, server: Server, draining: int) -> None:
    plan = partial(plan_drain, server_id=server.id, draining=draining)
    await master.committer.perform(plan)


def plan_drain(txn: Txn, server_id: str, draining: int) -> Planned:
    """Plan the change of state. The server may have that state already, or may have
    been removed."""
    return DrainSet(server_id, draining), Done(id=0)


async def _check(master: Master, server: Server, fewer_racks: bool) -> None:
    """Raise unless all chunks can be at their goal without ``server``."""
    if master.replica_map.in_safe_mode:
        raise Busy("the master is in safe mode and does not know all replicas yet: try again")
    if server.state != LIVE or not server.registration.is_complete:
        raise DrainRefused(
            f"chunkserver {server.id} is {server.state}: start it first. If it is gone for good "
            "there is nothing to drain: its chunks are copied from other replicas"
        )
    staying = [
        each
        for each in master.servers.all()
        if each.state == LIVE
        and each.registration.is_complete
        and not each.draining
        and each is not server
    ]
    needs = Needs(each.index for each in staying)
    for part in _all_chunks(master):
        for handle, goal, length in part:
            needs.add(goal, length, master.replica_map.locations.get(handle))
        await trio.lowlevel.checkpoint()
    remaining = [Remaining(each.index, each.rack, each.free_bytes) for each in staying]
    new_goal = master.settings.replication
    reason = why_not(needs, remaining, server.rack, new_goal, fewer_racks=fewer_racks)
    if reason:
        raise DrainRefused(f"chunkserver {server.id} cannot be drained: {reason}")


def _all_chunks(master: Master) -> Iterator[list[tuple[int, int, int]]]:
    """(handle, goal, length) of all chunks, in slices."""
    at = b""
    while True:
        part: list[tuple[int, int, int]] = []
        with master.store.read() as txn:
            for key, row in txn.scan(at, txn.db.chunks):
                if len(part) >= SLICE:
                    break
                _, _, length, _, goal = unpack_chunk(row)
                part.append((unpack_u64(key), goal, length))
                at = key + b"\0"
        yield part
        if len(part) < SLICE:
            return


def drained(master: Master) -> list[Server]:
    """The draining servers that have become empty."""
    if not master.servers.draining:
        return []
    draining = [server for server in master.servers.all() if server.draining == DRAINING]
    return [server for server in draining if master.drains.is_empty(server)]
