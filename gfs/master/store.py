"""The metadata on disk: one LMDB environment, one writer, many readers.

Reading: ``with store.read() as txn`` is a snapshot and costs under a
microsecond to take. Writing: :meth:`Store.commit` runs one function inside one
write transaction; everything it did is durable when it returns, nothing of it
is there when it raises. LMDB binds a write transaction to its thread, so the
whole of ``commit`` runs in one thread; the caller sees to it that there is
only one at a time.

Errors of LMDB stop here. A full disk or map is DiskFull and passes by itself.
Anything else while writing means that this process does not know what is on
its disk any more: DiskFailed, and the master ends; after a restart every
acknowledged commit is there (LMDB never overwrites a live page).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, TypeVar

import lmdb
import msgspec

from gfs.errors import DiskFailed, DiskFull, StartupError
from gfs.master.rows import KIND_DIRECTORY, ROOT_INODE, Inode, KnownServer, pack_u64, unpack_u64

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Version of the rows' format. A store with a higher one is not opened.
SCHEMA = 1
#: Readers are the loop's own few transactions and tools that look from outside.
READERS_MAX = 1024
SPARE_TRANSACTIONS = 8
HANDLE_RANGE = 10_000
LOCK_NAME = "master.lock"

_CLUSTER, _SCHEMA, _EPOCH, _STATE = b"cluster", b"schema", b"epoch", b"state"


class State(msgspec.Struct, array_like=True):
    """The counters of the store, written with every commit that moves them."""

    sequence: int = 0
    next_inode: int = ROOT_INODE + 1
    #: Handles below this may have been handed out; they are never again.
    handle_end: int = 1
    files: int = 0
    directories: int = 0
    bytes: int = 0
    #: Corrupt replicas ever found, healed or not.
    corruptions: int = 0


class Databases(NamedTuple):
    meta: lmdb._Database
    entries: lmdb._Database
    inodes: lmdb._Database
    file_chunks: lmdb._Database
    chunks: lmdb._Database
    trash: lmdb._Database
    operation_log: lmdb._Database
    answers: lmdb._Database
    servers: lmdb._Database


class Txn:
    """One transaction. ``get``, ``put`` and ``delete`` take the database last:
    ``txn.get(key, None, txn.db.inodes)``."""

    __slots__ = ("db", "freed", "get", "raw", "state")

    def __init__(self, raw: lmdb.Transaction[bytes], db: Databases, state: State) -> None:
        self.raw = raw
        self.get = raw.get
        self.db = db
        self.state = state
        #: Chunks that lost their last reference here, as (handle, version).
        self.freed: list[tuple[int, int]] = []

    def put(self, key: bytes, value: bytes, database: lmdb._Database) -> None:
        self.raw.put(key, value, db=database)

    def delete(self, key: bytes, database: lmdb._Database) -> None:
        self.raw.delete(key, db=database)

    def scan(self, start: bytes, database: lmdb._Database) -> Iterator[tuple[bytes, bytes]]:
        """Rows from the first key at or after ``start``, in order."""
        with self.raw.cursor(database) as cursor:
            if cursor.set_range(start):
                yield from cursor.iternext()

    def count(self, database: lmdb._Database) -> int:
        return self.raw.stat(database)["entries"]

    def __enter__(self) -> Txn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.raw.abort()


class Store:
    """An open store. See :func:`open_store`."""

    def __init__(self, environment: lmdb.Environment, db: Databases, lock: int) -> None:
        self._environment = environment
        self._db = db
        self._lock = lock
        self.cluster = ""
        self.epoch = 0
        #: As of the last commit.
        self.state = State()

    def read(self) -> Txn:
        """A snapshot of the last commit, to be used in a ``with`` statement."""
        return Txn(self._environment.begin(), self._db, self.state)

    def commit(self, work: Callable[[Txn], T]) -> T:
        """Run ``work`` in a write transaction and commit it durably.

        Nothing is written when ``work`` raises. Raises DiskFull (nothing was
        written; it may work later) or DiskFailed (the process must end).
        """
        try:
            return self._commit(work)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise DiskFull(
                f"the master's metadata disk is full: free some space there ({error})"
            ) from error
        except lmdb.Error as error:
            if getattr(error, "code", 0) == errno.ENOSPC:
                raise DiskFull(f"the master's metadata disk is full ({error})") from error
            raise DiskFailed(
                f"the master's metadata cannot be written any more ({error}): "
                "look at its disk, then start it again"
            ) from error

    def _commit(self, work: Callable[[Txn], T]) -> T:
        before = self.state
        state = msgspec.structs.replace(before)
        raw = self._environment.begin(write=True)
        try:
            txn = Txn(raw, self._db, state)
            result = work(txn)
            if state != before:
                txn.put(_STATE, msgspec.msgpack.encode(state), self._db.meta)
            raw.commit()
        except BaseException:
            raw.abort()
            raise
        self.state = state
        return result

    def close(self) -> None:
        """Close the files and give the lock up. No transaction may be open."""
        self._environment.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _start(self, fresh_cluster: str, now_ns: int) -> None:
        """Bootstrap a new store, once; count the start of any."""

        def work(txn: Txn) -> tuple[str, int]:
            meta = self._db.meta
            if txn.get(_CLUSTER, None, meta) is None:
                root = Inode(KIND_DIRECTORY, 0, 0, 0, 0, now_ns, now_ns)
                txn.put(pack_u64(ROOT_INODE), root.pack(), self._db.inodes)
                txn.put(_CLUSTER, fresh_cluster.encode(), meta)
                txn.put(_SCHEMA, pack_u64(SCHEMA), meta)
                txn.put(_STATE, msgspec.msgpack.encode(txn.state), meta)
            epoch = unpack_u64(txn.get(_EPOCH, b"", meta)) + 1
            txn.put(_EPOCH, pack_u64(epoch), meta)
            # The first range of handles rides on this commit.
            txn.state.handle_end += HANDLE_RANGE
            return txn.get(_CLUSTER, b"", meta).decode(), epoch

        with self.read() as txn:
            schema = unpack_u64(txn.get(_SCHEMA, pack_u64(SCHEMA), self._db.meta))
            state = txn.get(_STATE, None, self._db.meta)
        if schema > SCHEMA:
            raise StartupError(
                f"the metadata has format {schema}, this release knows {SCHEMA}: run a newer one"
            )
        if state is not None:
            self.state = msgspec.msgpack.decode(state, type=State)
        self.cluster, self.epoch = self.commit(work)

    def known_servers(self) -> dict[str, KnownServer]:
        """The chunkservers that ever registered, by id."""
        with self.read() as txn:
            return {
                key.decode(): msgspec.msgpack.decode(value, type=KnownServer)
                for key, value in txn.scan(b"", self._db.servers)
            }


def open_store(
    directory: str, map_bytes: int, sync: bool, fresh_cluster: str, now_ns: int
) -> Store:
    """Open the store in ``directory``, made if it is not there. Blocks.

    ``fresh_cluster`` becomes the cluster's id if the store is new. Raises
    StartupError: the directory cannot be written, another master holds it, the
    files cannot be read, or they were written by a newer release.
    """
    lock = _take_lock(directory)
    try:
        environment = _open_environment(directory, map_bytes, sync)
    except BaseException:
        os.close(lock)
        raise
    try:
        # Slots of readers that were killed would keep old pages from reuse.
        environment.reader_check()
        db = Databases(*[environment.open_db(name.encode()) for name in Databases._fields])
        store = Store(environment, db, lock)
        store._start(fresh_cluster, now_ns)
    except BaseException as error:
        environment.close()
        os.close(lock)
        if isinstance(error, (lmdb.Error, DiskFull, DiskFailed, msgspec.DecodeError)):
            raise StartupError(f"{directory}: the metadata cannot be opened: {error}") from error
        raise
    return store


def _take_lock(directory: str) -> int:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(
            os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise StartupError(
            f"{directory}: the master cannot keep its metadata here: {error.strerror}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StartupError(f"{directory}: another master is running on this metadata") from error
    return lock


def _open_environment(directory: str, map_bytes: int, sync: bool) -> lmdb.Environment:
    try:
        return lmdb.open(
            directory,
            map_size=map_bytes,
            max_dbs=len(Databases._fields),
            max_readers=READERS_MAX,
            max_spare_txns=SPARE_TRANSACTIONS,
            sync=sync,
            metasync=sync,
            mode=0o600,
        )
    except (lmdb.Error, OSError, OverflowError, MemoryError) as error:
        raise StartupError(f"{directory}: the metadata cannot be opened: {error}") from error
