"""The server's record (``server.json``) is saved when it has changed."""

from __future__ import annotations

import logging

from gfs.chunkserver.node import Node
from gfs.chunkserver.upkeep.scrub import Scrubber
from gfs.errors import StartupError

log = logging.getLogger(__name__)

SAVE_SECONDS = 5.0


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
                await node.disk_opening.save()
            except StartupError as error:
                log.error("%s", error)  # a full disk must not end the server
                continue
            saved = now


def _memory(node: Node) -> tuple[object, ...]:
    record = node.server.record
    return record.sequence, record.masters, record.scrubbed, tuple(node.store.inventory.bad)
