"""The sums of ``gfs du``: of a tree, and of what was deleted in it."""

from __future__ import annotations

import trio

from gfs.master.master import Master
from gfs.master.metadata import Txn, lookups, trash
from gfs.master.metadata.paths import parse
from gfs.master.metadata.rows import KIND_DIRECTORY, KIND_FILE
from gfs.master.service.fsck import WALK_SLICE
from gfs.protocol.messages import DiskUsage, DiskUsageReply


async def disk_usage(master: Master, request: DiskUsage) -> DiskUsageReply:
    """Sum up in slices, so that other requests are answered in between."""
    path = request.path
    usage = DiskUsageReply(0, 0, 0, 0, 0)
    cursor = lookups.Cursor()
    root = len(parse(path))
    while True:
        met = 0
        with master.store.read() as txn:
            for visit in lookups.walk(txn, path, cursor):
                cursor = lookups.Cursor(visit.segments[root:], -1, True)
                if cursor.segments or visit.row.kind == KIND_FILE:
                    _count(txn, usage, visit)
                met += 1 + visit.row.chunks
                if met >= WALK_SLICE:
                    break
        if met < WALK_SLICE:
            break
        await trio.lowlevel.checkpoint()
    deleted = b""
    while True:
        with master.store.read() as txn:
            entries, deleted = trash.page(
                txn, master.trash, path, deleted, trash.ROWS_MAX, master.committer.uptime.wall_ns
            )
        for entry in entries:
            # A deleted directory is not counted yet if these are negative.
            usage.trash_files += max(0, entry.files)
            usage.trash_bytes += max(0, entry.length)
        if not deleted:
            return usage
        await trio.lowlevel.checkpoint()


def _count(txn: Txn, usage: DiskUsageReply, visit: lookups.Visit) -> None:
    if visit.row.kind == KIND_DIRECTORY:
        usage.directories += 1
        return
    usage.files += 1
    usage.chunks += visit.row.chunks
    usage.bytes += visit.row.length
    usage.replicated_bytes += visit.row.length * visit.row.replication
    for chunk in lookups.shared_chunks(txn, visit.inode, visit.row.length):
        usage.shared_bytes += chunk
        usage.shared_replicated_bytes += chunk * visit.row.replication
