"""The keys that sign sessions, and the key with which services authenticate to one another.

::

    DIR/signing.json   every key that signs or still verifies, newest last
    DIR/service.key    what X-Service-Key must be, for calls between services
    DIR/lock           held while either file is created or changed

All processes of a machine share the directory. The first one creates the keys;
a rotation replaces ``signing.json`` as a whole, and every process checks for
that once a second at most (a ``stat``), or at once when a session names an unknown
key.

Where several machines share the records, both are rows of its table ``secrets``, with the
same content, and there is no file.

A rotated key signs nothing any more but verifies until the sessions that it
signed are over. It need not be kept for API tokens, some of which never expire: they
are verified by the hash of their whole text, which has 128 random bits, and not by their
signature (see :mod:`control.identity.credentials`). So a rotation never breaks an API
token, and a stolen signing key cannot make one.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from control.identity.rows import Secret
from control.identity.rows import secrets as secret_rows
from control.identity.secretfiles import (
    locked,
    make_private_directory,
    read_secret,
    write_secret,
)
from control.records import Records, Txn
from gfs.errors import GfsError, StartupError

log = logging.getLogger(__name__)

#: RFC 7518, 3.2: a key for HS256 is no shorter than the hash.
KEY_BYTES = 32
#: The file is checked for changes at most this often.
LOOK_SECONDS = 1.0
#: Within this time after a rotation every process signs with the new key.
NOTICE_SECONDS = 5
#: How many keys there can be: a rotation a second for an hour.
KEYS_MAX = 3600
FILE_BYTES_MAX = 1024 * 1024

#: Below the directory of the control plane's state.
DIRECTORY = "keys"
_SIGNING = "signing.json"
_SERVICE = "service.key"
_LOCK = "lock"
_FILE_NAME = re.compile(r"[a-z0-9]+\.key")


class SigningKey(msgspec.Struct, frozen=True):
    """A key. ``id`` is the ``kid`` of the tokens that it signed."""

    id: str
    #: In hex.
    secret: str
    created_at: int
    #: Unix seconds; 0 for the key that signs.
    verifies_until: int = 0

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.secret)


def rotate_keys(control_directory: Path, session_seconds: float) -> None:
    """Sign with a new key from now on, whether or not any process is running.

    ``session_seconds`` is how long sessions last: the old key verifies for as long.
    0 ends every session at once (for a key that was stolen). The change is on the disk
    when this returns; running processes follow within 5 s. Raises StartupError.
    """
    SigningKeys.open(control_directory / DIRECTORY).rotate(session_seconds)


def read_key_files(control_directory: Path) -> list[Secret]:
    """The keys of a control plane that has them in files, those of its modules too, as rows."""
    directory = control_directory / DIRECTORY
    others = sorted(path.name for path in directory.glob("*.key") if path.name != _SERVICE)
    found = []
    for name in (_SIGNING, _SERVICE, *others):
        data = read_secret(directory / name, FILE_BYTES_MAX)
        if data is None:
            raise StartupError(f"{directory / name}: there is no such key")
        found.append(Secret(name, data.decode("ascii")))
    return found


def write_key_files(control_directory: Path, rows: Iterable[Secret]) -> None:
    """Replace the keys in files by those of rows."""
    directory = control_directory / DIRECTORY
    make_private_directory(directory)
    with locked(directory / _LOCK):
        for row in rows:
            if row.name == _SIGNING or _FILE_NAME.fullmatch(row.name):
                write_secret(directory / row.name, row.text.encode("ascii"))


class Source(Protocol):
    """Where the keys are."""

    def identity(self) -> object:
        """Of the present signing keys: another one after a change."""

    def read(self) -> list[SigningKey]: ...

    def change(self, work: Callable[[list[SigningKey]], list[SigningKey]]) -> None:
        """Replace the signing keys by what *work* makes of them, durably."""


class Files:
    """The keys in files of this machine."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _SIGNING
        self._lock = directory / _LOCK

    def identity(self) -> object:
        found = os.stat(self._file)
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> list[SigningKey]:
        data = read_secret(self._file, FILE_BYTES_MAX)
        if data is None:
            raise StartupError(
                f"{self._file}: the signing keys are gone: start again to create new ones"
            )
        return _decoded(data, str(self._file))

    def change(self, work: Callable[[list[SigningKey]], list[SigningKey]]) -> None:
        try:
            with locked(self._lock):
                write_secret(self._file, _encoded(work(self.read())))
        except OSError as error:
            raise StartupError(f"{self._file}: the key cannot be rotated: {error}") from None


class Rows:
    """The keys in records that several machines share."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def identity(self) -> object:
        with self._records.read() as txn:
            return secret_rows.get(txn, _SIGNING)

    def read(self) -> list[SigningKey]:
        with self._records.read() as txn:
            return _stored(txn)

    def change(self, work: Callable[[list[SigningKey]], list[SigningKey]]) -> None:
        self._records.write_at_start(
            lambda txn: secret_rows.put(
                txn, Secret(_SIGNING, _encoded(work(_stored(txn))).decode())
            )
        )


class SigningKeys:
    """The keys of one process, see the module. Synchronous: a look for changes costs µs."""

    def __init__(
        self,
        source: Source,
        service_key: str,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._service_key = service_key.encode()
        self._clock = clock
        self._ticks = ticks
        self._keys: dict[str, tuple[SigningKey, bytes]] = {}
        self._current: SigningKey
        self._seen: object = None
        self._look_after = 0.0
        self._load()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> SigningKeys:
        """The keys in ``directory``. They are created first (mode 0600) if there are none.

        Processes that start at the same time get the same keys. Raises StartupError for
        a file that is damaged or that others can read.
        """
        make_private_directory(directory)
        try:
            with locked(directory / _LOCK):
                if read_secret(directory / _SIGNING, 1) is None:
                    write_secret(directory / _SIGNING, _encoded([_new_key(clock)]))
                service_key = _service_key(directory / _SERVICE)
        except OSError as error:
            raise StartupError(f"{directory}: the keys cannot be made: {error}") from None
        return cls(Files(directory), service_key, clock, ticks)

    @classmethod
    def open_shared(cls, records: Records) -> SigningKeys:
        """The keys in records that several machines share. The first process creates them."""

        def create(txn: Txn) -> str:
            shared_secret(txn, _SIGNING, lambda: _encoded([_new_key(time.time)]).decode())
            return shared_secret(txn, _SERVICE, lambda: secrets.token_hex(KEY_BYTES)).strip()

        return cls(Rows(records), records.write_at_start(create))

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        self._look()
        return self._current

    def secret(self, key_id: str) -> bytes | None:
        """The secret that verifies signatures of ``key_id``; None if there is no such key."""
        self._look()
        if key_id not in self._keys:
            # Another process may just have rotated the keys and signed with the new one.
            self._look(now=True)
        found = self._keys.get(key_id)
        if found is None:
            return None
        key, raw = found
        return raw if not key.verifies_until or self._clock() < key.verifies_until else None

    def rotate(self, keep_seconds: float) -> None:
        """Sign with a new key; the old one verifies for ``keep_seconds`` more.

        The change is on the disk when this returns. Raises StartupError.
        """
        now = int(self._clock())
        until = now
        if keep_seconds > 0:
            # Other processes may sign with the old key until they notice the change.
            until += int(keep_seconds) + NOTICE_SECONDS
        new = _new_key(self._clock)

        def rotated(keys: list[SigningKey]) -> list[SigningKey]:
            kept = [
                _retired(key, until)
                for key in keys
                if not key.verifies_until or key.verifies_until > now
            ]
            if len(kept) >= KEYS_MAX:
                raise StartupError(f"{KEYS_MAX} signing keys still verify: wait a second")
            return [*(key for key in kept if key.verifies_until > now), new]

        self._source.change(rotated)
        self._load()

    def is_service_key(self, text: str) -> bool:
        """Whether ``text`` is the service key, compared in constant time."""
        return hmac.compare_digest(text.encode(errors="replace"), self._service_key)

    def _look(self, *, now: bool = False) -> None:
        """Read the file again if it has changed and the last check was long enough ago."""
        ticks = self._ticks()
        if ticks < self._look_after and not now:
            return
        self._look_after = ticks + LOOK_SECONDS
        try:
            if self._source.identity() != self._seen:
                self._load()
        except (OSError, GfsError) as error:
            # The keys in memory are still valid.
            log.error("the signing keys cannot be read again: %s", error)

    def _load(self) -> None:
        seen = self._source.identity()
        keys = self._source.read()
        self._keys = {key.id: (key, key.raw) for key in keys}
        self._current = keys[-1]
        self._seen = seen


def shared_secret(txn: Txn, name: str, make: Callable[[], str]) -> str:
    """The secret of this name in records that several machines share; ``make`` gives a new one if
    there is none."""
    row = secret_rows.get(txn, name)
    if row is None:
        row = Secret(name, make())
        secret_rows.put(txn, row)
    return row.text


def _new_key(clock: Callable[[], float]) -> SigningKey:
    return SigningKey(secrets.token_hex(8), secrets.token_hex(KEY_BYTES), int(clock()))


def _retired(key: SigningKey, until: int) -> SigningKey:
    """``key``, which verifies until then, but not longer than before."""
    if key.verifies_until:
        until = min(until, key.verifies_until)
    return msgspec.structs.replace(key, verifies_until=until)


def _stored(txn: Txn) -> list[SigningKey]:
    row = secret_rows.get(txn, _SIGNING)
    return _decoded(b"" if row is None else row.text.encode(), "the row of the signing keys")


def _decoded(data: bytes, where: str) -> list[SigningKey]:
    try:
        keys = msgspec.json.decode(data, type=list[SigningKey])
        if not keys or keys[-1].verifies_until or any(len(key.raw) < KEY_BYTES for key in keys):
            raise ValueError("no key that signs, or one that is too short")
    except ValueError as error:
        raise StartupError(
            f"{where}: these are not signing keys ({error}): remove the file to create new ones; "
            "then all users must log in again"
        ) from None
    return keys


def _encoded(keys: list[SigningKey]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n"


def _service_key(path: Path) -> str:
    data = read_secret(path, 1024)
    if data is None:
        write_secret(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        data = read_secret(path, 1024) or b""
    text = data.decode("ascii", "replace").strip()
    if len(text) < KEY_BYTES:
        raise StartupError(f"{path}: shorter than {KEY_BYTES} characters: remove it to create one")
    return text
