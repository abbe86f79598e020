"""Tables: how rows of one type are stored, found and indexed.

An index maps a row to any number of values; the store keeps for each value the
sorted keys of its rows. Index functions must depend on nothing but the row,
since the entries to remove are computed from the stored row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from control.records.errors import RowUnreadable, Taken
from control.records.txn import KEY_BYTES_MAX, Txn
from gfs.errors import InvalidArgument

RowT = TypeVar("RowT", bound=msgspec.Struct)
Indexes = Mapping[str, Callable[[RowT], Iterable[str]]]

#: Longer index values are kept as their hash. With an index's name of at most
#: 64 bytes this stays under the 511 bytes of an LMDB key.
PLAIN_VALUE_BYTES_MAX = 400

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_NO_INDEXES: Mapping[str, Any] = MappingProxyType({})


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a name has only a-z, 0-9, - and _, and at most 64 characters")


class Table(Generic[RowT]):
    """One kind of row. Declared once at module level.

    ``key`` gives a row's key: 1 to 500 bytes of UTF-8, compared byte by byte.
    ``indexes`` are functions from a row to the values by which it is found, of any
    length; in those named in ``unique`` a value can have only one row. Fields may be
    appended to the row type with defaults; any other change is an upgrade of the
    schema. The transaction that wrote a row finds it, too, and a table
    may be changed while ``by`` or ``scan`` walk over it.

    All methods raise RowUnreadable for a row that does not fit the type.
    """

    def __init__(
        self,
        name: str,
        row: type[RowT],
        *,
        key: Callable[[RowT], str],
        indexes: Indexes[RowT] = _NO_INDEXES,
        unique: Collection[str] = (),
    ) -> None:
        for each in (name, *indexes):
            check_name(each)
        if set(unique) - set(indexes):
            raise ValueError(f"table {name}: unique names an index that does not exist")
        self.name = name
        self.row = row
        self.key = key
        self.indexes = dict(indexes)
        self.unique = frozenset(unique)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(row).decode

    def get(self, txn: Txn, key: str) -> RowT | None:
        """The row with this key, or None; None, too, for a key that no row can have."""
        try:
            raw_key = key.encode()
        except UnicodeEncodeError:
            return None
        if not 0 < len(raw_key) <= KEY_BYTES_MAX:
            return None
        data = txn.get(raw_key, None, txn.handles[self].rows)
        return None if data is None else self._row(raw_key, data)

    def find(self, txn: Txn, index: str, value: str) -> RowT | None:
        """The row with this index value; if there are several, the one with the lowest key."""
        raw_key = txn.get(self._index_key(index, value), None, txn.handles[self].entries)
        return None if raw_key is None else self._indexed_row(txn, raw_key)

    def by(self, txn: Txn, index: str, value: str, *, after: str = "") -> Iterator[RowT]:
        """All rows with this index value and keys above ``after``, ordered by key."""
        entry = self._index_key(index, value)
        start = after.encode("utf-8", "surrogatepass")[:KEY_BYTES_MAX]
        with txn.raw.cursor(txn.handles[self].entries) as cursor:
            more = cursor.set_range_dup(entry, start + b"\0") if start else cursor.set_key(entry)
            while more:
                raw_key = cursor.value()
                yield self._indexed_row(txn, raw_key)
                # The place is looked up again, since the caller may have deleted the row.
                more = cursor.set_range_dup(entry, raw_key + b"\0")

    def scan(self, txn: Txn, *, after: str = "", prefix: str = "") -> Iterator[RowT]:
        """Rows with keys above ``after`` that begin with ``prefix``, ordered by key."""
        raw_prefix = prefix.encode("utf-8", "surrogatepass")
        # No key is longer, so this changes neither the order nor the result.
        start = after.encode("utf-8", "surrogatepass")[:KEY_BYTES_MAX]
        start = max(start + b"\0" if start else b"", raw_prefix[: KEY_BYTES_MAX + 1])
        with txn.raw.cursor(txn.handles[self].rows) as cursor:
            while cursor.set_range(start):
                raw_key, data = cursor.item()
                if not raw_key.startswith(raw_prefix):
                    return
                yield self._row(raw_key, data)
                start = raw_key + b"\0"

    def count(self, txn: Txn, index: str | None = None, value: str = "") -> int:
        """How many rows there are; with ``index``, how many have this value."""
        if index is None:
            return txn.raw.stat(txn.handles[self].rows)["entries"]
        with txn.raw.cursor(txn.handles[self].entries) as cursor:
            return cursor.count() if cursor.set_key(self._index_key(index, value)) else 0

    def insert(self, txn: Txn, row: RowT) -> None:
        """Add a row. Raises Taken if another row has its key or a unique index value of it."""
        raw_key = self._key_of(row)
        if txn.get(raw_key, None, txn.handles[self].rows) is not None:
            raise Taken(self.name, "", self.key(row))
        self._store(txn, raw_key, set(), row)

    def put(self, txn: Txn, row: RowT) -> None:
        """Add a row or replace the one with its key. Raises Taken for a unique index value."""
        raw_key = self._key_of(row)
        data = txn.get(raw_key, None, txn.handles[self].rows)
        before = set() if data is None else self._entries(self._row(raw_key, data))
        self._store(txn, raw_key, before, row)

    def delete(self, txn: Txn, key: str) -> RowT | None:
        """Remove a row with its index entries. Returns the row; None if there is none."""
        row = self.get(txn, key)
        if row is not None:
            raw_key = key.encode()
            self._delete_entries(txn, raw_key, self._entries(row))
            txn.delete(self, raw_key)
        return row

    def copy_index(self, txn: Txn, indexes: Collection[str]) -> None:
        """Build the entries of these indexes from rows that were copied. An upgrade finds them
        as the release before has left them, and so no entry of a row of another type."""
        for raw_key, data in txn.raw.cursor(txn.handles[self].rows):
            for name, value in self._entries_of(raw_key, data):
                if name in indexes:
                    entry = self._index_key(name, value)
                    txn.raw.put(entry, raw_key, db=txn.handles[self].entries)

    def copy_row(self, txn: Txn, raw_key: bytes, data: bytes | None) -> None:
        """Store a row as another process has stored it; None: it was deleted.

        Unique values are not checked, since of two rows that have exchanged theirs one is first.
        """
        old = txn.get(raw_key, None, txn.handles[self].rows)
        before, after = self._entries_of(raw_key, old), self._entries_of(raw_key, data)
        self._delete_entries(txn, raw_key, before - after)
        for entry in after - before:
            txn.raw.put(self._index_key(*entry), raw_key, db=txn.handles[self].entries)
        if data is not None:
            txn.put(self, raw_key, data)
        else:
            txn.delete(self, raw_key)

    def reindex(self, txn: Txn) -> None:
        """Build all index entries from the rows. Raises Taken if two have one unique value."""
        txn.raw.drop(txn.handles[self].entries, delete=False)
        for row in self.scan(txn):
            self._add_entries(txn, self._key_of(row), self._entries(row))

    def _store(self, txn: Txn, raw_key: bytes, before: set[tuple[str, str]], row: RowT) -> None:
        after = self._entries(row)
        # The step that can be refused comes first, so that a caller may catch Taken.
        self._add_entries(txn, raw_key, after - before)
        self._delete_entries(txn, raw_key, before - after)
        txn.put(self, raw_key, self._encode(row))

    def _delete_entries(self, txn: Txn, raw_key: bytes, entries: set[tuple[str, str]]) -> None:
        for entry in entries:
            txn.raw.delete(self._index_key(*entry), raw_key, txn.handles[self].entries)

    def _entries_of(self, raw_key: bytes, data: bytes | None) -> set[tuple[str, str]]:
        """The index entries of a stored row; none of one that cannot be read."""
        try:
            return set() if data is None else self._entries(self._row(raw_key, data))
        except RowUnreadable:
            return set()

    def _add_entries(self, txn: Txn, raw_key: bytes, entries: set[tuple[str, str]]) -> None:
        database = txn.handles[self].entries
        for name, value in entries:
            if name in self.unique:
                holder = txn.get(self._index_key(name, value), None, database)
                if holder is not None and holder != raw_key:
                    raise Taken(self.name, name, value)
        for name, value in entries:
            txn.raw.put(self._index_key(name, value), raw_key, db=database)

    def _entries(self, row: RowT) -> set[tuple[str, str]]:
        entries: set[tuple[str, str]] = set()
        for name, values_of in self.indexes.items():
            values = values_of(row)
            if isinstance(values, str):
                raise TypeError(f"index {name} of {self.name} gives a str: give a list of them")
            entries.update((name, value) for value in values)
        return entries

    def _index_key(self, index: str, value: str) -> bytes:
        if index not in self.indexes:
            raise LookupError(f"table {self.name} has no index {index!r}")
        raw = value.encode("utf-8", "surrogatepass")
        if len(raw) <= PLAIN_VALUE_BYTES_MAX:
            return index.encode() + b"\0\0" + raw
        # Nobody can make two values with the same hash, so the values are not compared.
        return index.encode() + b"\0\1" + hashlib.blake2b(raw, digest_size=32).digest()

    def _key_of(self, row: RowT) -> bytes:
        key = self.key(row)
        try:
            raw_key = key.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{self.name}: the key {key!r} is not UTF-8") from None
        if not 0 < len(raw_key) <= KEY_BYTES_MAX:
            raise InvalidArgument(
                f"{self.name}: a key has 1 to {KEY_BYTES_MAX} bytes, this one {len(raw_key)}"
            )
        return raw_key

    def _indexed_row(self, txn: Txn, raw_key: bytes) -> RowT:
        data = txn.get(raw_key, None, txn.handles[self].rows)
        if data is None:
            raise RowUnreadable(
                self.name, raw_key.decode(), "an index names it, the row is missing"
            )
        return self._row(raw_key, data)

    def _row(self, raw_key: bytes, data: bytes) -> RowT:
        try:
            return self._decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RowUnreadable(self.name, raw_key.decode(), str(error)) from error


class Schema:
    """The tables of one module of the control plane, and their version (from 1).

    ``upgrades[n]`` upgrades a store of version n to n+1. All steps and the new
    version are one transaction while the store is opened, so an upgrade happens
    wholly or not at all. A step may read rows of an old type through a Table
    that it declares with the name of the stored one. It need not update the
    indexes, which are built again after the last step.
    """

    def __init__(
        self,
        name: str,
        version: int,
        tables: Sequence[Table[Any]],
        upgrades: Mapping[int, Callable[[Txn], None]] = MappingProxyType({}),
    ) -> None:
        check_name(name)
        if version < 1:
            raise ValueError(f"schema {name}: versions begin at 1")
        if len({table.name for table in tables}) < len(tables):
            raise ValueError(f"schema {name}: two tables have one name")
        self.name = name
        self.version = version
        self.tables = tuple(tables)
        self.upgrades = dict(upgrades)
