"""What a chunkserver does unasked: look at its files. It also watches its disks
(:mod:`gfs.chunkserver.node.disk_manager`) and scrubs (:mod:`gfs.chunkserver.upkeep.scrub`).

*Scan*: every file is looked at by a ``stat`` within ``scan_seconds``: one that
was deleted or cut short is found without reading anything.

*Write-intent records*: what was written and then left alone for ``mark_seconds`` is synced, so that
no power cut makes it doubtful any more (:mod:`gfs.chunkserver.files.intents`).

*Journals*: each says what of it is on the disk, so that damage to that is not taken for
a record that a power cut tore; and what is in one that was left alone for
``mark_seconds`` is put where it belongs (:mod:`gfs.chunkserver.files.journal`).
"""

from __future__ import annotations

import logging

from gfs.chunkserver.disks.disk import FAILED, Disk
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.upkeep.scrub import Scrubber
from gfs.errors import DeadlineExceeded, StartupError
from gfs.protocol.messages import VerifyChunk

log = logging.getLogger(__name__)

#: Files looked at in one blocking call, and per second at most.
SCAN_STEP = 256
SCAN_FILES_PER_SECOND = 2000
SAVE_SECONDS = 5.0
CLAIM_SECONDS = 1.0


async def scan(node: Node) -> None:
    """Look at all chunk files, again and again."""
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
            except (DeadlineExceeded, OSError) as error:
                log.info("chunk %016x stays marked as damaged: %s", handle, error)


async def clear_intents(node: Node, disk: Disk) -> None:
    """Sync replicas some time after their last write, and remove their write-intent records."""
    seconds = node.settings.mark_seconds
    while True:
        await node.world.clock.sleep(seconds / 2)
        try:
            await node.store.durability.clear_intents(disk, seconds)
        except OSError as error:
            log.error("%s: %s", disk.intents.path, error)


async def tend_journal(node: Node, disk: Disk) -> None:
    """Have the redo journal say what of it is on the disk, and empty it when it is idle."""
    clock, journal = node.world.clock, disk.journal
    written, since = 0, clock.monotonic()
    while True:
        await clock.sleep(CLAIM_SECONDS)
        try:
            if journal.written != written:
                written, since = journal.written, clock.monotonic()
            elif journal.to_set_aside and clock.monotonic() > since + node.settings.mark_seconds:
                await node.store.durability.empty_journal(disk)
            if journal.to_claim:
                await disk.run(journal.claim)
            if journal.to_save:
                disk.to_save.set()
        except OSError as error:
            log.error("%s: the redo journal: %s", disk.path, error)
            if journal.failed:
                disk.fail(FAILED, "its redo journal could not be synced")


async def save_memory(node: Node, scrubber: Scrubber) -> None:
    """Save to the disks which master this server last heard from, the scrubber's position, and
    the damaged replicas."""
    saved = _memory(node)
    while True:
        await node.world.clock.sleep(SAVE_SECONDS)
        scrubber.note()
        now = _memory(node)
        if now != saved:
            try:
                await node.disks.save()
            except StartupError as error:
                log.error("%s", error)  # a full disk is a state, not an end
                continue
            saved = now


def _memory(node: Node) -> tuple[object, ...]:
    record = node.server.record
    return record.sequence, record.masters, record.scrubbed, tuple(node.store.inventory.bad)
