"""The uptime of masters, added up. The times of the trash, of maintenance and of stored
answers are counted in it.

The wall clock of a machine may be days off, and jump. So it does not decide how long something
has been in the trash: each master adds the time that has passed on its own monotonic clock since
it was started, and every row of the operation log has the sum
(:attr:`~gfs.master.metadata.store.State.lived_ns`). A master that starts, or is
promoted, continues from the sum that it finds: the time in which no master ran is not
counted, nor is a dead master's time since its last row. If the trash is not empty, or a
chunkserver is under maintenance, and nothing else is logged, a row for the time alone
(TimePassed) is written often enough that at most half of a master's uptime, and at most
a minute, is lost.

In a store from before it was counted, whose rows have times of the wall clock, the sum
begins at the wall clock's time of the log's last row, so that those times keep their
meaning.
"""

from __future__ import annotations

from gfs.io import Clock
from gfs.master.metadata.operation_log import time_of
from gfs.master.metadata.operations import TimePassed
from gfs.master.metadata.store import Store, Txn

SECOND_NS = 1_000_000_000
#: The interval of rows for the time alone, except in a master's first minutes.
NOTE_NS = 60 * SECOND_NS


class Uptime:
    """The sum, which this master continues from the time this object is made."""

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
        """That time on the present wall clock, for operators."""
        return then_ns - self.now_ns() + self._clock.time_ns()

    def to_be_noted(self, txn: Txn) -> TimePassed | None:
        """The log row for the time alone, if one is due."""
        not_noted, age = txn.lived_ns - txn.state.lived_ns, txn.lived_ns - self.began_ns
        return TimePassed() if not_noted >= min(NOTE_NS, max(SECOND_NS, age // 2)) else None
