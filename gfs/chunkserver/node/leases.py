"""The leases this server holds as primary. Plain data; the caller has the clock.

The master counts a lease on its clock from before it was granted; this side
counts the shorter duration it was told, on its own clock, one that goes on while its
machine is suspended (:meth:`gfs.io.Clock.elapsed`). So the primary stops before the
master's count ends, whatever the clocks show. Should a
grant be so late that it does not, the version that came with it is no longer the
secondaries' one, and nothing this primary orders is acknowledged.

It also stops by itself, when a write broke off of which something may still be on its
way to the secondaries (see :mod:`gfs.chunkserver.exchanges.write`): whoever is refused asks the
master for a new version then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gfs.errors import LeaseLost


class Leases:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[int, float] = {}
        self._used: set[int] = set()

    @property
    def count(self) -> int:
        """Those that run."""
        now = self._now()
        return sum(until > now for until in self._until.values())

    def grant(self, handle: int, lease_ms: int) -> None:
        self._until[handle] = self._now() + lease_ms / 1000

    def revoke(self, handle: int) -> None:
        self._until.pop(handle, None)
        self._used.discard(handle)

    def check(self, handle: int) -> None:
        """Raise LeaseLost unless this server may order mutations of ``handle`` now."""
        if self._until.get(handle, 0.0) <= self._now():
            self._until.pop(handle, None)
            raise LeaseLost(
                f"chunk {handle:016x}: this server has no lease now: ask the master again"
            )
        self._used.add(handle)

    def take_used(self) -> list[int]:
        """The leases used since the last call: the heartbeat asks to have them extended."""
        used = [handle for handle in self._used if handle in self._until]
        self._used.clear()
        return used

    def extend(self, handles: Iterable[int], lease_ms: int, since: float) -> None:
        """Extend leases that are held. ``since`` is when the heartbeat that asked for it was
        sent: the master counts from no earlier moment."""
        for handle in handles:
            if handle in self._until:
                self._until[handle] = max(self._until[handle], since + lease_ms / 1000)
