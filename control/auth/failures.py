"""Failed logins: counted for a user at an address, for a user, and for an address.

All workers count together. Three limits, and with none can a stranger keep a user out:

*A user at an address* (of IPv6, in a network of 64 bits). After so many failures within
the window every further attempt is refused before its password is looked at, the right
one too: otherwise guessing would go on behind the refusals. Attempts that were let in
together are counted when their outcome is known; those that find the limit reached by
then do not learn it. Who guesses from another address reaches a limit of his own.

*A user as a whole.* When as many attempts have failed, from wherever, answers come late:
half a second, and twice as long with each further failure, up to 8 s. Late, and not
never: a refusal would be the guesser's means to keep the user out. A right password from
an address that the user has logged in from before is not kept waiting at all.

*An address as a whole.* When :data:`ADDRESS_UNDELAYED_MAX` attempts have failed there,
for whatever names, answers come late in the same way: names can be made up without end.

This slows down somebody who guesses from a thousand addresses; what stops him is a
password of some length (:func:`control.identity.passwords.new_password`).

What is counted for a user are failures at a *password*: a digest of its hash is part of
the keys, so a new one begins at nought, whichever process sets it. Names that do not
exist are counted like those that do. Logins that succeed are not counted.

A count is a list of times, 1 KB at most, and is forgotten with the window. One comes
about by a hash that was computed, of which a worker makes some 20 a second: with the
window of 15 minutes 54,000 counts of 100 bytes at most, and whatever happens no more
than the map of :mod:`control.records.volatile` holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from control.errors import TooManyRequests
from control.http import network_of
from control.records.volatile import Volatile

MESSAGE = "too many failed logins: try again later"
#: Failures of a user that delay nobody, with a limit that is higher.
UNDELAYED_MAX = 20
#: Failures at an address that delay nobody: people who work behind one address forget
#: their passwords, too.
ADDRESS_UNDELAYED_MAX = 50
DELAY_SECONDS = 0.5
#: Clients wait longer than this for an answer.
DELAY_SECONDS_MAX = 8.0
_KIND = "login-failure"


@dataclass(frozen=True)
class Attempt:
    """Somebody tries to be ``username``, whose password's hash is ``stored``: "" if there
    is no such user."""

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
    """``limit`` failures in ``window_seconds`` are borne; 0: any number."""

    def __init__(self, volatile: Volatile, limit: int, window_seconds: float) -> None:
        self._volatile = volatile
        self._limit = limit
        self._window = window_seconds

    def check(self, attempt: Attempt, now: float) -> None:
        """Check the limits before an attempt. Raises TooManyRequests."""
        if self._limit:
            self._refuse(self._times(attempt.at_address, now), now)

    def note(self, attempt: Attempt, now: float) -> None:
        """Count a failed attempt. Raises TooManyRequests if it was one too many."""
        if self._limit:
            for key in (attempt.of_user, attempt.of_address):
                self._volatile.add(_KIND, key, now, self._window)
            times = self._volatile.add(_KIND, attempt.at_address, now, self._window)
            # The count includes this attempt.
            self._refuse(times[:-1], now)

    def delay(self, attempt: Attempt, now: float) -> float:
        """In how many seconds the attempt is to be answered."""
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
    """How long until fewer than ``limit`` failures are within the window; 0: they are."""
    recent = sorted(at for at in times if abs(now - at) < window)
    if len(recent) < limit:
        return 0.0
    return recent[len(recent) - limit] + window - now


def delay_seconds(times: Iterable[float], undelayed: int, window: float, now: float) -> float:
    """How late the next answer comes after these failures, the first of which delay nobody."""
    recent = sum(abs(now - at) < window for at in times)
    over = recent - undelayed
    return min(DELAY_SECONDS_MAX, DELAY_SECONDS * 2.0 ** (over - 1)) if over > 0 else 0.0
