"""Files as the quotas see them, and counting them: see :mod:`control.quota`.

A storage namespace is counted when something happened in it of which nobody knows the
outcome, when the machine was booted, and when an administrator asks for it. One process of
the machine at a time does that, one storage namespace after the other, while files come and
go in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

import trio

from control.quota import Change, Ledger, Tally, usage
from control.records import Records, Txn
from control.storage.permission import owner_of
from control.storage.rows import Space, spaces
from gfs.client import Client, Entry
from gfs.errors import (
    AlreadyExists,
    ChunkUnavailable,
    DirectoryNotEmpty,
    DiskFull,
    FileChanged,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotEnoughChunkservers,
    NotFound,
)

log = logging.getLogger(__name__)

#: After these the file system has changed nothing. After any other failure nobody knows.
REFUSALS = (
    *(AlreadyExists, DirectoryNotEmpty, FileChanged, IsADirectory, NotADirectory, NotFound),
    *(InvalidArgument, InvalidName, ChunkUnavailable, DiskFull, NotEnoughChunkservers),
)
#: What a process that was killed had asked of the master may still be on its way to it.
UNDERWAY_SECONDS = 2.0
#: What is being published when a walk ends is waited for.
PUBLISHING_SECONDS = 60.0
POLL_SECONDS = 0.05


def change_of(entry: Entry, *, came: bool) -> Change:
    return Change(entry.inode, owner_of(entry), entry.length, came)


class Recounts:
    """Counts storage namespaces. One object per process."""

    def __init__(self, records: Records, ledger: Ledger) -> None:
        self._records = records
        self._ledger = ledger

    async def know_all(self) -> None:
        """Have every storage namespace counted that this boot's store does not know."""
        with self._ledger.read() as txn:
            known = {state.space_id for state in usage.states.scan(txn)}
        missing = [space.id for space in self._spaces() if space.id not in known]

        def know(txn: Txn) -> None:
            for space_id in missing:
                usage.know_space(txn, space_id, is_counted=False)

        await self._ledger.records.write(know)

    async def count_doubtful(self, fs: Client) -> None:
        """Count what is in doubt, unless another process is at it."""
        with self._ledger.read() as txn:
            doubtful = usage.doubtful(txn)
        if doubtful and self._ledger.recounting.take():
            try:
                await self.count(fs, doubtful)
            finally:
                self._ledger.recounting.close()

    async def count(self, fs: Client, space_ids: Iterable[str]) -> bool:
        """Count these, one after the other; whether all of them could be. The caller holds
        ``ledger.recounting``."""
        is_whole = True
        write = self._ledger.records.write
        await write(usage.forget_walks)
        there = {space.id: space for space in self._spaces()}
        for space_id in space_ids:
            begun = await write(partial(usage.begin_recount, space_id=space_id))
            if begun.lost:
                await trio.sleep(UNDERWAY_SECONDS)
                await fs.status()  # the master lives, and has seen what came before
            tally = Tally()
            space = there.get(space_id)
            if space is not None:
                await self._walk(fs, space, tally)
            if not await self._published(space_id):
                log.warning("a storage namespace cannot be counted yet: uploads do not end")
                is_whole = False
                continue
            exists = partial(self._exists, space)
            await write(
                partial(
                    usage.end_recount, space_id=space_id, begun=begun, tally=tally, is_there=exists
                )
            )
        return is_whole

    async def _walk(self, fs: Client, space: Space, tally: Tally) -> None:
        try:
            async for entry in fs.walk(space.directory):
                if entry.kind == "file":
                    tally.add(entry.inode, owner_of(entry), entry.length)
        except NotFound:
            pass  # deleted just now, or not made yet

    async def _published(self, space_id: str) -> bool:
        """Wait for what was publishing there when the walk ended."""
        with self._ledger.read() as txn:
            left = usage.publishing(txn, space_id)
        with trio.move_on_after(PUBLISHING_SECONDS):
            while left:
                await trio.sleep(POLL_SECONDS)
                await self._ledger.tidy()
                with self._ledger.read() as txn:
                    left &= usage.publishing(txn, space_id)
        return not left

    def _spaces(self) -> list[Space]:
        with self._records.read() as txn:
            return [space for space in spaces.scan(txn) if not space.deleting]

    def _exists(self, space: Space | None) -> bool:
        if space is None:
            return False
        with self._records.read() as txn:
            found = spaces.get(txn, space.name)
        return found is not None and found.id == space.id and not found.deleting
