"""Checks again and again whether requests under way may continue.

A request is checked when it begins and may last for hours: a terminal, a stream of events,
a large download to a slow client. Meanwhile any process that shares the records may end its
session, revoke its token, delete its user or reduce the rights of its service account. So
one task repeats, every :data:`WATCH_SECONDS`, the checks of every request under way that
has a credential, and ends those that would be refused now. Processes do not notify one
another: each reads the records, so a process that was stopped or has just started misses
nothing.

A request costs one entry of a dict while it lasts, and some 10 µs for each check.
Short ones are not checked; so a request that ends its own session is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from control.api import Call
from control.errors import ApiError

log = logging.getLogger(__name__)

#: Requests of a revoked credential have ended within 5 s, including the time that takes.
WATCH_SECONDS = 2.0
#: How long a request lasts before it is checked for the first time.
SHORT_SECONDS = 1.0
#: How many requests are checked before other tasks run: less than a millisecond.
AT_ONCE = 32

#: Checks a request again; returns the refusal, if it is refused now.
Ask = Callable[[Call], ApiError | None]
#: Ends the request; called once at most.
End = Callable[[ApiError], None]


class _UnderWay(NamedTuple):
    began: float
    call: Call
    end: End


class Watch:
    """The requests under way in this process that have a credential."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._under_way: dict[Hashable, _UnderWay] = {}

    def begin(self, key: Hashable, call: Call, end: End) -> None:
        """Check ``call`` until :meth:`forget`. Requests without a credential are not checked."""
        if call.principal is not None:
            self._under_way[key] = _UnderWay(trio.current_time(), call, end)

    def forget(self, key: Hashable) -> None:
        self._under_way.pop(key, None)

    @contextmanager
    def over(self, call: Call, end: End) -> Iterator[None]:
        """Check ``call`` for as long as the block lasts."""
        key = id(call)
        self.begin(key, call, end)
        try:
            yield
        finally:
            self.forget(key)

    async def run(self) -> None:
        """Check requests until cancelled. Raises the errors of reading the records."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Check each request under way once, and end those that are refused."""
        latest = trio.current_time() - SHORT_SECONDS
        long = [key for key, each in self._under_way.items() if each.began <= latest]
        for number, key in enumerate(long):
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            found = self._under_way.get(key)
            refusal = self._ask(found.call) if found is not None else None
            if found is not None and refusal is not None:
                del self._under_way[key]
                who = found.call.user.username
                log.info("%s of %r is ended: %s", found.call.route, who, refusal)
                found.end(refusal)
