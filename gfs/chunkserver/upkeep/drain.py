"""Draining one disk of a chunkserver: its replicas move to the server's other disks.

A replica is copied while it may be read and written; every block of the copy is
verified; and the copy replaces it only if it was not written meanwhile. One that is
written all the time moves when that ends. Damaged or possibly stale ones are left to
the master, which has them replaced, on another disk.
"""

from __future__ import annotations

import logging

from gfs.chunkserver.copies.new_replica import copy_bytes, mark_if_unfit, new_replica
from gfs.chunkserver.disks import Disk
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import Made, PackedFile
from gfs.diagnostics import event
from gfs.errors import CorruptReplica, DiskFull, GfsError, StaleVersion

log = logging.getLogger(__name__)

#: The pause before replicas that could not be moved are tried again.
AGAIN_SECONDS = 2.0


async def drain_disk(node: Node, disk: Disk) -> None:
    """Keep the disk empty while it is draining. Runs for as long as it is used."""
    while True:
        if not disk.drain.is_wanted:
            await disk.drain.begun.wait()
            disk.drain.begun = type(disk.drain.begun)()
            continue
        before = disk.chunks
        await _move_all(node, disk)
        if before and not disk.chunks:
            log.warning(
                "disk %s is empty: gfs disk remove %s %s",
                disk.path,
                node.id,
                disk.path,
                extra=event("disk_drained", disk=disk.path),
            )
        await node.world.clock.sleep(AGAIN_SECONDS)


async def _move_all(node: Node, disk: Disk) -> None:
    store, stuck = node.store, 0
    for handle in [h for h, replica in store.inventory.items() if replica.disk == disk.index]:
        if not disk.drain.is_wanted:
            break
        try:
            await _move(node, disk, handle)
        except DiskFull:
            stuck += 1
        except StaleVersion as error:
            log.info("chunk %016x moves later: %s", handle, error)
        except (GfsError, OSError) as error:
            log.warning("chunk %016x cannot be moved from %s: %s", handle, disk.path, error)
    disk.drain.stuck, disk.drain.damaged = stuck, store.inventory.damaged_on(disk)


async def _move(node: Node, disk: Disk, handle: int) -> None:
    """Raises StaleVersion if it is written just now, DiskFull, CorruptReplica (the master has
    another one made), DiskFailed and others."""
    store = node.store
    replica = store.inventory.get(handle)
    if replica is None or handle in store.inventory.bad or handle in store.inventory.possibly_stale:
        return
    await node.throttle.take(replica.length)
    async with store.open_chunks.using(handle) as chunk:
        if chunk.disk is not disk:
            return
        source = chunk.file  # a grant may give it another one meanwhile
        state, version = source.sequence, source.version
        target = store.disks.pick(source.length)
        what = f"move of {handle:016x}"
        try:
            if isinstance(source, PackedFile) and store.is_packed(source.length):
                data = await disk.run(source.read_verified, 0, source.length)
                made = Made(handle, version, memoryview(data), source.sums(0, 1))
                await store.install(target, made, moved=state)
                target.space.written_bytes += len(data)
                return
            async with new_replica(node, target, handle, version, what, moved=state) as file:
                await copy_bytes(node, chunk, target, file)
                target.space.written_bytes += file.length
                if chunk.mutex.locked():
                    raise StaleVersion(f"chunk {handle:016x} is being written")
        except CorruptReplica:
            await mark_if_unfit(node, chunk)
            raise
