"""What makes a process a member of its cluster: the cluster key, and how connections
are encrypted, if they are."""

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
    """``current_keys`` gives the keys that are accepted now, the one to be used first. It is
    asked for every new connection. ``watched``: what it gives may change."""

    current_keys: Callable[[], Sequence[bytes]]
    tls: Tls | None = None
    watched: bool = False


def as_credentials(key: bytes | Credentials) -> Credentials:
    """One key for good, without TLS, if it is just a key."""
    if isinstance(key, Credentials):
        return key
    return Credentials(lambda: (key,))


def load_credentials(key: bytes | Path, tls: Path | None, *, server: bool) -> Credentials:
    """From files, which are read again when they change; or of a key that stays.

    ``tls`` is a directory (see :mod:`gfs.io.tls`), None: no TLS. Raises SettingsError.
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
    """Tells keys apart and nothing of them."""
    return hashlib.blake2b(key=key, digest_size=KEY_NAME_BYTES, person=b"gfs key name").digest()
