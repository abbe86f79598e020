"""Re-replication: this server copies a replica from another one and verifies each block.

The copy is made in a new file, which replaces the present replica only when it is
complete: a crash leaves the old state, and a damaged replica is replaced by a good one
atomically.
"""

from __future__ import annotations

import logging
from functools import partial

from gfs.blocks import BLOCK_BYTES, block_sums
from gfs.chunkserver.copies.new_replica import fill, new_replica
from gfs.chunkserver.copies.salvage import salvage
from gfs.chunkserver.disks import Disk, map_disk_error
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import Made
from gfs.diagnostics import event, message_id
from gfs.errors import (
    Busy,
    ChunkUnavailable,
    CorruptReplica,
    GfsError,
    NotFound,
    ProtocolError,
    StaleVersion,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    POSSIBLY_STALE,
    CloneChunk,
    ReadChunk,
    ReadReply,
    VerifyChunk,
    VerifyReply,
)

log = logging.getLogger(__name__)

STEP_SECONDS = 20.0


async def clone(node: Node, order: CloneChunk) -> None:
    """Make a good replica of ``order.version`` on this server.

    Raises the last source's error if none had a good one; its ``server`` is the
    source's id if the source's replica is to blame.
    """
    if order.handle in node.cloning:
        raise Busy(f"chunk {order.handle:016x} is being copied to this server already")
    node.cloning.add(order.handle)
    try:
        await (salvage(node, order) if order.salvage else _clone_from_any(node, order))
    finally:
        node.cloning.discard(order.handle)


async def _clone_from_any(node: Node, order: CloneChunk) -> None:
    last: GfsError = ChunkUnavailable(f"chunk {order.handle:016x}: the order has no source")
    for source in order.sources:
        try:
            await _clone_from(node, order, source)
            log.info(
                "copied chunk %016x version %d from %s",
                order.handle,
                order.version,
                source,
                extra=event(
                    "replica_copied",
                    chunk=f"{order.handle:x}",
                    version=order.version,
                    source=source,
                ),
            )
            return
        except ConnectionError as error:
            last = ChunkUnavailable(f"chunk {order.handle:016x} from {source}: {error}")
        except GfsError as error:
            last = error
        log.warning("clone of %016x from %s: %s", order.handle, source, last)
    raise last


async def _is_good_already(node: Node, order: CloneChunk, length: int) -> bool:
    replica = node.store.inventory.get(order.handle)
    if replica is None or (replica.version, replica.length) != (order.version, length):
        return False
    reply = await node.verify(VerifyChunk(id=0, handle=order.handle, version=order.version))
    return reply.state == "good"


async def _clone_from(node: Node, order: CloneChunk, source: str) -> None:
    connection = await node.pool.acquire(source)
    clean = False
    try:
        length = await _length_at(connection, order)
        if await _is_good_already(node, order, length):
            clean = True
            return
        disk, what = node.store.disks.pick(), f"clone of {order.handle:016x}"
        if node.store.is_packed(length):
            await _copy_packed(node, connection, disk, order, length)
            clean = True
            return
        async with new_replica(node, disk, order.handle, order.version, what) as file:
            fetch = partial(_fetch, connection, order.handle, order.version)
            await fill(node, disk, file, length, fetch)
        clean = True
    except (CorruptReplica, NotFound, StaleVersion) as error:
        error.__dict__["server"] = connection.peer_id
        raise
    finally:
        if clean:
            node.pool.release(connection, source)
        else:
            connection.close()


async def _length_at(connection: BulkConnection, order: CloneChunk) -> int:
    with deadline(STEP_SECONDS, "length of the replica"):
        await connection.send(
            VerifyChunk(id=message_id(), handle=order.handle, version=order.version, blocks=False)
        )
        reply = await connection.receive_reply()
    if not isinstance(reply, VerifyReply):
        raise ProtocolError(f"{type(reply).__name__} instead of the replica's state")
    if reply.state in ("missing", "corrupt", POSSIBLY_STALE) or reply.version != order.version:
        raise unfit(order.handle, order.version, reply.state, reply.version)
    return reply.length


def unfit(handle: int, wanted: int, state: str, version: int) -> GfsError:
    """The error that says why a source's replica cannot be copied."""
    if state == "missing":
        return NotFound(f"chunk {handle:016x}: the source has no such replica")
    if state == "corrupt":
        return CorruptReplica(f"chunk {handle:016x}: the source's replica is damaged")
    return StaleVersion(
        f"chunk {handle:016x}: the source has a {state} replica of version {version}, "
        f"wanted is {wanted}"
    )


async def _copy_packed(
    node: Node, connection: BulkConnection, disk: Disk, order: CloneChunk, length: int
) -> None:
    view = memoryview(bytearray(length))
    await node.throttle.take(length)
    sums = await _fetch(connection, order.handle, order.version, 0, view)
    try:
        await node.store.install(disk, Made(order.handle, order.version, view, sums))
    except OSError as error:
        raise map_disk_error(error, f"clone of {order.handle:016x}") from error
    disk.space.written_bytes += length


async def _fetch(
    connection: BulkConnection, handle: int, version: int, offset: int, view: memoryview
) -> bytes:
    with deadline(STEP_SECONDS, "blocks of the replica"):
        await connection.send(
            ReadChunk(
                id=message_id(),
                handle=handle,
                version=version,
                offset=offset,
                length=len(view),
            )
        )
        reply = await connection.receive_reply()
        if not isinstance(reply, ReadReply) or reply.length != len(view):
            raise ProtocolError(f"{type(reply).__name__} instead of {len(view)} bytes")
        await connection.receive_body(view)
    sums = block_sums(view)
    if sums != reply.sums:
        bad = next(i for i in range(0, len(sums), 8) if sums[i : i + 8] != reply.sums[i : i + 8])
        block = offset // BLOCK_BYTES + bad // 8
        raise CorruptReplica(f"chunk {handle:016x}: block {block} of the source is damaged")
    return sums
