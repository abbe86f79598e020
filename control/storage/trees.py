"""Moving, copying and deleting files and whole folders, and undeleting them, each in one step of
the file system.

The counts of quotas follow: each file counts for its uploader, and a copy for the user who makes
it, as if it were uploaded (its bytes are shared, but nobody must come above a quota when the
original is deleted). A copy is made under a name of its own in ``STAGING``, so that nobody sees it
before its attributes are right and there is room for it in the quota (see :mod:`.sharing`).

In a storage namespace that keeps versions (:mod:`.versions`) a copy is a new version at its path;
what is moved is copied, and then deleted, which makes a marker; undeleting removes markers. That is
for single files: each has its place among the versions of its key, so a folder could not come, or
go, in one step.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import trio

from control.api import BadRequest, Call, Conflict, Control, NoSuchThing, Txn, Unavailable
from control.api.internals import Change, Trash, decide_target, usage
from control.storage.accounting import (
    PRUNE_SECONDS,
    REFUSALS,
    prune,
    weight_at,
    weight_in_trash,
)
from control.storage.cluster import Cluster, as_answers
from control.storage.deletion import Kept, delete_entry
from control.storage.keys import key_of
from control.storage.names import (
    KEPT,
    PATH_BYTES_MAX,
    SEGMENTS_MAX,
    check_own_path,
    last_segment,
)
from control.storage.permission import CREATE, OWNER, may_remove, owner_of
from control.storage.purging import finish_purge, stage_purge, take_from_trash
from control.storage.replacing import replacing
from control.storage.rows import ROOT, Space
from control.storage.spaces import Spaces
from control.storage.staging import STAGING, place
from control.storage.versions import Turn as VersionTurn
from control.storage.versions import Versions, applies, keeps, version_weight
from gfs.client import Client, Entry, TrashEntry
from gfs.errors import AlreadyExists, GfsError, NotADirectory, NotFound

log = logging.getLogger(__name__)

CLEAN_UP_SECONDS = 10.0
#: What takes longer to purge is done by the sweep.
PURGE_SECONDS = 30.0
#: Files of one request; more are refused, since their counts are written in one transaction.
FILES_MAX = 200_000
#: Folders that are moved, copied, deleted or undeleted at once for one user; others wait. Of each,
#: all changes are in memory: 35 MB at most.
TREES_AT_ONCE = 2
#: Copies that become another user's at once: what waits together is committed together.
GIVEN_AT_ONCE = 64
#: The attributes of a file that its copies have, too: besides, the owner.
COPIED = frozenset({"s3"})
TOO_MANY = f"it has more than {FILES_MAX:,} files: take its folders one by one"


@dataclass(frozen=True)
class Moved:
    """What was moved, copied, deleted or undeleted."""

    path: str
    kind: str  # "file" | "folder"
    files: int
    size: int


class Found:
    """The files of a walk. Each is taken in when it is read: over all of them at once a loop would
    hold up other requests (100,000 take 60 ms)."""

    def __init__(self, source: str, target: str = "", *, came: bool) -> None:
        """They are at and below ``source``, and count as those at and below ``target``."""
        self._source = source
        self._target = target or source
        self._came = came
        self.changes: list[Change] = []
        self.size = 0
        #: As how many files they count.
        self.weight = 0
        #: Owner -> files, as they count in the trash, and bytes.
        self.owners: dict[str, tuple[int, int]] = {}

    def add(self, entry: Entry, owner: str) -> None:
        weight = weight_at(self._target + entry.path.removeprefix(self._source))
        self.changes.append(Change(entry.inode, owner, entry.length, self._came, weight))
        self.size += entry.length
        self.weight += weight
        files, length = self.owners.get(owner, (0, 0))
        files += weight_in_trash(entry.path, self._source)
        self.owners[owner] = files, length + entry.length


class Trees:
    """The operations, for one process."""

    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._versions = Versions(control, cluster, spaces)
        #: The turns of users, as long as they have any.
        self._turns = WeakValueDictionary[str, trio.Semaphore]()

    def _turn(self, call: Call, kind: str) -> AbstractAsyncContextManager[object]:
        if kind == "file":
            return nullcontext()
        return self._turns.setdefault(call.user.user_id, trio.Semaphore(TREES_AT_ONCE))

    @property
    def _fs(self) -> Client:
        return self._cluster.fs

    # --- moving -------------------------------------------------------------------

    async def move(
        self, call: Call, space: Space, source: str, target: str, overwrite: bool
    ) -> Moved:
        """Raises NoSuchThing, Conflict, BadRequest, Forbidden."""
        check_own_path(source), check_own_path(target)
        call.allow(space.target)
        if source == target:
            raise BadRequest("target: is the same as the source")
        if target.startswith(f"{source}/"):
            raise Conflict(f"{target} is in {source} itself")
        entry = await self._entry(space, source)
        async with self._turn(call, entry.kind):
            return await self._move(call, space, entry, source, target, overwrite)

    async def _move(
        self, call: Call, space: Space, entry: Entry, source: str, target: str, overwrite: bool
    ) -> Moved:
        _check_single(space, entry)
        found, changes = await self._may_move(call, space, entry, target)
        there = await self._in_the_way(call, space, target, overwrite)
        if space.versioning:
            full = f"{space.directory}/{target}"
            async with self._room_for_marker(space, source, entry):
                await self.copy_to(
                    call, entry, space, full, target, instead_of=there, is_moving=True
                )
            await self._delete(space, source, entry)
            return _moved(target, entry, found)
        async with (
            self._room_for_moved(space, changes),
            self._replacing(space, target, there),
            self._control.ledger.claim("", space.id) as claim,
        ):
            await claim.publish_deletion("", 0, self._control.limits, 0.0)
            with as_answers(target), trio.CancelScope(shield=True):
                try:
                    await place(self._fs, entry.path, space.directory, target, "")
                except REFUSALS:
                    claim.refused()
                    await self._prune(space, target)
                    raise
                await self._prune(space, source)
                exists = partial(self._spaces.still_exists, space)
                await claim.record(changes, exists, moved=True)
                if changes and entry.kind != "file":
                    await self._recount(space)
        return _moved(target, entry, found)

    async def _recount(self, space: Space) -> None:
        """Files may have come to a folder while it was read."""
        write = self._control.ledger.records.write
        await write(partial(usage.require_recount, space_id=space.id))

    @asynccontextmanager
    async def _room_for_moved(self, space: Space, changes: list[Change]) -> AsyncIterator[None]:
        """Hold the room in the quotas of the owners whose files will be in more folders. Raises
        QuotaReached, TooLarge."""
        more: dict[str, int] = {}
        for change in changes:
            more[change.owner] = more.get(change.owner, 0) + change.weight
        async with AsyncExitStack() as stack:
            for owner, files in more.items():
                if owner and files > 0:
                    claim = self._control.ledger.claim(owner, space.id)
                    reserve = (await stack.enter_async_context(claim)).reserve
                    await reserve(files, 0, self._control.limits_of(owner))
            yield

    @asynccontextmanager
    async def _room_for_marker(self, space: Space, path: str, entry: Entry) -> AsyncIterator[None]:
        """Hold the room in the quota that the delete marker of ``path`` will take, besides the file
        and, for an instant, the version that it becomes: a copy whose source cannot be deleted
        afterwards would be half of a move. Raises QuotaReached."""
        owner = owner_of(entry)
        async with self._control.ledger.claim(owner, space.id) as claim:
            key = key_of(path)
            if key is not None and applies(space, path):
                files = version_weight(space, key) * (1 + keeps(space, path, entry))
                await claim.reserve(files, 0, self._control.limits_of(owner))
            yield

    async def _may_move(
        self, call: Call, space: Space, entry: Entry, target: str
    ) -> tuple[Found, list[Change]]:
        """Check that it may go from there. Returns its files, as they are now, and the changes of
        those that will count as more or fewer."""
        if entry.kind != "file":
            self._spaces.own(call, space.name)
        may_remove(call, space, entry)
        found = Found(entry.path, f"{space.directory}/{target}", came=True)
        changes: list[Change] = []
        async with aclosing(_files(self._fs, entry)) as files:
            async for each in files:
                _check_path(each, entry.path, target)
                found.add(each, owner_of(each))
                more = found.changes[-1].weight - weight_at(each.path)
                if more:
                    changes.append(Change.moved(each.inode, owner_of(each), more))
        return found, changes

    async def _in_the_way(
        self, call: Call, space: Space, target: str, overwrite: bool
    ) -> Entry | None:
        """The file at the target, which may be replaced. Raises Conflict, Forbidden."""
        try:
            there = await self._fs.stat(f"{space.directory}/{target}")
        except (NotFound, NotADirectory):
            return None
        if there.kind != "file":
            raise Conflict(f"{target} is a folder")
        if not overwrite:
            raise Conflict(f"{target} exists already: send overwrite=true to replace it")
        may_remove(call, space, there)
        return there

    def _replacing(
        self, space: Space, path: str, there: Entry | None
    ) -> AbstractAsyncContextManager[None]:
        """Delete the file that is there, for another one."""
        if there is None:
            return nullcontext()
        return replacing(self._control, self._cluster, self._spaces, space, path, there)

    async def _delete(self, space: Space, path: str, entry: Entry) -> None:
        await delete_entry(self._control, self._cluster, self._spaces, space, path, entry)

    # --- copying ------------------------------------------------------------------

    async def copy(
        self, call: Call, source: Entry, space: Space, target: str, overwrite: bool
    ) -> Moved:
        """Copy what the caller may read to ``target`` of ``space``. Raises as :meth:`move`, and
        QuotaReached, TooLarge."""
        check_own_path(target)
        decide_target(call.principal, CREATE, space.target)
        _check_single(space, source)
        if source.path == f"{space.directory}/{target}":
            raise BadRequest("target: is the same as the source")
        if f"{space.directory}/{target}/".startswith(f"{source.path}/"):
            raise Conflict(f"{target} is in the source itself")
        there = await self._in_the_way(call, space, target, overwrite)
        full = f"{space.directory}/{target}"
        found = await self.copy_to(call, source, space, full, target, instead_of=there)
        return _moved(target, source, found)

    async def copy_to(
        self,
        call: Call,
        source: Entry,
        space: Space,
        full: str,
        target: str,
        *,
        attributes: Mapping[str, str] | None = None,
        instead_of: Entry | None = None,
        is_moving: bool = False,
    ) -> Found:
        """Copy ``source`` to ``full``: to a path of ``space``, whose name for people is
        ``target``; or, with these attributes and its number of files, as a snapshot of it.

        ``instead_of``: the file that is there, which is deleted when the copy is ready and the
        quota has room for both: what is refused leaves it (see :mod:`.replacing`).

        ``is_moving``: the source, a file, is deleted afterwards, so nothing but what it was may be
        copied."""
        async with self._turn(call, source.kind):
            return await self._copy_to(
                call, source, space, full, target, attributes, instead_of, is_moving
            )

    async def _copy_to(
        self,
        call: Call,
        source: Entry,
        space: Space,
        full: str,
        target: str,
        attributes: Mapping[str, str] | None,
        instead_of: Entry | None,
        is_moving: bool,
    ) -> Found:
        count_id = space.id if attributes is None else space.snapshots_id
        user_id = call.user.user_id
        limits = self._control.limits_of(user_id)
        used = await self._fs.disk_usage(source.path)
        if used.files > FILES_MAX:
            raise BadRequest(f"source: {TOO_MANY}")
        staged = f"{STAGING}/{secrets.token_hex(16)}"
        async with self._control.ledger.claim(user_id, count_id) as claim:
            await claim.reserve(used.files * _least(full, source.kind), used.bytes, limits)
            is_placed = False
            try:
                with as_answers(last_segment(source.path)):
                    await self._fs.snapshot(source.path, staged, parents=True)
                if is_moving:
                    await _check_same(self._fs, source, staged)
                if source.path.rpartition("/")[0] == ROOT:
                    await _drop_kept(self._fs, staged)
                found = await self._adopt(staged, user_id, full, space)
                if attributes is not None:
                    numbers = {"files": f"{len(found.changes)}", "size": f"{found.size}"}
                    await self._fs.set_attributes(staged, {**attributes, **numbers})
                elif source.kind != "file" and source.attributes:
                    await self._fs.set_attributes(staged, removed=sorted(source.attributes))
                path = target if attributes is None else ""
                if instead_of is not None:
                    await claim.reserve(found.weight, found.size, limits)
                async with (
                    self._version(space, path, instead_of) as version,
                    self._replacing(space, target, instead_of if version is None else None),
                ):
                    if version is not None:
                        await self._fs.set_attributes(
                            staged, version.attributes, modified_ns=version.modified_ns
                        )
                    more = version.more if version is not None else 0
                    await claim.publish(found.weight + more, found.size, limits)
                    with as_answers(target), trio.CancelScope(shield=True):
                        try:
                            if version is not None:
                                await version.make_way()
                            await self._place(staged, space, full)
                        except REFUSALS:
                            claim.refused()
                            raise
                        is_placed = True
                        exists = partial(self._spaces.still_exists, space)
                        await claim.record(found.changes, exists)
                return found
            finally:
                if not is_placed:
                    with trio.move_on_after(CLEAN_UP_SECONDS, shield=True), suppress(GfsError):
                        await self._fs.delete(staged, recursive=True, now=True)

    @asynccontextmanager
    async def _version(
        self, space: Space, path: str, there: Entry | None
    ) -> AsyncIterator[VersionTurn | None]:
        """The right to make a version at the path, where ``there`` is; None: it has none, or the
        path is empty."""
        if not path or not applies(space, path):
            yield None
            return
        async with self._versions.turn(space, path) as turn:
            if turn.inode != (there.inode if there is not None else 0):
                raise Conflict(f"{path} was replaced or deleted meanwhile: try again")
            yield turn

    async def _place(self, staged: str, space: Space, full: str) -> None:
        directory = space.directory
        if full.startswith(f"{directory}/"):
            await place(self._fs, staged, directory, full.removeprefix(f"{directory}/"), "")
        else:
            await self._fs.rename(staged, full, parents=True)

    async def _adopt(self, staged: str, user_id: str, full: str, space: Space) -> Found:
        """Make the files of a copy the user's."""
        target = full.removeprefix(f"{space.directory}/")
        found, foreign = Found(staged, full, came=True), list[tuple[str, list[str]]]()
        async with aclosing(_files(self._fs, await self._fs.stat(staged))) as files:
            async for entry in files:
                if target != full:
                    _check_path(entry, staged, target)
                found.add(entry, user_id)
                others = sorted(entry.attributes.keys() - COPIED - {OWNER})
                if others or owner_of(entry) != user_id:
                    foreign.append((entry.path, others))
        left = iter(foreign)

        async def give() -> None:
            for path, others in left:
                await self._fs.set_attributes(path, {OWNER: user_id}, removed=others)

        async with trio.open_nursery() as nursery:
            for _ in range(min(GIVEN_AT_ONCE, len(foreign))):
                nursery.start_soon(give)
        return found

    # --- deleting and undeleting --------------------------------------------------

    async def delete_folder(self, call: Call, name: str, folder: str) -> tuple[Moved, Kept]:
        """Move a folder with its files to the trash, as far as the trash of each of their owners
        has room; else delete it for good."""
        check_own_path(folder)
        space = self._spaces.own(call, name)
        entry = await self._entry(space, folder)
        if entry.kind == "file":
            raise NoSuchThing(f"{folder} is no folder")
        _check_single(space, entry)
        async with self._turn(call, entry.kind):
            return await self._delete_folder(space, entry, folder)

    async def _delete_folder(self, space: Space, entry: Entry, folder: str) -> tuple[Moved, Kept]:
        found = Found(entry.path, came=False)
        async with aclosing(_files(self._fs, entry)) as files:
            async for each in files:
                found.add(each, owner_of(each))
        fs, ledger = self._fs, self._control.ledger
        async with ledger.claim("", space.id) as claim:
            await claim.publish_deletion("", 0, self._control.limits, 0.0)
            is_kept = await self._keep(found.owners)
            with as_answers(folder), trio.CancelScope(shield=True):
                try:
                    await fs.delete(entry.path, recursive=True, expect=entry.inode, now=not is_kept)
                except REFUSALS:
                    claim.refused()
                    raise
                with trio.move_on_after(PRUNE_SECONDS):
                    await prune(fs, space.directory, folder.rpartition("/")[0])
                await claim.record(found.changes, partial(self._spaces.still_exists, space))
                await self._recount(space)
        return _moved(folder, entry, found), Kept.in_trash(self._cluster, is_kept)

    async def _keep(self, by_owner: Mapping[str, tuple[int, int]]) -> bool:
        """Count the files as in the trash of their owners. Returns whether there is room in all."""
        ledger, seconds = self._control.ledger, self._cluster.trash_seconds
        now = ledger.now()
        going = [Trash.of(owner, *total, now, seconds) for owner, total in by_owner.items()]
        limits = {owner: self._control.limits_of(owner) for owner in by_owner}

        def decide(txn: Txn) -> bool:
            done: list[Trash] = []
            for each in going:
                owner = each.id.partition("/")[0]
                if not (seconds > 0 and usage.add_to_trash(txn, each, limits[owner], now)):
                    for other in done:
                        usage.remove_from_trash(txn, other)
                    return False
                done.append(each)
            return True

        return await ledger.records.write(decide)

    async def undelete(self, call: Call, name: str, path: str, inode: int, target: str) -> Moved:
        """Restore what was deleted at ``path``: with this inode, or, if that is 0, last.

        Raises NoSuchThing, Conflict, QuotaReached, TooLarge, Unavailable.
        """
        target = target or path
        check_own_path(path), check_own_path(target)
        space = self._spaces.own(call, name)
        if space.versioning:
            back = await self._undelete_version(space, path, inode, target)
            if back is not None:
                return back
        deleted = await self.deleted(space, path, inode)
        async with self._turn(call, deleted.kind):
            return await self._undelete(call, space, deleted, target)

    async def _undelete_version(
        self, space: Space, path: str, inode: int, target: str
    ) -> Moved | None:
        """Remove the delete marker. None: there is none, so it may be something in the trash, and
        the target has no versions, which that would be among by its old time."""
        key = key_of(path)
        if key is not None and not inode and target == path:
            back = await self._versions.undelete(space, key)
            if back is not None:
                return Moved(path, "file", 1, back.length)
        if await self._fs.exists(f"{space.directory}/{target}"):
            raise Conflict(f"{target} exists already: give another target")
        if await self._versions.has_any(space, target):
            raise Conflict(f"{target} has versions that this would hide: give another target")
        return None

    async def _undelete(self, call: Call, space: Space, deleted: TrashEntry, target: str) -> Moved:
        if deleted.length < 0 or deleted.files < 0:
            raise Unavailable(
                "the files of the folder are still being counted: try again", {"Retry-After": "2"}
            )
        files = deleted.files if deleted.kind == "directory" else 1
        if files > FILES_MAX:
            raise BadRequest(f"path: {TOO_MANY}")
        user_id, full = call.user.user_id, f"{space.directory}/{target}"
        limits = self._control.limits_of(user_id)
        async with self._control.ledger.claim(user_id, space.id) as claim:
            # It may count as more, by the folders in it, which are not known yet. Then the user can
            # add nothing, and has no more than before in files and trash together.
            least = files * _least(full, deleted.kind)
            await claim.publish(least, deleted.length, limits)
            with as_answers(target), trio.CancelScope(shield=True):
                try:
                    await _make_folders(self._fs, space, target)
                    entry = await self._fs.undelete(deleted.path, target=full, inode=deleted.inode)
                    found = Found(entry.path, came=True)
                    async with aclosing(_files(self._fs, entry)) as back:
                        async for each in back:
                            found.add(each, owner_of(each))
                except REFUSALS as refusal:
                    claim.refused()
                    await self._prune(space, target)
                    if isinstance(refusal, AlreadyExists):
                        raise Conflict(f"{target} exists already: give another target") from None
                    raise
                exists = partial(self._spaces.still_exists, space)
                await claim.record(found.changes, exists, moved=True)
                await take_from_trash(
                    self._control, self._cluster, deleted.deleted_ns, found.owners
                )
                if not self._spaces.still_exists(space):
                    with suppress(NotFound):
                        await self._fs.delete(space.directory, recursive=True)
                    raise NoSuchThing(f"there is no storage namespace {space.name}")
        return _moved(target, entry, found)

    async def deleted(self, space: Space, path: str, inode: int) -> TrashEntry:
        """The deletion of ``path`` with this inode; the last one if it is 0."""
        full = f"{space.directory}/{path}"
        last = None
        async with aclosing(self._fs.trash(full)) as entries:
            async for each in entries:
                if each.path != full:
                    break  # what was deleted below it follows
                if inode in (0, each.inode):
                    last = each
        if last is None:
            raise NoSuchThing(f"{path} is not in the trash")
        return last

    async def purge(self, call: Call, name: str, path: str, inode: int) -> None:
        """Delete for good what was deleted at ``path``."""
        check_own_path(path)
        space = self._spaces.own(call, name)
        deleted = await self.deleted(space, path, inode)
        async with self._turn(call, deleted.kind):
            try:
                staged = await stage_purge(self._cluster, deleted)
            except NotFound:
                raise NoSuchThing(f"{path} is not in the trash") from None
            with trio.move_on_after(PURGE_SECONDS, shield=True):
                try:
                    await finish_purge(self._control, self._cluster, staged)
                except GfsError as error:
                    log.warning("what was purged from the trash cannot be deleted yet: %s", error)

    # --- helpers ------------------------------------------------------------------

    async def _entry(self, space: Space, path: str) -> Entry:
        try:
            return await self._fs.stat(f"{space.directory}/{path}")
        except (NotFound, NotADirectory):
            raise NoSuchThing(f"{path} does not exist") from None

    async def _prune(self, space: Space, path: str) -> None:
        with trio.move_on_after(PRUNE_SECONDS):
            await prune(self._fs, space.directory, path.rpartition("/")[0])


async def _files(fs: Client, entry: Entry) -> AsyncGenerator[Entry, None]:
    """The files at and below a path. Raises BadRequest for too many."""
    if entry.kind == "file":
        yield entry
        return
    count = 0
    async with aclosing(fs.files(entry.path)) as found:
        async for each in found:
            yield each
            count += 1
            if count > FILES_MAX:
                raise BadRequest(TOO_MANY)


async def _make_folders(fs: Client, space: Space, path: str) -> None:
    """Make the folders of a path, but never the storage namespace's own: it may be gone."""
    made = space.directory
    for name in path.split("/")[:-1]:
        made += f"/{name}"
        await fs.mkdir(made, exist_ok=True)


async def _check_same(fs: Client, source: Entry, staged: str) -> None:
    """Raises Conflict if the copy is of another file, which came to the path of the source."""
    copy = await fs.stat(staged)
    if (copy.kind, copy.digest, copy.length) != (source.kind, source.digest, source.length):
        name = last_segment(source.path)
        raise Conflict(f"{name} was replaced or deleted meanwhile: try again")


async def _drop_kept(fs: Client, staged: str) -> None:
    """What belongs to uploads and versions over S3 is no part of a copy of all files."""
    for name in KEPT:
        with suppress(NotFound, NotADirectory):
            await fs.delete(f"{staged}/{name}", recursive=True, now=True)


def _least(path: str, kind: str) -> int:
    """As how many files each counts at the path, or below it if it is a folder, at least."""
    return weight_at(path if kind == "file" else f"{path}/-")


def _check_single(space: Space, entry: Entry) -> None:
    """Raises Conflict for a folder, if there are versions."""
    if space.versioning and entry.kind != "file":
        raise Conflict(
            f"storage namespace {space.name} keeps versions, each file its own: take the files of "
            "the folder one by one, or with a tool that speaks S3 (aws s3 mv --recursive)"
        )


def _check_path(entry: Entry, source: str, target: str) -> None:
    """Raises BadRequest if a file would get a path that no file may have."""
    path = f"{target}{entry.path.removeprefix(source)}"
    if len(path.encode()) > PATH_BYTES_MAX or path.count("/") >= SEGMENTS_MAX:
        raise BadRequest(f"target: the path of a file in it would be too long: {path[:100]}…")


def _moved(path: str, entry: Entry, found: Found) -> Moved:
    kind = "file" if entry.kind == "file" else "folder"
    return Moved(path, kind, len(found.changes), found.size)
