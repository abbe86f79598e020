"""Commands of an operator: pause and limit repair, show its progress; begin and end
maintenance of a chunkserver; forget a chunkserver.

All of these settings are stored in rows or counters: they survive the master.

*Maintenance.* A server that is away for maintenance is not declared dead: its replicas
count, its chunks are not re-replicated, and it gets no new ones. Maintenance ends by
itself after a time in the masters' uptime (:mod:`gfs.master.metadata.uptime`). A master
that was started meanwhile does not know the server's replicas. It does not wait for the
server, and does not re-replicate chunks that lack no more replicas than such servers
may have (:attr:`~gfs.master.tables.servers.ServerTable.spared`).
"""

from __future__ import annotations

from functools import partial

import msgspec

from gfs.blocks import MIB
from gfs.config import CLONES_PER_SERVER_MAX
from gfs.errors import Busy, InvalidArgument
from gfs.master.master import Master
from gfs.master.metadata import Txn
from gfs.master.metadata.namespace import Planned, chunk_row
from gfs.master.metadata.operations import (
    MaintenanceSet,
    RepairSet,
    RestoreAccepted,
    ServerForgotten,
)
from gfs.master.metadata.rows import DRAINED
from gfs.master.tables import DEAD, LIVE, Server
from gfs.protocol.messages import (
    AcceptRestore,
    Done,
    ForgetServer,
    Maintenance,
    Repair,
    RepairRank,
    RepairReply,
)

#: The limits of repair and their ranges; -1: the process's own setting. The lower limit
#: of the rate is high because a rate without its M would stop all copying.
BOUNDS = {
    "clones_per_server": (1, CLONES_PER_SERVER_MAX),
    "clones_total": (1, 10_000),
    "moves_total": (0, 10_000),
    "bytes_per_second": (MIB, 1024 * 1024 * MIB),
}
MAINTENANCE_SECONDS_MAX = 7 * 24 * 3600
#: Chunks of a rank whose lengths are looked up; with more chunks the sum is estimated.
LENGTHS_MAX = 2_000


async def repair(master: Master, request: Repair) -> RepairReply:
    """Carry out Repair; changed settings are durable when this returns."""
    if request.settings or request.paused is not None:
        for name, value in request.settings.items():
            if name not in BOUNDS:
                raise InvalidArgument(f"{name} is not a setting of repair: {', '.join(BOUNDS)} are")
            least, most = BOUNDS[name]
            if value != -1 and not least <= value <= most:
                raise InvalidArgument(f"{name} must be {least} to {most}, not {value}")
        changes: dict[str, int] = dict(request.settings)
        if request.paused is not None:
            changes["paused"] = request.paused
        await master.committer.perform(partial(_plan_repair, changes=changes))
    return _repair_reply(master)


def _plan_repair(txn: Txn, changes: dict[str, int]) -> Planned:
    changed = msgspec.structs.replace(txn.state.repair, **changes)
    return RepairSet(msgspec.structs.replace(changed, paused=bool(changed.paused))), Done(id=0)


def _repair_reply(master: Master) -> RepairReply:
    queue, limits = master.goals.repair, master.planner.limits
    ranks = []
    for danger, handles in queue.ranks():
        looked = handles[:LENGTHS_MAX]
        with master.store.read() as txn:
            rows = [chunk_row(txn, handle) for handle in looked]
        length = sum(row.length for row in rows if row is not None)
        missing = max(1, danger.goal - danger.have)
        to_copy = length * missing * len(handles) // max(1, len(looked))
        ranks.append(RepairRank(danger.have, danger.goal, len(handles), missing, to_copy))
    replicas_s, bytes_s = queue.rate.per_second(master.now)
    return RepairReply(
        id=0,
        paused=master.store.state.repair.paused,
        settings={
            "clones_per_server": limits.per_server,
            "clones_total": limits.total,
            "moves_total": master.balancer.moves_total,
            "bytes_per_second": master.store.state.repair.bytes_per_second,
        },
        ranks=ranks,
        orders=queue.orders,
        replicas=len(queue.active),
        replicas_per_second=replicas_s,
        bytes_per_second=bytes_s,
        lost=len(queue.lost),
        spared=master.servers.spared,
    )


async def accept_restore(master: Master, request: AcceptRestore) -> Done:
    """As the message says; durable when this returns. The chunkservers report all their
    replicas again, so that those that were kept are found."""
    if not master.store.state.kept_below:
        return Done(id=0)
    await master.committer.perform(_plan_accept_restore)
    for server in master.servers.all():
        if server.rpc is not None:
            server.rpc.close()
    return Done(id=0)


def _plan_accept_restore(txn: Txn) -> Planned:
    return (RestoreAccepted() if txn.state.kept_below else None), Done(id=0)


async def maintain(master: Master, request: Maintenance) -> Done:
    """As the message says; durable when this returns."""
    server = master.replica_map.find_server(request.server)
    if not 0 <= request.seconds <= MAINTENANCE_SECONDS_MAX:
        raise InvalidArgument(f"maintenance may take up to {MAINTENANCE_SECONDS_MAX} s")
    until_ns = 0
    if request.seconds:
        if server.state == DEAD:
            raise InvalidArgument(
                f"chunkserver {server.id} is dead: its replicas are being copied from others "
                "already"
            )
        until_ns = master.committer.uptime.now_ns() + request.seconds * 1_000_000_000
    plan = partial(_plan_maintenance, server_id=server.id, until_ns=until_ns)
    await master.committer.perform(plan)
    return Done(id=0)


def _plan_maintenance(txn: Txn, server_id: str, until_ns: int) -> Planned:
    return MaintenanceSet(server_id, until_ns), Done(id=0)


async def forget(master: Master, request: ForgetServer) -> Done:
    """As the message says; durable when this returns.

    Raises NotFound, InvalidArgument if it lives, or Busy while something still refers to it.
    """
    server = master.replica_map.find_server(request.server)
    _check_forgettable(master, server)
    await master.committer.perform(partial(_plan_forget, server_id=server.id))
    if master.servers.by_id.get(server.id) is server and server.state != LIVE:
        master.replica_map.garbage.forget_server(server.index)
        master.servers.forget(server)
    return Done(id=0)


def _plan_forget(txn: Txn, server_id: str) -> Planned:
    return ServerForgotten(server_id), Done(id=0)


def _check_forgettable(master: Master, server: Server) -> None:
    is_away = server.state == DEAD or (server.draining == DRAINED and server.state != LIVE)
    if not is_away and master.committer.uptime.now_ns() < server.maintenance_until_ns:
        raise InvalidArgument(
            f"chunkserver {server.id} is under maintenance: gfs maintenance {server.id} off; if "
            "it is gone for good it is declared dead soon after, and can be forgotten then"
        )
    if not is_away:
        raise InvalidArgument(
            f"chunkserver {server.id} is {server.state}: drain it and stop it first (gfs drain); "
            "one that is gone for good can be forgotten when it is dead"
        )
    if (
        master.replica_map.locations.counts.get(server.index)
        or master.reservations.at(server.index)
        or master.leases.are_at(server.index)
        or server.transfers.clones_in
        or server.transfers.clones_out
    ):
        raise Busy(f"chunkserver {server.id} is still being removed: try again in a minute")
