"""What a chunkserver does unasked: watch its disks, look at its files. It also
scrubs: see :mod:`gfs.chunkserver.scrub`.

*Scan*: every file is looked at by a ``stat`` within ``scan_seconds``: one that
was deleted or cut short is found without reading anything.

*Marks*: what was written and then left alone for ``mark_seconds`` is synced, so that
no power cut makes it doubtful any more (:mod:`gfs.chunkserver.marks`).

*Journals*: each says what of it is on the disk, so that damage to that is not taken for
a record that a power cut tore; and what is in one that was left alone for
``mark_seconds`` is put where it belongs (:mod:`gfs.chunkserver.journal`).
"""

from __future__ import annotations

import logging

import trio

from gfs.chunkserver.node import Node
from gfs.chunkserver.store import Disk
from gfs.errors import StartupError

log = logging.getLogger(__name__)

SPACE_SECONDS = 1.0
#: Files looked at in one blocking call, and per second at most.
SCAN_STEP = 256
SCAN_FILES_PER_SECOND = 2000
SAVE_SECONDS = 5.0
CLAIM_SECONDS = 1.0


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
            await look_at(node, handles[at : at + SCAN_STEP])
        await store.remove_leftovers()


async def look_at(node: Node, handles: list[int]) -> None:
    """Mark those as bad whose files are gone or too short."""
    store = node.store
    for disk in store.disks:
        for handle, kind in await store.run(disk, store.looks_right, disk, handles):
            await _second_look(node, handle, kind)


async def _second_look(node: Node, handle: int, kind: str) -> None:
    """The replica may have been written or deleted while the scan ran."""
    replica = node.store.inventory.get(handle)
    if replica is None:
        return
    disk = node.store.disks[replica.disk]
    is_wrong = await node.store.run(disk, node.store.looks_right, disk, [handle])
    if is_wrong and node.store.inventory.get(handle) is replica:
        node.store.mark_bad(handle, kind)


async def take_marks_back(node: Node) -> None:
    """Have what was written in place on the disk some time after the last write."""
    seconds = node.settings.mark_seconds
    while True:
        await node.world.clock.sleep(seconds / 2)
        for disk in node.store.disks:
            try:
                await node.store.take_marks_back(disk, seconds)
            except OSError as error:
                log.error("%s: %s", disk.marks.path, error)


async def tend_journals(node: Node) -> None:
    """Have the redo journals say what of them is on the disk, and empty idle ones."""
    async with trio.open_nursery() as nursery:
        for disk in node.store.disks:
            nursery.start_soon(_tend_journal, node, disk)


async def _tend_journal(node: Node, disk: Disk) -> None:
    clock, journal = node.world.clock, disk.journal
    written, since = 0, clock.monotonic()
    while True:
        await clock.sleep(CLAIM_SECONDS)
        try:
            if journal.written != written:
                written, since = journal.written, clock.monotonic()
            elif journal.to_set_aside and clock.monotonic() > since + node.settings.mark_seconds:
                await node.store.empty_journal(disk)
            if journal.to_claim and not disk.failed:
                await node.store.run(disk, journal.claim)
            if journal.to_save:
                disk.to_save.set()
        except OSError as error:
            log.error("%s: the redo journal: %s", disk.path, error)
            disk.failed = disk.failed or journal.failed


async def save_memory(node: Node) -> None:
    """Keep on disk what master this server has last heard from, and how far the
    scrubber is."""
    record = node.identity_file.record
    saved = (record.sequence, record.masters, record.scrubbed)
    while True:
        await node.world.clock.sleep(SAVE_SECONDS)
        node.scrubber.note()
        now = (record.sequence, record.masters, record.scrubbed)
        if now != saved:
            try:
                await node.save_identity()
            except StartupError as error:
                log.error("%s", error)  # a full disk is a state, not an end
                continue
            saved = now
