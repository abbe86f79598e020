"""Every wait has a deadline, and says what was waited for when it passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from gfs.errors import DeadlineExceeded


@contextmanager
def deadline(seconds: float, waiting_for: str) -> Iterator[trio.CancelScope]:
    """Raise DeadlineExceeded if the body takes longer than ``seconds``."""
    with trio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"no {waiting_for} within {seconds:g} s")


class Watch:
    """One cancel scope over many waits in turn, each with its own deadline.

    A scope per wait costs more than many of the waits themselves. Use it as::

        with watch.scope:
            watch.expect(5, "packet")
            ...
        if watch.scope.cancelled_caught:
            raise watch.error()
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self._seconds = 0.0
        self._waiting_for = ""

    def expect(self, seconds: float, waiting_for: str) -> None:
        """From now on ``waiting_for`` must come within ``seconds``."""
        self._seconds, self._waiting_for = seconds, waiting_for
        self.scope.deadline = trio.current_time() + seconds

    def rest(self) -> None:
        """Nothing is waited for now."""
        self.scope.deadline = float("inf")

    def error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no {self._waiting_for} within {self._seconds:g} s")
