"""What a user may have: defaults (``GFS_QUOTA_*``, table ``[quota]``), and the rows in which
administrators said otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import asdict, replace

from control.errors import QuotaReached, TooLarge
from control.records import Schema, Table, Txn
from gfs.blocks import MIB
from gfs.config import Settings
from gfs.errors import SettingsError

#: No machine has more, and sums of a few still fit everywhere.
LIMIT_MAX = 2**53


class Limits(Settings, frozen=True, kw_only=True):
    """How much of each a user may have."""

    #: In files.
    bytes: int = 100 * 1024 * MIB
    files: int = 1_000_000
    #: Storage namespaces.
    namespaces: int = 100
    #: Stopped ones count.
    containers: int = 3
    #: Of containers that are not stopped: one of the largest, and some more.
    memory_mb: int = 96 * 1024
    #: Of all containers: as memory.
    storage_gb: int = 1500

    def check(self) -> None:
        for name, limit in asdict(self).items():
            if not 0 <= limit <= LIMIT_MAX:
                raise SettingsError(f"quota {name} must be 0 to {LIMIT_MAX}")


#: What they are called in a sentence.
NOUNS = {
    "bytes": "bytes",
    "files": "files",
    "namespaces": "storage namespaces",
    "containers": "containers",
    "memory_mb": "MB of memory",
    "storage_gb": "GB of container storage",
}


class Override(msgspec.Struct, array_like=True, frozen=True):
    """What an administrator said of a user: by the name of the limit."""

    user_id: str
    limits: dict[str, int]


overrides = Table("limits", Override, key=lambda row: row.user_id)


class Floor(msgspec.Struct, array_like=True, frozen=True):
    """What a user had in files a minute ago, for the time after the machine's next boot until
    all is counted."""

    user_id: str
    files: int
    bytes: int


floors = Table("floors", Floor, key=lambda row: row.user_id)

QUOTA = Schema("quota", 1, [overrides, floors])


def limits_of(txn: Txn, user_id: str, defaults: Limits) -> Limits:
    """Of this user. ``defaults`` hold where nobody said otherwise."""
    row = overrides.get(txn, user_id)
    if row is None:
        return defaults
    return replace(defaults, **{name: row.limits[name] for name in NOUNS if name in row.limits})


def override(txn: Txn, user_id: str, changes: Mapping[str, int | None]) -> None:
    """Set the limits that are named; None: the default again."""
    row = overrides.get(txn, user_id)
    limits = {} if row is None else dict(row.limits)
    for name, limit in changes.items():
        if limit is None:
            limits.pop(name, None)
        else:
            limits[name] = limit
    if limits:
        overrides.put(txn, Override(user_id, limits))
    else:
        overrides.delete(txn, user_id)


def forget_limits(txn: Txn, user_id: str) -> None:
    """The user is deleted."""
    overrides.delete(txn, user_id)


def check_quota(name: str, limit: int, used: int, more: int, reserved: int = 0) -> None:
    """Raises TooLarge if ``more`` never fits, QuotaReached if it does not fit now.

    ``reserved`` is for what is under way. Who wants nothing more is not refused, however
    much he has: the limit may have been lowered.
    """
    if more <= 0 or used + reserved + more <= limit:
        return
    noun = NOUNS[name]
    if more > limit:
        raise TooLarge(f"this takes {more} {noun}, and your quota is {limit} in all")
    underway = f", {reserved} more are reserved for what is under way" if reserved else ""
    raise QuotaReached(
        f"this takes {more} {noun}, and of your quota of {limit} {used} are used{underway}: "
        "delete something, or ask an administrator for more"
    )
