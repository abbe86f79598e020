"""Deadlines whose errors say what was waited for."""

from __future__ import annotations

from types import TracebackType

import trio

from gfs.errors import DeadlineExceeded


def deadline(seconds: float, waiting_for: str) -> _Deadline:
    """Raise DeadlineExceeded if the body takes longer than ``seconds``."""
    return _Deadline(seconds, waiting_for)


class _Deadline:
    """A class, because a generator and ``move_on_after`` would cost as much again as
    the cancel scope, on every exchange."""

    __slots__ = ("_scope", "_seconds", "_waiting_for")

    def __init__(self, seconds: float, waiting_for: str) -> None:
        self._seconds = seconds
        self._waiting_for = waiting_for

    def __enter__(self) -> trio.CancelScope:
        self._scope = trio.CancelScope(deadline=trio.current_time() + self._seconds)
        return self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Only the scope's own cancellation is swallowed, and replaced by this error.
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise DeadlineExceeded(f"no {self._waiting_for} within {self._seconds:g} s") from None


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
        """Suspend the deadline: nothing is waited for now."""
        self.scope.deadline = float("inf")

    def error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no {self._waiting_for} within {self._seconds:g} s")
