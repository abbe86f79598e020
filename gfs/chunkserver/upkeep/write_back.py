"""Write-back of replicas that were written and then not again for ``mark_seconds``.

*Write-intent records*: such a replica is synced, so that a power cut does not make it
possibly stale any more (:mod:`gfs.chunkserver.files.intents`).

*Journals*: the head of each records which of its records are on the disk, so that
damage to those is not taken for a record that a power cut tore; and the replicas in an
idle journal are saved (:mod:`gfs.chunkserver.files.journal`).

*Packs*: they are synced now and then, so that a start has few records to verify
(:mod:`gfs.chunkserver.packs`).
"""

from __future__ import annotations

import logging

from gfs.chunkserver.disks import FAILED, Disk
from gfs.chunkserver.node import Node

log = logging.getLogger(__name__)

CLAIM_SECONDS = 1.0
#: How often packs are synced. At 5,000 new replicas a second a start then verifies 50,000, in
#: less than a second if the page cache has them.
CONFIRM_SECONDS = 10.0


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
    """Have the redo journal record which of its records are on the disk, and empty it
    when it is idle."""
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
                disk.saving.wanted.set()
        except OSError as error:
            log.error("%s: the redo journal: %s", disk.path, error)
            if journal.failed:
                disk.fail(FAILED, "its redo journal could not be synced")


async def confirm_packs(node: Node, disk: Disk) -> None:
    """Sync the packed replicas that were written since the last time."""
    while True:
        await node.world.clock.sleep(CONFIRM_SECONDS)
        if disk.packs.to_confirm:
            try:
                await disk.run(disk.packs.confirm)
            except OSError as error:
                log.error("%s: the packed replicas: %s", disk.path, error)
