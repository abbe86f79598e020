"""Storage namespaces: create, change, list, delete; and repair after a crash.

A storage namespace is a row in the records and a directory in the file system, and these
two cannot change in one step. So the row decides, and the directory follows:

==========================  ================  =====================================
row                         directory         state, and what repair does
==========================  ================  =====================================
there                       there             it exists
there                       missing           new: repair creates the directory
there, ``deleting``         there or missing  deleted: repair removes the directory
                                              and then the row
missing                     there             unknown: repair logs and keeps it
==========================  ================  =====================================

A directory without a row may belong to records that were restored from an older copy, so
its files are not deleted.

An upload requires that the directory exists, so one that races with a deletion fails
and cannot create the directory again.
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

from control.api import (
    PUBLIC_VISIBILITY,
    ApiError,
    Call,
    Conflict,
    Control,
    Forbidden,
    NamespaceDeletion,
    Need,
    NoSuchThing,
    Principal,
    Records,
    RecordsFailed,
    Taken,
    Target,
    Txn,
)
from control.api.internals import (
    PAGE_ROWS,
    add_space,
    check_quota,
    count,
    decide_target,
    drop_space,
    forget_purge,
    in_pages,
    limits_of,
    trash_space,
)
from control.storage import listing
from control.storage.cluster import Cluster
from control.storage.names import DEFAULT, check_space_name
from control.storage.rows import ROOT, Space, present_space, spaces, spaces_of
from control.storage.shapes import NewSpace, SpaceInfo
from gfs.errors import DirectoryNotEmpty, FileChanged, GfsError, NotFound

log = logging.getLogger(__name__)

#: How long the steps after a committed row may take when the client has left.
FOLLOW_UP_SECONDS = 30.0


def all_in_pages(records: Records) -> AsyncGenerator[list[Space], None]:
    """All rows by name, see :func:`in_pages`."""
    return in_pages(records, spaces, PAGE_ROWS)


class Spaces:
    """The storage namespaces, for one process."""

    def __init__(self, control: Control, cluster: Cluster) -> None:
        self._control = control
        self._cluster = cluster
        #: Directories without a row at the last repair, and those that were logged.
        self._unknown: set[str] = set()
        self._logged: set[str] = set()

    @property
    def _records(self) -> Records:
        return self._control.records

    # --- reading ------------------------------------------------------------------

    def get(self, name: str) -> Space:
        """The storage namespace. Raises NoSuchThing if there is none, or it is being deleted."""
        with self._records.read() as txn:
            space = spaces.get(txn, name)
        if space is None or space.deleting:
            raise NoSuchThing(f"there is no storage namespace {name!r:.80}")
        return space

    def readable(self, call: Call, name: str) -> Space:
        """The storage namespace, if the caller may read in it."""
        space = self.get(name)
        call.allow(space.target, reading=True)
        return space

    def own(self, call: Call, name: str) -> Space:
        """The storage namespace, if all of it is the caller's: ``default`` is administrators'.
        Raises NoSuchThing, Unauthorized, Forbidden."""
        space = self.get(name)
        call.allow(space.target)
        if space.is_default:
            call.allow(Target(None, space.name, noun="what all users have in default"))
        return space

    def still_exists(self, space: Space) -> bool:
        with self._records.read() as txn:
            return present_space(txn, space) is not None

    def again(self, space: Space) -> Space:
        """The same storage namespace, as it is now. Raises NoSuchThing."""
        found = self.get(space.name)
        if found.id != space.id:
            raise NoSuchThing(f"there is no storage namespace {space.name}")
        return found

    async def all(self) -> list[Space]:
        pages = all_in_pages(self._records)
        return [space async for page in pages for space in page if not space.deleting]

    def listed_for(
        self, principal: Principal | None, need: Need, after: str = ""
    ) -> AsyncGenerator[SpaceInfo, None]:
        """The public ones, and those of the caller that the credential may read, sorted by
        name, after ``after``. The master is not asked."""

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
        """Read page by page, so that other requests are served in between."""
        while True:
            with self._records.read() as txn:
                page = list(itertools.islice(find(txn, after), PAGE_ROWS))
            # One that is public and the caller's own was found twice.
            chosen = {space.name: space for space in page}
            for info in self.infos(space for space in chosen.values() if not space.deleting):
                yield info
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].name
            await trio.lowlevel.checkpoint()

    def infos(self, chosen: Iterable[Space]) -> list[SpaceInfo]:
        """The answers for these storage namespaces, with their numbers of files."""
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
                await self._add_counts(space)
                await self._make_directory(space)
            except GfsError:
                # It was answered as failed, so it must not appear later.
                await self._records.write(lambda txn: _mark_deleting(txn, space))
                raise
        return _info(space, 0)

    async def update(self, call: Call, visibility: int) -> SpaceInfo:
        space = self._changeable(call, "changed")

        def change(txn: Txn) -> Space:
            found = present_space(txn, space)
            if found is None:
                raise NoSuchThing(f"there is no storage namespace {space.name}")
            # If its owner was deleted meanwhile, it stays private and without an owner.
            if found.owner_id != space.owner_id:
                raise Conflict(f"{space.name} was changed meanwhile: try again")
            acl = found.acl if found.visibility == visibility else ""
            changed = replace(found, visibility=visibility, acl=acl)
            spaces.put(txn, changed)
            return changed

        return self.infos([await self._records.write(change)])[0]

    async def delete(self, call: Call) -> None:
        """Delete it with all files, in one step: when this returns nobody sees it any more."""
        space = self._changeable(call, "deleted")
        _ = self._cluster.fs
        await self._delete(space)

    async def _delete(self, space: Space, *, is_empty: bool = False) -> None:
        """``is_empty``: raises Conflict if it is not."""
        space = replace(space, if_empty=is_empty)
        if not await self._records.write(lambda txn: _mark_deleting(txn, space)):
            raise NoSuchThing(f"there is no storage namespace {space.name}")
        with trio.move_on_after(FOLLOW_UP_SECONDS, shield=True):
            try:
                await self._finish_deletion(space)
            except (Conflict, RecordsFailed):
                raise
            except GfsError as error:
                # It counts as deleted; repair will remove the files and free its name.
                log.warning(
                    "the files of storage namespace %s cannot be deleted yet: %s", space.name, error
                )

    async def delete_empty(self, call: Call) -> None:
        """Delete it if it has no files. What is uploaded at the same time either keeps it, or
        fails: its directory goes first, and only as an empty one.

        Raises Conflict if it has files.
        """
        space = self._changeable(call, "deleted")
        await self._remove_directory(space)
        await self._delete(space, is_empty=True)

    async def _remove_directory(self, space: Space) -> None:
        """Remove the directory with its empty folders. Raises Conflict if it has files, or a
        snapshot."""
        fs = self._cluster.fs
        refusal = Conflict(f"storage namespace {space.name} has files")
        with contextlib.suppress(NotFound):
            if await fs.list(space.snapshots):
                raise Conflict(f"storage namespace {space.name} has snapshots")
        async with contextlib.aclosing(listing.files(fs, space.directory, page=1)) as files:
            async for _ in files:
                raise refusal
        empty: list[tuple[str, int | None]] = [(space.directory, None)]
        with contextlib.suppress(NotFound):
            found = [entry async for entry in fs.walk(space.directory)]
            if any(entry.kind == "file" for entry in found):  # it came just now
                raise refusal
            empty += [(entry.path, entry.inode) for entry in found]
        for path, inode in reversed(empty):
            with contextlib.suppress(NotFound, FileChanged):
                try:
                    await fs.delete(path, expect=inode, now=True)
                except DirectoryNotEmpty:
                    raise refusal from None

    def _changeable(self, call: Call, what: str) -> Space:
        space = self.get(call.params["name"])
        if space.is_default:
            raise Forbidden(f"storage namespace {DEFAULT} cannot be {what}")
        call.allow(space.target)
        return space

    async def _add_counts(self, space: Space) -> None:
        """Add the counts of a new, empty storage namespace."""
        await self._control.ledger.records.write(
            partial(add_space, space_id=space.id, is_counted=True)
        )

    async def _finish_deletion(self, space: Space) -> None:
        """Raises Conflict if it had to be empty, and is not: then it exists on."""
        if space.if_empty:
            # A repair may just have made the directory again, and an upload a file in it.
            try:
                await self._remove_directory(space)
            except Conflict:
                await self._records.write(lambda txn: _revive(txn, space))
                raise
        # From now on its files do not count towards their owners' quotas.
        ledger = self._control.ledger.records
        is_kept = await ledger.write(
            partial(
                trash_space,
                space_id=space.id,
                limits_of=self._control.limits_of,
                now=self._control.ledger.now(),
                seconds=self._cluster.trash_seconds,
            )
        )
        if not space.if_empty:
            with contextlib.suppress(NotFound):
                await self._cluster.fs.delete(space.directory, recursive=True, now=not is_kept)
        await ledger.write(partial(drop_space, space_id=space.snapshots_id))
        with contextlib.suppress(NotFound):
            await self._cluster.fs.delete(space.snapshots, recursive=True, now=True)
        if not is_kept:
            await ledger.write(partial(forget_purge, space_id=space.id))
        deletions = self._control.namespace_deletions
        await self._records.write(lambda txn: _remove(txn, space, deletions))

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
        """Make the directories match the rows, see above. Any process may do it at any time."""
        there = await self._directories()
        async with contextlib.aclosing(all_in_pages(self._records)) as pages:
            async for page in pages:
                for space in page:
                    is_there = space.directory in there
                    there.discard(space.directory)
                    if space.deleting:
                        with contextlib.suppress(Conflict):
                            await self._finish_deletion(space)
                    elif not is_there:
                        await self._make_directory(space)
        self._log_unknown(there)

    def _log_unknown(self, found: set[str]) -> None:
        """Log directories without a row that two repairs in a row found: a deletion may have
        ended between the two reads of a single repair."""
        for path in sorted((found & self._unknown) - self._logged):
            log.warning("%s in the file system belongs to no storage namespace: it is kept", path)
            self._logged.add(path)
        self._unknown = found

    async def _directories(self) -> set[str]:
        try:
            return {entry.path async for entry in self._cluster.fs.scan(ROOT)}
        except NotFound:
            return set()

    async def _make_directory(self, space: Space) -> None:
        fs = self._cluster.fs
        with contextlib.suppress(NotFound):  # it was deleted as soon as it was created
            await fs.mkdir(space.directory, parents=True, exist_ok=True)
        if not self.still_exists(space):
            # Another process deleted the storage namespace meanwhile, and repair would not
            # find this directory. One that has a file already is the deletion's.
            with contextlib.suppress(NotFound, DirectoryNotEmpty):
                await fs.delete(space.directory, now=True)


def _may(principal: Principal, need: Need, space: Space) -> bool:
    try:
        decide_target(principal, need, space.target)
    except ApiError:
        return False
    return True


def _info(space: Space, count: int) -> SpaceInfo:
    return SpaceInfo(space.name, count, space.hidden, space.visibility, space.owner_id)


def _mark_deleting(txn: Txn, space: Space) -> bool:
    found = present_space(txn, space)
    if found is None:
        return False
    spaces.put(txn, replace(found, deleting=True, if_empty=space.if_empty))
    return True


def _revive(txn: Txn, space: Space) -> None:
    found = spaces.get(txn, space.name)
    if found is not None and found.id == space.id and found.if_empty:
        spaces.put(txn, replace(found, deleting=False, if_empty=False))


def _remove(txn: Txn, space: Space, deletions: Iterable[NamespaceDeletion]) -> None:
    """Delete the row of a storage namespace, and with it all rows about it."""
    found = spaces.get(txn, space.name)
    if found is not None and found.id == space.id and found.deleting:
        spaces.delete(txn, space.name)
        for deletion in deletions:
            deletion(txn, space.id)
