"""The uptime of masters, added up: the time that the trash, maintenance and kept answers
are counted in.

The wall clock of a machine may be days off, and jump. So how long something has been in
the trash is not asked of it: each master adds the time that passed on its own monotonic
clock since it was started, and every row of the operation log has the sum
(:attr:`~gfs.master.metadata.store.State.lived_ns`). A master that starts, or is promoted, goes on
from the sum it finds: the time in which no master ran is not counted, and of what a
master ran since its last row the count is lost with it. Where there is something in the
trash, or a chunkserver under maintenance, and nothing else to be logged, the time alone is
(TimePassed), often enough that this is half of its life and a minute at most.

The sum begins at the wall clock's time, so that rows of a store from before it was
counted, whose times are that clock's, keep their meaning: at the time of the log's last
row, since which no master can have run.
"""

from __future__ import annotations

from gfs.io import Clock
from gfs.master.metadata.operation_log import time_of
from gfs.master.metadata.operations import TimePassed
from gfs.master.metadata.store import Store, Txn

SECOND_NS = 1_000_000_000
#: While nothing else is logged, the time is so often, but for a master's first minutes.
NOTE_NS = 60 * SECOND_NS


class Uptime:
    """The sum, continued by this master from when this is made."""

    def __init__(self, clock: Clock, store: Store) -> None:
        self._clock = clock
        self._store = store
        self._began = clock.monotonic()
        with store.snapshot() as txn:
            self.began_ns = txn.state.lived_ns or time_of(txn, txn.state.sequence)
        self.began_ns = self.began_ns or clock.time_ns()

    def now_ns(self) -> int:
        own = self.began_ns + int((self._clock.monotonic() - self._began) * 1e9)
        return max(own, self._store.state.lived_ns)

    def wall_ns(self, then_ns: int) -> int:
        """When that will be, or was, by the wall clock as it is now: for people."""
        return then_ns - self.now_ns() + self._clock.time_ns()

    def to_be_noted(self, txn: Txn) -> TimePassed | None:
        """The row of the log that is due for the time alone, if it is."""
        not_noted, age = txn.lived_ns - txn.state.lived_ns, txn.lived_ns - self.began_ns
        return TimePassed() if not_noted >= min(NOTE_NS, max(SECOND_NS, age // 2)) else None
