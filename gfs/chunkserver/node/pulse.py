"""Pulses: a server sends them while it works on a write or append (:mod:`gfs.protocol.patience`).

It sends none while its disk is stuck: for a client, a hanging disk is the same as a hanging
server. A disk is *stuck* when calls to it are under way and none has ended for
``STUCK_SECONDS``. With the silence after which a server is left out, that is less than the five
seconds that a call takes at most when one disk hangs, whatever that disk did before.
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
    from gfs.chunkserver.disks import Disk

STUCK_SECONDS = 1.0


class Calls:
    """The calls under way to one disk, and when one ended last."""

    def __init__(self) -> None:
        self._began: dict[object, float] = {}
        self._ended = float("-inf")

    def begin(self, call: object, now: float) -> None:
        self._began[call] = now

    def end(self, call: object, now: float) -> None:
        del self._began[call]
        self._ended = now

    def give_up(self, call: object) -> None:
        del self._began[call]

    def is_stuck(self, now: float) -> bool:
        since = min(self._began.values(), default=now)
        return now - max(self._ended, since) > STUCK_SECONDS


class Answering:
    """A peer that waits for an answer, at the other end of ``connection``."""

    def __init__(self, connection: BulkConnection) -> None:
        self._connection = connection
        self._turn = trio.Lock()
        self.disk: Disk | None = None
        #: Whether it is the peer's turn to send: it may pause, and reads pulses later.
        self.rests = False
        self.ended = False

    async def send(self, message: Message) -> None:
        async with self._turn:
            await self._connection.send(message)

    async def report_working(self, id: int) -> None:
        """Send a pulse. A peer that does not read even that is disconnected."""
        if self.ended or self._turn.locked():
            return
        with trio.move_on_after(SILENT_SECONDS) as scope:
            try:
                await self.send(Working(id=id))
            except (ConnectionError, GfsError):
                return  # this also fails the exchange on the connection
        if scope.cancelled_caught:
            self._connection.close()


class Pulse:
    """All exchanges that get pulses."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answering: dict[Answering, int] = {}
        #: Weak: entries go with disks that are no longer used.
        self._calls: WeakKeyDictionary[Disk, Calls] = WeakKeyDictionary()
        self._some = trio.Event()

    @contextmanager
    def given(self, answering: Answering, id: int) -> Iterator[None]:
        """Send pulses to the waiting peer within this block."""
        self._answering[answering] = id
        self._some.set()
        try:
            yield
        finally:
            answering.ended = True
            del self._answering[answering]

    @contextmanager
    def on_disk(self, disk: Disk) -> Iterator[None]:
        """Count an exchange that waits for the disk within this block."""
        calls = self._calls.setdefault(disk, Calls())
        call = object()
        calls.begin(call, self._clock.monotonic())
        try:
            yield
        except BaseException:
            calls.give_up(call)  # an abandoned call has not ended
            raise
        calls.end(call, self._clock.monotonic())

    def _is_stuck(self, disk: Disk | None) -> bool:
        calls = None if disk is None else self._calls.get(disk)
        return calls is not None and calls.is_stuck(self._clock.monotonic())

    async def run(self) -> None:
        """Send the pulses. Runs as long as the server."""
        while True:
            await self._some.wait()
            while self._answering:
                await self._clock.sleep(PULSE_SECONDS)
                async with trio.open_nursery() as nursery:
                    for answering, id in self._answering.items():
                        if not answering.rests and not self._is_stuck(answering.disk):
                            nursery.start_soon(answering.report_working, id)
            self._some = trio.Event()
