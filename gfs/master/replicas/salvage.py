"""Chunks without a good replica, of which there are damaged ones.

Damage is mostly a block here and another one there, so what is damaged in one replica is
often good in another. A server is ordered to put a good replica together: see
:mod:`gfs.chunkserver.copies.salvage` for what that may be made of. From then on it is a chunk
below its goal as any other. Until then readers are sent to the damaged replicas, for the
blocks that are good: each is verified, as always.

It goes before the election of a possibly stale replica
(:mod:`gfs.master.replicas.election`), since the damaged ones lack no write.

What was damaged is kept until enough good replicas are confirmed, like all that is
corrupt. An attempt that failed because a server did not answer is repeated soon. One
that had all answers and failed is a verdict, until another server has something of the
chunk, or for ``HOPELESS_SECONDS``: a sector may be readable after all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from gfs.master.metadata.rows import Chunk
from gfs.master.replicas import placement
from gfs.master.replicas.rereplication import Clone, Limits
from gfs.master.replicas.servers import Server

#: Chunks looked at in one round.
ROUND_MAX = 200
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
HOPELESS_SECONDS = 600.0


class Attempt(NamedTuple):
    """One that failed."""

    servers: frozenset[int]
    after: float
    tries: int
    hopeless: bool


class SalvageQueue:
    def __init__(self) -> None:
        self.handles: dict[int, None] = {}
        self._failed: dict[int, Attempt] = {}

    def add(self, handle: int) -> None:
        self.handles[handle] = None

    def forget(self, handle: int) -> None:
        """There is a good replica, or no damaged one, or no such chunk any more."""
        self.handles.pop(handle, None)
        self._failed.pop(handle, None)

    def round(self) -> list[int]:
        """Those to look at now. What cannot be started is looked at after the others."""
        found = list(self.handles)[:ROUND_MAX]
        if len(found) < len(self.handles):
            for handle in found:
                del self.handles[handle]
                self.handles[handle] = None
        return found

    def is_due(self, handle: int, servers: frozenset[int], now: float) -> bool:
        """``servers`` have something of it now."""
        failed = self._failed.get(handle)
        return failed is None or now >= failed.after or failed.servers != servers

    def failed(self, handle: int, servers: frozenset[int], now: float, hopeless: bool) -> None:
        before = self._failed.get(handle)
        tries = 0 if before is None else before.tries
        wait = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** min(tries, 10))
        after = now + (HOPELESS_SECONDS if hopeless else wait)
        self._failed[handle] = Attempt(servers, after, tries + 1, hopeless)

    def is_hopeless(self, handle: int) -> bool:
        failed = self._failed.get(handle)
        return failed is not None and failed.hopeless

    def is_repeated(self, handle: int, servers: frozenset[int]) -> bool:
        """Whether all that is there was tried before, in vain."""
        failed = self._failed.get(handle)
        return failed is not None and failed.hopeless and failed.servers == servers

    @property
    def hopeless(self) -> int:
        return sum(map(self.is_hopeless, self.handles))

    def is_pending(self, handle: int) -> bool:
        """Whether it may still be put together from what is there."""
        return handle in self.handles and not self.is_hopeless(handle)


def plan_salvage(
    handle: int,
    row: Chunk,
    sources: Sequence[Server],
    placeable: Sequence[Server],
    limits: Limits,
    rng: random.Random,
) -> Clone | None:
    """The order that can be given now, or None.

    A server without anything of the chunk is the better target: what is damaged stays
    where it is for another attempt. If there is none, a good replica takes the place of
    a damaged one.
    """
    sources = sorted(sources, key=lambda server: server.clones_out)
    if not sources or sources[0].clones_out >= limits.per_server:
        return None
    targets = [server for server in placeable if server.clones_in < limits.per_server]
    targets = [server for server in targets if server not in sources] or targets
    if not targets:
        return None
    target = placement.choose(targets, 1, rng, [server.rack for server in sources])[0]
    return Clone(handle, row.version, target, tuple(sources), salvage=True, length=row.length)
