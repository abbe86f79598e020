"""Passes over all chunks, which run in slices beside everything else, and what a bug in the
master's own work is met with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import trio

from gfs.io import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")


def guarded(work: Callable[[], T], otherwise: T) -> T:
    """Log a bug of a background task; the master continues to serve."""
    try:
        return work()
    except ConnectionError:
        raise  # a simulated process was killed
    except Exception:
        log.exception("a background task of the master failed because of a bug")
        return otherwise


class Passes:
    """``ended`` is called after each pass."""

    def __init__(
        self, clock: Clock, nursery: trio.Nursery, ended: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._nursery = nursery
        self._ended = ended

    def start(self, slices: Iterator[None]) -> None:
        self._nursery.start_soon(self.run, slices)

    async def run(self, slices: Iterator[None], rest_seconds: float = 0.0) -> None:
        """With a rest between slices, or none."""
        done = object()
        while guarded(partial(next, slices, done), done) is not done:
            if rest_seconds:
                await self._clock.sleep(rest_seconds)
            else:
                await trio.lowlevel.checkpoint()
        self._ended()
