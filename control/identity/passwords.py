"""Passwords: Argon2id, in threads, a few at a time.

Hashing one takes 64 MiB and a tenth of a second by default, and over a second on
busy cores. So at most ``threads`` run at once, at most ``queue`` wait, and further
logins are refused with Retry-After. No address fills the queue alone: it gets at
most as many places as are left for the others. The addresses that wait are served in
turn, one password each. An unknown user costs the same hash as a wrong password, since
the time would show which users exist.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import trio
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

from control.errors import BadRequest, Unavailable
from control.http import network_of
from control.identity.users import bounded
from control.settings import ControlSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSWORD_BYTES_MAX = 1024
#: The shortest new password, in characters: NIST SP 800-63B, which also says why there is no
#: rule about kinds of characters.
PASSWORD_LENGTH_MIN = 8
PASSWORD_LETTERS_MIN = 4
#: The text wherever a new password is asked for or refused, also in the console and the docs.
PASSWORD_RULE = (
    f"at least {PASSWORD_LENGTH_MIN} characters, {PASSWORD_LETTERS_MIN} of them different, and "
    "not the username"
)
#: The longest wait for a turn.
TURN_SECONDS = 30.0
BUSY = "too many people are logging in at this moment: try again in some seconds"


def check_password(password: str, field: str = "password") -> str:
    """``password``, if it is valid. Raises BadRequest that names ``field``."""
    return bounded(field, password, PASSWORD_BYTES_MAX)


def new_password(password: str, username: str, field: str = "password") -> str:
    """``password``, if a user may have it from now on. Raises BadRequest."""
    check_password(password, field)
    is_short = len(password) < PASSWORD_LENGTH_MIN or len(set(password)) < PASSWORD_LETTERS_MIN
    if is_short or password.casefold() == username.casefold():
        raise BadRequest(f"{field}: {PASSWORD_RULE}")
    return password


def make_hasher(settings: ControlSettings) -> PasswordHasher:
    """The hasher for new passwords, and for those that were hashed with other parameters."""
    return PasswordHasher(
        time_cost=settings.password_passes, memory_cost=settings.password_memory_mib * 1024
    )


class Passwords:
    """Hashes and verifies passwords. ``hasher`` has the parameters."""

    def __init__(self, threads: int, queue: int, hasher: PasswordHasher) -> None:
        self._hasher = hasher
        self._limiter = trio.CapacityLimiter(threads)
        self._places = threads + queue
        self._inside: Counter[str] = Counter()
        self._free = threads
        #: The logins that wait, by network; the network whose turn is next comes first.
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}
        self._dummy: str | None = None

    async def hash(self, password: str, address: str = "") -> str:
        """The hash of ``password``. Raises Unavailable when the queue is full.

        ``address`` is the client's.
        """
        return await self._in_turn(lambda: self._hasher.hash(password), address)

    async def verify(self, stored: str | None, password: str, address: str = "") -> bool:
        """Whether ``stored`` is a hash of ``password``; False if ``stored`` is None, after
        the same time.

        Raises Unavailable when the queue is full. A cancellation takes effect while this
        waits in the queue, and not while it hashes.
        """
        return await self._in_turn(lambda: self._verify(stored, password), address)

    def is_outdated(self, stored: str) -> bool:
        """Whether ``stored`` was made with other parameters than new ones are."""
        return self._hasher.check_needs_rehash(stored)

    def _verify(self, stored: str | None, password: str) -> bool:
        if stored is None:
            self._matches(self._dummy_hash(), password)
            return False
        return self._matches(stored, password)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerifyMismatchError:
            return False
        except (Argon2Error, InvalidHashError):
            log.exception("a stored password cannot be verified")
            return False

    def _dummy_hash(self) -> str:
        if self._dummy is None:
            self._dummy = self._hasher.hash(secrets.token_hex())
        return self._dummy

    async def prepare(self) -> None:
        """Make the hash that unknown users are compared with, before the first login."""
        await self._in_turn(self._dummy_hash, "")

    async def _in_turn(self, work: Callable[[], T], address: str) -> T:
        who = network_of(address)
        if self._inside[who] >= self._places - self._inside.total():
            raise _busy()
        self._inside[who] += 1
        try:
            with trio.fail_after(TURN_SECONDS):
                await self._turn(who)
            try:
                return await trio.to_thread.run_sync(work, limiter=self._limiter)
            finally:
                self._pass_on()
        except trio.TooSlowError:
            raise _busy() from None
        finally:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]

    async def _turn(self, who: str) -> None:
        if self._free:
            self._free -= 1
            return
        lot = self._waiting.setdefault(who, trio.lowlevel.ParkingLot())
        try:
            await lot.park()
        finally:
            if not lot and self._waiting.get(who) is lot:
                del self._waiting[who]

    def _pass_on(self) -> None:
        """Pass a finished turn to the network that has waited longest."""
        while self._waiting:
            who = next(iter(self._waiting))
            lot = self._waiting.pop(who)
            served = lot.unpark()
            if lot:
                self._waiting[who] = lot  # behind the others
            if served:  # else those that waited were just cancelled
                return
        self._free += 1


def _busy() -> Unavailable:
    return Unavailable(BUSY, {"Retry-After": "5"})
