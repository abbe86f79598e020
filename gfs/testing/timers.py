"""Virtual time, and waiting in it without the cost of a cancel scope for each wait.

The clock of a simulated run stands still while any task can run, and jumps to the next
event when none can: Trio asks it then how long to sleep. The next event is one of
Trio's deadlines or of the timers kept here. A simulated cluster mostly sleeps, and most
sleeps are not cancelled; timers cost a fifth of ``trio.sleep``, which makes a cancel
scope and lets it expire.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import trio

#: No timer is due; Trio may sleep without a limit.
NO_TIMER_SECONDS = 1e9


class Sleeper:
    """A task that waits. The first wake-up takes the task out."""

    __slots__ = ("task",)

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task: trio.lowlevel.Task | None = task

    def wake(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def leave(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class VirtualClock(trio.abc.Clock):
    """Starts at 0. ``must_stand`` says when it may not jump although no task can run."""

    def __init__(self, must_stand: Callable[[], bool]) -> None:
        self.now = 0.0
        self._must_stand = must_stand
        #: (time, order of arrival, sleeper)
        self._timers: list[tuple[float, int, Sleeper]] = []
        self._count = 0

    def start_clock(self) -> None:
        """Nothing to do."""

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to ``deadline`` or the first timer before it, and wake the tasks that are due."""
        if self._must_stand():
            return NO_TIMER_SECONDS
        timers = self._timers
        while timers and timers[0][2].task is None:
            heapq.heappop(timers)
        next_at = min(deadline, timers[0][0]) if timers else deadline
        if next_at == math.inf:
            return NO_TIMER_SECONDS
        now = self.now = max(self.now, next_at)
        while timers and timers[0][0] <= now:
            heapq.heappop(timers)[2].wake()
        return 0.0

    def wake_at(self, when: float, sleeper: Sleeper) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, sleeper))


def _clock() -> VirtualClock:
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, VirtualClock):
        raise RuntimeError("a simulated world works only inside run_simulated()")
    return clock


async def sleep_until(when: float) -> None:
    """As ``trio.sleep_until``."""
    clock = _clock()
    if when <= clock.now:
        await trio.lowlevel.checkpoint()
        return
    sleeper = Sleeper(trio.lowlevel.current_task())
    clock.wake_at(when, sleeper)
    await trio.lowlevel.wait_task_rescheduled(sleeper.leave)


async def sleep(seconds: float) -> None:
    """As ``trio.sleep``."""
    await sleep_until(trio.current_time() + seconds)


async def sleep_until_shielded(when: float) -> None:
    """As ``sleep_until``, and nothing can cancel it."""
    clock = _clock()
    sleeper = Sleeper(trio.lowlevel.current_task())
    clock.wake_at(max(when, clock.now), sleeper)
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


class WaitingRoom:
    """Tasks wait here until they are woken, or until a time."""

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: list[Sleeper] = []

    async def wait(self, until: float) -> None:
        """Returns after a wake-up, or at ``until``."""
        sleeper = Sleeper(trio.lowlevel.current_task())
        if until < math.inf:
            _clock().wake_at(until, sleeper)
        self._sleepers.append(sleeper)
        try:
            await trio.lowlevel.wait_task_rescheduled(sleeper.leave)
        finally:
            self._sleepers.remove(sleeper)

    def wake(self) -> None:
        for sleeper in self._sleepers:
            sleeper.wake()

    def wake_at(self, when: float) -> None:
        """Tasks that wait now are woken at ``when`` at the latest."""
        if self._sleepers:
            clock = _clock()
            for sleeper in self._sleepers:
                if sleeper.task is not None:
                    clock.wake_at(when, sleeper)
