"""The credentials of a process: the cluster key, which makes it a member of the
cluster, and the files for TLS if connections are encrypted."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gfs.errors import SettingsError
from gfs.io.tls import BadTls, Tls
from gfs.state import KeyFile

KEY_NAME_BYTES = 8


@dataclass(frozen=True)
class Credentials:
    """``current_keys`` returns the accepted keys, the preferred one first; it is called
    for every new connection. ``watched``: its result may change."""

    current_keys: Callable[[], Sequence[bytes]]
    tls: Tls | None = None
    watched: bool = False


def as_credentials(key: bytes | Credentials) -> Credentials:
    """Credentials of one key that never changes, without TLS, if a key is given."""
    if isinstance(key, Credentials):
        return key
    return Credentials(lambda: (key,))


def load_credentials(key: bytes | Path, tls: Path | None, *, server: bool) -> Credentials:
    """Credentials from files, which are read again when they change, or of a key that
    never changes.

    ``tls`` is a directory (see :mod:`gfs.io.tls`), or None for no TLS. Raises SettingsError.
    """
    try:
        secure = Tls(tls, server=server) if tls is not None else None
    except BadTls as error:
        raise SettingsError(f"TLS: {error}") from None
    if isinstance(key, bytes):
        return Credentials(lambda: (key,), secure)
    return Credentials(KeyFile(key), secure, watched=True)


@functools.lru_cache(maxsize=64)
def key_name(key: bytes) -> bytes:
    """A name that distinguishes keys and does not reveal them."""
    return hashlib.blake2b(key=key, digest_size=KEY_NAME_BYTES, person=b"gfs key name").digest()
