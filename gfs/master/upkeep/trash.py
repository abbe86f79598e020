"""The trash: files whose time is over are reclaimed, some earlier if a write would fail
otherwise for want of space (:mod:`gfs.master.rules.trash_purge`), and what is below deleted
directories is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import trio

from gfs.diagnostics import event
from gfs.errors import GfsError
from gfs.failures import plural
from gfs.master.master import Master
from gfs.master.metadata import Txn, Uptime
from gfs.master.metadata.namespace import Planned, chunk_row, inode_row
from gfs.master.metadata.operations import Reclaimed, TrashEmptied
from gfs.master.metadata.rows import KIND_DIRECTORY
from gfs.master.metadata.trash import ROWS_MAX, TrashBook, plan_empty_early
from gfs.master.rules import trash_purge
from gfs.master.upkeep.passes import Passes
from gfs.protocol.messages import Done

log = logging.getLogger(__name__)

#: Rows reclaimed by one operation, which goes no further than the first directory, and operations
#: in one transaction: of a tree of directories each is one.
RECLAIM_ROWS = 50
RECLAIMS_AT_ONCE = 20
RECLAIM_REST_SECONDS = 0.5
#: With so many replicas that wait to be deleted there is a rest between two transactions,
#: and a longer one with more: each of them takes the master 270 bytes, while what waits in
#: the trash takes none. Chunkservers delete no faster than that.
BACKLOG_CALM = 300_000
#: After a purge the disks are checked again when the replicas are deleted and their
#: servers have reported it, or after this time.
ROOM_SECONDS = 60.0
ROOM_REST_HEARTBEATS = 2.5
#: When the whole trash was not enough, it is searched again after this time.
ROOM_FRUITLESS_SECONDS = 15.0


class TrashCounts:
    def __init__(self, trash: TrashBook, passes: Passes) -> None:
        self._trash = trash
        self._passes = passes
        self._counting = False

    def load(self) -> None:
        self._passes.start(self._trash.load())

    def start(self) -> None:
        """Start counting the contents of deleted directories."""
        if self._trash.waiting and not self._counting:
            self._counting = True
            self._passes.start(self._count())

    def _count(self) -> Iterator[None]:
        try:
            yield from self._trash.count()
        finally:
            self._counting = False


class Reclaim:
    def __init__(self, master: Master) -> None:
        self._master = master
        self._room_after = float("-inf")
        #: Chunks that were given up to make room, and until when they are waited for.
        self._leaving: list[int] = []
        self._leaving_until = float("-inf")

    async def run(self) -> None:
        """Reclaim the rows of deleted files, a piece per transaction, so that a
        directory of a million files delays no other mutation (hadoop PR#3065)."""
        master = self._master
        is_due = False
        while True:
            if master.committer.watermark.refusal() is not None:
                await master.world.clock.sleep(RECLAIM_REST_SECONDS)  # shadow masters are missing
                continue
            at_once, is_due = RECLAIMS_AT_ONCE if is_due else 1, False
            try:
                plan = partial(_plan_reclaim, master.committer.uptime, master.is_maintained)
                done = await master.committer.perform_all([plan] * at_once)
                is_due = isinstance(done[-1][0], Reclaimed)
                if not is_due:
                    await self._make_room()
            except GfsError as error:
                log.warning("deleted files could not be reclaimed: %s", error)
            if not is_due:
                await master.world.clock.sleep(RECLAIM_REST_SECONDS)
            elif master.replica_map.garbage.backlog[0] >= BACKLOG_CALM:
                rests = master.replica_map.garbage.backlog[0] // BACKLOG_CALM
                await master.world.clock.sleep(rests * RECLAIM_REST_SECONDS)

    async def _make_room(self) -> None:
        """Purge the trash early if a write would otherwise fail: see
        :mod:`gfs.master.rules.trash_purge`."""
        master = self._master
        now, short = master.now, master.shortage()
        if short is None:
            return
        if self._is_leaving(now) or now < self._room_after:
            return
        short = short.without(
            {i: master.replica_map.garbage.leaving_bytes(i) for i in short.missing}
        )
        if short.wanted <= 0:
            self._room_after = now + ROOM_REST_HEARTBEATS * master.settings.heartbeat_seconds
            return
        search = trash_purge.Search(
            master.store, master.replica_map.locations.get, short, master.committer.uptime.now_ns()
        )
        for _ in search.run():
            await trio.lowlevel.checkpoint()
        rows = search.chosen()
        if not rows:
            self._room_after = master.now + ROOM_FRUITLESS_SECONDS
        for start in range(0, len(rows), ROWS_MAX):
            part = rows[start : start + ROWS_MAX]
            wanted = [(row.due_ns, row.inode) for row in part]
            plan = partial(plan_empty_early, time_ns=master.world.clock.time_ns(), wanted=wanted)
            operation, _ = await master.committer.perform(plan)
            if isinstance(operation, TrashEmptied):
                self._purged(part, search.bytes, set(operation.rows))
        if rows:
            self._leaving, self._leaving_until = search.handles, master.now + ROOM_SECONDS

    def _purged(
        self, rows: list[trash_purge.Row], lengths: dict[int, int], gone: set[tuple[int, int]]
    ) -> None:
        needed = self._master.servers_needed
        why = f"fewer than {plural(needed, 'chunkserver')} have room for new chunks"
        for row in rows:
            if row.is_gone or (row.due_ns, row.inode) not in gone:
                continue
            length = lengths[row.inode]
            self._master.trash.purged += 1
            self._master.trash.purged_bytes += length
            log.warning(
                "%s, deleted and %d bytes long, is purged from the trash early: %s",
                row.path,
                length,
                why,
                extra=event("trash_purged", path=row.path, bytes=length, why=why),
            )

    def _is_leaving(self, now: float) -> bool:
        """Whether replicas that were purged to make room are still on the disks, or in
        the last reports of their servers."""
        master = self._master
        if now >= self._leaving_until:
            self._leaving.clear()
        with master.store.read() as txn:
            while self._leaving:
                handle = self._leaving[-1]
                if (
                    handle in master.replica_map.garbage.replicas
                    or chunk_row(txn, handle) is not None
                ):
                    rest = ROOM_REST_HEARTBEATS * master.settings.heartbeat_seconds
                    self._room_after = now + rest
                    return True
                self._leaving.pop()
        return False


def _plan_reclaim(lived: Uptime, counts_time: bool, txn: Txn) -> Planned:
    """Reclaim the next rows of the trash that are due. If none is, log the time alone, if
    the trash is not empty or ``counts_time``."""
    due: list[tuple[int, int]] = []
    for key, _ in txn.scan(b"", txn.db.trash):
        counts_time = True
        due_ns, inode = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        if due_ns > txn.lived_ns or len(due) >= RECLAIM_ROWS:
            break
        due.append((due_ns, inode))
        row = inode_row(txn, inode)
        if row is not None and row.kind == KIND_DIRECTORY:
            break
    if not due:
        return lived.to_be_noted(txn) if counts_time else None, Done(id=0)
    return Reclaimed(*due[0], RECLAIM_ROWS, due[1:]), Done(id=0)
