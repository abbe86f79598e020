"""Failed logins: counted per address and per user, by all workers together.

Over the limit every attempt is refused before its password is looked at, the
right one too: otherwise guessing would go on behind the refusals. Attempts that
were let in together are counted when their outcome is known; those that find the
limit reached by then are not told it, whether they were right or wrong. Logins
that succeed are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from control.errors import TooManyRequests
from control.volatile import Volatile

MESSAGE = "too many failed logins: try again later"
_KIND = "login-failure"


class Failures:
    """``limit`` failures in ``window_seconds`` are borne; 0: any number."""

    def __init__(self, volatile: Volatile, limit: int, window_seconds: float) -> None:
        self._volatile = volatile
        self._limit = limit
        self._window = window_seconds

    def check(self, address: str, username: str, now: float) -> None:
        """Before an attempt. Raises TooManyRequests."""
        if not self._limit:
            return
        waits = [
            wait_seconds(
                self._volatile.get(_KIND, key, list[float], now=now) or [],
                self._limit,
                self._window,
                now,
            )
            for key in _keys(address, username)
        ]
        _refuse(max(waits))

    def note(self, address: str, username: str, now: float) -> None:
        """An attempt has failed. Raises TooManyRequests if it was one too many."""
        if not self._limit:
            return
        waits = [
            # This one is among the times: it is only too many if others were enough.
            wait_seconds(
                self._volatile.add(_KIND, key, now, self._window)[:-1],
                self._limit,
                self._window,
                now,
            )
            for key in _keys(address, username)
        ]
        _refuse(max(waits))


def wait_seconds(times: Iterable[float], limit: int, window: float, now: float) -> float:
    """How long until fewer than ``limit`` failures are within the window; 0: they are."""
    recent = sorted(at for at in times if abs(now - at) < window)
    if len(recent) < limit:
        return 0.0
    return recent[len(recent) - limit] + window - now


def _keys(address: str, username: str) -> list[str]:
    return [f"user {username}", *([f"address {address}"] if address else [])]


def _refuse(wait: float) -> None:
    if wait > 0:
        raise TooManyRequests(MESSAGE, math.ceil(wait))
