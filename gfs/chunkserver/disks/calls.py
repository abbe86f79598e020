"""The calls to a disk that threads make, and how long they have run."""

from __future__ import annotations

import itertools

import trio

from gfs.chunkserver.files import Call

#: A disk with a call that runs for longer than this is reported as slow.
SLOW_SECONDS = 5.0
#: How often unfinished calls are checked.
TICK_SECONDS = 0.5


class Calls:
    """The calls to one disk; at most ``threads`` of them run at a time."""

    def __init__(self, threads: int, hang_seconds: float) -> None:
        self.limiter = trio.CapacityLimiter(threads)
        self.hang_seconds = hang_seconds
        self.numbers = itertools.count()
        #: Calls that threads are making, abandoned ones included. Threads change it:
        #: the loop copies it before it reads it.
        self.running: dict[int, Call] = {}
        #: Of the tasks that wait for a call.
        self.scopes: set[trio.CancelScope] = set()
        #: Set when the probe that is under way ends.
        self.probed: trio.Event | None = None

    @property
    def are_slow(self) -> bool:
        return any(call.ticks * TICK_SECONDS > SLOW_SECONDS for call in list(self.running.values()))

    def tick(self) -> Call | None:
        """Called every ``TICK_SECONDS``; returns a call that has run for too long."""
        for call in list(self.running.values()):
            call.ticks += 1
            if call.ticks * TICK_SECONDS >= self.hang_seconds:
                return call
        return None

    def abandon(self) -> None:
        """No task waits for a call any more."""
        for scope in list(self.scopes):
            scope.cancel()
