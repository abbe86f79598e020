"""The state directory of a cluster on this machine: names, key, ready file.

::

    DIR/cluster.key      32 random bytes as hex, mode 0600: proof of membership; two
                         lines, the new one first, while the key is changed
    DIR/tls/             if connections are encrypted: see gfs.io.tls
    DIR/cluster.json     processes and addresses, written when everything serves
    DIR/lock             held (flock) by the running `gfs up`
    DIR/master/          the master's metadata
    DIR/chunkserver-N/   one chunkserver's disk
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from gfs.config import default_state_directory
from gfs.errors import SettingsError
from gfs.io import others_can_read, sync_directory

log = logging.getLogger(__name__)

KEY_BYTES = 32
KEYS_MAX = 2
KEY_NAME = "cluster.key"
READY_NAME = "cluster.json"
LOCK_NAME = "lock"
TLS_NAME = "tls"


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The cluster key in ``path``; while keys are changed two, the new one first.

    Raises SettingsError for an invalid file.
    """
    try:
        with open(path, encoding="ascii") as file:
            shared = others_can_read(os.fstat(file.fileno()))
            lines = file.read(8 * KEY_BYTES).split()
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no cluster key there: start the cluster (gfs up) or name its "
            "state directory with --state"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the cluster key cannot be read: {error}") from None
    if shared:
        raise SettingsError(f"{path}: others can read this key: chmod 600 {path}")
    keys = []
    for line in lines:
        try:
            keys.append(bytes.fromhex(line))
        except ValueError:
            keys.append(b"")
    if not 1 <= len(keys) <= KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
        raise SettingsError(
            f"{path}: not a cluster key ({2 * KEY_BYTES} hex digits; two lines of them while "
            "it is changed)"
        )
    return tuple(keys)


class KeyFile:
    """The keys in a file, which is read again when it has changed.

    Raises SettingsError if the file is invalid now. If it becomes invalid later, that
    is logged once, and the previous keys stay in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._look()
        self._keys = read_keys(path)

    def __call__(self) -> tuple[bytes, ...]:
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._keys = read_keys(self.path)
                log.info(
                    "%s has changed and was read again: %d cluster keys", self.path, len(self._keys)
                )
            except SettingsError as error:
                log.error("%s; the previous key stays in use", error)
        return self._keys

    def _look(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


def find_tls(given: Path | None, state: Path | None) -> Path | None:
    """The directory with the files for TLS (see gfs.io.tls), or None: no TLS.

    It is ``given``, else the one in the named ``state`` directory, else ``GFS_TLS``,
    else the one in the default state directory.
    """
    if given is not None:
        return given
    if state is not None and (state / TLS_NAME).is_dir():
        return state / TLS_NAME
    if os.environ.get("GFS_TLS"):
        return Path(os.environ["GFS_TLS"])
    if state is None and (default_state_directory() / TLS_NAME).is_dir():
        return default_state_directory() / TLS_NAME
    return None


def make_key(path: Path) -> bytes:
    """The key in ``path``, made there first if there is none (mode 0600).

    Safe against concurrent calls: one of the keys wins, and all get it.
    """
    if not os.path.lexists(path):
        try:
            _place_key(path, secrets.token_hex(KEY_BYTES) + "\n")
        except OSError as error:
            raise SettingsError(f"{path}: the cluster key cannot be made: {error}") from None
    return read_keys(path)[0]


def rotate_key(path: Path) -> None:
    """Add a new key before the one in ``path``: both are accepted from now on.

    Raises SettingsError, also if there are two keys already.
    """
    keys = read_keys(path)
    if len(keys) > 1:
        raise SettingsError(
            f"{path}: there are two keys already: when all machines have this file, "
            "retire the old one with gfs key retire"
        )
    _replace_keys(path, secrets.token_bytes(KEY_BYTES), *keys)


def retire_keys(path: Path) -> bool:
    """Leave only the new key in ``path``; False if there is no other."""
    keys = read_keys(path)
    if len(keys) == 1:
        return False
    _replace_keys(path, keys[0])
    return True


def _replace_keys(path: Path, *keys: bytes) -> None:
    """Replace the file atomically and durably; its owner does not change."""
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        owner = path.stat()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.writelines(f"{key.hex()}\n" for key in keys)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        sync_directory(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(f"{path}: the key cannot be changed: {error.strerror}") from None


def _place_key(path: Path, text: str) -> None:
    """Create a complete file, durably, unless one exists already.

    The temporary name is random: process ids are not unique in a shared directory, since
    two containers may both have a process 7.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
