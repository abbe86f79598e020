"""The keys that sign sessions, and the key by which services know one another.

::

    DIR/signing.json   every key that signs or still verifies, newest last
    DIR/service.key    what X-Service-Key must be, for calls between services
    DIR/lock           held while either file is made or changed

All processes of a machine share the directory. The first one makes the keys;
a rotation replaces ``signing.json`` as a whole, and every process looks for
that once a second at most (a ``stat``), or at once when a session names a key
it has not heard of.

A rotated key signs nothing any more but verifies until the sessions that it
signed are over. It needs not be kept for API tokens, some of which live for
ever: they are known by the hash of their whole text, which holds 128 random
bits, and not by their signature (see :mod:`control.identity.credentials`). So a
rotation never breaks one, and a stolen signing key cannot make one.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from control.identity.secretfiles import (
    locked,
    make_private_directory,
    read_secret,
    write_secret,
)
from gfs.errors import StartupError

log = logging.getLogger(__name__)

#: RFC 7518, 3.2: a key for HS256 is no shorter than the hash.
KEY_BYTES = 32
#: The file is checked for changes at most this often.
LOOK_SECONDS = 1.0
#: Within this time after a rotation every process signs with the new key.
NOTICE_SECONDS = 5
#: The bound of keys: a rotation a second for an hour.
KEYS_MAX = 3600
FILE_BYTES_MAX = 1024 * 1024

#: Below the directory of the control plane's state.
DIRECTORY = "keys"
_SIGNING = "signing.json"
_SERVICE = "service.key"
_LOCK = "lock"


class SigningKey(msgspec.Struct, frozen=True):
    """``id`` is the ``kid`` of the tokens that it signed."""

    id: str
    #: In hex.
    secret: str
    created_at: int
    #: Unix seconds; 0 while it signs.
    verifies_until: int = 0

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.secret)


def rotate_keys(control_directory: Path, session_seconds: float) -> None:
    """Sign with a new key from now on, whether or not any process is running.

    ``session_seconds`` is how long sessions last: the old key verifies for as long.
    0 ends every session at once (for a key that was stolen). On the disk when
    this returns; running processes follow within 5 s. Raises StartupError.
    """
    SigningKeys.open(control_directory / DIRECTORY).rotate(session_seconds)


class SigningKeys:
    """See the module. Synchronous; a look at the file costs microseconds."""

    def __init__(
        self,
        directory: Path,
        service_key: str,
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._file = directory / _SIGNING
        self._service_key = service_key.encode()
        self._clock = clock
        self._ticks = ticks
        self._keys: dict[str, tuple[SigningKey, bytes]] = {}
        self._current: SigningKey
        self._seen: tuple[int, int, int] | None = None
        self._look_after = 0.0

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> SigningKeys:
        """The keys in ``directory``, made there first (mode 0600) if there are none.

        Processes that start at once get the same keys. Raises StartupError for a
        file that is damaged or that others can read.
        """
        make_private_directory(directory)
        try:
            with locked(directory / _LOCK):
                if read_secret(directory / _SIGNING, 1) is None:
                    _write_keys(directory / _SIGNING, [_new_key(clock)])
                service_key = _service_key(directory / _SERVICE)
        except OSError as error:
            raise StartupError(f"{directory}: the keys cannot be made: {error}") from None
        keys = cls(directory, service_key, clock, ticks)
        keys._load()
        return keys

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        self._look()
        return self._current

    def secret(self, key_id: str) -> bytes | None:
        """The secret that verifies signatures of the key ``key_id``; None: there is no such key."""
        self._look()
        if key_id not in self._keys:
            # Another process may have rotated this instant and signed already.
            self._look(now=True)
        found = self._keys.get(key_id)
        if found is None:
            return None
        key, raw = found
        return raw if not key.verifies_until or self._clock() < key.verifies_until else None

    def rotate(self, keep_seconds: float) -> None:
        """Sign with a new key; the old one verifies for ``keep_seconds`` more.

        On the disk on return. Raises StartupError.
        """
        now = int(self._clock())
        until = now
        if keep_seconds > 0:
            # Other processes may sign with the old one until they read the file.
            until += int(keep_seconds) + NOTICE_SECONDS
        try:
            with locked(self._directory / _LOCK):
                kept = [
                    _retired(key, until)
                    for key in _read_keys(self._file)
                    if not key.verifies_until or key.verifies_until > now
                ]
                if len(kept) >= KEYS_MAX:
                    raise StartupError(f"{self._file}: {KEYS_MAX} keys still verify: wait a little")
                _write_keys(
                    self._file,
                    [key for key in kept if key.verifies_until > now] + [_new_key(self._clock)],
                )
        except OSError as error:
            raise StartupError(f"{self._file}: the key cannot be rotated: {error}") from None
        self._load()

    def is_service_key(self, text: str) -> bool:
        """Whether ``text`` is the service key. In constant time."""
        return hmac.compare_digest(text.encode(errors="replace"), self._service_key)

    def _look(self, *, now: bool = False) -> None:
        """Read the file again if it is another one and it is time to look."""
        ticks = self._ticks()
        if ticks < self._look_after and not now:
            return
        self._look_after = ticks + LOOK_SECONDS
        try:
            if _identity(self._file) != self._seen:
                self._load()
        except (OSError, StartupError) as error:
            # The keys in memory are as good as they were a second ago.
            log.error("the signing keys cannot be read again: %s", error)

    def _load(self) -> None:
        seen = _identity(self._file)
        keys = _read_keys(self._file)
        self._keys = {key.id: (key, key.raw) for key in keys}
        self._current = keys[-1]
        self._seen = seen


def _identity(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _new_key(clock: Callable[[], float]) -> SigningKey:
    return SigningKey(secrets.token_hex(8), secrets.token_hex(KEY_BYTES), int(clock()))


def _retired(key: SigningKey, until: int) -> SigningKey:
    """``key``, verifying until then, but not longer than before."""
    if key.verifies_until:
        until = min(until, key.verifies_until)
    return msgspec.structs.replace(key, verifies_until=until)


def _read_keys(path: Path) -> list[SigningKey]:
    data = read_secret(path, FILE_BYTES_MAX)
    if data is None:
        raise StartupError(f"{path}: the signing keys are gone: start again to make new ones")
    try:
        keys = msgspec.json.decode(data, type=list[SigningKey])
        if not keys or keys[-1].verifies_until or any(len(key.raw) < KEY_BYTES for key in keys):
            raise ValueError("no key that signs, or one that is too short")
    except ValueError as error:
        raise StartupError(
            f"{path}: not signing keys ({error}): remove the file to make new ones; "
            "everybody must log in again then"
        ) from None
    return keys


def _write_keys(path: Path, keys: list[SigningKey]) -> None:
    write_secret(path, msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n")


def _service_key(path: Path) -> str:
    data = read_secret(path, 1024)
    if data is None:
        write_secret(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        data = read_secret(path, 1024) or b""
    text = data.decode("ascii", "replace").strip()
    if len(text) < KEY_BYTES:
        raise StartupError(f"{path}: shorter than {KEY_BYTES} characters: remove it to make one")
    return text
