"""``gfs control export`` and ``import``: all records in one file, and back, wherever they are.

The file is one msgpack array after another, each behind its length (u32, big-endian):
``["gfs control records", 1]``, then ``[place, key, row]`` for each row, and ``["end", count]``.
The signing keys are rows of it, so it is as secret as they are. The use of quotas is not in it,
since it is counted again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import msgspec

from control.api import Control
from control.identity.keys import read_key_files, write_key_files
from control.identity.opening import open_records
from control.identity.rows import Secret
from gfs.errors import SettingsError

log = logging.getLogger(__name__)

MAGIC = "gfs control records"
VERSION = 1
_SECRETS = "secrets.secrets"

Row = tuple[str, bytes, bytes]


def export(control: Control, path: Path) -> int:
    """Write all records to ``path``, a new file of mode 0600; there is none if that fails.
    Returns how many rows."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be made: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            return _export(control, file)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SettingsError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def _export(control: Control, file: BinaryIO) -> int:
    count = 0
    with closing(open_records(control.settings, control.directory, control.schemas)) as records:
        for name in records.left_out():
            log.warning(
                "the tables of %r are left out: the module that has them is not installed here",
                name,
            )
        file.write(_frame([MAGIC, VERSION]))
        if not control.settings.records:
            for secret in read_key_files(control.directory):
                data = msgspec.msgpack.encode(secret)
                file.write(_frame([_SECRETS, secret.name.encode(), data]))
                count += 1
        for row in records.dump():
            file.write(_frame(row))
            count += 1
        file.write(_frame(["end", count]))
        file.flush()
        os.fsync(file.fileno())
    return count


def load(control: Control, path: Path) -> int:
    """Add the records of the file ``path`` to new ones. Returns how many rows."""
    rows = list(_rows(path))
    control.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = rows if control.settings.records else [row for row in rows if row[0] != _SECRETS]
    with closing(open_records(control.settings, control.directory, control.schemas)) as records:
        count = records.load(own)
    if not control.settings.records:
        secrets = [data for place, _, data in rows if place == _SECRETS]
        write_key_files(
            control.directory, [msgspec.msgpack.decode(data, type=Secret) for data in secrets]
        )
    return count


def _rows(path: Path) -> Iterator[Row]:
    """Raises SettingsError unless the file is whole."""
    try:
        data = path.read_bytes()
        values = iter(_values(data))
        if next(values, None) != [MAGIC, VERSION]:
            raise SettingsError(f"{path}: gfs control export has not written this file")
        for count, value in enumerate(values):
            if value == ["end", count]:
                return
            yield msgspec.convert(value, type=Row)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    raise SettingsError(f"{path}: it was cut short: export the records again")


def _frame(value: object) -> bytes:
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(4, "big") + data


def _values(data: bytes) -> Iterator[object]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield msgspec.msgpack.decode(data[at + 4 : at + 4 + size])
        at += 4 + size
