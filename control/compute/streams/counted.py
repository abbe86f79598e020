"""Bounds the streams of one kind (terminals, readers of logs) of a container."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from control.api import TooManyRequests

AGAIN_SECONDS = 5


class Counted:
    """Counts them, in this process. ``noun`` is for messages, in the plural."""

    def __init__(self, most: int, noun: str) -> None:
        self._most = most
        self._noun = noun
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_more(self, container_id: str) -> Iterator[None]:
        """Count one more until the block ends. Raises TooManyRequests."""
        if self._open[container_id] >= self._most:
            raise TooManyRequests(
                f"the container has {self._most} {self._noun} already: close one first",
                AGAIN_SECONDS,
            )
        self._open[container_id] += 1
        try:
            yield
        finally:
            self._open[container_id] -= 1
            self._open = +self._open  # without those that have none
