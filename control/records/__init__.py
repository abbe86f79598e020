"""Small typed records in LMDB: users, sessions, tokens, namespaces and the like.

A module of the control plane declares its tables and its schema once::

    class User(msgspec.Struct, array_like=True):
        name: str
        email: str

    USERS = Table(
        "users", User, key=lambda user: user.name,
        indexes={"email": lambda user: [user.email]}, unique=["email"],
    )
    SCHEMA = Schema("auth", 1, [USERS])

    records = Records.open(directory, [SCHEMA])
    with records.read() as txn:
        user = USERS.get(txn, "ada")
    await records.write(lambda txn: USERS.insert(txn, User("ada", "ada@example.org")))

Rows and their indexes change in the same transaction, and a transaction is on
disk before it is acknowledged: ``kill -9`` or a power cut at any instant
loses nothing that was acknowledged. Any number of processes on one machine
share the directory; LMDB's lock file orders their writes, and frees the lock of
a process that was killed. The directory must not be on a network file system.

The directory (``data.mdb``, ``lock.mdb``; ``open.lock`` is held while opening) has these
LMDB databases::

    schemas                 SCHEMA              → msgpack [version, {table: [index, …]}]
    SCHEMA.TABLE            key                 → the row as msgpack
    SCHEMA.TABLE.index      INDEX 0x00 VALUE    → the keys of the rows, sorted
      where VALUE is        0x00 the value, up to 400 bytes of UTF-8
      or                    0x01 the BLAKE2b-256 of a longer value
"""

from __future__ import annotations

from control.records.errors import (
    RecordsBusy,
    RecordsFailed,
    RecordsUpgraded,
    RowUnreadable,
    Taken,
)
from control.records.locks import SharedLock
from control.records.pages import PAGE_ROWS, in_pages
from control.records.store import Records
from control.records.table import Schema, Table
from control.records.txn import KEY_BYTES_MAX, Txn

__all__ = [
    "KEY_BYTES_MAX",
    "PAGE_ROWS",
    "Records",
    "RecordsBusy",
    "RecordsFailed",
    "RecordsUpgraded",
    "RowUnreadable",
    "Schema",
    "SharedLock",
    "Table",
    "Taken",
    "Txn",
    "in_pages",
]
