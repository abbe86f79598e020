"""Counting files for the quotas: see :mod:`control.quota`.

A storage namespace is counted when the outcome of a change in it is not known, when the
machine was booted, and when an administrator asks for it. One process of the machine at a
time counts, one storage namespace after the other, while files are uploaded and deleted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from functools import partial

import trio

from control.api import Records, RecordsFailed, Txn
from control.api.internals import (
    PAGE_ROWS,
    Change,
    Floor,
    Ledger,
    Tally,
    floors,
    in_pages,
    save_floors,
    usage,
)
from control.storage.permission import owner_of
from control.storage.rows import SNAPSHOTS, Space, spaces
from control.storage.spaces import all_in_pages
from gfs.client import Client, Entry
from gfs.errors import (
    AlreadyExists,
    Busy,
    ChunkUnavailable,
    DirectoryNotEmpty,
    DiskFull,
    FileChanged,
    GfsError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotEnoughChunkservers,
    NotFound,
)

log = logging.getLogger(__name__)

#: After these the file system has changed nothing. After any other failure it may have.
REFUSALS = (
    *(AlreadyExists, DirectoryNotEmpty, FileChanged, IsADirectory, NotADirectory, NotFound),
    *(InvalidArgument, InvalidName, ChunkUnavailable, DiskFull, NotEnoughChunkservers),
)
#: A request of a process that was killed may still be on its way to the master.
UNDERWAY_SECONDS = 2.0
#: How long a walk waits, at its end, for files that are being published.
PUBLISHING_SECONDS = 60.0
POLL_SECONDS = 0.05


#: How long a deletion may go on to remove empty folders when its client has left.
PRUNE_SECONDS = 10.0
#: Slashes in the path of a file that is in no folder: /storage/NAME.ID/FILE.
OWN_DEPTH = 3
#: Empty folders removed after one walk.
EMPTY_MAX = 10_000


async def prune(fs: Client, directory: str, folder: str) -> None:
    """Remove ``folder`` of the storage namespace in ``directory``, and those above it, as far
    as they are empty. They do not go to the trash, since there is nothing to undelete.
    """
    if not folder:
        return
    try:
        await fs.prune(f"{directory}/{folder}", below=directory)
    except (DirectoryNotEmpty, NotFound, NotADirectory):
        pass
    except GfsError as error:
        log.info("an empty folder could not be removed: %s", error)


def weight_at(path: str) -> int:
    """As how many files the one at this path of the file system counts: by the folders of its
    storage namespace, or of the snapshots of that, in which it is."""
    return usage.weight(path.count("/") - OWN_DEPTH)


def weight_in_trash(path: str, deleted: str) -> int:
    """The same for a file at or below the path that was deleted: a folder is in the trash with its
    folders, a single file without those that it was in."""
    return usage.weight(path.count("/") - deleted.count("/"))


def change_of(entry: Entry, *, came: bool, path: str = "") -> Change:
    """``path``: where it is by now, if it was moved since."""
    weight = weight_at(path or entry.path)
    return Change(entry.inode, owner_of(entry), entry.length, came, weight)


class Recounts:
    """Counts storage namespaces. One object per process."""

    def __init__(self, records: Records, ledger: Ledger) -> None:
        self._records = records
        self._ledger = ledger

    async def schedule_unknown(self) -> None:
        """Schedule a recount of each storage namespace that this boot's store does not have. If
        it has none, the machine was just booted: then the saved floors apply until all is
        counted."""
        pages = in_pages(self._ledger.records, usage.states, PAGE_ROWS)
        known = {state.space_id async for page in pages for state in page}
        missing = [id_ for id_ in await self._counted() if id_ not in known]
        saved = in_pages(self._records, floors, PAGE_ROWS)
        remembered = [] if known else [row async for page in saved for row in page]

        def add_missing(txn: Txn) -> None:
            if missing and not usage.states.count(txn):
                usage.add_floors(txn, remembered)
            for space_id in missing:
                usage.add_space(txn, space_id, is_counted=False)

        await self._ledger.records.write(add_missing)

    async def count_due(self, fs: Client) -> None:
        """Count the storage namespaces that are due, unless another process does."""
        with self._ledger.read() as txn:
            due = usage.due(txn)
        if due and await self._ledger.begin_recounting():
            try:
                await self.count(fs, due)
            finally:
                await self._ledger.end_recounting()

    async def count(self, fs: Client, space_ids: Iterable[str]) -> bool:
        """Count these, one after the other; return whether all could be counted. The caller holds
        ``ledger.recounting``."""
        is_whole = True
        write = self._ledger.records.write
        await write(usage.forget_walks)
        there = await self._counted()
        for space_id in space_ids:
            try:
                await self._count_one(fs, space_id, there.get(space_id))
            except RecordsFailed:
                raise
            except GfsError as error:
                log.warning("the files of a storage namespace cannot be counted yet: %s", error)
                is_whole = False
        return is_whole

    async def _count_one(self, fs: Client, space_id: str, space: Space | None) -> None:
        write = self._ledger.records.write
        begun = await write(partial(usage.begin_recount, space_id=space_id))
        if begun.lost:
            await trio.sleep(UNDERWAY_SECONDS)
            await fs.status()  # the master answers, so it has handled the requests before this one
        tally = Tally()
        if space is not None:
            await self._walk(fs, space.counted[space_id], tally)
        if not await self._published(space_id):
            raise Busy("uploads to it are still under way")
        exists = partial(self._exists, space)
        await write(
            partial(usage.end_recount, space_id=space_id, begun=begun, tally=tally, is_there=exists)
        )

    async def save_floors(self) -> None:
        """Save the usage of all users, for the time after the next boot, unless another process
        saves or counts."""
        if not await self._ledger.begin_recounting():
            return
        try:
            after: str | None = ""
            while after is not None:
                after = await self._save_some(after)
        finally:
            await self._ledger.end_recounting()

    async def _save_some(self, after: str) -> str | None:
        """Save a page of users after ``after``. Returns the last one; None if there are no more."""
        with self._ledger.read() as counted, self._records.read() as txn:
            if usage.is_uncounted(counted):
                return None
            known = itertools.islice(floors.scan(txn, after=after), PAGE_ROWS)
            ids = {row.user_id for row in known}
            start = f"u/{after}" if after else ""
            page = itertools.islice(usage.counts.scan(counted, prefix="u/", after=start), PAGE_ROWS)
            ids |= {row.name.partition("/")[2] for row in page}
            some = sorted(ids)[:PAGE_ROWS]
            now = [(id_, usage.used_by(counted, id_)) for id_ in some]
            rows = [Floor(id_, used.files, used.bytes) for id_, used in now]
            changed = [row for row in rows if floors.get(txn, row.user_id) != row]

        if changed:
            await self._records.write(partial(save_floors, rows=changed))
        await trio.lowlevel.checkpoint()
        return some[-1] if len(some) == PAGE_ROWS else None

    async def _walk(self, fs: Client, directory: str, tally: Tally) -> None:
        """Count the files, and remove empty folders that a killed deletion left. (Folders of
        snapshots stay as they are.)"""
        empty: set[str] = set()
        pending = [directory]
        while pending:
            try:
                async for entry in fs.scan(pending.pop()):
                    empty.discard(entry.path.rpartition("/")[0])
                    if entry.kind == "file":
                        weight = weight_at(entry.path)
                        tally.add(entry.inode, owner_of(entry), entry.length, weight)
                    else:
                        empty.add(entry.path)
                        pending.append(entry.path)
            except (NotFound, NotADirectory):
                continue  # deleted just now, or not made yet
        if directory.startswith(f"{SNAPSHOTS}/"):
            return
        for path in sorted(empty)[:EMPTY_MAX]:
            await prune(fs, directory, path.removeprefix(f"{directory}/"))

    async def _published(self, space_id: str) -> bool:
        """Wait for the reservations that were publishing when the walk ended."""
        with self._ledger.read() as txn:
            left = usage.publishing(txn, space_id)
        with trio.move_on_after(PUBLISHING_SECONDS):
            while left:
                await trio.sleep(POLL_SECONDS)
                await self._ledger.clear_dead()
                with self._ledger.read() as txn:
                    left &= usage.publishing(txn, space_id)
        return not left

    async def _counted(self) -> dict[str, Space]:
        """What is counted under which name -> its storage namespace."""
        pages = all_in_pages(self._records)
        return {
            id_: space
            async for page in pages
            for space in page
            if not space.deleting
            for id_ in (space.id, space.snapshots_id)
        }

    def _exists(self, space: Space | None) -> bool:
        if space is None:
            return False
        with self._records.read() as txn:
            found = spaces.get(txn, space.name)
        return found is not None and found.id == space.id and not found.deleting
