"""What a server says while it works on a write or an append (:mod:`gfs.protocol.patience`).

It says nothing while its disk does not get on: a disk that hangs is as bad to whoever
waits as a server that does. *Not getting on* is that no call of any exchange to the disk
has ended for as long as is usual there: four times as long as the longest call of the last
half minute took, at least ``STUCK_SECONDS_MIN``, at most ``STUCK_SECONDS_MAX``. So a
loaded disk, on which calls take a second, has four; one that is idle, and hangs, is left
after one, and the two seconds in which nothing is heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from gfs.errors import GfsError
from gfs.io import Clock
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Message, Working
from gfs.protocol.patience import PULSE_SECONDS, SILENT_SECONDS

if TYPE_CHECKING:
    from gfs.chunkserver.disks.disk import Disk

STUCK_SECONDS_MIN, STUCK_SECONDS_MAX = 1.0, 6.0
#: What a call took buys patience for so long, and so many times that.
PACE_SECONDS = 30.0
PACE_FACTOR = 4


class Pace:
    """Of one disk: what of it is waited for, and how long such calls take."""

    def __init__(self) -> None:
        self._began: dict[object, float] = {}
        self._moved = float("-inf")
        #: The longest call of this half minute and of the one before, and since when.
        self._longest = self._before = 0.0
        self._since = float("-inf")

    def begin(self, call: object, now: float) -> None:
        self._began[call] = now

    def end(self, call: object, now: float) -> None:
        took = now - self._began.pop(call)
        self._moved = now
        self._turn(now)
        self._longest = max(self._longest, took)

    def give_up(self, call: object) -> None:
        del self._began[call]

    def _turn(self, now: float) -> None:
        passed = now - self._since
        if passed >= PACE_SECONDS:
            self._before = self._longest if passed < 2 * PACE_SECONDS else 0.0
            self._longest, self._since = 0.0, now

    def is_stuck(self, now: float) -> bool:
        if not self._began:
            return False
        self._turn(now)
        usual = PACE_FACTOR * max(self._longest, self._before)
        patience = min(max(usual, STUCK_SECONDS_MIN), STUCK_SECONDS_MAX)
        return now - max(self._moved, min(self._began.values())) > patience


class Answering:
    """Somebody who waits for an answer, at the other end of ``connection``."""

    def __init__(self, connection: BulkConnection) -> None:
        self._connection = connection
        self._turn = trio.Lock()
        self.disk: Disk | None = None
        #: It is his turn: he may pause for long, and then read what came meanwhile.
        self.rests = False
        self.ended = False

    async def send(self, message: Message) -> None:
        async with self._turn:
            await self._connection.send(message)

    async def report_working(self, id: int) -> None:
        """That it is being worked on. Who does not even read that is hung up on."""
        if self.ended or self._turn.locked():
            return
        with trio.move_on_after(SILENT_SECONDS) as scope:
            try:
                await self.send(Working(id=id))
            except (ConnectionError, GfsError):
                return  # whoever uses the connection will meet it, too
        if scope.cancelled_caught:
            self._connection.close()


class Pulse:
    """All that a server works on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answering: dict[Answering, int] = {}
        #: Those of disks that are not used any more go with them.
        self._paces: WeakKeyDictionary[Disk, Pace] = WeakKeyDictionary()
        self._some = trio.Event()

    @contextmanager
    def given(self, answering: Answering, id: int) -> Iterator[None]:
        """Somebody waits, and is told so, for as long as this is open."""
        self._answering[answering] = id
        self._some.set()
        try:
            yield
        finally:
            answering.ended = True
            del self._answering[answering]

    @contextmanager
    def on_disk(self, disk: Disk) -> Iterator[None]:
        """A disk is waited for."""
        pace = self._paces.setdefault(disk, Pace())
        call = object()
        pace.begin(call, self._clock.monotonic())
        try:
            yield
        except BaseException:
            pace.give_up(call)  # a call that is not waited for any more has not ended
            raise
        pace.end(call, self._clock.monotonic())

    def _is_stuck(self, disk: Disk | None) -> bool:
        pace = None if disk is None else self._paces.get(disk)
        return pace is not None and pace.is_stuck(self._clock.monotonic())

    async def run(self) -> None:
        """For as long as the server runs."""
        while True:
            await self._some.wait()
            while self._answering:
                await self._clock.sleep(PULSE_SECONDS)
                async with trio.open_nursery() as nursery:
                    for answering, id in self._answering.items():
                        if not answering.rests and not self._is_stuck(answering.disk):
                            nursery.start_soon(answering.report_working, id)
            self._some = trio.Event()
