"""The store of usage, opened by one process; it also ends reservations of dead processes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import trio
from msgspec.structs import replace

from control.quota import usage
from control.quota.limits import Limits
from control.quota.usage import USAGE, Change, MustYield, Reservation, Trash, reservations
from control.records import Records, RecordsFailed, Txn
from gfs.errors import DiskFull, GfsError, StartupError
from gfs.io import try_flock

log = logging.getLogger(__name__)

#: The id of this boot of the machine.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: A change of the file system is recorded within this time, even if the client has left.
RECORD_SECONDS = 30.0
#: How long a growing upload waits for later ones to yield.
YIELD_SECONDS = 10.0
#: Uploads leave the rest of the store to deletions, which make room.
MAP_SHARE_MAX = 0.9
#: The first and the longest pause between two attempts.
YIELD_POLL_SECONDS = (0.05, 1.0)


def boot_seconds() -> float:
    """Seconds since the machine was booted, by a clock that is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


#: How long a process of another machine has not been connected when it counts as dead:
#: PostgreSQL may have been started again meanwhile.
ABSENT_SECONDS = 60.0


class Lock:
    """A file that is locked while this process has it open. The kernel releases the lock when
    the process dies, for whatever reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def take(self) -> bool:
        """Try to take the lock. Returns whether this object holds it."""
        if self._descriptor >= 0:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_flock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Ledger:
    """The usage of all users, shared by all processes of the machine, or of all machines whose
    records are in PostgreSQL. See :meth:`open`."""

    def __init__(self, directory: Path, records: Records, map_bytes: int) -> None:
        self.records = records
        self._map_bytes = map_bytes
        self.process = records.writer or secrets.token_hex(6)
        self._shared_recounting = records.lock("recount")
        #: Since when processes of other machines have not been connected.
        self._absent: dict[str, float] = {}
        #: Held by the one process that recounts.
        self.recounting = Lock(directory / "recount.lock")
        self._processes = directory / "processes"
        #: Empty files SPACE.PROCESS.NUMBER: deletions that could not be written to the store.
        self._marks = directory / "marks"
        self._life = Lock(self._processes / f".{self.process}")
        self._numbers = itertools.count(1)
        #: Changes that ended while the store could not be written.
        self._abandoned: dict[str, Reservation] = {}
        #: Storage namespaces with a change that could not be recorded, and the files that
        #: say so.
        self._doubts: dict[str, set[Path]] = {}

    @classmethod
    def open(cls, directory: Path, shared_url: str = "", *, map_bytes: int) -> Ledger:
        """Open the files in ``directory`` that belong to this boot of the machine, and
        delete those of earlier ones. Blocks for some milliseconds. ``shared_url`` is the
        PostgreSQL of several machines; then only locks and marks are in the files.

        Raises StartupError.
        """
        try:
            boot = directory / BOOT_ID.read_text("ascii").strip()
            for name in ("processes", "marks"):
                (boot / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in directory.iterdir():
                if other != boot:
                    shutil.rmtree(other, ignore_errors=True)
            if shared_url:
                copies = directory.parent / "copies"
                records = Records.open_shared(
                    shared_url, copies, [USAGE], store="usage", map_bytes=map_bytes
                )
            else:
                records = Records.open(boot, [USAGE], map_bytes=map_bytes, sync=False)
        except OSError as error:
            raise StartupError(f"{directory}: cannot be used: {error}") from error
        ledger = cls(boot, records, map_bytes)
        try:
            ledger._begin()
        except BaseException:
            records.close()
            raise
        return ledger

    def _begin(self) -> None:
        """Create the lock file already locked, so that no process counts this one as dead."""
        self._life.take()
        self._life.path.rename(self._processes / self.process)

    def close(self) -> None:
        """Release the lock file: other processes then end the reservations of this one."""
        self.recounting.close()
        self.records.close()
        self._life.close()

    def read(self) -> Txn:
        return self.records.read()

    def now(self) -> float:
        """The time for :class:`Trash`: of this machine's boot, or of all machines."""
        return time.time() if self.records.writer else boot_seconds()

    async def begin_recounting(self) -> bool:
        """Whether this process may recount now, as no other does."""
        if not self.recounting.take():
            return False
        if self._shared_recounting is None or await self._shared_recounting.take():
            return True
        self.recounting.close()
        return False

    async def end_recounting(self) -> None:
        self.recounting.close()
        if self._shared_recounting is not None:
            await self._shared_recounting.release()

    # --- uploads and deletions ------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def claim(self, user_id: str, space_id: str) -> AsyncIterator[Claim]:
        """One change of one file of a storage namespace, from its beginning to its end.

        A block that ends without :meth:`Claim.record` has changed nothing, unless it was
        publishing and :meth:`Claim.refused` was not called: then a recount follows.
        """
        claim = Claim(self, f"{self.process}.{next(self._numbers)}", user_id, space_id)
        try:
            yield claim
        finally:
            await claim.end()

    def end_later(self, row: Reservation, *, is_done: bool, mark: Path | None = None) -> None:
        """End a reservation as soon as the store can be written. ``is_done``: its change was, or
        may have been, carried out and could not be recorded."""
        self._abandoned[row.id] = row
        if is_done:
            self._doubts.setdefault(row.space_id, set()).update([] if mark is None else [mark])

    def mark(self, row: Reservation) -> Path | None:
        """Record a deletion under way as an empty file beside a store that is full, since an
        empty file takes almost no space. None if even that fails."""
        path = self._marks / f"{row.space_id}.{row.id}"
        try:
            path.touch(mode=0o600)
        except OSError as error:
            log.warning("a deletion cannot be recorded before it is carried out: %s", error)
            return None
        return path

    def check_room(self, txn: Txn) -> None:
        """Raises DiskFull when only deletions still fit."""
        used = txn.used_bytes()
        if used > MAP_SHARE_MAX * self._map_bytes:
            raise DiskFull(
                f"the counts of users' files take {used} bytes of the {self._map_bytes} that "
                "they may have: raise map_bytes, and restart all processes on this state"
            )

    # --- upkeep ---------------------------------------------------------------------------

    async def clear_dead(self) -> None:
        """End the reservations of dead processes, and those that could not be written before."""
        for id_, row in list(self._abandoned.items()):
            await self.records.write(_ending(row))
            del self._abandoned[id_]
        while self._doubts:
            space_id, marks = self._doubts.popitem()
            try:
                await self.records.write(partial(usage.require_recount, space_id=space_id))
            except BaseException:
                self._doubts.setdefault(space_id, set()).update(marks)
                raise
            _unlink(marks)
        for process in self._others():
            if await self._is_elsewhere(process):
                continue
            with self._owned(process) as is_dead:
                if is_dead:
                    await self.records.write(partial(usage.end_process, process=process))
                    for mark in list(self._marks.glob(f"*.{process}.*")):
                        space_id = mark.name.partition(".")[0]
                        await self.records.write(partial(usage.require_recount, space_id=space_id))
                        _unlink([mark])

    async def _is_elsewhere(self, process: str) -> bool:
        """Whether the process is, or may be, alive on another machine."""
        if not self.records.writer or (self._processes / process).exists():
            return False
        if await self.records.is_connected(process):
            self._absent.pop(process, None)
            return True
        now = trio.current_time()
        return now < self._absent.setdefault(process, now) + ABSENT_SECONDS

    def _others(self) -> list[str]:
        """Processes with a lock file or a reservation."""
        with self.read() as txn:
            found = {row.id.partition(".")[0] for row in reservations.scan(txn) if not row.is_lost}
        found.update(name for name in os.listdir(self._processes) if not name.startswith("."))
        return sorted(found - {self.process})

    @contextlib.contextmanager
    def _owned(self, process: str) -> Iterator[bool]:
        """Whether ``process`` is dead and no other process ends its reservations now."""
        with contextlib.closing(Lock(self._processes / process)) as life:
            is_dead = life.take()
            yield is_dead
            if is_dead:
                life.path.unlink(missing_ok=True)


class Claim:
    """One change under way: its reservation, and its outcome."""

    def __init__(self, ledger: Ledger, id_: str, user_id: str, space_id: str) -> None:
        self._ledger = ledger
        self._row = Reservation(id_, user_id, space_id, began_ns=time.time_ns())
        #: Whether the store has no reservation for it, or not any more.
        self._is_over = True
        self._is_refused = False
        #: The file that will be replaced, and the limits of its owner.
        self._replaced: tuple[Trash, Limits] | None = None
        #: Whether there is room to keep it for its readers; known once it is publishing.
        self.keeps_replaced = False
        #: The files that were added to the trash, or to what is kept for readers.
        self._deleted: Trash | None = None
        self._mark: Path | None = None

    @property
    def bytes(self) -> int:
        """Reserved bytes."""
        return self._row.bytes

    def replaces(self, inode: int, length: int) -> None:
        """From the next reservation on count on the room of this file; inode 0: of none."""
        self._row = replace(self._row, replaces=inode, credit=length)

    async def reserve(self, files: int, length: int, limits: Limits) -> None:
        """Replace the previous reservation by this one. Raises TooLarge, QuotaReached,
        TooManyRequests, or Conflict if the file that it replaces is gone."""
        await self._set(self._with(files, length), limits)

    async def grow(self, files: int, length: int, limits: Limits) -> None:
        """Reserve for a file of unknown length, perhaps some bytes ahead. Waits up to
        ``YIELD_SECONDS`` for room that later uploads have reserved."""
        row = replace(self._with(files, length), is_growing=True)
        pause, pause_max = YIELD_POLL_SECONDS
        with trio.move_on_after(YIELD_SECONDS):
            while True:
                with contextlib.suppress(MustYield):
                    return await self._set(row, limits)
                await trio.sleep(pause)
                pause = min(2 * pause, pause_max)
        return await self._set(row, limits)

    def will_replace(self, owner: str, length: int, limits: Limits, seconds: float) -> None:
        """The upload replaces a file of ``owner``, whose limits these are. The file system keeps it
        for its readers for ``seconds`` if ``keeps_replaced`` says so after :meth:`publish`."""
        self._replaced = Trash.replaced(owner, length, self._ledger.now(), seconds), limits

    async def publish(self, files: int, length: int, limits: Limits) -> None:
        """Reserve, right before the file system is asked to publish the file."""
        await self._set(replace(self._with(files, length), is_publishing=True), limits)

    async def publish_deletion(
        self, owner: str, length: int, limits: Limits, trash_seconds: float
    ) -> bool:
        """Reserve, right before a file of ``owner`` is deleted. Returns whether it goes to the
        trash for ``trash_seconds``, which has room for it within ``limits``."""
        self._is_over = False
        row = replace(self._row, is_publishing=True)
        now = self._ledger.now()
        deleted = Trash.of(owner, 1, length, now, trash_seconds)

        def decide(txn: Txn) -> tuple[Reservation, bool]:
            is_kept = trash_seconds > 0 and usage.add_to_trash(txn, deleted, limits, now)
            return usage.reserve(txn, row), is_kept

        try:
            self._row, is_kept = await self._ledger.records.write(decide)
        except DiskFull:
            # Deletions make room, so they work without a reservation.
            self._mark = self._ledger.mark(row)
            self._row = row
            return True
        if is_kept:
            self._deleted = deleted
        return is_kept

    def refused(self) -> None:
        """The file system refused the change."""
        self._row = replace(self._row, is_publishing=False)
        self._is_refused = True

    async def record(
        self, changes: Iterable[Change], is_there: Callable[[], bool], *, moved: bool = False
    ) -> None:
        """Record the change, as :func:`usage.record`. If the store cannot be written, a recount
        follows later."""
        row, noted = self._row, list(changes)
        with trio.CancelScope(shield=True):
            try:
                await self._ledger.records.write(
                    lambda txn: usage.record(
                        txn, row.id, row.space_id, noted, is_there, moved=moved
                    ),
                    seconds=RECORD_SECONDS,
                )
            except RecordsFailed:
                raise
            except GfsError as error:
                log.warning(
                    "usage could not be recorded, so a recount will follow: %s",
                    error,
                )
                self._ledger.end_later(row, is_done=True, mark=self._mark)
            else:
                self._unmark()
        self._is_over = True

    async def end(self) -> None:
        """See :meth:`Ledger.claim`."""
        if self._is_over:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._ledger.records.write(self._end, seconds=RECORD_SECONDS)
            except RecordsFailed:
                raise
            except GfsError as error:
                log.warning("a reservation could not be ended yet: %s", error)
                self._ledger.end_later(self._row, is_done=self._is_marked, mark=self._mark)
            else:
                self._unmark()

    @property
    def _is_marked(self) -> bool:
        """Whether its outcome is not known and the store has no row of it."""
        return self._mark is not None and not self._is_refused

    def _end(self, txn: Txn) -> None:
        _ending(self._row)(txn)
        if self._is_marked:
            usage.require_recount(txn, self._row.space_id)
        if self._is_refused and self._deleted is not None:
            usage.remove_from_trash(txn, self._deleted)

    def _unmark(self) -> None:
        if self._mark is not None:
            _unlink([self._mark])

    def _with(self, files: int, length: int) -> Reservation:
        return replace(self._row, files=files, bytes=length)

    async def _set(self, row: Reservation, limits: Limits) -> None:
        replaced = self._replaced if row.is_publishing else None

        def decide(txn: Txn) -> tuple[Reservation, bool]:
            self._ledger.check_room(txn)
            reserved = usage.reserve(txn, row, limits)
            if replaced is None:
                return reserved, False
            return reserved, usage.add_to_trash(txn, *replaced, self._ledger.now())

        self._is_over = False  # or may be
        self._row, self.keeps_replaced = await self._ledger.records.write(decide)
        if replaced is not None and self.keeps_replaced:
            self._deleted = replaced[0]


def _ending(row: Reservation) -> Callable[[Txn], None]:
    work = usage.mark_lost if row.is_publishing else usage.release
    return partial(work, reservation_id=row.id)


def _unlink(marks: Iterable[Path]) -> None:
    for mark in marks:
        mark.unlink(missing_ok=True)
