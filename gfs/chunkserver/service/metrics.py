"""The metrics of a chunkserver, assembled at the scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gfs.chunkserver.disks import STATES
from gfs.chunkserver.node import Node
from gfs.chunkserver.upkeep import Scrubber
from gfs.metrics import certificate_family, counter, gauge, label, operation_families

if TYPE_CHECKING:
    from prometheus_client import Metric


def families(node: Node, scrubber: Scrubber) -> Iterable[Metric]:
    """All of them."""
    store = node.store
    disks = [*store.disks.used.values(), *store.disks.down.values()]
    reports = store.disks.reports()
    yield gauge("gfs_chunkserver_chunks", "Replicas on this server", len(store.inventory))
    yield gauge(
        "gfs_chunkserver_chunk_bytes", "Bytes of the replicas on this server", store.inventory.bytes
    )
    bad = len(store.inventory.bad)
    yield gauge(
        "gfs_chunkserver_bad_replicas", "Replicas known to be corrupt, stale or possibly stale", bad
    )
    yield counter(
        "gfs_chunkserver_bad_replicas_found_total",
        "Such replicas found since the start",
        store.inventory.found_bad,
    )
    yield counter(
        "gfs_chunkserver_bytes_total",
        "Bytes of chunks served to readers, and taken from writers",
        label("direction", {"read": node.read_bytes, "written": node.written_bytes}),
    )
    yield counter(
        "gfs_chunkserver_scrubbed_bytes_total",
        "Bytes verified by the scrub",
        scrubber.bytes,
    )
    yield counter("gfs_chunkserver_scrubs_total", "Completed passes of the scrub", scrubber.passes)
    yield gauge(
        "gfs_chunkserver_scrub_progress_ratio",
        "Share of the chunks that this pass of the scrub has verified",
        scrubber.share,
    )
    yield gauge("gfs_chunkserver_leases", "Leases held as a primary", node.leases.count)
    yield gauge("gfs_chunkserver_copies", "Replicas being copied to this server", len(node.cloning))
    yield gauge(
        "gfs_chunkserver_buffers_in_use", "Packet buffers of 1 MiB in use", node.buffers.in_use
    )
    yield gauge(
        "gfs_chunkserver_disk_total_bytes",
        "Size of a disk",
        label("disk", {each.path: each.total_bytes for each in reports}),
    )
    yield gauge(
        "gfs_chunkserver_disk_free_bytes",
        "Free bytes on a disk",
        label("disk", {each.path: each.free_bytes for each in reports}),
    )
    yield gauge(
        "gfs_chunkserver_disk_state",
        "1 for the state that the disk is in",
        {
            (("disk", disk.path), ("state", state)): int(disk.state == state)
            for disk in disks
            for state in STATES
        },
    )
    yield gauge(
        "gfs_chunkserver_disk_chunks",
        "Replicas on a disk",
        label("disk", {disk.path: disk.chunks for disk in disks}),
    )
    packs = {disk.path: disk.packs for disk in disks if disk.is_open}
    yield gauge(
        "gfs_chunkserver_packed_replicas",
        "Replicas on a disk that are packed",
        label("disk", {path: len(each) for path, each in packs.items()}),
    )
    yield gauge(
        "gfs_chunkserver_packed_bytes",
        "Bytes of the slots that packed replicas have",
        label("disk", {path: each.used_bytes for path, each in packs.items()}),
    )
    yield gauge(
        "gfs_chunkserver_packed_allocated_bytes",
        "Bytes that the packs take on a disk",
        label("disk", {path: each.allocated_bytes for path, each in packs.items()}),
    )
    yield counter(
        "gfs_chunkserver_disk_errors_total",
        "Failed calls to a disk",
        label("disk", {disk.path: disk.health.errors for disk in disks}),
    )
    yield gauge(
        "gfs_chunkserver_disk_calls",
        "Calls to a disk that run or wait",
        label("disk", {disk.path: len(disk.calls.running) for disk in disks}),
    )
    yield gauge(
        "gfs_chunkserver_connections",
        "Connections served",
        label("role", Counter(one.peer_role for one in node.connections.open)),
    )
    yield counter(
        "gfs_chunkserver_log_sequence_total",
        "The last operation of the master's log that this server knows of",
        node.server.record.sequence,
    )
    yield from certificate_family(node.identity.certificate_until_ns)
    yield from operation_families("gfs_chunkserver", node.operations)
