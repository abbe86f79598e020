"""One look every few seconds, for all who listen."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Shared(Generic[T]):
    """The result of ``look``, which is called again when it is older than ``seconds``.

    Callers wait for one another: none looks while another does. If one is cancelled while it
    looks, or ``look`` raises, the next one looks again.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._lock = trio.Lock()
        self._looked_at = -math.inf
        self._found: T

    async def get(self) -> T:
        async with self._lock:
            now = trio.current_time()
            if now - self._looked_at >= self._seconds:
                self._found = await self._look()
                self._looked_at = now
            return self._found
