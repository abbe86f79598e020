"""The state of the cluster, as a master or a shadow master knows it."""

from __future__ import annotations

import msgspec

from gfs.master.master import Master
from gfs.master.metadata import Txn, trash
from gfs.master.rules import trash_purge
from gfs.master.tables import CORRUPT
from gfs.protocol.messages import ClusterTotals, MetadataSpace, ServerStatus, StatusReply

#: The part of a head for servers with their disks: some 250 disks, more if all are good.
SERVERS_BYTES = 40_000


def all_totals(master: Master, txn: Txn) -> ClusterTotals:
    """The totals for operators."""
    totals = cluster_totals(master, txn.count(txn.db.chunks))
    totals.trash_oldest_ns, due_ns = trash.oldest(txn, master.uptime.now_ns())
    totals.trash_until_ns = master.uptime.wall_ns(due_ns) if due_ns else 0
    return totals


def cluster_totals(master: Master, chunks: int) -> ClusterTotals:
    state = master.store.state
    counts = master.garbage.counts
    book = master.trash
    servers, needed = master.servers.all(), master.servers_needed
    orphaned, orphaned_bytes = master.garbage.backlog
    # Of these a server has reported a replica, and it is no good one.
    remains = list(master.garbage.among(master.repair.lost))
    unlocated = 0 if master.may_declare_lost else len(master.repair.lost) - len(remains)
    return ClusterTotals(
        files=state.files - book.files,
        directories=state.directories - book.directories,
        chunks=chunks,
        bytes=state.bytes - book.bytes,
        under_replicated=master.repair.endangered,
        corrupt=counts["corrupt"],
        lost=len(master.repair.lost) - unlocated,
        unlocated=unlocated,
        orphaned=orphaned,
        orphaned_bytes=orphaned_bytes,
        stale=counts["stale"] + counts["forgetful"],
        repairs_active=master.repair.repairing + master.repair.salvaging,
        repairs_queued=master.repair.queued,
        corruptions=state.corruptions,
        trash_rows=state.trash_rows,
        trash_files=state.trash_files + book.files,
        trash_bytes=state.trash_bytes + book.bytes,
        shared_bytes=state.shared_bytes,
        moves_active=(
            len(master.repair.active) - master.repair.repairing - master.repair.salvaging
        ),
        moves_queued=master.repair.leaving_queued,
        goal_unmet=master.repair.goal_unmet,
        salvages=len(master.salvage.handles) - master.salvage.hopeless,
        beyond_repair=master.salvage.hopeless,
        corrupt_kept=sum(len(master.garbage.of_kind(handle, CORRUPT)) for handle in remains),
        replaced_files=book.replaced_files,
        replaced_bytes=book.replaced_bytes,
        trash_purged=book.purged,
        trash_purged_bytes=book.purged_bytes,
        room_bytes=trash_purge.room_bytes(servers, needed),
        room_low=trash_purge.shortage(servers, needed, trash_purge.WARN_SHARE) is not None,
    )


def metadata_space(master: Master) -> MetadataSpace:
    found = MetadataSpace(master.store.used_bytes, master.settings.map_bytes)
    if master.metadata_disk is not None:
        found.disk_total_bytes = master.metadata_disk.total_bytes
        found.disk_free_bytes = master.metadata_disk.free_bytes
    return found


def _page(master: Master, after: list[str]) -> tuple[list[ServerStatus], bool]:
    """The next servers, at least one if there is any; and whether others follow."""
    found: list[ServerStatus] = []
    room = SERVERS_BYTES
    for server in master.servers.ordered():
        if [server.rack, server.id] <= after:
            continue
        status = master.server_status(server)
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
        shadows=master.shadow_status(),
        replicas_before_ack=master.settings.replicas_before_ack,
        replication=master.settings.replication,
        repair_paused=master.store.state.repair.paused,
        metadata=metadata_space(master),
        certificate_until_ns=master.certificate_until_ns(),
        more=more,
        trash_ms=int(master.settings.trash_seconds * 1000),
        restored=master.store.state.kept_below > 0,
    )
