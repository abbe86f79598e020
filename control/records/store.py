"""The file with the records: opened, upgraded, read and written.

Errors of LMDB stop here. A full disk or map is DiskFull and passes once there
is room. Anything else while writing is RecordsFailed: this process no longer
knows what is on its disk and should end; after a restart every acknowledged
change is there, since LMDB never overwrites a page that is in use.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import lmdb
import msgspec
import outcome
import trio

from control.records.errors import RecordsBusy, RecordsFailed, RowUnreadable, Taken
from control.records.table import Schema, Table
from control.records.txn import Handles, Named, TableHandles, Txn
from control.records.writer import Job, Writer
from gfs.errors import DiskFull, GfsError, StartupError

T = TypeVar("T")
RowT = TypeVar("RowT", bound=msgspec.Struct)

#: Rows of a long list that are read at once, some 2 ms.
PIECE_ROWS = 500
#: Address space for the file, and so what it can grow to. Costs nothing unused.
MAP_BYTES = 4 * 1024**3
#: Reads on the loop are over at once; the rest is room for processes that were
#: killed, whose slots the next open() frees.
READERS_MAX = 1024
SPARE_TRANSACTIONS = 8
#: Databases beyond the declared ones: tables that an upgrade looks into.
UPGRADE_DATABASES = 64

_SCHEMAS = b"schemas"


class _Stored(msgspec.Struct, array_like=True):
    """The stored state of a schema: its version, each table's index names."""

    version: int
    indexes: dict[str, list[str]]

    @classmethod
    def of(cls, schema: Schema) -> _Stored:
        by_name = sorted(schema.tables, key=lambda table: table.name)
        return cls(schema.version, {table.name: sorted(table.indexes) for table in by_name})


class Records:
    """The records in one directory, open in this process. See :meth:`open`."""

    def __init__(self, directory: Path, environment: lmdb.Environment, map_bytes: int) -> None:
        self._directory = directory
        self._environment = environment
        self._map_bytes = map_bytes
        self._handles = TableHandles()
        self._schemas: lmdb._Database | None = None
        self._expected: dict[bytes, bytes] = {}
        self._writer = Writer(self._commit)
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        schemas: Sequence[Schema],
        *,
        map_bytes: int = MAP_BYTES,
        sync: bool = True,
    ) -> Records:
        """Open the records in ``directory``, made with mode 0700 if it is not there.

        Blocks, as long as another process is writing or upgrading. Creates the
        tables that are missing and upgrades what is older. ``map_bytes`` is
        what the file can grow to; all processes should use the same. Without
        ``sync`` a power cut may lose or damage everything: for tests only.

        Open once per process and after any fork. Raises StartupError: the
        directory cannot be used, or a newer release wrote it.
        """
        environment = _open_environment(directory, schemas, map_bytes, sync)
        records = cls(directory, environment, map_bytes)
        try:
            environment.reader_check()
            records._prepare(schemas)
            if sync:
                _sync_names(directory)
        except BaseException as error:
            environment.close()
            if isinstance(error, (lmdb.Error, OSError, Taken, RowUnreadable)):
                raise StartupError(f"{directory}: the records cannot be opened: {error}") from error
            raise
        return records

    def read(self) -> Txn:
        """A snapshot of the last commit, to be used in a ``with`` statement.

        Costs under a microsecond and never waits, so it is used on the loop's
        thread. It must not be held over an await.
        """
        try:
            return Txn(self._environment.begin(), self._handles, is_write=False)
        except lmdb.Error as error:
            raise self._translated(error) from error

    async def all(self, table: Table[RowT], index: str = "", value: str = "") -> list[RowT]:
        """All rows, or those with this index value, ordered by key. Others are served in
        between: what changes meanwhile is seen or is not, row by row."""
        rows: list[RowT] = []
        while True:
            after = table.key(rows[-1]) if rows else ""
            with self.read() as txn:
                found = (
                    table.by(txn, index, value, after=after)
                    if index
                    else table.scan(txn, after=after)
                )
                piece = list(itertools.islice(found, PIECE_ROWS))
            rows += piece
            if len(piece) < PIECE_ROWS:
                return rows
            await trio.lowlevel.checkpoint()

    async def write(self, decide: Callable[[Txn], T], *, seconds: float = 10.0) -> T:
        """Run ``decide`` in one durable transaction and return what it returned.

        On disk when this returns; nothing of it remains when ``decide`` raises,
        and its exception is raised here. ``decide`` runs in another thread and
        should be quick: everybody's writes wait for it.

        Raises RecordsBusy (too many writes wait already, or it took longer than
        ``seconds``), DiskFull, or RecordsFailed (this process should end). After a
        RecordsBusy for time or a cancellation the change may or may not be made.
        """
        return cast(T, await self._writer.run(decide, seconds))

    def close(self) -> None:
        """Finish the writes that wait and close the file. May be called twice."""
        self._closed = True
        # With the thread still waiting in LMDB, closing would pull the file
        # from under it; the process is about to end anyway.
        if self._writer.close():
            self._environment.close()

    def _commit(self, take: Callable[[], list[Job]]) -> None:
        """One transaction for all jobs that wait once the write lock is ours."""
        try:
            raw = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._fail(take(), error)
            return
        jobs = take()
        try:
            self._check_schemas(raw)
            for job in jobs:
                job.outcome = outcome.capture(self._decide, raw, job.decide)
            raw.commit()
        except Exception as error:
            raw.abort()
            self._fail(jobs, error)

    def _decide(self, parent: lmdb.Transaction[bytes], decide: Callable[[Txn], T]) -> T:
        try:
            raw = self._environment.begin(parent=parent, write=True)
            try:
                result = decide(Txn(raw, self._handles, is_write=True))
                raw.commit()
            except BaseException:
                raw.abort()
                raise
        except lmdb.Error as error:
            raise self._translated(error) from error
        return result

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            # A job that raised gets its own error; the others had succeeded until now.
            if not isinstance(job.outcome, outcome.Error):
                job.outcome = outcome.Error(self._translated(error))

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, lmdb.Error):
            return error
        if self._closed:
            return RecordsBusy("the records are closed: the server is stopping")
        return translated(error, self._directory, self._map_bytes)

    def _check_schemas(self, raw: lmdb.Transaction[bytes]) -> None:
        """A newer release may have upgraded the store under a process that still runs."""
        for name, expected in self._expected.items():
            if raw.get(name, None, self._schemas) != expected:
                raise StartupError(
                    f"{self._directory}: another release has changed the tables of "
                    f"{name.decode()!r}: restart this process with that release"
                )

    def _prepare(self, schemas: Sequence[Schema]) -> None:
        """Create and upgrade, all in one transaction."""
        with self._environment.begin(write=True) as raw:
            self._schemas = self._environment.open_db(_SCHEMAS, txn=raw)
            for schema in schemas:
                for table in schema.tables:
                    if table in self._handles:
                        raise ValueError(f"table {table.name!r} is in two schemas")
                    self._handles[table] = _open_table(self._environment, raw, schema, table)
                self._bring_up(raw, schema)

    def _bring_up(self, raw: lmdb.Transaction[bytes], schema: Schema) -> None:
        name, wanted = schema.name.encode(), msgspec.msgpack.encode(_Stored.of(schema))
        data = raw.get(name, None, self._schemas)
        if data is not None and data != wanted:
            version = msgspec.msgpack.decode(data, type=_Stored).version
            handles = _UpgradeHandles(self._environment, raw, schema)
            handles.update(self._handles)
            txn = Txn(raw, handles, is_write=True)
            self._run_upgrades(txn, schema, version)
            for table in schema.tables:
                table.reindex(txn)
        if data != wanted:
            raw.put(name, wanted, db=self._schemas)
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
        environment.open_db(name.encode(), txn=raw),
        environment.open_db(f"{name}.index".encode(), txn=raw, dupsort=True),
    )


def _open_environment(
    directory: Path, schemas: Sequence[Schema], map_bytes: int, sync: bool
) -> lmdb.Environment:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return lmdb.open(
            str(directory),
            map_size=map_bytes,
            max_dbs=1 + 2 * sum(len(schema.tables) for schema in schemas) + UPGRADE_DATABASES,
            max_readers=READERS_MAX,
            max_spare_txns=SPARE_TRANSACTIONS,
            sync=sync,
            metasync=sync,
            mode=0o600,
        )
    except (lmdb.Error, OSError, OverflowError, MemoryError) as error:
        raise StartupError(f"{directory}: the records cannot be opened: {error}") from error


def _sync_names(directory: Path) -> None:
    """Make the names of new files durable; LMDB syncs only what is in them."""
    for path in (directory, directory.absolute().parent):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def translated(error: lmdb.Error, directory: Path, map_bytes: int) -> GfsError:
    """The error of this project for one of LMDB's."""
    if isinstance(error, lmdb.MapFullError):
        return DiskFull(
            f"{directory}: the records fill the {map_bytes} bytes they may have: "
            "raise map_bytes and start again"
        )
    if isinstance(error, lmdb.MapResizedError):
        return RecordsFailed(
            f"{directory}: another process opened the records with a larger map_bytes "
            f"than {map_bytes}: start this one with the same"
        )
    if isinstance(error, lmdb.DiskError) or getattr(error, "code", 0) == errno.ENOSPC:
        return DiskFull(f"{directory}: the disk of the records is full: free some space ({error})")
    return RecordsFailed(
        f"{directory}: the records cannot be used any more ({error}): "
        "look at the disk, then start the server again"
    )
