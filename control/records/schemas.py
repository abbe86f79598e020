"""The tables of the schemas in the file: opened, upgraded, and filled from PostgreSQL's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec

from control.records.errors import RecordsUpgraded
from control.records.table import Schema, Table
from control.records.txn import Changes, Handles, Named, TableHandles, Txn
from gfs.errors import StartupError

if TYPE_CHECKING:
    from control.records.postgres import Commit, Database, News

_SCHEMAS = b"schemas"


class _Stored(msgspec.Struct, array_like=True):
    """The stored state of a schema: its version, each table's index names."""

    version: int
    indexes: dict[str, list[str]]

    @classmethod
    def of(cls, schema: Schema) -> _Stored:
        by_name = sorted(schema.tables, key=lambda table: table.name)
        return cls(schema.version, {table.name: sorted(table.indexes) for table in by_name})


class Tables:
    """The tables in one file, and which versions of their schemas are stored there."""

    def __init__(self, directory: Path, environment: lmdb.Environment) -> None:
        self._directory = directory
        self._environment = environment
        self.handles = TableHandles()
        #: The database that has the stored states of schemas.
        self._stored: lmdb._Database | None = None
        #: Those states, as this release has them.
        self._expected: dict[bytes, bytes] = {}
        self._places: dict[str, Table[Any]] = {}

    def check(self, raw: lmdb.Transaction[bytes]) -> None:
        """Raise if another release has upgraded the store while this process was running."""
        for name, expected in self._expected.items():
            if raw.get(name, None, self._stored) != expected:
                raise RecordsUpgraded(
                    f"another release has changed the tables of {name.decode()!r}: "
                    "restart this process with that release"
                )

    def open(self, raw: lmdb.Transaction[bytes], schemas: Sequence[Schema]) -> None:
        self._stored = self._environment.open_db(_SCHEMAS, txn=raw)
        for schema in schemas:
            for table in schema.tables:
                if table in self.handles:
                    raise ValueError(f"table {table.name!r} is in two schemas")
                handles = _open_table(self._environment, raw, schema, table)
                self.handles[table] = handles
                self._places[handles.place] = table

    def prepare(self, schemas: Sequence[Schema]) -> None:
        """Create and upgrade, all in one transaction."""
        with self._environment.begin(write=True) as raw:
            self.open(raw, schemas)
            for schema in schemas:
                self._bring_up(raw, schema)

    def dump(self, txn: Txn) -> Iterator[tuple[str, bytes, bytes]]:
        """See :meth:`control.records.Records.dump`."""
        for name in self._expected:
            data = txn.get(name, None, self._stored)
            if data is not None:
                yield _SCHEMAS.decode(), name, data
        for place, rows, _ in self.handles.values():
            with txn.raw.cursor(rows) as cursor:
                yield from ((place, key, data) for key, data in cursor)

    def left_out(self, txn: Txn) -> list[str]:
        with txn.raw.cursor(self._stored) as cursor:
            return [key.decode() for key, _ in cursor if key not in self._expected]

    def load(self, txn: Txn, rows: Iterable[tuple[str, bytes, bytes]]) -> int:
        if any(table.count(txn) for table in self._places.values()):
            raise StartupError("the records are not empty: import into new ones")
        count = 0
        for place, key, data in rows:
            table = self._places.get(place)
            if place == _SCHEMAS.decode():
                if self._expected.get(key, data) != data:
                    raise StartupError(
                        f"the tables of {key.decode()!r} are of another release: export "
                        "them with the release that imports them"
                    )
            elif table is None:
                raise StartupError(
                    f"there are rows of {place!r}, which no module has that is installed "
                    "here: install that module, then import again"
                )
            else:
                table.copy_row(txn, key, data)
                count += 1
        return count

    def _bring_up(
        self, raw: lmdb.Transaction[bytes], schema: Schema, changes: Changes | None = None
    ) -> None:
        name, wanted = schema.name.encode(), encoded(schema)
        data = raw.get(name, None, self._stored)
        if data is not None and data != wanted:
            version = msgspec.msgpack.decode(data, type=_Stored).version
            handles = _UpgradeHandles(self._environment, raw, schema)
            handles.update(self.handles)
            txn = Txn(raw, handles, is_write=True, changes=changes)
            self._run_upgrades(txn, schema, version)
            for table in schema.tables:
                table.reindex(txn)
        if data != wanted:
            raw.put(name, wanted, db=self._stored)
            if changes is not None:
                changes[_SCHEMAS.decode(), name] = wanted
        self._expected[name] = wanted

    def _run_upgrades(self, txn: Txn, schema: Schema, version: int) -> None:
        if version > schema.version:
            raise StartupError(
                f"{self._directory}: the tables of {schema.name!r} have version {version}, "
                f"this release knows {schema.version}: run a newer one"
            )
        for step in range(version, schema.version):
            if step not in schema.upgrades:
                raise StartupError(
                    f"{self._directory}: the tables of {schema.name!r} have version {version}, "
                    f"which this release cannot upgrade: first run one that knows {step + 1}"
                )
            schema.upgrades[step](txn)

    # --- the copy of what is in PostgreSQL ----------------------------------------------------

    def fill(self, line: Database, schemas: Sequence[Schema]) -> Commit:
        """Make the copy, and upgrade what is in PostgreSQL. Returns the last commit in it."""
        line.prepare()
        news = line.news()
        with self._environment.begin(write=True) as raw:
            self._fill_rows(raw, news, schemas)
            stored = {
                schema.name: raw.get(schema.name.encode(), None, self._stored) for schema in schemas
            }
            if all(stored[each.name] == encoded(each) for each in schemas):
                for schema in schemas:
                    self._expected[schema.name.encode()] = encoded(schema)
                return news.commit
        line.begin()
        news = line.news()
        with self._environment.begin(write=True) as raw:
            self._fill_rows(raw, news, schemas)
            changes: Changes = {}
            for schema in schemas:
                self._bring_up(raw, schema, changes)
            if not changes:
                line.roll_back()
                return news.commit
            last = news.commit.next()
            line.commit(last, changes)
        return last

    def _fill_rows(
        self, raw: lmdb.Transaction[bytes], news: News, schemas: Sequence[Schema]
    ) -> None:
        """Replace all rows by these, those of tables that only an upgrade looks into as well."""
        self._clear(raw)
        names = {schema.name for schema in schemas}
        others: dict[str, lmdb._Database] = {}
        for place, key, value, _ in news.rows:
            table = self._places.get(place)
            if place == _SCHEMAS.decode():
                database = self._stored
            elif table is not None:
                database = self.handles[table].rows
            elif place.partition(".")[0] in names:
                if place not in others:
                    others[place] = self._environment.open_db(place.encode(), txn=raw)
                    raw.drop(others[place], delete=False)
                database = others[place]
            else:
                continue
            if value is not None:
                raw.put(key, value, db=database)
        txn = Txn(raw, self.handles, is_write=True)
        for schema in schemas:
            data = raw.get(schema.name.encode(), None, self._stored)
            if data is not None:
                indexes = msgspec.msgpack.decode(data, type=_Stored).indexes
                for table in schema.tables:
                    table.copy_index(txn, indexes.get(table.name, ()))

    def _clear(self, raw: lmdb.Transaction[bytes]) -> None:
        assert self._stored is not None
        raw.drop(self._stored, delete=False)
        for _, rows, entries in self.handles.values():
            raw.drop(rows, delete=False)
            raw.drop(entries, delete=False)

    def take(self, raw: lmdb.Transaction[bytes], news: News) -> None:
        """Store what other processes have committed."""
        if news.is_whole:
            self._clear(raw)
        txn = Txn(raw, self.handles, is_write=True)
        for place, key, value, _ in news.rows:
            table = self._places.get(place)
            if table is not None:
                table.copy_row(txn, key, value)
            elif place == _SCHEMAS.decode() and value is not None:
                raw.put(key, value, db=self._stored)


class _UpgradeHandles(TableHandles):
    """Lets an upgrade see tables of its schema that are no longer declared."""

    def __init__(
        self, environment: lmdb.Environment, raw: lmdb.Transaction[bytes], schema: Schema
    ) -> None:
        super().__init__()
        self._environment = environment
        self._raw = raw
        self._schema = schema

    def __missing__(self, table: Named) -> Handles:
        handles = _open_table(self._environment, self._raw, self._schema, table)
        self[table] = handles
        return handles


def _open_table(
    environment: lmdb.Environment,
    raw: lmdb.Transaction[bytes],
    schema: Schema,
    table: Named,
) -> Handles:
    name = f"{schema.name}.{table.name}"
    return Handles(
        name,
        environment.open_db(name.encode(), txn=raw),
        environment.open_db(f"{name}.index".encode(), txn=raw, dupsort=True),
    )


def encoded(schema: Schema) -> bytes:
    return msgspec.msgpack.encode(_Stored.of(schema))
