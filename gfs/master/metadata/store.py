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
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, TypeVar

import lmdb
import msgspec

from gfs.errors import DiskFailed, DiskFull, StartupError
from gfs.io.filelock import try_flock
from gfs.master.metadata.rows import (
    KIND_DIRECTORY,
    ROOT_INODE,
    Inode,
    KnownServer,
    pack_u64,
    unpack_u64,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Version of the rows' format. A store with a higher one is not opened; one with a
#: lower one is taken as it is and marked: what came since was only appended.
#: 2: ``term`` and ``version_floor`` in the state, checksums in the operation log.
#: 3: ``trash_paths``; of what was deleted before, nothing can be undeleted. Chunks
#: that several files have.
#: 4: snapshots.
#: 5: the shadow masters that count.
SCHEMA = 5
#: Readers are the loop's own few transactions and tools that look from outside.
READERS_MAX = 1024
SPARE_TRANSACTIONS = 8
HANDLE_RANGE = 10_000
LOCK_NAME = "master.lock"
DATA_NAME, LMDB_LOCK_NAME = "data.mdb", "lock.mdb"

_CLUSTER, _SCHEMA, _EPOCH, _STATE = b"cluster", b"schema", b"epoch", b"state"
_STANDING = b"standing"


class UnderWay(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot that is being made: see :mod:`gfs.master.service.snapshots`."""

    #: What is copied, and what it is copied to, which has no name yet.
    source: int
    copy: int
    #: The directories above the source, the root first.
    above: list[int]


class Counted(msgspec.Struct, array_like=True, frozen=True):
    """``wanted`` of the shadow masters at ``addresses`` must have what is acknowledged:
    see :mod:`gfs.master.replication.quorum`."""

    addresses: list[str] = []
    wanted: int = 0

    def replaced(self, address: str, other: str) -> Counted:
        """``other`` counts where ``address`` did; nobody if it is empty."""
        if address not in self.addresses:
            return self
        found = [other if each == address else each for each in self.addresses]
        return Counted(list(dict.fromkeys(each for each in found if each)), self.wanted)


class Change(msgspec.Struct, array_like=True, frozen=True):
    """Others are to count. The operation ``sequence`` says so."""

    to: Counted
    sequence: int


class RepairSettings(msgspec.Struct, array_like=True, frozen=True):
    """What an operator has set while the cluster runs; -1: as the settings say that the
    master, or each chunkserver, was started with."""

    paused: bool = False
    clones_per_server: int = -1
    clones_total: int = -1
    moves_total: int = -1
    bytes_per_second: int = -1


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
    #: See :mod:`gfs.master.metadata.terms`: of the last promotion, and what came of it.
    term: int = 0
    version_floor: int = 0
    #: What can be undeleted: rows of the trash; and of those that are files, which
    #: the counts above do not have any more, how many and how long they are.
    trash_rows: int = 0
    trash_files: int = 0
    trash_bytes: int = 0
    #: Bytes of chunks that several files have, counted for each file but one.
    shared_bytes: int = 0
    #: Never changed in place: a transaction that is given up keeps the one before.
    snapshots: list[UnderWay] = []
    counted: Counted = msgspec.field(default_factory=Counted)
    counted_next: Change | None = None
    #: Nanoseconds of the masters' uptime, see :mod:`gfs.master.metadata.uptime`; 0: from a
    #: release that did not count them.
    lived_ns: int = 0
    repair: RepairSettings = msgspec.field(default_factory=RepairSettings)


class Promise(msgspec.Struct, array_like=True, frozen=True):
    """A shadow master follows no master below ``term`` any more, since the shadow at
    ``address`` may have begun that term."""

    term: int
    address: str


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """What the master on this very store is; each store's own, in no log."""

    #: Not empty: a shadow, and where the others of its cluster are.
    follows: list[str] = []
    #: A master of this higher term took over from it.
    fenced: int = 0
    #: Where the master's shadows are, as far as it knows.
    peers: list[str] = []
    #: What is here is not what it follows: a copy must be fetched before it serves.
    diverged: bool = False
    #: It was a master's: the copy is not to overwrite it.
    keep: bool = False
    promises: list[Promise] = []
    #: It was the master of the term ``ended`` and handed over to the shadow at ``heir``.
    ended: int = 0
    heir: str = ""


class Databases(NamedTuple):
    meta: lmdb._Database
    entries: lmdb._Database
    inodes: lmdb._Database
    file_chunks: lmdb._Database
    chunks: lmdb._Database
    trash: lmdb._Database
    trash_paths: lmdb._Database
    operation_log: lmdb._Database
    answers: lmdb._Database
    servers: lmdb._Database


class Freed(NamedTuple):
    handle: int
    version: int
    length: int


class Effects:
    """What the operations of a transaction mean for what is only in memory."""

    __slots__ = ("drains", "freed", "goals", "grown", "maintenance", "then", "trashed")

    def __init__(self) -> None:
        #: Chunks that lost their last reference.
        self.freed: list[Freed] = []
        #: Directories that can be undeleted from now on (True), or not any more.
        self.trashed: list[tuple[int, bool]] = []
        #: Chunks whose goal may be another one now.
        self.goals: list[int] = []
        #: Files that are longer now: (inode, length).
        self.grown: list[tuple[int, int]] = []
        #: Chunkservers that are drained from now on, or not any more: (id, how far).
        self.drains: list[tuple[str, int]] = []
        #: Chunkservers that are under maintenance until then, as masters live; 0: not.
        self.maintenance: list[tuple[str, int]] = []
        #: What the planner of a mutation wants done when that is durable, whether or not
        #: anybody still waits for it.
        self.then: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def add(self, other: Effects) -> None:
        """What was committed after this."""
        self.freed += other.freed
        self.trashed += other.trashed
        self.goals += other.goals
        self.grown += other.grown
        self.drains += other.drains
        self.maintenance += other.maintenance
        self.then += other.then


class Txn:
    """One transaction. ``get``, ``put`` and ``delete`` take the database last:
    ``txn.get(key, None, txn.db.inodes)``."""

    __slots__ = ("db", "effects", "get", "lived_ns", "raw", "state")

    def __init__(self, raw: lmdb.Transaction[bytes], db: Databases, state: State) -> None:
        self.raw = raw
        self.get = raw.get
        self.db = db
        self.state = state
        self.effects = Effects()
        #: The uptime of masters that the next row of the log will record.
        self.lived_ns = state.lived_ns

    def put(self, key: bytes, value: bytes, database: lmdb._Database) -> None:
        self.raw.put(key, value, db=database)

    def delete(self, key: bytes, database: lmdb._Database) -> None:
        self.raw.delete(key, db=database)

    def scan(self, start: bytes, database: lmdb._Database) -> Iterator[tuple[bytes, bytes]]:
        """Rows from the first key at or after ``start``, in order."""
        with self.raw.cursor(database) as cursor:
            if cursor.set_range(start):
                yield from cursor.iternext()

    def last_below(self, end: bytes, database: lmdb._Database) -> Iterator[tuple[bytes, bytes]]:
        """Rows from the last key below ``end`` backwards."""
        with self.raw.cursor(database) as cursor:
            if cursor.prev() if cursor.set_range(end) else cursor.last():
                yield from cursor.iterprev()

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
        self.close()

    def close(self) -> None:
        """Nothing can be read any more. The database has a reader free again when nobody holds
        ``raw``, so that is let go of here: an error's traceback may hold this for long."""
        self.raw.abort()
        del self.raw, self.get


class Store:
    """An open store. See :func:`open_store`."""

    def __init__(
        self,
        environment: lmdb.Environment,
        db: Databases,
        lock: int,
        opened: tuple[str, int, bool],
    ) -> None:
        self._environment = environment
        self._db = db
        self._lock = lock
        #: Directory, size of the map, and whether commits wait for the disk.
        self._opened = opened
        self.cluster = ""
        self.epoch = 0
        #: As of the last commit.
        self.state = State()
        self.standing = Standing()

    def read(self) -> Txn:
        """A snapshot of the last commit, to be used in a ``with`` statement."""
        return Txn(self._environment.begin(), self._db, self.state)

    @property
    def used_bytes(self) -> int:
        """Size of the database, with pages that are free again."""
        pages: int = self._environment.info()["last_pgno"] + 1
        return pages * int(self._environment.stat()["psize"])

    def snapshot(self) -> Txn:
        """As :meth:`read`, with exactly the counters of that commit; those of ``read``
        may be of the one before or after, while a commit is under way."""
        txn = Txn(self._environment.begin(), self._db, self.state)
        state = txn.get(_STATE, None, self._db.meta)
        if state is not None:
            txn.state = msgspec.msgpack.decode(state, type=State)
        return txn

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

    def load(self) -> None:
        """Read what is there. Raises StartupError for a newer format."""
        with self.read() as txn:
            meta = self._db.meta
            schema = unpack_u64(txn.get(_SCHEMA, pack_u64(SCHEMA), meta))
            state = txn.get(_STATE, None, meta)
            standing = txn.get(_STANDING, None, meta)
            self.cluster = txn.get(_CLUSTER, b"", meta).decode()
            self.epoch = unpack_u64(txn.get(_EPOCH, b"", meta))
        if schema > SCHEMA:
            raise StartupError(
                f"the metadata has format {schema}, this release knows {SCHEMA}: run a newer one"
            )
        if state is not None:
            self.state = msgspec.msgpack.decode(state, type=State)
        if standing is not None:
            self.standing = msgspec.msgpack.decode(standing, type=Standing)

    def begin(self, fresh_cluster: str, now_ns: int) -> None:
        """A master starts on it: bootstrap a new store, once; count the start of any."""

        def work(txn: Txn) -> tuple[str, int]:
            meta = self._db.meta
            if txn.get(_CLUSTER, None, meta) is None:
                root = Inode(KIND_DIRECTORY, 0, 0, 0, 0, now_ns, now_ns)
                txn.put(pack_u64(ROOT_INODE), root.pack(), self._db.inodes)
                txn.put(_CLUSTER, fresh_cluster.encode(), meta)
                txn.put(_STATE, msgspec.msgpack.encode(txn.state), meta)
            epoch = unpack_u64(txn.get(_EPOCH, b"", meta)) + 1
            txn.put(_EPOCH, pack_u64(epoch), meta)
            txn.put(_SCHEMA, pack_u64(SCHEMA), meta)
            # The first range of handles rides on this commit.
            txn.state.handle_end += HANDLE_RANGE
            return txn.get(_CLUSTER, b"", meta).decode(), epoch

        self.cluster, self.epoch = self.commit(work)

    def put_standing(self, txn: Txn, standing: Standing) -> None:
        """``self.standing`` is the caller's to set when it is committed."""
        txn.put(_STANDING, msgspec.msgpack.encode(standing), self._db.meta)

    def set_standing(self, standing: Standing) -> None:
        """Durably. Only while no committer runs."""
        self.commit(lambda txn: self.put_standing(txn, standing))
        self.standing = standing

    def put_copied(self, cluster: str, state: State) -> None:
        """This store was filled with another's rows: make them one."""

        def work(txn: Txn) -> None:
            txn.put(_CLUSTER, cluster.encode(), self._db.meta)
            txn.put(_SCHEMA, pack_u64(SCHEMA), self._db.meta)
            for name in State.__struct_fields__:
                setattr(txn.state, name, getattr(state, name))

        self.commit(work)
        self.cluster = cluster

    def swap_in(self, directory: str, keep_as: str) -> None:
        """Put the store in ``directory``, which is closed, in the place of this one;
        this one's file is kept under another name if ``keep_as``. Blocks. No
        transaction may be open. A crash leaves one or the other."""
        here, map_bytes, sync = self._opened
        self._environment.close()
        mine, theirs = os.path.join(here, DATA_NAME), os.path.join(directory, DATA_NAME)
        if keep_as and os.path.exists(mine):
            kept = os.path.join(here, keep_as)
            if os.path.exists(kept):
                os.unlink(kept)
            os.link(mine, kept)
        os.replace(theirs, mine)
        lock = os.path.join(here, LMDB_LOCK_NAME)
        if os.path.exists(lock):
            os.unlink(lock)
        shutil.rmtree(directory, ignore_errors=True)
        _sync_directory(here)
        self._environment = _open_environment(here, map_bytes, sync)
        self._db = _open_databases(self._environment)
        self.state, self.standing = State(), Standing()
        self.load()

    def sync(self) -> None:
        """What was committed is on the disk, also where commits do not wait for it."""
        self._environment.sync(True)

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
    store = open_only(directory, map_bytes, sync)
    try:
        store.begin(fresh_cluster, now_ns)
    except BaseException as error:
        store.close()
        if isinstance(error, (DiskFull, DiskFailed)):
            raise StartupError(f"{directory}: the metadata cannot be opened: {error}") from error
        raise
    return store


def open_only(directory: str, map_bytes: int, sync: bool) -> Store:
    """Open the store as it is, for a shadow, or to look who it is. As open_store."""
    lock = _take_lock(directory)
    try:
        environment = _open_environment(directory, map_bytes, sync)
    except BaseException:
        os.close(lock)
        raise
    try:
        # Slots of readers that were killed would keep old pages from reuse.
        environment.reader_check()
        db = _open_databases(environment)
        store = Store(environment, db, lock, (directory, map_bytes, sync))
        store.load()
    except BaseException as error:
        environment.close()
        os.close(lock)
        if isinstance(error, (lmdb.Error, DiskFull, DiskFailed, msgspec.DecodeError)):
            raise StartupError(f"{directory}: the metadata cannot be opened: {error}") from error
        raise
    return store


def _cannot_keep(directory: str, error: OSError) -> StartupError:
    return StartupError(f"{directory}: the master cannot keep its metadata here: {error.strerror}")


def _take_lock(directory: str) -> int:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(
            os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise _cannot_keep(directory, error) from error
    try:
        is_taken = try_flock(lock)
    except OSError as error:
        os.close(lock)
        raise _cannot_keep(directory, error) from error
    if not is_taken:
        os.close(lock)
        raise StartupError(f"{directory}: another master is running on this metadata")
    return lock


def _open_databases(environment: lmdb.Environment) -> Databases:
    return Databases(*[environment.open_db(name.encode()) for name in Databases._fields])


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
