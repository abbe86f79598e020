"""The limits of a user: defaults (``GFS_QUOTA_*``, table ``[quota]``), and the rows with which
administrators override them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import asdict, replace

from control.errors import QuotaReached, TooLarge
from control.records import Schema, Table, Txn
from gfs.blocks import MIB
from gfs.config import Settings
from gfs.errors import SettingsError

#: No machine has more, and the sum of some limits still fits in 64 bits.
LIMIT_MAX = 2**53


class Limits(Settings, frozen=True, kw_only=True):
    """The limits of a user."""

    #: Bytes in files.
    bytes: int = 100 * 1024 * MIB
    #: Of which one in many folders counts as several.
    files: int = 1_000_000
    #: Storage namespaces.
    namespaces: int = 100
    #: Containers, including stopped ones.
    containers: int = 3
    #: Memory of the containers that are not stopped: enough for one of the largest type.
    memory_mb: int = 96 * 1024
    #: Storage of all containers: enough for one of the largest type.
    storage_gb: int = 1500

    def check(self) -> None:
        for name, limit in asdict(self).items():
            if not 0 <= limit <= LIMIT_MAX:
                raise SettingsError(f"quota {name} must be 0 to {LIMIT_MAX}")


#: Their names in the sentence "your quota for … is …".
NOUNS = {
    "bytes": "bytes",
    "files": "files",
    "namespaces": "storage namespaces",
    "containers": "containers",
    "memory_mb": "memory (MB)",
    "storage_gb": "container storage (GB)",
}


class Override(msgspec.Struct, array_like=True, frozen=True):
    """The limits that an administrator set for a user, by name."""

    user_id: str
    limits: dict[str, int]


overrides = Table("limits", Override, key=lambda row: row.user_id)


class Floor(msgspec.Struct, array_like=True, frozen=True):
    """The files and bytes that a user had a minute ago. They are the lower bound of the usage
    after the machine's next boot until all files are counted."""

    user_id: str
    files: int
    bytes: int


floors = Table("floors", Floor, key=lambda row: row.user_id)

QUOTA = Schema("quota", 1, [overrides, floors])


def limits_of(txn: Txn, user_id: str, defaults: Limits) -> Limits:
    """The limits of this user; ``defaults`` where no administrator set another."""
    row = overrides.get(txn, user_id)
    if row is None:
        return defaults
    return replace(defaults, **{name: row.limits[name] for name in NOUNS if name in row.limits})


def override(txn: Txn, user_id: str, changes: Mapping[str, int | None]) -> None:
    """Set the limits in ``changes``; None: back to the default."""
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
    """Remove the limits of a user who is deleted."""
    overrides.delete(txn, user_id)


def save_floors(txn: Txn, rows: Iterable[Floor]) -> None:
    """Replace the floors of these users; one of nothing is none."""
    for row in rows:
        if row.files or row.bytes:
            floors.put(txn, row)
        else:
            floors.delete(txn, row.user_id)


def check_quota(name: str, limit: int, used: int, more: int, reserved: int = 0) -> None:
    """Raises TooLarge if ``more`` never fits, QuotaReached if it does not fit now.

    ``reserved`` is reserved by uploads under way. A request for nothing more is never
    refused, whatever the usage is, since the limit may have been lowered.
    """
    if more <= 0 or used + reserved + more <= limit:
        return
    noun = NOUNS[name]
    if more > limit:
        raise TooLarge(f"your quota for {noun} is {limit}, and this needs {more}")
    underway = f", {reserved} more are reserved by uploads under way" if reserved else ""
    raise QuotaReached(
        f"your quota for {noun} is {limit}, of which {used} are used{underway}, and this needs "
        f"{more} more: delete something, or ask an administrator for more"
    )
