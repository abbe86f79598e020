"""A file system of small blocks, for the general simulation: import this first.

Seeds by the thousand must be cheap, and their files still reach over blocks,
packets and chunks. So the sizes that :mod:`gfs.blocks` gives to all are made
smaller before anything else of ``gfs`` is imported; the code is the same. A few
sizes that others have written for themselves follow, and the rhythm of what
looks around without end is slower, since an idle hour must be cheap as well.

Only for a process of its own (``python -m tests.simulation``). With
``GFS_SIMULATION_SCALE=full`` in the environment nothing is changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SCALE, FULL = "GFS_SIMULATION_SCALE", "full"

BLOCK_BYTES = 1024
PACKET_BYTES = 4 * BLOCK_BYTES
CHUNK_BYTES = 12 * BLOCK_BYTES
#: Less than comes in one answer, which a MiB is for all others.
SMALL_REPLICA_BYTES = 2 * BLOCK_BYTES
#: While hardly anything happens, calls may be ended so late.
IDLE_SWEEP_SECONDS = 5.0


def shrink() -> bool:
    """Make everything small; whether it did. Must come before other imports."""
    if os.environ.get(SCALE) == FULL:
        return False
    import gfs.blocks as blocks

    if blocks.CHUNK_BYTES == CHUNK_BYTES:
        return True
    if "gfs.protocol.messages" in sys.modules or "gfs.config" in sys.modules:
        raise RuntimeError("gfs was imported before its sizes could be changed")
    blocks.MIB = PACKET_BYTES
    blocks.BLOCK_BYTES = BLOCK_BYTES
    blocks.CHUNK_BYTES = CHUNK_BYTES
    blocks.BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES
    blocks.ZERO_BLOCK_SUM = blocks.block_sum(bytes(BLOCK_BYTES))
    import gfs.protocol.messages

    gfs.protocol.messages.SMALL_REPLICA_BYTES_MAX = SMALL_REPLICA_BYTES  # others copy it
    import gfs.chunkserver.copies.small_replicas
    import gfs.chunkserver.exchanges.read
    import gfs.chunkserver.exchanges.write
    import gfs.chunkserver.files.copying
    import gfs.chunkserver.packs.packs
    import gfs.chunkserver.packs.slots
    import gfs.chunkserver.replicas.store
    import gfs.chunkserver.upkeep.scrub
    import gfs.master.shadows.log_sender
    import gfs.master.tables.garbage
    import gfs.master.upkeep.metadata_disk
    import gfs.master.upkeep.trash
    import gfs.protocol.rpc

    gfs.chunkserver.copies.small_replicas.STEP = 3
    gfs.chunkserver.replicas.store.ADOPT_STEP = 3
    gfs.chunkserver.upkeep.scrub.SORTED_AT_ONCE = 3
    gfs.chunkserver.packs.packs.GROWTH_BYTES = BLOCK_BYTES
    gfs.chunkserver.packs.packs.CLAIM_RECORDS = 10
    gfs.chunkserver.packs.slots.FRAME_BYTES = 2 * blocks.PAGE_BYTES
    gfs.chunkserver.files.copying.VERIFY_BYTES = PACKET_BYTES
    gfs.chunkserver.exchanges.read.SENDFILE_BYTES_MIN = BLOCK_BYTES + 1
    gfs.chunkserver.exchanges.read.PIECE_BYTES_MAX = PACKET_BYTES
    gfs.chunkserver.exchanges.write.SMALL_PACKET_BYTES = BLOCK_BYTES
    gfs.protocol.rpc.SWEEP_SECONDS = 1.0
    gfs.master.tables.garbage.ORDERS_MAX = 2
    gfs.master.shadows.log_sender.SWEEP_SECONDS = 2.0
    gfs.master.upkeep.trash.RECLAIM_REST_SECONDS = 1.0
    gfs.master.upkeep.metadata_disk.SPACE_SECONDS = 20.0
    return True


@contextmanager
def idle() -> Iterator[None]:
    """While hardly anything happens: for every connection somebody looks for calls that
    are overdue, and nothing else is done as often."""
    import gfs.protocol.rpc as rpc

    before = rpc.SWEEP_SECONDS
    rpc.SWEEP_SECONDS = max(before, IDLE_SWEEP_SECONDS)
    try:
        yield
    finally:
        rpc.SWEEP_SECONDS = before
