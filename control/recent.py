"""What is obtained for all who ask within a second.

Anybody may ask how the cluster is, whether this process is ready, and for its counters, as often
as the line has room, and each answer costs questions to the master, a call of Podman, or some
milliseconds of computing. So these answers are at most a second old.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

RECENT_SECONDS = 1.0


class Recent(Generic[T]):
    """A value that is at most ``RECENT_SECONDS`` old.

    Args:
        obtain: Returns the value, within some seconds, since a client that leaves does not cancel
            it: it works for all who wait.
    """

    def __init__(self, obtain: Callable[[], Awaitable[T]]) -> None:
        self._obtain = obtain
        self._lock = trio.Lock()
        self._found: list[T] = []
        self._error: Exception | None = None
        self._until = -math.inf

    async def get(self) -> T:
        """The value. Raises what ``obtain`` raised, for as long."""
        async with self._lock:
            if trio.current_time() >= self._until:
                self._error = None
                try:
                    with trio.CancelScope(shield=True):
                        self._found = [await self._obtain()]
                except Exception as error:
                    self._error = error
                self._until = trio.current_time() + RECENT_SECONDS
            if self._error is not None:
                raise self._error.with_traceback(None)
            return self._found[0]
