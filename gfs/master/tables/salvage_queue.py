"""Chunks without a good replica that may be salvaged (:mod:`gfs.master.rules.salvage`),
and the attempts that failed.

An attempt that failed because a server did not answer is repeated soon. One that failed
with all answers is not repeated until another server has a replica of the chunk, or for
``HOPELESS_SECONDS``: a sector may become readable again.
"""

from __future__ import annotations

from typing import NamedTuple

#: Chunks tried in one round.
ROUND_MAX = 200
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
HOPELESS_SECONDS = 600.0


class Attempt(NamedTuple):
    """An attempt that failed."""

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
