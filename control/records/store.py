"""The file with the records: opening, reading and writing it; its tables are of :mod:`.schemas`.

Where several machines share them, they are in PostgreSQL, and the file is this process' copy
(:mod:`control.records.shared`).

Errors of LMDB are translated here. A full disk or map is DiskFull, which passes once there
is room. Any other error while writing is RecordsFailed: this process does not
know what is on its disk and should end; after a restart every acknowledged
change is there, since LMDB never overwrites a page that is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lmdb
import msgspec
import outcome
import trio

from control.records.errors import RecordsBusy, RecordsFailed, RowUnreadable, Taken
from control.records.locks import SharedLock
from control.records.schemas import Tables
from control.records.table import Schema, Table
from control.records.txn import Changes, Txn
from control.records.writer import Job, Writer
from gfs.errors import DiskFull, GfsError, StartupError
from gfs.io import sync_directory, try_flock
from gfs.lmdb_environment import is_full, open_environment

if TYPE_CHECKING:
    from control.records.postgres import News
    from control.records.shared import Shared

T = TypeVar("T")
RowT = TypeVar("RowT", bound=msgspec.Struct)

#: Rows of a long list that are read at once, some 2 ms.
PIECE_ROWS = 500
#: Address space for the file, and so the size that it can grow to. Unused, it costs nothing.
MAP_BYTES = 4 * 1024**3
#: Reads on the loop end at once; most slots are for processes that were killed, whose
#: slots the next open() frees.
READERS_MAX = 1024
#: Databases beyond the declared ones: tables that an upgrade looks into.
UPGRADE_DATABASES = 64


class Records:
    """The records in one directory, open in this process. See :meth:`open`."""

    def __init__(self, directory: Path, environment: lmdb.Environment, map_bytes: int) -> None:
        self._directory = directory
        self._environment = environment
        self._map_bytes = map_bytes
        self._tables = Tables(directory, environment)
        self._handles = self._tables.handles
        self._writer = Writer(self._commit)
        self._shared: Shared | None = None
        self._copy_lock = -1
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
        """Open the records in ``directory``, which is created with mode 0700 if it is missing.

        Blocks while another process is writing or upgrading. Creates missing
        tables and upgrades older ones. ``map_bytes`` is the size that the file
        can grow to; all processes should use the same. Without
        ``sync`` a power cut may lose or damage everything: for tests only.

        Open once per process and after any fork. Raises StartupError: the
        directory cannot be used, or a newer release wrote it.
        """
        environment = _open_environment(directory, schemas, map_bytes, sync)
        records = cls(directory, environment, map_bytes)
        try:
            records._tables.prepare(schemas)
            if sync:
                # The names of new files; LMDB syncs only what is in them.
                sync_directory(directory)
                sync_directory(directory.absolute().parent)
        except BaseException as error:
            environment.close()
            if isinstance(error, (lmdb.Error, OSError, Taken, RowUnreadable)):
                raise _cannot_open(directory, error) from error
            raise
        return records

    @classmethod
    def open_shared(
        cls,
        url: str,
        directory: Path,
        schemas: Sequence[Schema],
        *,
        store: str = "records",
        map_bytes: int = MAP_BYTES,
    ) -> Records:
        """Open the records of the name ``store`` in PostgreSQL, with a copy of them in a
        directory of this process below ``directory``.

        Blocks while another process upgrades, and for some seconds while PostgreSQL does not
        answer. Raises StartupError, as :meth:`open`.
        """
        try:
            from control.records import postgres, shared
        except ImportError as error:
            raise StartupError(
                f"--records postgresql://… needs {error.name or 'libpq'}: "
                'pip install "gfs-control-plane[server,postgresql]"'
            ) from error
        writer = secrets.token_hex(8)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = directory / writer
        lock = _own_directory(directory, own)
        try:
            environment = _open_environment(own, schemas, map_bytes, sync=False)
            records = cls(own, environment, map_bytes)
            records._copy_lock = lock
            try:
                connect = functools.partial(postgres.Database.connect, url, store, writer)
                with environment.begin(write=True) as raw:
                    records._tables.open(raw, schemas)
                line = shared.at_start(functools.partial(connect, is_patient=True))
                with contextlib.closing(line):
                    last = shared.once(lambda: records._tables.fill(line, schemas))
                records._shared = shared.Shared(connect, store, writer, _Copy(records))
                records._shared.last = last
                records._shared.start()
            except BaseException as error:
                environment.close()
                if isinstance(error, (lmdb.Error, Taken, RowUnreadable)):
                    raise _cannot_open(own, error) from error
                raise
        except BaseException:
            os.close(lock)
            shutil.rmtree(own, ignore_errors=True)
            raise
        return records

    async def fresh(self) -> None:
        """Wait until :meth:`read` sees all that was acknowledged before, to any process.

        That is always so with records on this machine. Raises RecordsAway.
        """
        if self._shared is not None:
            await self._shared.fresh()

    @property
    def writer(self) -> str:
        """The name of this process among those that share the records; "" on one machine."""
        return self._shared.writer if self._shared is not None else ""

    def post(self, post: str) -> None:
        """Send a text of at most 7,900 bytes to all processes that share the records, soon. It
        is lost if they or PostgreSQL are away, or in a hurry. On one machine this does nothing."""
        if self._shared is not None:
            self._shared.post(post)

    def take_posts(self, take: Callable[[str], None]) -> None:
        """Call ``take``, on this loop, with each post of other processes from now on."""
        if self._shared is not None:
            self._shared.take_posts(take)

    def watch(self, changed: Callable[[], None]) -> bool:
        """Call ``changed``, on this loop, soon after each commit that :meth:`read` sees from then
        on. Returns False with records on this machine: those of other processes are not announced.
        For one caller."""
        if self._shared is None:
            return False
        self._shared.watch(changed)
        return True

    def lock(self, name: str) -> SharedLock | None:
        """A lock over all processes that share the records; None on one machine."""
        return self._shared.lock(name) if self._shared is not None else None

    async def is_connected(self, writer: str) -> bool:
        """Whether the process of this name is connected, of those that share the records."""
        assert self._shared is not None
        return await self._shared.ask(lambda line: line.is_locked(writer))

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
        """All rows, or those with this index value, ordered by key. Other tasks run in
        between, so of changes meanwhile some rows show and others do not."""
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
        should be quick, since all other writes wait for it.

        Raises RecordsBusy (too many writes wait already, or it took longer than
        ``seconds``), RecordsUpgraded, DiskFull, or RecordsFailed (this process should end). After a
        RecordsBusy for time, or a cancellation, the change may or may not be made.
        """
        return cast(T, await self._writer.run(decide, seconds))

    def check_tables(self) -> None:
        """Raise RecordsUpgraded if another release has upgraded them since this was opened."""
        with self.read() as txn:
            self._tables.check(txn.raw)

    def dump(self) -> Iterator[tuple[str, bytes, bytes]]:
        """The schemas and all rows of the tables that it was opened with, as of one moment: place,
        key, and the row as it is stored."""
        with self.read() as txn:
            yield from self._tables.dump(txn)

    def left_out(self) -> list[str]:
        """The names of the schemas that :meth:`dump` leaves out: of modules that are not installed
        any more."""
        with self.read() as txn:
            return self._tables.left_out(txn)

    def load(self, rows: Iterable[tuple[str, bytes, bytes]]) -> int:
        """Add rows that :meth:`dump` gave, in one transaction. Returns how many.

        Raises StartupError if there are rows already, or if they are of another release.
        """
        if self._shared is not None:
            self._shared.be_patient()
        return self.write_at_start(lambda txn: self._tables.load(txn, rows))

    def write_at_start(self, decide: Callable[[Txn], T]) -> T:
        """As :meth:`write`, in this thread and before any other write: blocks."""
        job = Job(decide, None)
        self._commit(lambda: [job])
        return cast(T, cast(outcome.Outcome[Any], job.outcome).unwrap())

    def close(self) -> None:
        """Finish the writes that wait and close the file. May be called twice."""
        self._closed = True
        # Closing while the thread still waits in LMDB would unmap the file that it uses;
        # the process is about to end anyway.
        if self._writer.close() and (self._shared is None or self._shared.close()):
            self._environment.close()
            if self._copy_lock >= 0:
                shutil.rmtree(self._directory, ignore_errors=True)
                os.close(self._copy_lock)
                self._copy_lock = -1

    def _commit(self, take: Callable[[], list[Job]]) -> None:
        """Run all jobs that wait in one transaction, once the write lock is taken."""
        if self._shared is not None:
            self._shared.commit(take)
            return
        try:
            raw = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._fail(take(), error)
            return
        jobs = take()
        try:
            self._run(raw, jobs)
            raw.commit()
        except Exception as error:
            raw.abort()
            self._fail(jobs, error)

    def _run(
        self, raw: lmdb.Transaction[bytes], jobs: list[Job], changes: Changes | None = None
    ) -> None:
        """Give each job its outcome; with ``changes``, add to them what the jobs have changed."""
        self._tables.check(raw)
        for job in jobs:
            own: Changes | None = None if changes is None else {}
            job.outcome = outcome.capture(self._decide, raw, job.decide, own)
            if changes is not None and own and isinstance(job.outcome, outcome.Value):
                changes.update(own)

    def _decide(
        self, parent: lmdb.Transaction[bytes], decide: Callable[[Txn], T], changes: Changes | None
    ) -> T:
        try:
            raw = self._environment.begin(parent=parent, write=True)
            try:
                result = decide(Txn(raw, self._handles, is_write=True, changes=changes))
                raw.commit()
            except BaseException:
                raw.abort()
                raise
        except lmdb.Error as error:
            raise self._translated(error) from error
        return result

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            # A job that raised keeps its own error; the others had succeeded until now.
            if not isinstance(job.outcome, outcome.Error):
                job.outcome = outcome.Error(self._translated(error))

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, lmdb.Error):
            return error
        if self._closed:
            return RecordsBusy("the records are closed: the server is stopping")
        return translated(error, self._directory, self._map_bytes)


class _Copy:
    """What :class:`control.records.shared.Shared` may do with the file."""

    def __init__(self, records: Records) -> None:
        self._records = records

    @contextlib.contextmanager
    def changing(self) -> Iterator[lmdb.Transaction[bytes]]:
        with self._records._environment.begin(write=True) as raw:
            yield raw

    def take(self, raw: lmdb.Transaction[bytes], news: News) -> None:
        self._records._tables.take(raw, news)

    def run(self, raw: lmdb.Transaction[bytes], jobs: list[Job]) -> Changes:
        changes: Changes = {}
        self._records._run(raw, jobs, changes)
        return changes

    def fail(self, jobs: list[Job], error: Exception) -> None:
        self._records._fail(jobs, error)


def _open_environment(
    directory: Path, schemas: Sequence[Schema], map_bytes: int, sync: bool
) -> lmdb.Environment:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _opening_alone(directory):
            return open_environment(
                str(directory),
                map_bytes=map_bytes,
                readers_max=READERS_MAX,
                databases_max=1
                + 2 * sum(len(schema.tables) for schema in schemas)
                + UPGRADE_DATABASES,
                sync=sync,
            )
    except (lmdb.Error, OSError, OverflowError, MemoryError) as error:
        raise _cannot_open(directory, error) from error


@contextlib.contextmanager
def _opening_alone(directory: Path) -> Iterator[None]:
    """Let one process at a time open what is in the directory."""
    lock = os.open(directory / "open.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _cannot_open(directory: Path, error: Exception) -> StartupError:
    is_of_disk = isinstance(error, (lmdb.Error, OSError)) and is_full(error, directory)
    advice = ": free some space there" if is_of_disk else ""
    return StartupError(f"{directory}: the records cannot be opened: {error}{advice}")


def _own_directory(directory: Path, own: Path) -> int:
    """Make a directory that is locked while this process has it, and delete those of dead
    processes. Returns the lock's descriptor."""
    everyone = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Another process that starts would delete a directory that is not locked yet.
        fcntl.flock(everyone, fcntl.LOCK_EX)
        for other in directory.iterdir():
            lock = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if try_flock(lock):
                shutil.rmtree(other, ignore_errors=True)
            os.close(lock)
        own.mkdir(mode=0o700)
        lock = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try_flock(lock)
    finally:
        os.close(everyone)
    return lock


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
    if is_full(error, directory):
        return DiskFull(f"{directory}: the disk of the records is full: free some space ({error})")
    return RecordsFailed(
        f"{directory}: the records cannot be used any more ({error}): "
        "check the disk, then start the server again"
    )
