"""Facts that the worker processes of one machine share and may lose.

They are the progress of transfers and failed logins, each in a directory of its own. Every
worker writes them often, and they are useless after a while. They are in an LMDB file
that is never synced, so writing a fact costs microseconds and is done on the loop's
thread. The facts outlive any process, ``kill -9`` included, since the kernel
has the pages. A power cut may leave the file torn. So the first process that opens the
file checks it, without trusting its content, and deletes it if it is damaged. A process
that finds the file broken or full while it is in use replaces it, too; the other
processes notice that at their next sweep, or when their own file fails, and follow.

Where several machines share the records, each change is also posted to the others
(:attr:`Volatile.posts`), which make it in their own file some milliseconds later, or never.
Of two changes of one fact at once, on two machines, one is lost, except of those by ``add``.

Nothing here waits for the disk. Writers wait for one another as long as one small write
takes; a process that is stopped (SIGSTOP) inside a write blocks the others, a killed one
does not.

In the directory: ``data.mdb`` and ``lock.mdb`` (LMDB's; they are replaced
together), ``open.lock`` (held while opening), ``users.lock`` (held shared by
all that have the file open). A row is KIND 0x00 KEY, or 0x00 and the hash of
that if it is long → the time it expires as a big-endian double, then msgpack.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import lmdb
import msgspec
import trio

from gfs.errors import DiskFailed, DiskFull, InvalidArgument, StartupError
from gfs.io import try_flock
from gfs.lmdb_environment import DATA_NAME, LMDB_LOCK_NAME, is_full, open_environment

log = logging.getLogger(__name__)

T = TypeVar("T")
Raw: TypeAlias = "lmdb.Transaction[bytes]"

#: A fact that was set, one that was deleted, or a time and the window that it was added to.
_Change: TypeAlias = bytes | tuple[float, float] | None

#: A quarter of a million facts of 1 KB; a full file is replaced by an empty one.
MAP_BYTES = 256 * 1024**2
ROW_BYTES_MAX = 64 * 1024
#: A larger file is replaced by an empty one without a check, which does some 30 MB/s.
CHECKED_BYTES_MAX = 32 * 1024**2
READERS_MAX = 1024
#: add() keeps the newest times: one more than the highest limit on logins.
TIMES_MAX = 101
#: Facts that one piece of a sweep reads, a few milliseconds if all of it has expired.
SWEPT_ROWS_MAX = 2_000
OPEN_SECONDS = 30.0

_KEY_BYTES_MAX = 500
_EXPIRES = struct.Struct(">d")


class Volatile:
    """The shared facts in one directory. See :meth:`open`.

    A fact has a kind (a short name in the code) and a key (any text). Times are
    wall-clock seconds, ``time.time()``, since they are compared over processes.
    Every method but ``sweep_all`` is done at once; all may raise DiskFull or DiskFailed.
    For one thread.
    """

    def __init__(self, directory: Path, map_bytes: int) -> None:
        self._directory = directory
        self._map_bytes = map_bytes
        self._users = -1
        self._file: tuple[int, int] | None = None
        self._swept = b""
        #: Called with each change, for :meth:`take` elsewhere.
        self.posts: Callable[[bytes], None] | None = None
        self._decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
        with self._opening():
            self._users = os.open(directory / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if try_flock(self._users) and not _is_sound(directory / DATA_NAME):
                    self._remove()
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._environment = self._open_or_replace()
            except BaseException:
                os.close(self._users)
                raise

    @classmethod
    def open(cls, directory: Path, *, map_bytes: int = MAP_BYTES) -> Volatile:
        """Open the facts in ``directory``, which is created with mode 0700 if it is missing.

        The directory must be for this alone. A damaged file is replaced by an
        empty one. ``map_bytes`` is the size that the file can grow to. Blocks for at most
        30 seconds. Raises StartupError if the directory cannot be used.
        """
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            return cls(directory, map_bytes)
        except (OSError, lmdb.Error) as error:
            advice = ": free some space there" if is_full(error, directory) else ""
            raise StartupError(f"{directory}: cannot be opened: {error}{advice}") from error

    def put(
        self,
        kind: str,
        key: str,
        row: bytes | msgspec.Struct,
        *,
        ttl_seconds: float,
        now: float | None = None,
    ) -> None:
        """Set a fact, for ``ttl_seconds`` from ``now`` (by default the present).

        Raises InvalidArgument if it has more than 64 KiB.
        """
        expires = (time.time() if now is None else now) + ttl_seconds
        data = row if isinstance(row, bytes) else msgspec.msgpack.encode(row)
        if len(data) > ROW_BYTES_MAX:
            raise InvalidArgument(f"{kind}: a fact of {len(data)} bytes is too large")
        value = _EXPIRES.pack(expires) + data
        self._run(lambda txn: txn.put(_key(kind, key), value), write=True)
        self._post(_key(kind, key), value)

    def get(self, kind: str, key: str, type: type[T], *, now: float | None = None) -> T | None:
        """The fact as ``type`` (``bytes`` as they were put); None if there is none, it has
        expired, or it does not fit the type.
        """
        value = self._run(lambda txn: txn.get(_key(kind, key)), write=False)
        return self._decoded(value, type, time.time() if now is None else now)

    def _decoded(self, value: bytes | None, type: type[T], now: float) -> T | None:
        if value is None or _expires(value) <= now:
            return None
        data = value[_EXPIRES.size :]
        if type is bytes:
            return cast(T, data)
        try:
            return self._decoder(type).decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def add(self, kind: str, key: str, now: float, window_seconds: float) -> list[float]:
        """Add the time ``now``; returns all times within the window.

        The newest 101 are kept, as one fact for all processes: of two processes that
        add at once each gets its own time, and the later one both. ``get(kind, key,
        list[float])`` reads it without adding.
        """

        times = self._add(_key(kind, key), now, window_seconds)
        self._post(_key(kind, key), (now, window_seconds))
        return times

    def _add(self, key: bytes, now: float, window_seconds: float) -> list[float]:
        def work(txn: Raw) -> list[float]:
            value = txn.get(key)
            times = [] if value is None else self._times(value)
            # Times of a clock that was set back count as long as others do.
            times = [each for each in times if abs(now - each) < window_seconds]
            times = [*times, now][-TIMES_MAX:]
            expires = _EXPIRES.pack(max(times) + window_seconds)
            txn.put(key, expires + msgspec.msgpack.encode(times))
            return times

        return self._run(work, write=True)

    def change(
        self,
        kind: str,
        key: str,
        type: type[T],
        work: Callable[[T | None], T | None],
        *,
        ttl_seconds: float,
    ) -> None:
        """Set a fact to the result of *work* on it, in one step for all processes. *work* gets
        None if there is no fact, and returns None to delete it."""
        now = time.time()

        def step(txn: Raw) -> bytes | None:
            value = txn.get(_key(kind, key))
            new = work(self._decoded(value, type, now))
            if new is not None:
                value = _EXPIRES.pack(now + ttl_seconds) + msgspec.msgpack.encode(new)
                txn.put(_key(kind, key), value)
                return value
            if value is not None:
                txn.delete(_key(kind, key))
            return None

        self._post(_key(kind, key), self._run(step, write=True))

    def delete(self, kind: str, key: str) -> None:
        """Delete a fact, if it exists."""
        self._run(lambda txn: txn.delete(_key(kind, key)), write=True)
        self._post(_key(kind, key), None)

    def _post(self, key: bytes, change: _Change) -> None:
        if self.posts is not None:
            self.posts(msgspec.msgpack.encode((key, change)))

    def take(self, post: bytes) -> None:
        """Make a change that another machine has posted. Every process of this machine does, so
        it may be made already."""
        key, change = msgspec.msgpack.decode(post, type=tuple[bytes, _Change])
        if isinstance(change, bytes):
            value = change
            self._run(lambda txn: txn.put(key, value), write=True)
        elif change is None:
            self._run(lambda txn: txn.delete(key), write=True)
        else:
            at, window_seconds = change
            value = self._run(lambda txn: txn.get(key), write=False) or b""
            if at not in self._times(value):
                self._add(key, at, window_seconds)

    def sweep(self, now: float) -> int:
        """Remove facts that have expired; returns how many.

        Reads at most 2,000 facts, and continues from there the next time.
        """
        if self._file != _identity(self._directory):
            self._renew("another process replaced it")
        expired = self._run(lambda txn: self._look_for_expired(txn, now), write=False)

        def work(txn: Raw) -> int:
            gone = 0
            for key in expired:
                value = txn.get(key)
                # Another process may have renewed it in between.
                if value is not None and _expires(value) <= now:
                    gone += txn.delete(key)
            return gone

        return self._run(work, write=True) if expired else 0

    async def sweep_all(self, now: float) -> None:
        """Check every fact once, in pieces. To be called now and then, since facts that are not
        checked use up the file."""
        self._swept = b""
        self.sweep(now)
        while self._swept:
            await trio.lowlevel.checkpoint()
            self.sweep(now)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._environment.close()
        if self._users >= 0:
            os.close(self._users)
            self._users = -1

    def _look_for_expired(self, txn: Raw, now: float) -> list[bytes]:
        expired = []
        with txn.cursor() as cursor:
            there = cursor.set_range(self._swept)
            for _ in range(SWEPT_ROWS_MAX):
                if not there:
                    break
                if _expires(cursor.value()) <= now:
                    expired.append(cursor.key())
                there = cursor.next()
            self._swept = cursor.key() if there else b""
        return expired

    def _times(self, value: bytes) -> list[float]:
        try:
            return self._decoder(list[float]).decode(value[_EXPIRES.size :])
        except msgspec.DecodeError:
            return []

    def _decoder(self, type: type[T]) -> msgspec.msgpack.Decoder[T]:
        if type not in self._decoders:
            self._decoders[type] = msgspec.msgpack.Decoder(type)
        return self._decoders[type]

    def _run(self, work: Callable[[Raw], T], *, write: bool) -> T:
        """Run one transaction; if the file fails, run it again in a new one."""
        try:
            return self._transaction(work, write)
        except lmdb.Error as error:
            if is_full(error, self._directory):
                raise DiskFull(f"{self._directory}: the disk is full: free some space") from error
            why = str(error)
        try:
            self._renew(why)
            return self._transaction(work, write)
        except (lmdb.Error, OSError) as error:
            raise DiskFailed(
                f"{self._directory}: the shared facts cannot be kept ({error}): check the disk"
            ) from error

    def _transaction(self, work: Callable[[Raw], T], write: bool) -> T:
        with self._environment.begin(write=write) as txn:
            return work(txn)

    def _renew(self, why: str) -> None:
        """Open the file that has replaced this one, or replace it."""
        if self._users < 0:
            raise StartupError(f"{self._directory}: used after close")
        log.warning("%s: replaced by an empty store of shared facts: %s", self._directory, why)
        self._environment.close()
        with self._opening():
            if self._file == _identity(self._directory):
                self._remove()
            self._environment = self._open_or_replace()
        self._swept = b""

    def _open_or_replace(self) -> lmdb.Environment:
        try:
            environment = self._open_file()
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            log.warning("%s: damaged, replaced by an empty one: %s", self._directory, error)
            self._remove()
            environment = self._open_file()
        self._file = _identity(self._directory)
        return environment

    def _open_file(self) -> lmdb.Environment:
        return open_environment(
            str(self._directory), map_bytes=self._map_bytes, readers_max=READERS_MAX, sync=False
        )

    def _remove(self) -> None:
        for name in (DATA_NAME, LMDB_LOCK_NAME):
            (self._directory / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Let one process at a time open, check and replace the file."""
        lock = os.open(self._directory / "open.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(lock, self._directory)
            yield
        finally:
            os.close(lock)


def _lock(lock: int, directory: Path) -> None:
    deadline = time.monotonic() + OPEN_SECONDS
    while not try_flock(lock):
        if time.monotonic() > deadline:
            raise StartupError(
                f"{directory}: another process has been opening this for "
                f"{OPEN_SECONDS:g} s: find out why"
            )
        time.sleep(0.005)


def _key(kind: str, key: str) -> bytes:
    raw = f"{kind}\0{key}".encode("utf-8", "surrogatepass")
    if len(raw) <= _KEY_BYTES_MAX:
        return raw
    return b"\0" + hashlib.blake2b(raw, digest_size=32).digest()


def _expires(value: bytes) -> float:
    expires: float = _EXPIRES.unpack_from(value)[0]
    return expires


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(directory / DATA_NAME)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_sound(path: Path) -> bool:
    """Whether LMDB can read the file, which no process may have open.

    LMDB does not verify the file and a damaged one can crash the process.
    """
    try:
        # It exists since py-lmdb 3; without it no old file is used.
        from lmdb.verify import verify
    except ImportError:
        return False
    try:
        if not path.exists() or path.stat().st_size > CHECKED_BYTES_MAX:
            return False
        problems: list[object] = verify(str(path.parent))  # type: ignore[no-untyped-call]
    except Exception as error:
        # The check itself failed, which counts as damage.
        problems = [error]
    if problems:
        log.warning("%s: damaged (%s): replaced by an empty one", path, problems[0])
    return not problems
