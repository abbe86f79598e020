"""Copy on write: a local copy of a replica, as a replica of a new chunk (the paper, 3.4).

The copy is on the same disk if there is room, so that a file system which can share
blocks does; otherwise the kernel copies them. The sums are copied, and every block of
the copy is read back and verified against them. As with a clone, the file gets its name
when it is complete and synced.
"""

from __future__ import annotations

import logging

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.copies.new_replica import copy_bytes, mark_if_unfit, new_replica
from gfs.chunkserver.disks import Disk
from gfs.chunkserver.node import Node
from gfs.chunkserver.replicas import OpenChunk
from gfs.errors import Busy, CorruptReplica, StaleVersion
from gfs.protocol.messages import CopyChunk

log = logging.getLogger(__name__)


async def copy(node: Node, order: CopyChunk) -> None:
    """Make the copy, and take its lease if one is given.

    Raises NotFound, StaleVersion, CorruptReplica, DiskFull, DiskFailed.
    """
    if order.target in node.cloning:
        raise Busy(f"chunk {order.target:016x} is being made on this server already")
    node.cloning.add(order.target)
    try:
        node.store.inventory.check_fit(order.handle)
        async with node.store.open_chunks.using(order.handle) as chunk:
            try:
                async with chunk.mutex:
                    await _copy(node, chunk, order)
            except CorruptReplica:
                await mark_if_unfit(node, chunk)
                raise
    finally:
        node.cloning.discard(order.target)
    if order.lease_ms:
        node.leases.grant(order.target, order.lease_ms)


async def _copy(node: Node, chunk: OpenChunk, order: CopyChunk) -> None:
    if chunk.file.version != order.version:
        raise StaleVersion(
            f"chunk {order.handle:016x} has version {chunk.file.version} here, not {order.version}"
        )
    disk = _disk(node, chunk)
    what = f"copy of {order.handle:016x}"
    async with new_replica(node, disk, order.target, order.target_version, what) as file:
        await copy_bytes(node, chunk, disk, file)
        disk.space.written_bytes += file.length


def _disk(node: Node, chunk: OpenChunk) -> Disk:
    disk = chunk.disk
    need_bytes = node.store.disks.reserve_bytes + chunk.file.length
    if not disk.takes_new or not disk.space.has_room(need_bytes):
        return node.store.disks.pick()
    disk.space.begun_bytes += CHUNK_BYTES
    return disk
