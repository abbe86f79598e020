"""The leases of which this server is the primary. Plain data; the caller has the clock.

The master counts a lease on its clock from before the grant; this side counts the
shorter duration in the grant on its own clock, which continues while the machine is
suspended (:meth:`gfs.io.Clock.elapsed`). So the primary stops before the master's count
ends. If a grant arrives so late that it does not, the secondaries no longer have the
version of the grant, and no mutation that this primary orders is acknowledged.

It also gives up a lease when a write was cut short whose packets may still arrive at
the secondaries (see :mod:`gfs.chunkserver.exchanges.write`): refused clients then ask
the master for a new version.
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
        """The number of valid leases."""
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
        """Extend leases. ``since`` is when the heartbeat that asked for it was sent:
        the master's count starts no earlier."""
        for handle in handles:
            if handle in self._until:
                self._until[handle] = max(self._until[handle], since + lease_ms / 1000)
