"""Scan: every replica is checked within ``scan_seconds``, but at most 2,000 a second, its file
with a ``stat``: one that was deleted or cut short is found without reading it. Blocks are read by
:mod:`.scrub`.

Packed replicas go at the same pace: a look at the record of one takes 3 µs, and that their two
files are gone is noticed with the first of them.
"""

from __future__ import annotations

import logging

from gfs.chunkserver.disks import Disk
from gfs.chunkserver.node import Node
from gfs.errors import Busy, DeadlineExceeded
from gfs.protocol.messages import VerifyChunk

log = logging.getLogger(__name__)

#: Files checked in one blocking call, and the most per second.
SCAN_STEP = 256
SCAN_FILES_PER_SECOND = 2000


async def scan(node: Node) -> None:
    """Check all chunk files, again and again."""
    store = node.store
    while True:
        handles = list(store.inventory)
        pause = node.settings.scan_seconds / max(1, -(-len(handles) // SCAN_STEP))
        pause = max(pause, SCAN_STEP / SCAN_FILES_PER_SECOND)
        for at in range(0, max(1, len(handles)), SCAN_STEP):
            await node.world.clock.sleep(pause)
            await look_at(node, handles[at : at + SCAN_STEP])
        try:
            await store.remove_leftovers()
        except OSError as error:
            log.warning("leftover files will be deleted later: %s", error)


async def look_at(node: Node, handles: list[int]) -> None:
    """Find those whose files are gone or too short."""
    store = node.store
    for disk in list(store.disks.used.values()):
        try:
            for handle, is_there in await disk.run(store.inventory.looks_wrong, disk, handles):
                await _second_look(node, disk, handle, is_there)
        except OSError as error:
            log.warning("%s: %s", disk.path, error)


async def _second_look(node: Node, disk: Disk, handle: int, is_there: bool) -> None:
    """Check again: the replica may have been written or deleted during the scan."""
    store = node.store
    replica = store.inventory.get(handle)
    is_wrong = await disk.run(store.inventory.looks_wrong, disk, [handle])
    if is_wrong and replica is not None and store.inventory.get(handle) is replica:
        if is_there:
            store.inventory.mark_bad(handle)
        else:
            store.open_chunks.lose(handle)


async def look_at_damaged(node: Node) -> None:
    """Verify the replicas that were damaged before this start: they may have been repaired
    since."""
    for handle, bad in list(node.store.inventory.bad.items()):
        if bad.version and handle in node.store.inventory:
            try:
                await node.verify(VerifyChunk(id=0, handle=handle, version=bad.version))
            except (Busy, DeadlineExceeded, OSError) as error:
                log.info("chunk %016x remains recorded as damaged: %s", handle, error)
