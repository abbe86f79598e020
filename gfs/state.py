"""The state directory of a cluster on this machine: names, key, ready file.

::

    DIR/cluster.key      32 random bytes as hex, mode 0600: proof of membership
    DIR/cluster.json     what runs and where, written when everything serves
    DIR/lock             held (flock) by the running `gfs up`
    DIR/master/          the master's metadata
    DIR/chunkserver-N/   one chunkserver's disk
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from gfs.errors import SettingsError

KEY_BYTES = 32
KEY_NAME = "cluster.key"
READY_NAME = "cluster.json"
LOCK_NAME = "lock"


def read_key(path: Path) -> bytes:
    """The cluster key in ``path``. SettingsError says what is wrong with it."""
    try:
        with open(path, encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read(4 * KEY_BYTES).strip()
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no cluster key there: start the cluster (gfs up) or name its "
            "state directory with --state"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the cluster key cannot be read: {error}") from None
    if mode & 0o077:
        raise SettingsError(f"{path}: others can read this key: chmod 600 {path}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(f"{path}: not a cluster key ({2 * KEY_BYTES} hex digits)")
    return key


def make_key(path: Path) -> bytes:
    """Read the key in ``path``, made there first if there is none (mode 0600).

    Safe against others doing the same: one of the keys wins, and all get it.
    """
    if not os.path.lexists(path):
        try:
            _place_key(path, secrets.token_hex(KEY_BYTES) + "\n")
        except OSError as error:
            raise SettingsError(f"{path}: the cluster key cannot be made: {error}") from None
    return read_key(path)


def _place_key(path: Path, text: str) -> None:
    """Put a whole file there, on the disk, unless there is one by then.

    The name of the draft is random: a process id is no name to share a
    directory by, two containers both have a process 7.
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
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
