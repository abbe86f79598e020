"""A master's numbers, and a shadow master's, put together when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import Metric

from gfs.master.master import Master
from gfs.master.metadata import terms
from gfs.master.metadata.store import State
from gfs.master.service.status import all_totals, metadata_space
from gfs.metrics import (
    Values,
    certificate_family,
    counter,
    gauge,
    label,
    operation_families,
)


def _stored_bytes(state: State) -> int:
    """Of all chunks, each once: those in the trash, and those that several files have."""
    return max(0, state.bytes + state.trash_bytes - state.shared_bytes)


def families(
    master: Master, behind: Callable[[], tuple[int, float]] | None = None
) -> Iterable[Metric]:
    """All of them. Costs as much as `gfs status`. ``behind`` is a shadow master's: how many
    operations of its master it lacks, and for how many seconds by now."""
    with master.store.read() as txn:
        totals = all_totals(master, txn)
    committer, store = master.committer, master.store
    servers = [master.server_status(server) for server in master.servers.ordered()]
    space: Values = {
        (("server", server.id), ("disk", disk.path)): disk.free_bytes
        for server in servers
        for disk in server.disks
    }
    yield gauge("gfs_master_up", "1 if it is the master, 0 if a shadow master", int(behind is None))
    yield gauge("gfs_master_term", "Promotions there were", terms.count(store.state.term))
    yield gauge("gfs_master_epoch", "Starts of the master on its metadata", store.epoch)
    yield counter(
        "gfs_master_log_sequence_total", "Operations in the operation log", store.state.sequence
    )
    yield gauge(
        "gfs_master_commits_queued", "Mutations that wait for a commit", committer.queued_weight
    )
    shadows = master.shadow_status()
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
            "Operations of the master that this shadow has not got",
            operations,
        )
        yield gauge("gfs_shadow_behind_seconds", "Since it had all there was", seconds)
    yield gauge("gfs_master_files", "Files that are not in the trash", totals.files)
    yield gauge("gfs_master_directories", "Directories, likewise", totals.directories)
    yield gauge("gfs_master_file_bytes", "Bytes of these files", totals.bytes)
    yield gauge("gfs_master_trash_bytes", "Bytes of what is in the trash", totals.trash_bytes)
    yield gauge(
        "gfs_master_trash_files",
        "Files that are in the trash and can be undeleted",
        totals.trash_files,
    )
    yield gauge(
        "gfs_master_trash_oldest_timestamp_seconds",
        "When the oldest of the trash was deleted; 0: nothing is in it",
        totals.trash_oldest_ns / 1e9,
    )
    yield counter(
        "gfs_master_trash_purged_total",
        "What went from the trash before its time, for want of space",
        totals.trash_purged,
    )
    yield counter(
        "gfs_master_trash_purged_bytes_total", "How long it was", totals.trash_purged_bytes
    )
    yield gauge(
        "gfs_master_room_bytes",
        "At least so many bytes can be written before the trash goes early",
        totals.room_bytes,
    )
    yield gauge("gfs_master_chunks", "Chunks, those in the trash too", totals.chunks)
    yield gauge(
        "gfs_master_chunks_below_goal", "Chunks with too few good replicas", totals.under_replicated
    )
    yield gauge(
        "gfs_master_repair_bytes",
        "To be copied until all chunks are at their goal, at the mean length of chunks",
        master.repair.missing * _stored_bytes(store.state) // max(1, totals.chunks),
    )
    yield gauge("gfs_master_chunks_lost", "Chunks without any good replica", totals.lost)
    yield gauge(
        "gfs_master_garbage_replicas",
        "Replicas to be collected or repaired, by what is wrong with them",
        label(
            "kind",
            {"orphaned": totals.orphaned, "stale": totals.stale, "corrupt": totals.corrupt},
        ),
    )
    yield gauge(
        "gfs_master_garbage_bytes",
        "What orphaned replicas take on disks until they are deleted",
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
    yield gauge("gfs_master_leases", "Leases that run", len(master.leases))
    yield gauge(
        "gfs_master_chunkservers",
        "Known chunkservers, by state",
        label(
            "state",
            {"live": 0, "silent": 0, "dead": 0, "stopped": 0}
            | Counter(one.state for one in servers),
        ),
    )
    yield gauge("gfs_master_chunkserver_disk_free_bytes", "Free on a chunkserver's disk", space)
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
        label("role", Counter(one.peer_role for one in master.connections)),
    )
    yield gauge(
        "gfs_master_chunkservers_draining",
        "Chunkservers that are being emptied, or are empty",
        label(
            "state", {"draining": 0, "drained": 0} | Counter(s.drain for s in servers if s.drain)
        ),
    )
    metadata = metadata_space(master)
    yield gauge("gfs_master_metadata_bytes", "Size of the metadata", metadata.used_bytes)
    yield gauge("gfs_master_metadata_map_bytes", "It grows no further", metadata.map_bytes)
    if metadata.disk_free_bytes >= 0:
        yield gauge(
            "gfs_master_metadata_disk_free_bytes",
            "Free on the metadata's disk",
            metadata.disk_free_bytes,
        )
    yield from certificate_family(master.certificate_until_ns())
    yield from operation_families("gfs_master", master.operations)
