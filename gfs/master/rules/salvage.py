"""Salvage of chunks that have no good replica but damaged ones.

Mostly single blocks are damaged, so a block that is damaged in one replica is often
good in another. A server is ordered to put a good replica together: see
:mod:`gfs.chunkserver.copies.salvage` for its sources. Then the chunk is below its goal
as any other. Until then clients are given the damaged replicas as locations, for their
good blocks: each is verified, as always.

It takes precedence over the election of a possibly stale replica
(:mod:`gfs.master.rules.election`), since damaged replicas lack no write.

Damaged replicas are kept until enough good ones are confirmed, like all corrupt ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gfs.master.metadata.rows import Chunk
from gfs.master.rules import placement
from gfs.master.rules.source_and_target import Limits
from gfs.master.tables import Clone, Server


def plan_salvage(
    handle: int,
    row: Chunk,
    sources: Sequence[Server],
    placeable: Sequence[Server],
    limits: Limits,
    rng: random.Random,
) -> Clone | None:
    """The order that can be given now, or None.

    A server without a replica of the chunk is the better target: then the damaged
    replicas remain for another attempt. If there is none, the good replica replaces a
    damaged one.
    """
    sources = sorted(sources, key=lambda server: server.transfers.clones_out)
    if not sources or sources[0].transfers.clones_out >= limits.per_server:
        return None
    targets = [server for server in placeable if server.transfers.clones_in < limits.per_server]
    targets = [server for server in targets if server not in sources] or targets
    if not targets:
        return None
    target = placement.choose(targets, 1, rng, [server.rack for server in sources])[0]
    return Clone(handle, row.version, target, tuple(sources), salvage=True, length=row.length)
