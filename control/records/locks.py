"""A lock over all processes that share the records."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from control.records.errors import RecordsBusy

T = TypeVar("T")


class Line(Protocol):
    """The part of :class:`control.records.postgres.Database` that locks need."""

    def try_lock(self, name: str) -> bool: ...

    def unlock(self, name: str) -> None: ...


class Session(Protocol):
    """That of :class:`control.records.shared.Shared`."""

    @property
    def session(self) -> int: ...

    async def ask(self, work: Callable[[Line], T], *, always: bool = False) -> T: ...


class SharedLock:
    """A lock that one process of all that share the records has at a time.

    PostgreSQL releases it with the connection of its holder: when that dies, and some 11 s after
    the network has cut it off. The holder notices that within 7 s.
    """

    def __init__(self, shared: Session, name: str) -> None:
        self._shared = shared
        self._name = name
        self._session = 0

    @property
    def is_mine(self) -> bool:
        return 0 < self._session == self._shared.session

    async def take(self) -> bool:
        """Try to take the lock. Returns whether this process has it, which it has not while
        PostgreSQL is away. If this is cancelled, it may have it: then :meth:`release` does."""
        if self.is_mine:
            return True
        #: What came first: the lock was taken, in a session of this number, or (0) this call has
        #: given up. Then nobody would release it.
        first: dict[str, int] = {}

        def attempt(line: Line) -> None:
            if not first and line.try_lock(self._name):
                session = self._shared.session
                if first.setdefault("session", session) != session:
                    line.unlock(self._name)

        try:
            await self._shared.ask(attempt)
        except RecordsBusy:
            pass
        finally:
            self._session = first.setdefault("session", 0)
        return self.is_mine

    async def release(self) -> None:
        was_mine, self._session = self.is_mine, 0
        if was_mine:
            with suppress(RecordsBusy):
                await self._shared.ask(lambda line: line.unlock(self._name), always=True)
