"""A simulated machine's clocks: Trio's virtual time, seen from one machine."""

from __future__ import annotations

import trio

from gfs.testing.life import Life
from gfs.testing.timers import sleep

#: Wall-clock time at virtual time 0: 2024-01-01 00:00:00 UTC.
EPOCH_NS = 1_704_067_200 * 1_000_000_000


class MachineTime:
    """How one machine's clocks differ from true (virtual) time."""

    def __init__(self) -> None:
        #: By how much the wall clock is ahead of true time. May change at any time.
        self.wall_offset_seconds = 0.0
        #: How long the machine was suspended in all, with its monotonic clock.
        self.suspended_seconds = 0.0
        self._rate = 1.0
        self._base_true = 0.0
        self._base_local = 0.0

    @property
    def rate(self) -> float:
        """The clock's drift: seconds of this machine per true second. 1 is exact."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._base_local, self._base_true = self.monotonic(), trio.current_time()
        self._rate = rate

    def monotonic(self) -> float:
        return self._base_local + (trio.current_time() - self._base_true) * self._rate

    def time_ns(self) -> int:
        return EPOCH_NS + round((self.monotonic() + self.wall_offset_seconds) * 1e9)


class SimClock:
    """One process's access to its machine's clocks, as :class:`gfs.io.Clock`."""

    def __init__(self, time: MachineTime, life: Life) -> None:
        self._time = time
        self._life = life

    def monotonic(self) -> float:
        return self._time.monotonic()

    def elapsed(self) -> float:
        return self._time.monotonic() + self._time.suspended_seconds

    def time_ns(self) -> int:
        return self._time.time_ns()

    async def sleep(self, seconds: float) -> None:
        self._life.check()
        await sleep(seconds / self._time.rate)
        self._life.check()
