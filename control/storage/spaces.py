"""Storage namespaces: create, change, list, delete; and repair after a crash.

A storage namespace is a row and a directory of the file system, and two stores
cannot change in one step. So the row decides, and the directory follows:

==========================  ================  =====================================
row                         directory         meaning, and what the repair does
==========================  ================  =====================================
there                       there             it exists
there                       missing           just made: the directory is made
there, ``deleting``         there or missing  deleted: the directory, then the row go
missing                     there             never deleted, only logged
==========================  ================  =====================================

The last is nobody's, as far as this code can know: it may belong to records that
were restored from an older copy, and files are not deleted away on a guess.

An upload names the directory as the one that must be there, so one that races
with a deletion fails, and cannot bring it back.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from functools import partial

import trio
from msgspec.structs import replace

from control.api import Call, Control
from control.errors import ApiError, Conflict, Forbidden, NoSuchThing
from control.identity.access import PUBLIC_VISIBILITY, Need, Principal, decide_target
from control.quota import limits_of
from control.quota.ledger import boot_seconds
from control.quota.limits import check_quota
from control.quota.usage import add_space, count, forget_purge, trash_space
from control.records import Records, RecordsFailed, Taken, Txn
from control.storage.cluster import Cluster
from control.storage.names import DEFAULT, check_space_name
from control.storage.rows import ROOT, Space, spaces, spaces_of
from control.storage.shapes import NewSpace, SpaceInfo
from gfs.errors import GfsError, NotFound

log = logging.getLogger(__name__)

#: Storage namespaces read before other tasks run: some milliseconds.
PAGE_ROWS = 256
#: How long the steps after a committed row may take when the client has left.
FOLLOW_UP_SECONDS = 30.0


class Spaces:
    """The storage namespaces, as one process sees them."""

    def __init__(self, control: Control, cluster: Cluster) -> None:
        self._control = control
        self._cluster = cluster
        #: Directories without a row at the last repair, and those that were logged.
        self._unknown: set[str] = set()
        self._logged: set[str] = set()

    @property
    def _records(self) -> Records:
        return self._control.records

    # --- looking ------------------------------------------------------------------

    def get(self, name: str) -> Space:
        """The storage namespace. Raises NoSuchThing, also while it is being deleted."""
        with self._records.read() as txn:
            space = spaces.get(txn, name)
        if space is None or space.deleting:
            raise NoSuchThing(f"there is no storage namespace {name!r:.80}")
        return space

    def still_exists(self, space: Space) -> bool:
        with self._records.read() as txn:
            found = spaces.get(txn, space.name)
        return found is not None and found.id == space.id and not found.deleting

    def all(self) -> list[Space]:
        with self._records.read() as txn:
            return [space for space in spaces.scan(txn) if not space.deleting]

    def listed_for(
        self, principal: Principal | None, need: Need, after: str = ""
    ) -> AsyncGenerator[SpaceInfo, None]:
        """The public ones, and the caller's own that his credential may read; by name, those
        above ``after``. The master is not asked."""

        def find(txn: Txn, after: str) -> Iterator[Space]:
            found = spaces.by(txn, "listed", "public", after=after)
            if principal is None:
                return found
            own = spaces.by(txn, "owner", principal.user_id, after=after)
            readable = (space for space in own if _may(principal, need, space))
            return heapq.merge(found, readable, key=lambda space: space.name.encode())

        return self._infos(find, after)

    def every(self) -> AsyncGenerator[SpaceInfo, None]:
        """All storage namespaces, by name."""
        return self._infos(lambda txn, after: spaces.scan(txn, after=after), "")

    async def _infos(
        self, find: Callable[[Txn, str], Iterator[Space]], after: str
    ) -> AsyncGenerator[SpaceInfo, None]:
        """In pages, so that others are served in between, however many there are."""
        while True:
            with self._records.read() as txn:
                page = list(itertools.islice(find(txn, after), PAGE_ROWS))
            # Public and one's own, it comes twice.
            chosen = {space.name: space for space in page}
            for info in self.infos(space for space in chosen.values() if not space.deleting):
                yield info
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].name
            await trio.lowlevel.checkpoint()

    def infos(self, chosen: Iterable[Space]) -> list[SpaceInfo]:
        """All storage namespaces with their numbers of files."""
        with self._control.ledger.read() as txn:
            return [_info(space, max(0, count(txn, "s", space.id).files)) for space in chosen]

    # --- changing -----------------------------------------------------------------

    async def create(self, call: Call, body: NewSpace) -> SpaceInfo:
        check_space_name(body.name)
        space = Space(
            body.name,
            secrets.token_hex(4),
            call.user.user_id,
            body.visibility,
            body.hidden,
            int(time.time()),
        )
        _ = self._cluster.fs

        def insert(txn: Txn) -> None:
            limits = limits_of(txn, call.user.user_id, self._control.limits)
            used = spaces_of(txn, call.user.user_id)
            spaces.insert(txn, space)
            check_quota("namespaces", limits.namespaces, used, 1)

        try:
            await self._records.write(insert)
        except Taken:
            raise Conflict(f"a storage namespace {body.name} exists already") from None
        with trio.move_on_after(FOLLOW_UP_SECONDS, shield=True):
            try:
                await self._know(space)
                await self._make_directory(space)
            except GfsError:
                # It was answered as failed, so it must not appear later.
                await self._records.write(lambda txn: _mark_deleting(txn, space))
                raise
        return _info(space, 0)

    async def update(self, call: Call, visibility: int) -> SpaceInfo:
        space = self._changeable(call, "changed")

        def change(txn: Txn) -> Space:
            found = spaces.get(txn, space.name)
            if found is None or found.id != space.id or found.deleting:
                raise NoSuchThing(f"there is no storage namespace {space.name}")
            # Its owner may have been deleted since: then it stays as that left it.
            if found.owner_id != space.owner_id:
                raise Conflict(f"{space.name} was changed meanwhile: try again")
            changed = replace(found, visibility=visibility)
            spaces.put(txn, changed)
            return changed

        return self.infos([await self._records.write(change)])[0]

    async def delete(self, call: Call) -> None:
        """Delete it with all files, in one step: on return nobody sees it any more."""
        space = self._changeable(call, "deleted")
        _ = self._cluster.fs
        if not await self._records.write(lambda txn: _mark_deleting(txn, space)):
            raise NoSuchThing(f"there is no storage namespace {space.name}")
        with trio.move_on_after(FOLLOW_UP_SECONDS, shield=True):
            try:
                await self._finish_deletion(space)
            except RecordsFailed:
                raise
            except GfsError as error:
                # It is deleted; the repair will free its name.
                log.warning("files of storage namespace %s: %s", space.name, error)

    def _changeable(self, call: Call, what: str) -> Space:
        space = self.get(call.params["name"])
        if space.is_default:
            raise Forbidden(f"storage namespace {DEFAULT} cannot be {what}")
        call.allow(space.target)
        return space

    async def _know(self, space: Space) -> None:
        """Add the counts of a new, empty storage namespace."""
        await self._control.ledger.records.write(
            partial(add_space, space_id=space.id, is_counted=True)
        )

    async def _finish_deletion(self, space: Space) -> None:
        # From here on its files do not count for their owners' quotas.
        ledger = self._control.ledger.records
        is_kept = await ledger.write(
            partial(
                trash_space,
                space_id=space.id,
                limits_of=self._control.limits_of,
                now=boot_seconds(),
                seconds=self._cluster.trash_seconds,
            )
        )
        with contextlib.suppress(NotFound):
            await self._cluster.fs.delete(space.directory, recursive=True, now=not is_kept)
        if not is_kept:
            await ledger.write(partial(forget_purge, space_id=space.id))
        await self._records.write(lambda txn: _remove(txn, space))

    # --- repair -------------------------------------------------------------------

    async def make_default(self) -> None:
        """Create the row of ``default`` if it does not exist."""
        with self._records.read() as txn:
            if spaces.get(txn, DEFAULT) is not None:
                return
        row = Space(DEFAULT, secrets.token_hex(4), None, PUBLIC_VISIBILITY, False, int(time.time()))

        def make(txn: Txn) -> None:
            if spaces.get(txn, DEFAULT) is None:
                spaces.put(txn, row)

        await self._records.write(make)

    async def repair(self) -> None:
        """Let the directories follow the rows; see above. Any process, at any time."""
        there = await self._directories()
        with self._records.read() as txn:
            rows = list(spaces.scan(txn))
        for space in rows:
            if space.deleting:
                await self._finish_deletion(space)
            elif space.directory not in there:
                await self._make_directory(space)
        self._log_unknown(there - {space.directory for space in rows})

    def _log_unknown(self, found: set[str]) -> None:
        """Log directories that two repairs in a row found: a deletion may have ended between
        the two reads of one."""
        for path in sorted((found & self._unknown) - self._logged):
            log.warning("%s in the file system belongs to no storage namespace: left alone", path)
            self._logged.add(path)
        self._unknown = found

    async def _directories(self) -> set[str]:
        try:
            return {entry.path async for entry in self._cluster.fs.scan(ROOT)}
        except NotFound:
            return set()

    async def _make_directory(self, space: Space) -> None:
        fs = self._cluster.fs
        with contextlib.suppress(NotFound):  # deleted as soon as it was made
            await fs.mkdir(space.directory, parents=True, exist_ok=True)
        if not self.still_exists(space):
            # Another process deleted it in between: nobody else would, ever again.
            with contextlib.suppress(NotFound):
                await fs.delete(space.directory, recursive=True)


def _may(principal: Principal, need: Need, space: Space) -> bool:
    try:
        decide_target(principal, need, space.target)
    except ApiError:
        return False
    return True


def _info(space: Space, count: int) -> SpaceInfo:
    return SpaceInfo(space.name, count, space.hidden, space.visibility, space.owner_id)


def _mark_deleting(txn: Txn, space: Space) -> bool:
    found = spaces.get(txn, space.name)
    if found is None or found.id != space.id or found.deleting:
        return False
    spaces.put(txn, replace(found, deleting=True))
    return True


def _remove(txn: Txn, space: Space) -> None:
    found = spaces.get(txn, space.name)
    if found is not None and found.id == space.id and found.deleting:
        spaces.delete(txn, space.name)
