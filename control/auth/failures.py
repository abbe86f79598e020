"""Failed logins: counted for a user at an address, for a user, and for an address.

The counts are shared by all workers. There are three limits, and none lets a stranger
lock a user out:

*A user at an address* (of IPv6, in a network of 64 bits). After so many failures within
the window every further attempt is refused before its password is verified, a right one
too: otherwise guessing could continue despite the refusals. Attempts that were admitted
together are counted when their outcome is known; those that exceed the limit then are
not answered with it. Another address has a limit of its own.

*A user as a whole.* When as many attempts have failed, from any addresses, answers are
delayed: by half a second, and twice as long with each further failure, up to 8 s. They
are not refused, since a guesser could then lock the user out. A right password from an
address that the user has logged in from before is answered without delay.

*An address as a whole.* When :data:`ADDRESS_UNDELAYED_MAX` attempts have failed there,
for any names, answers are delayed in the same way, since names can be invented without limit.

This slows down guesses from a thousand addresses; only a password of sufficient length
stops them (:func:`control.identity.passwords.new_password`).

What is counted for a user are failures at a *password*: a digest of its hash is part of
the keys, so the count of a new password begins at zero, whichever process sets it.
Names that do not exist are counted like those that do. Logins that succeed are not
counted.

A count is a list of times, 1 KB at most, and is forgotten with the window. Each failure
costs the computation of a hash, of which a worker makes some 20 a second: with the
window of 15 minutes there are at most 54,000 counts of 100 bytes per worker, and never
more than the map of :mod:`control.volatile` has room for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from control.api import TooManyRequests, Volatile
from control.api.internals import network_of

MESSAGE = "too many failed logins: try again later"
#: Most failures of a user that cause no delay, however high the limit is.
UNDELAYED_MAX = 20
#: Failures at an address that cause no delay: several users behind one address may
#: mistype their passwords.
ADDRESS_UNDELAYED_MAX = 50
DELAY_SECONDS = 0.5
#: The longest delay; clients wait longer than this for an answer.
DELAY_SECONDS_MAX = 8.0
_KIND = "login-failure"


@dataclass(frozen=True)
class Attempt:
    """An attempt to log in as ``username``, whose password's hash is ``stored``: "" if
    there is no such user."""

    username: str
    stored: str
    address: str

    @property
    def of_user(self) -> str:
        digest = hashlib.blake2b(self.stored.encode(), digest_size=8).hexdigest()
        return f"{digest} user {self.username}"

    @property
    def at_address(self) -> str:
        return f"{network_of(self.address)} {self.of_user}"

    @property
    def of_address(self) -> str:
        return f"{network_of(self.address)} anybody"


class Failures:
    """``limit`` failures in ``window_seconds`` are allowed; 0: any number."""

    def __init__(self, volatile: Volatile, limit: int, window_seconds: float) -> None:
        self._volatile = volatile
        self._limit = limit
        self._window = window_seconds

    def check(self, attempt: Attempt, now: float) -> None:
        """Check the limits before an attempt. Raises TooManyRequests."""
        if self._limit:
            self._refuse(self._times(attempt.at_address, now), now)

    def note(self, attempt: Attempt, now: float) -> None:
        """Count a failed attempt. Raises TooManyRequests if it exceeds the limit."""
        if self._limit:
            for key in (attempt.of_user, attempt.of_address):
                self._volatile.add(_KIND, key, now, self._window)
            times = self._volatile.add(_KIND, attempt.at_address, now, self._window)
            # The count includes this attempt.
            self._refuse(times[:-1], now)

    def delay(self, attempt: Attempt, now: float) -> float:
        """The delay of the answer to the attempt, in seconds."""
        if not self._limit:
            return 0.0
        borne = {
            attempt.of_user: min(self._limit, UNDELAYED_MAX),
            attempt.of_address: ADDRESS_UNDELAYED_MAX,
        }
        return max(
            delay_seconds(self._times(key, now), undelayed, self._window, now)
            for key, undelayed in borne.items()
        )

    def _times(self, key: str, now: float) -> list[float]:
        return self._volatile.get(_KIND, key, list[float], now=now) or []

    def _refuse(self, times: Iterable[float], now: float) -> None:
        wait = wait_seconds(times, self._limit, self._window, now)
        if wait > 0:
            raise TooManyRequests(MESSAGE, math.ceil(wait))


def wait_seconds(times: Iterable[float], limit: int, window: float, now: float) -> float:
    """How long until fewer than ``limit`` failures are within the window; 0 if so now."""
    recent = sorted(at for at in times if abs(now - at) < window)
    if len(recent) < limit:
        return 0.0
    return recent[len(recent) - limit] + window - now


def delay_seconds(times: Iterable[float], undelayed: int, window: float, now: float) -> float:
    """The delay of the next answer after these failures, the first of which cause none."""
    recent = sum(abs(now - at) < window for at in times)
    over = recent - undelayed
    return min(DELAY_SECONDS_MAX, DELAY_SECONDS * 2.0 ** (over - 1)) if over > 0 else 0.0
