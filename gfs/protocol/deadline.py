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
