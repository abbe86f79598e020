"""What a chunkserver does unasked: watch its disks, look at its files, scrub.

*Scan*: every file is looked at by a ``stat`` within ``scan_seconds``: one that
was deleted or cut short is found without reading anything. *Scrub*: every block
is read and verified within ``scrub_seconds`` (the paper, 5.2: idle scrubbing);
a damaged block nobody reads is found while other replicas are still good.
"""

from __future__ import annotations

import logging

from gfs.blocks import BLOCK_BYTES, KIB, MIB
from gfs.chunkserver.node import Node
from gfs.errors import GfsError, StartupError

log = logging.getLogger(__name__)

SPACE_SECONDS = 1.0
#: Files looked at in one blocking call, and per second at most.
SCAN_STEP = 256
SCAN_FILES_PER_SECOND = 2000
SCRUB_STEP_BYTES = 1 * MIB
#: A chunk costs at least as much of the pace as this many bytes: opening it is
#: what costs, and there may be a million small ones.
SCRUB_CHUNK_BYTES_MIN = 512 * KIB
#: A small server is scrubbed at least this fast.
SCRUB_BYTES_PER_SECOND_MIN = 8 * MIB
SAVE_SECONDS = 5.0


async def watch_space(node: Node) -> None:
    """Keep free space and state of the disks current."""
    while True:
        for disk in node.store.disks:
            await node.store.run(disk, node.store.refresh_space, disk)
        await node.world.clock.sleep(SPACE_SECONDS)


async def scan(node: Node) -> None:
    """Look at all chunk files, again and again."""
    store = node.store
    while True:
        handles = list(store.inventory)
        pause = node.settings.scan_seconds / max(1, -(-len(handles) // SCAN_STEP))
        pause = max(pause, SCAN_STEP / SCAN_FILES_PER_SECOND)
        for at in range(0, max(1, len(handles)), SCAN_STEP):
            await node.world.clock.sleep(pause)
            for disk in store.disks:
                step = handles[at : at + SCAN_STEP]
                for handle, kind in await store.run(disk, store.looks_right, disk, step):
                    await _second_look(node, handle, kind)


async def _second_look(node: Node, handle: int, kind: str) -> None:
    """The replica may have been written or deleted while the scan ran."""
    replica = node.store.inventory.get(handle)
    if replica is None:
        return
    disk = node.store.disks[replica.disk]
    if await node.store.run(disk, node.store.looks_right, disk, [handle]):
        node.store.mark_bad(handle, kind)


async def scrub(node: Node) -> None:
    """Read and verify everything, again and again, at an even pace."""
    while True:
        for handle in list(node.store.inventory):
            try:
                await _scrub_chunk(node, handle)
            except (GfsError, OSError) as error:
                log.info("scrub of %016x: %s", handle, error)
        await node.world.clock.sleep(1.0)


async def _scrub_chunk(node: Node, handle: int) -> None:
    blocks = SCRUB_STEP_BYTES // BLOCK_BYTES
    first = 0
    while True:
        replica = node.store.inventory.get(handle)
        if replica is None or handle in node.store.bad:
            return
        if first and first * BLOCK_BYTES >= replica.length:
            return
        step = min(SCRUB_STEP_BYTES, replica.length - first * BLOCK_BYTES)
        pace = max(step, SCRUB_CHUNK_BYTES_MIN)
        await node.world.clock.sleep(pace / _rate(node))
        await node.throttle.take(step)
        async with node.store.using(handle) as chunk:
            if await node.bad_blocks(chunk, first, blocks) and not chunk.dropped:
                node.store.mark_bad(handle, "corrupt")
                return
        first += blocks


def _rate(node: Node) -> float:
    return max(SCRUB_BYTES_PER_SECOND_MIN, node.store.bytes / node.settings.scrub_seconds)


async def save_memory(node: Node) -> None:
    """Keep on disk what master this server has last heard from."""
    saved = node.identity_file.record.sequence
    while True:
        await node.world.clock.sleep(SAVE_SECONDS)
        now = node.identity_file.record.sequence
        if now != saved:
            try:
                await node.world.run_blocking(node.identity_file.save)
            except StartupError as error:
                log.error("%s", error)  # a full disk is a state, not an end
                continue
            saved = now
