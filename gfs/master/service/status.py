"""The state of the cluster, as a master or a shadow master knows it."""

from __future__ import annotations

import msgspec

from gfs.master.master import Master
from gfs.master.metadata import Txn, trash
from gfs.master.metadata.rows import DRAINED, DRAINING
from gfs.master.replicas import DRAIN_NAMES
from gfs.master.rules import trash_purge
from gfs.master.tables import CORRUPT, LIVE, STOPPED, Server
from gfs.protocol.messages import ClusterTotals, MetadataSpace, ServerStatus, StatusReply

#: The part of a head for servers with their disks: some 250 disks, more if all are good.
SERVERS_BYTES = 40_000


def all_totals(master: Master, txn: Txn) -> ClusterTotals:
    """The totals for operators."""
    totals = cluster_totals(master, txn.count(txn.db.chunks))
    totals.trash_oldest_ns, due_ns = trash.oldest(txn, master.committer.uptime.now_ns())
    totals.trash_until_ns = master.committer.uptime.wall_ns(due_ns) if due_ns else 0
    return totals


def cluster_totals(master: Master, chunks: int) -> ClusterTotals:
    state = master.store.state
    garbage = master.replica_map.garbage
    repair, salvage = master.goals.repair, master.goals.salvage
    counts = garbage.counts
    book = master.trash
    servers, needed = master.servers.all(), master.servers_needed
    orphaned, orphaned_bytes = garbage.backlog
    # Of these a server has reported a replica, and it is no good one.
    remains = list(garbage.among(repair.lost))
    unlocated = (
        0 if master.servers.had_time_to_report(master.now) else len(repair.lost) - len(remains)
    )
    return ClusterTotals(
        files=state.files - book.files,
        directories=state.directories - book.directories,
        chunks=chunks,
        bytes=state.bytes - book.bytes,
        under_replicated=repair.endangered,
        corrupt=counts["corrupt"],
        lost=len(repair.lost) - unlocated,
        unlocated=unlocated,
        orphaned=orphaned,
        orphaned_bytes=orphaned_bytes,
        stale=counts["stale"] + counts["forgetful"],
        repairs_active=repair.repairing + repair.salvaging,
        repairs_queued=repair.queued,
        corruptions=state.corruptions,
        trash_rows=state.trash_rows,
        trash_files=state.trash_files + book.files,
        trash_bytes=state.trash_bytes + book.bytes,
        shared_bytes=state.shared_bytes,
        moves_active=len(repair.active) - repair.repairing - repair.salvaging,
        moves_queued=repair.leaving_queued,
        goal_unmet=repair.goal_unmet,
        salvages=len(salvage.handles) - salvage.hopeless,
        beyond_repair=salvage.hopeless,
        corrupt_kept=sum(len(garbage.of_kind(handle, CORRUPT)) for handle in remains),
        replaced_files=book.replaced_files,
        replaced_bytes=book.replaced_bytes,
        trash_purged=book.purged,
        trash_purged_bytes=book.purged_bytes,
        room_bytes=trash_purge.room_bytes(servers, needed),
        room_low=trash_purge.shortage(servers, needed, trash_purge.WARN_SHARE) is not None,
    )


def metadata_space(master: Master) -> MetadataSpace:
    found = MetadataSpace(master.store.used_bytes, master.settings.map_bytes)
    if master.metadata_disk.space is not None:
        found.disk_total_bytes = master.metadata_disk.space.total_bytes
        found.disk_free_bytes = master.metadata_disk.space.free_bytes
    return found


def server_status(master: Master, server: Server) -> ServerStatus:
    """A chunkserver as operators see it."""
    draining, goals = server.draining, master.goals
    known = master.replica_map.locations.counts.get(server.index, 0)
    if draining == DRAINED and server.state == LIVE and (known or server.chunks):
        draining = DRAINING  # it came back with replicas
    maintenance_ns = server.maintenance_until_ns - master.committer.uptime.now_ns()
    status = ServerStatus(
        server.id,
        server.address,
        server.rack,
        server.state,
        max(0, int((master.now - server.last_heard) * 1000)),
        server.chunks,
        server.disks,
        DRAIN_NAMES[draining],
        scrub=server.particulars.scrub,
        certificate_until_ns=server.particulars.certificate_until_ns,
        maintenance_ms=max(0, maintenance_ns) // 1_000_000,
    )
    if draining == DRAINED and server.state != LIVE:
        status.state = STOPPED  # as intended: it is not missing
    if draining == DRAINING:
        garbage = master.replica_map.garbage
        status.drain_chunks = max(known, server.chunks)
        status.drain_uploads = master.reservations.at(server.index)
        status.drain_lost = sum(
            garbage.at(server.index, handle) is not None and not goals.salvage.is_pending(handle)
            for handle in garbage.among(goals.repair.lost)
        )
    return status


def _page(master: Master, after: list[str]) -> tuple[list[ServerStatus], bool]:
    """The next servers, at least one if there is any; and whether others follow."""
    found: list[ServerStatus] = []
    room = SERVERS_BYTES
    for server in master.servers.ordered():
        if [server.rack, server.id] <= after:
            continue
        status = server_status(master, server)
        room -= len(msgspec.msgpack.encode(status))
        if room < 0 and found:
            return found, True
        found.append(status)
    return found, False


def status_reply(master: Master, txn: Txn, after: list[str]) -> StatusReply:
    """The reply of a master."""
    servers, more = _page(master, after)
    return StatusReply(
        id=0,
        cluster=master.store.cluster,
        epoch=master.store.epoch,
        servers=servers,
        totals=all_totals(master, txn),
        term=master.store.state.term,
        sequence=master.committer.sequence,
        shadows=master.process.shadow_status(),
        replicas_before_ack=master.settings.replicas_before_ack,
        replication=master.settings.replication,
        repair_paused=master.store.state.repair.paused,
        metadata=metadata_space(master),
        certificate_until_ns=master.process.certificate_until_ns(),
        more=more,
        trash_ms=int(master.settings.trash_seconds * 1000),
        restored=master.store.state.kept_below > 0,
    )
