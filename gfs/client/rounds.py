"""Calls that are under way at the same time share messages, without being asked to.

What a round of messages costs (a wake-up of each process, a hop to each disk's thread, a
commit) it costs for one small file as for a hundred. So calls queue here. One that finds
fewer than ``UNDER_WAY_MAX`` rounds under way starts one at once, and waits for nobody; what
arrives meanwhile goes with the next. The rounds grow with the load, as the master's commits do.

A round gives each item its result, or says that the caller has to go on by itself; so the
round repeats nothing, and nothing of a caller that has given up is sent later. Such a caller
leaves its items behind, and the others' go on; a round that nobody waits for is cancelled.

What waits longer than ``LATE_SECONDS`` starts a round of its own: a server that hangs delays
those that asked it, and not all that come after them. The queue is bounded by its callers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import trio

from gfs.blocks import MIB
from gfs.diagnostics import request
from gfs.errors import GfsError, MasterUnavailable

ReplyT = TypeVar("ReplyT")
ItemT = TypeVar("ItemT", bound="Item")

log = logging.getLogger(__name__)

UNDER_WAY_MAX = 2
LATE_SECONDS = 0.1
#: Files, and bytes, of one round.
ITEMS_MAX = 256
BYTES_MAX = 4 * MIB


class Item:
    """What one caller asks for. Subclasses keep the result."""

    __slots__ = ("_caller", "_round", "ended", "error", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.ended = False
        self.error: GfsError | None = None
        self._caller: _Caller | None = None
        self._round: _Round[Any] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the caller waits for it still."""
        return not self.ended and self._caller is not None and not self._caller.gone

    def end(self, error: GfsError | None = None) -> bool:
        """The round has done what it can. False: nobody takes what came of it."""
        if not self.is_wanted:
            return False
        self.ended, self.error = True, error
        assert self._caller is not None
        self._caller.one_ended()
        return True


class _Caller:
    """A task that waits for its items."""

    __slots__ = ("_left", "_task", "gone")

    def __init__(self, left: int) -> None:
        self._left = left
        self._task: trio.lowlevel.Task | None = None
        self.gone = False

    async def wait(self, gave_up: Callable[[], None]) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self.gone = True
            gave_up()
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def one_ended(self) -> None:
        self._left -= 1
        if not self._left and self._task is not None:
            trio.lowlevel.reschedule(self._task)


class _Round(Generic[ItemT]):
    """Items that share messages."""

    __slots__ = ("is_late", "items", "scope")

    def __init__(self, items: Sequence[ItemT]) -> None:
        self.items = items
        self.is_late = False  # it counts no more
        self.scope = trio.CancelScope()

    def look(self) -> None:
        """A caller has given up."""
        if not any(item.is_wanted for item in self.items):
            self.scope.cancel()


class Rounds(Generic[ItemT]):
    """One queue. ``work`` does what the items of a round ask for, and ends each."""

    def __init__(
        self, nursery: trio.Nursery, work: Callable[[list[ItemT]], Awaitable[None]]
    ) -> None:
        self._nursery = nursery
        self._work = work
        self._waiting: deque[ItemT] = deque()
        self._under_way: set[_Round[ItemT]] = set()
        #: Tasks that have a round, or take one; without those that are late.
        self._running = 0
        self._begun = 0
        self._is_watched = False
        self.is_closed = False
        self._ends = trio.lowlevel.ParkingLot()

    async def ask(self, items: Sequence[ItemT]) -> None:
        """Return when all of them have ended."""
        if self.is_closed:
            raise MasterUnavailable("the client is closed")
        if not items:
            await trio.lowlevel.checkpoint()
            return
        caller = _Caller(len(items))
        for item in items:
            item._caller = caller
        self._waiting.extend(items)
        if self._running < UNDER_WAY_MAX:
            self._start()
        elif not self._is_watched:
            self._is_watched = True
            self._nursery.start_soon(self._watch)

        def gave_up() -> None:
            for one in {item._round for item in items}:
                if one is not None:
                    one.look()

        await caller.wait(gave_up)

    def close(self) -> None:
        """End all calls now, and those that are made later."""
        self.is_closed = True
        for one in self._under_way:
            one.scope.cancel()
            self._waiting.extend(one.items)
        while self._waiting:
            self._waiting.popleft().end(MasterUnavailable("the client is closed"))

    async def ended(self) -> None:
        """Return when nothing is under way."""
        while self._under_way:
            await self._ends.park()

    def _start(self) -> None:
        self._running += 1
        self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        request.set(0)  # each message is of its own caller's request
        while items := self._take():
            one = _Round(items)
            await self._do(one, items)
            if one.is_late:
                return
        self._running -= 1

    async def _do(self, one: _Round[ItemT], items: list[ItemT]) -> None:
        self._under_way.add(one)
        for item in items:
            item._round = one
        try:
            with one.scope:
                await self._work(items)
        except Exception:
            log.exception("a bug in a round of small files: each file goes on by itself")
        finally:
            self._under_way.discard(one)
            self._ends.unpark_all()
            for item in items:
                item.end()
                item._round = None

    def _take(self) -> list[ItemT]:
        """The items of the next round."""
        taken: list[ItemT] = []
        size = 0
        waiting = self._waiting
        while waiting and len(taken) < ITEMS_MAX:
            item = waiting[0]
            if taken and size + item.size > BYTES_MAX:
                break
            waiting.popleft()
            if item.is_wanted:
                taken.append(item)
                size += item.size
        self._begun += 1
        return taken

    async def _watch(self) -> None:
        """See that nothing waits long."""
        while self._waiting:
            begun = self._begun
            await trio.sleep(LATE_SECONDS)
            if self._waiting and self._begun == begun:
                for one in self._under_way:
                    self._running -= not one.is_late
                    one.is_late = True
                self._start()
        self._is_watched = False
