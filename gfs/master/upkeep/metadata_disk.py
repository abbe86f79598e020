"""The disk that the metadata is on: how full it is."""

from __future__ import annotations

import logging

from gfs.blocks import MIB
from gfs.master.master import Master

log = logging.getLogger(__name__)

#: With less free space than this, mutations that make the metadata grow are refused.
METADATA_RESERVE_BYTES = 32 * MIB
SPACE_SECONDS = 2.0


async def watch_space(master: Master, directory: str) -> None:
    """Measure the metadata's disk regularly."""
    while True:
        low = False
        try:
            space = await master.world.run_blocking(master.world.files.space, directory)
            low = space.free_bytes < METADATA_RESERVE_BYTES
            master.metadata_disk.space = space
        except OSError as error:
            log.debug("the free space of %s cannot be read: %s", directory, error)
        if low != master.metadata_disk.is_low:
            master.metadata_disk.is_low = low
            log.warning("the metadata's disk is %s", "nearly full" if low else "fine again")
        await master.world.clock.sleep(SPACE_SECONDS)
