"""Requests under way are asked again whether they may go on.

A request is let in once and may last for hours: a terminal, a stream of events, a large
download to a slow client. Meanwhile its session may be ended, its token revoked, its
user deleted or its service account given less to do, by any process that shares the
records. So one task asks every :data:`WATCH_SECONDS`, of every request under way that
came with a credential, what was asked when it came, and ends those that would be refused
now. Nothing is announced between processes: each looks into the records, so a process
that was stopped or has just started misses nothing.

A request costs one entry of a dict while it lasts, and some 10 µs for each look at it.
Short ones are not looked at. So nothing is said twice to a client that ends its own
session: the request that does it is answered.
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

#: A revoked credential is out within 5 s, the time for ending requests included.
WATCH_SECONDS = 2.0
#: A request is first checked when it has lasted for so long.
SHORT_SECONDS = 1.0
#: Requests checked before other tasks have their turn: less than a millisecond.
AT_ONCE = 32

#: Asks again; the refusal, if it is refused now.
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
        """Look at ``call`` until :meth:`forget`. Requests without a credential are not checked."""
        if call.principal is not None:
            self._under_way[key] = _UnderWay(trio.current_time(), call, end)

    def forget(self, key: Hashable) -> None:
        self._under_way.pop(key, None)

    @contextmanager
    def over(self, call: Call, end: End) -> Iterator[None]:
        """Look at ``call`` for as long as the block lasts."""
        key = id(call)
        self.begin(key, call, end)
        try:
            yield
        finally:
            self.forget(key)

    async def run(self) -> None:
        """Look, until cancelled. Raises what reading the records raises."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Ask for each request under way, and end those that are refused."""
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
