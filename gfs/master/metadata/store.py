"""The metadata on disk: one LMDB environment, one writer, many readers.

Reading: ``with store.read() as txn`` gives a snapshot in under a microsecond. Writing:
:meth:`Store.commit` runs one function inside one write transaction; everything it did
is durable when it returns, nothing of it is there when it raises. LMDB binds a write
transaction to its thread, so the whole of ``commit`` runs in one thread; the caller
ensures that there is only one at a time.

Errors of LMDB do not leave this module. A full disk or map is DiskFull, after which the
store can still be used; while it is opened, StartupError. Any other error is DiskFailed. After
that of a write the process does not know any more what is on its disk, and the master ends;
after a restart every acknowledged commit is there (LMDB never overwrites a live page).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, TypeVar

import lmdb
import msgspec

from gfs.errors import DiskFailed, DiskFull, StartupError
from gfs.io import sync_directory, try_flock
from gfs.lmdb_environment import (
    DATA_NAME,
    LMDB_LOCK_NAME,
    NO_ROOM,
    is_full,
    open_environment,
)
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

#: Version of the rows' format. A store with a higher one is not opened. One with a
#: lower one is used as it is and gets the present number, because later versions have
#: only appended fields. 2: ``term`` and ``version_floor`` in the state, checksums in
#: the operation log. 3: ``trash_paths``; of what was deleted before, nothing can be
#: undeleted. Chunks that several files have. 4: snapshots. 5: the shadow masters that
#: count.
SCHEMA = 5
#: Readers are a few transactions of the loop, and other processes that open the store.
READERS_MAX = 1024
HANDLE_RANGE = 10_000
LOCK_NAME = "master.lock"

_CLUSTER, _SCHEMA, _EPOCH, _STATE = b"cluster", b"schema", b"epoch", b"state"
_STANDING = b"standing"


class UnderWay(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot that is being made: see :mod:`gfs.master.service.snapshots`."""

    #: The inodes of the source and of the copy, which has no name yet.
    source: int
    copy: int
    #: The directories above the source, the root first.
    above: list[int]


class Counted(msgspec.Struct, array_like=True, frozen=True):
    """``wanted`` of the shadow masters at ``addresses`` must have an operation before
    it is acknowledged: see :mod:`gfs.master.shadows.quorum`."""

    addresses: list[str] = []
    wanted: int = 0

    def replaced(self, address: str, other: str) -> Counted:
        """Let ``other`` count in place of ``address``; if it is empty, no other does."""
        if address not in self.addresses:
            return self
        found = [other if each == address else each for each in self.addresses]
        return Counted(list(dict.fromkeys(each for each in found if each)), self.wanted)


class Change(msgspec.Struct, array_like=True, frozen=True):
    """A change of the shadow masters that count, by the operation ``sequence``."""

    to: Counted
    sequence: int


class RepairSettings(msgspec.Struct, array_like=True, frozen=True):
    """The limits of repair that an operator has set while the cluster runs; -1: the
    value that the master, or each chunkserver, was started with."""

    paused: bool = False
    clones_per_server: int = -1
    clones_total: int = -1
    moves_total: int = -1
    bytes_per_second: int = -1


class State(msgspec.Struct, array_like=True):
    """The counters of the store, written with every commit that changes them."""

    sequence: int = 0
    next_inode: int = ROOT_INODE + 1
    #: Handles below this may have been allocated, and are never allocated again.
    handle_end: int = 1
    files: int = 0
    directories: int = 0
    bytes: int = 0
    #: Corrupt replicas ever found, repaired or not.
    corruptions: int = 0
    #: See :mod:`gfs.master.metadata.terms`: the term of the last promotion, and the
    #: first chunk version of that term.
    term: int = 0
    version_floor: int = 0
    #: What can be undeleted: the rows of the trash, and the number and bytes of those
    #: that are files, which the counts above do not include.
    trash_rows: int = 0
    trash_files: int = 0
    trash_bytes: int = 0
    #: The bytes of shared chunks, counted for each of their files but one.
    shared_bytes: int = 0
    #: Never changed in place: so a transaction that is aborted leaves the former object as it was.
    snapshots: list[UnderWay] = []
    counted: Counted = msgspec.field(default_factory=Counted)
    counted_next: Change | None = None
    #: The masters' uptime in ns, see :mod:`gfs.master.metadata.uptime`; 0: from a
    #: release that did not count it.
    lived_ns: int = 0
    repair: RepairSettings = msgspec.field(default_factory=RepairSettings)
    #: After a backup was restored: chunks that no file has are no garbage if their
    #: handles are below this; 0: the operator has accepted what was lost.
    kept_below: int = 0


class Promise(msgspec.Struct, array_like=True, frozen=True):
    """A promise to follow no master below ``term``, because the shadow master at
    ``address`` may have begun that term."""

    term: int
    address: str


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """The role and the promises of the master on this store. They belong to the store
    and are in no log."""

    #: Of a shadow master: the addresses of the other masters of its cluster; else empty.
    follows: list[str] = []
    #: The higher term of a master that has replaced this one.
    fenced: int = 0
    #: The addresses of the master's shadow masters, as far as it knows.
    peers: list[str] = []
    #: The store's history differs from that of the master it follows: it must fetch a
    #: copy before it serves.
    diverged: bool = False
    #: It was a master's store: the copy must not overwrite it.
    keep: bool = False
    promises: list[Promise] = []
    #: If it was the master of the term ``ended`` and handed over: the address of its successor.
    ended: int = 0
    successor: str = ""


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
    """The changes of a transaction that concern the state in memory."""

    __slots__ = ("drains", "freed", "goals", "grown", "maintenance", "replaced", "then", "trashed")

    def __init__(self) -> None:
        #: Chunks that lost their last reference.
        self.freed: list[Freed] = []
        #: Directories that can be undeleted from now on (True), or not any more (False).
        self.trashed: list[tuple[int, bool]] = []
        #: Files that were replaced, or deleted for good, and their lengths; -1: such a
        #: file is reclaimed.
        self.replaced: list[tuple[int, int]] = []
        #: Chunks whose goal may have changed.
        self.goals: list[int] = []
        #: Files that have become longer: (inode, length).
        self.grown: list[tuple[int, int]] = []
        #: Chunkservers whose drain has begun, is complete or was cancelled: (id, state).
        self.drains: list[tuple[str, int]] = []
        #: Chunkservers that are under maintenance until then, in the masters' uptime; 0: not.
        self.maintenance: list[tuple[str, int]] = []
        #: Callbacks of plans, called when the transaction is durable, whether or not a
        #: caller still waits.
        self.then: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def add(self, other: Effects) -> None:
        """Add the effects of a later transaction."""
        self.freed += other.freed
        self.trashed += other.trashed
        self.replaced += other.replaced
        self.goals += other.goals
        self.grown += other.grown
        self.drains += other.drains
        self.maintenance += other.maintenance
        self.then += other.then


class Txn:
    """One transaction. ``get``, ``put`` and ``delete`` take the database last:
    ``txn.get(key, None, txn.db.inodes)``."""

    __slots__ = ("db", "directories", "effects", "get", "lived_ns", "raw", "state")

    def __init__(
        self, raw: lmdb.Transaction[bytes], db: Databases, state: State, writes: bool = False
    ) -> None:
        self.raw = raw
        self.get = raw.get
        self.db = db
        self.state = state
        self.effects = Effects()
        #: The keys of directories that were looked up, by path; None where they may change.
        self.directories: dict[str, bytes] | None = None if writes else {}
        #: The masters' uptime that the next log row records.
        self.lived_ns = state.lived_ns

    def put(self, key: bytes, value: bytes, database: lmdb._Database) -> None:
        self.raw.put(key, value, db=database)

    def delete(self, key: bytes, database: lmdb._Database) -> None:
        self.raw.delete(key, db=database)

    def scan(self, start: bytes, database: lmdb._Database) -> Iterator[tuple[bytes, bytes]]:
        """The rows from the first key at or after ``start``, in order."""
        try:
            with self.raw.cursor(database) as cursor:
                if cursor.set_range(start):
                    yield from cursor.iternext()
        except lmdb.Error as error:  # of a snapshot that is used without ``with``, too
            raise _unreadable(error) from error

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
        if isinstance(error, lmdb.Error):
            raise _unreadable(error) from error

    def close(self) -> None:
        """End the transaction. LMDB frees its reader slot only when nothing refers to
        ``raw``, so the reference is dropped here: an error's traceback may refer to
        this object for long."""
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
        #: The standing is not on the disk yet, and is written with the next commit.
        self._owes_standing = False

    def read(self) -> Txn:
        """A snapshot of the last commit, to be used in a ``with`` statement, in which an
        error of LMDB becomes DiskFailed."""
        try:
            raw = self._environment.begin()
        except lmdb.Error as error:
            raise _unreadable(error) from error
        return Txn(raw, self._db, self.state)

    @property
    def used_bytes(self) -> int:
        """The size of the database, including free pages."""
        pages: int = self._environment.info()["last_pgno"] + 1
        return pages * int(self._environment.stat()["psize"])

    def snapshot(self) -> Txn:
        """As :meth:`read`, with exactly the counters of that commit; while a commit is
        under way, those of ``read`` may be of the commit before or after."""
        txn = self.read()
        try:
            state = txn.get(_STATE, None, self._db.meta)
        except lmdb.Error as error:
            txn.close()
            raise _unreadable(error) from error
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
        except lmdb.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: lmdb.Error) -> DiskFull | DiskFailed:
        directory, map_bytes, _ = self._opened
        return _translated(error, directory, map_bytes)

    def _commit(self, work: Callable[[Txn], T]) -> T:
        before = self.state
        state = msgspec.structs.replace(before)
        raw = self._environment.begin(write=True)
        try:
            txn = Txn(raw, self._db, state, writes=True)
            if self._owes_standing:
                self.put_standing(txn, self.standing)
            result = work(txn)
            if state != before:
                txn.put(_STATE, msgspec.msgpack.encode(state), self._db.meta)
            raw.commit()
        except BaseException:
            raw.abort()
            raise
        self.state, self._owes_standing = state, False
        return result

    def close(self) -> None:
        """Close the files and release the lock. No transaction may be open."""
        self._environment.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> None:
        """Read the counters and the standing. Raises StartupError for a newer format."""
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
        """Begin an epoch of a master on this store; initialize a new store first."""

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
            # The first range of handles is reserved in this commit.
            txn.state.handle_end += HANDLE_RANGE
            return txn.get(_CLUSTER, b"", meta).decode(), epoch

        self.cluster, self.epoch = self.commit(work)

    def give_up(self) -> None:
        """Have no cluster any more, after one that was begun and that nobody else knows."""

        def work(txn: Txn) -> None:
            txn.delete(_CLUSTER, self._db.meta)
            self.put_standing(txn, Standing())

        self.commit(work)
        self.cluster, self.standing = "", Standing()

    def put_standing(self, txn: Txn, standing: Standing) -> None:
        """The caller sets ``self.standing`` after the commit."""
        txn.put(_STANDING, msgspec.msgpack.encode(standing), self._db.meta)

    def set_standing(self, standing: Standing) -> None:
        """Store the standing durably. Only while no committer runs."""
        self.commit(lambda txn: self.put_standing(txn, standing))
        self.standing = standing

    def take_standing(self, standing: Standing) -> None:
        """As set_standing, for a standing that would be found out again after a restart: if the
        disk is full it is taken nevertheless, and recorded in the next commit, whatever that is
        of. So nothing on the disk is later than a role that is not."""
        try:
            self.set_standing(standing)
        except DiskFull as error:
            log.warning("the new role of this master is recorded as soon as it can be: %s", error)
            self.standing, self._owes_standing = standing, True

    def put_copied(self, cluster: str, state: State) -> None:
        """Complete a store that was filled with the rows of another one: set its
        counters and standing."""

        def work(txn: Txn) -> None:
            txn.put(_CLUSTER, cluster.encode(), self._db.meta)
            txn.put(_SCHEMA, pack_u64(SCHEMA), self._db.meta)
            for name in State.__struct_fields__:
                setattr(txn.state, name, getattr(state, name))

        self.commit(work)
        self.cluster = cluster

    def swap_in(self, directory: str, keep_as: str) -> None:
        """Replace this store by the closed one in ``directory``; this one's file is
        kept under the name ``keep_as`` if that is given. Blocks. No transaction may be
        open. After a crash one of the two is there. So it is after a StartupError, and this
        object cannot be used any more."""
        self._environment.close()
        here, map_bytes, sync = self._opened
        with _opening(here, map_bytes):
            self._put_in_place(here, directory, keep_as)
            self._environment, self._db = _open(here, map_bytes, sync)
            self.state, self.standing, self._owes_standing = State(), Standing(), False
            self.load()

    def _put_in_place(self, here: str, directory: str, keep_as: str) -> None:
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
        sync_directory(here)

    def sync(self) -> None:
        """Sync all commits, for stores whose commits do not wait for the disk. Raises DiskFull
        or DiskFailed: what was committed may be lost then: such a store is thrown away."""
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise self._translated(error) from error

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
    """Open the store in ``directory``, which is made if it does not exist. Blocks.

    ``fresh_cluster`` becomes the cluster's id if the store is new. Raises StartupError
    if the directory cannot be written, another master has its lock, the files cannot be
    read, or they were written by a newer release.
    """
    store = open_only(directory, map_bytes, sync)
    try:
        with _opening(directory, map_bytes):
            store.begin(fresh_cluster, now_ns)
    except BaseException:
        store.close()
        raise
    return store


def open_only(directory: str, map_bytes: int, sync: bool) -> Store:
    """Open the store as it is, for a shadow master or to read its standing. As open_store."""
    lock = take_lock(directory)
    store = None
    try:
        with _opening(directory, map_bytes):
            environment, db = _open(directory, map_bytes, sync)
            store = Store(environment, db, lock, (directory, map_bytes, sync))
            store.load()
    except BaseException:
        if store is not None:
            store.close()
        else:
            os.close(lock)
        raise
    return store


@contextlib.contextmanager
def _opening(directory: str, map_bytes: int) -> Iterator[None]:
    """What fails in the block because of the disk, or of what is on it, is StartupError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (DiskFull, DiskFailed)):
            raise _cannot_open(directory, error) from error
        raise _cannot_keep(directory, error) from error
    except lmdb.Error as error:
        # Of files that are no store LMDB says enough.
        known = _translated(error, directory, map_bytes)
        raise _cannot_open(directory, known if isinstance(known, DiskFull) else error) from error
    except (OverflowError, MemoryError, msgspec.DecodeError) as error:
        raise _cannot_open(directory, error) from error


def _cannot_open(directory: str, error: Exception) -> StartupError:
    return StartupError(f"{directory}: the metadata cannot be opened: {error}")


def _cannot_keep(directory: str, error: OSError) -> StartupError:
    advice = ": free some space there" if error.errno in NO_ROOM else ""
    return StartupError(
        f"{directory}: the master cannot keep its metadata here: {error.strerror}{advice}"
    )


def _translated(error: lmdb.Error, directory: str, map_bytes: int) -> DiskFull | DiskFailed:
    if isinstance(error, lmdb.MapFullError):
        return DiskFull(
            f"the master's metadata fills the {map_bytes} bytes that it may have: give the "
            "master a larger map_bytes (GFS_MASTER_MAP_BYTES) and start it again"
        )
    if is_full(error, directory):
        return DiskFull(f"the master's metadata disk is full: free some space there ({error})")
    return DiskFailed(
        f"the master's metadata cannot be written any more ({error}): "
        "look at its disk, then start it again"
    )


def _unreadable(error: lmdb.Error) -> DiskFailed:
    return DiskFailed(
        f"the master's metadata cannot be read any more ({error}): "
        "look at its disk, then start it again"
    )


def take_lock(directory: str) -> int:
    """Make the directory if it does not exist, and take the lock of a master on its
    metadata: a descriptor. As open_store."""
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


def _open(directory: str, map_bytes: int, sync: bool) -> tuple[lmdb.Environment, Databases]:
    environment = open_environment(
        directory,
        map_bytes=map_bytes,
        readers_max=READERS_MAX,
        databases_max=len(Databases._fields),
        sync=sync,
    )
    try:
        return environment, Databases(*map(environment.open_db, map(str.encode, Databases._fields)))
    except BaseException:
        environment.close()
        raise
