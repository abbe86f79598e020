"""The metrics of a master or shadow master, assembled at the scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gfs.master.master import Master
from gfs.master.metadata import State, terms
from gfs.master.service.status import all_totals, metadata_space, server_status
from gfs.metrics import (
    Values,
    certificate_family,
    counter,
    gauge,
    label,
    operation_families,
)
from gfs.protocol.space import cluster_space

if TYPE_CHECKING:
    from prometheus_client import Metric


def _stored_bytes(state: State, replaced_bytes: int) -> int:
    """The bytes of all chunks, each counted once: with those in the trash, of replaced files, and
    shared ones."""
    return max(0, state.bytes + state.trash_bytes + replaced_bytes - state.shared_bytes)


def families(
    master: Master, behind: Callable[[], tuple[int, float]] | None = None
) -> Iterable[Metric]:
    """All metrics. They cost as much as `gfs status`. ``behind``, of a shadow master:
    how many operations of its master it lacks, and for how many seconds."""
    with master.store.read() as txn:
        totals = all_totals(master, txn)
    committer, store = master.committer, master.store
    servers = [server_status(master, server) for server in master.servers.ordered()]
    space: Values = {
        (("server", server.id), ("disk", disk.path)): disk.free_bytes
        for server in servers
        for disk in server.disks
    }
    yield gauge("gfs_master_up", "1 if it is the master, 0 if a shadow master", int(behind is None))
    yield gauge(
        "gfs_master_term", "Promotions of shadow masters so far", terms.count(store.state.term)
    )
    yield gauge("gfs_master_epoch", "Starts of the master on its metadata", store.epoch)
    yield counter(
        "gfs_master_log_sequence_total", "Operations in the operation log", store.state.sequence
    )
    yield gauge(
        "gfs_master_commits_queued", "Mutations that wait for a commit", committer.queued_weight
    )
    shadows = master.process.shadow_status()
    yield gauge(
        "gfs_master_shadow_behind_operations",
        "Operations that a shadow master has not acknowledged",
        label(
            "shadow",
            {
                one.address: max(0, committer.sequence - one.sequence)
                for one in shadows
                if one.sequence >= 0
            },
        ),
    )
    if behind is not None:
        operations, seconds = behind()
        yield gauge(
            "gfs_shadow_behind_operations",
            "Operations of the master that this shadow master lacks",
            operations,
        )
        yield gauge("gfs_shadow_behind_seconds", "Time since it last had all operations", seconds)
    yield gauge("gfs_master_files", "Files that are not in the trash", totals.files)
    yield gauge(
        "gfs_master_directories", "Directories that are not in the trash", totals.directories
    )
    yield gauge("gfs_master_file_bytes", "Bytes of these files", totals.bytes)
    yield gauge("gfs_master_trash_bytes", "Bytes of the files in the trash", totals.trash_bytes)
    yield gauge(
        "gfs_master_trash_files",
        "Files that are in the trash and can be undeleted",
        totals.trash_files,
    )
    yield gauge(
        "gfs_master_replaced_bytes",
        "Bytes of replaced files that are kept for their readers",
        totals.replaced_bytes,
    )
    yield gauge(
        "gfs_master_replaced_files",
        "Replaced files that are kept for their readers",
        totals.replaced_files,
    )
    yield gauge(
        "gfs_master_trash_oldest_timestamp_seconds",
        "When the oldest deletion in the trash was made; 0: the trash is empty",
        totals.trash_oldest_ns / 1e9,
    )
    yield counter(
        "gfs_master_trash_purged_total",
        "Deletions that were purged early, for want of space",
        totals.trash_purged,
    )
    yield counter(
        "gfs_master_trash_purged_bytes_total", "Bytes of these deletions", totals.trash_purged_bytes
    )
    yield gauge(
        "gfs_master_room_bytes",
        "At least so many bytes can be written before the trash is purged early",
        totals.room_bytes,
    )
    yield gauge("gfs_master_chunks", "Chunks, including those in the trash", totals.chunks)
    yield gauge(
        "gfs_master_chunks_below_goal", "Chunks with too few good replicas", totals.under_replicated
    )
    yield gauge(
        "gfs_master_repair_bytes",
        "Bytes to be copied until all chunks are at their goal, at the mean length of chunks",
        master.goals.repair.missing
        * _stored_bytes(store.state, totals.replaced_bytes)
        // max(1, totals.chunks),
    )
    yield gauge("gfs_master_chunks_lost", "Chunks without any good replica", totals.lost)
    yield gauge(
        "gfs_master_garbage_replicas",
        "Replicas to be collected or repaired, by reason",
        label(
            "kind",
            {"orphaned": totals.orphaned, "stale": totals.stale, "corrupt": totals.corrupt},
        ),
    )
    yield gauge(
        "gfs_master_garbage_bytes",
        "Disk space of orphaned replicas until they are deleted",
        totals.orphaned_bytes,
    )
    yield counter("gfs_master_corruptions_total", "Corrupt replicas ever found", totals.corruptions)
    yield gauge(
        "gfs_master_copies",
        "Copies of replicas, running and waiting",
        label(
            "state",
            {
                "repair_running": totals.repairs_active,
                "repair_waiting": totals.repairs_queued,
                "move_running": totals.moves_active,
                "move_waiting": totals.moves_queued,
            },
        ),
    )
    yield gauge("gfs_master_leases", "Valid leases", len(master.leases))
    yield gauge(
        "gfs_master_chunkservers",
        "Known chunkservers, by state",
        label(
            "state",
            {"live": 0, "silent": 0, "dead": 0, "stopped": 0}
            | Counter(one.state for one in servers),
        ),
    )
    yield gauge(
        "gfs_master_chunkserver_disk_free_bytes", "Free bytes on a chunkserver's disk", space
    )
    total_bytes, free_bytes = cluster_space(servers)
    yield gauge(
        "gfs_master_disk_total_bytes",
        "Size of the file systems on which chunkservers have disks, each counted once",
        total_bytes,
    )
    yield gauge("gfs_master_disk_free_bytes", "Free bytes of these", free_bytes)
    yield gauge(
        "gfs_master_chunkserver_disks",
        "Disks of a chunkserver, by state",
        {
            (("server", server.id), ("state", state)): count
            for server in servers
            for state, count in ({"ok": 0} | Counter(d.state for d in server.disks)).items()
        },
    )
    yield gauge(
        "gfs_master_connections",
        "Connections served",
        label("role", Counter(one.peer_role for one in master.process.connections)),
    )
    yield gauge(
        "gfs_master_chunkservers_draining",
        "Chunkservers that are draining or drained",
        label(
            "state", {"draining": 0, "drained": 0} | Counter(s.drain for s in servers if s.drain)
        ),
    )
    metadata = metadata_space(master)
    yield gauge("gfs_master_metadata_bytes", "Size of the metadata", metadata.used_bytes)
    yield gauge("gfs_master_metadata_map_bytes", "The limit of its size", metadata.map_bytes)
    if metadata.disk_free_bytes >= 0:
        yield gauge(
            "gfs_master_metadata_disk_free_bytes",
            "Free bytes on the metadata's disk",
            metadata.disk_free_bytes,
        )
    yield from certificate_family(master.process.certificate_until_ns())
    yield from operation_families("gfs_master", master.operations)
