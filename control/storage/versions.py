"""Versions of files: what a storage namespace with versions keeps of each key.

The current version of a key is the file at its path: so REST and lists need know nothing of
versions. The older ones are files of the folder ``.s3-versions``, named by the key and their
place, which sorts the newest first; so is a *delete marker*, an empty file. One rule makes each
change a single step: **of the versions in the folder those count that are older than the file at
the path, or all if there is none.**

===================  ==============================================================================
change               steps, in this order; the one that counts is printed bold
===================  ==============================================================================
replacing            copy the current version to the folder (the copy shares its chunks);
                     **publish the new one, if the same is still there**
deleting             copy the current version; make the marker; **delete the file at the path**
deleting a version   **delete its file**; if it was the current one, move the next to the path
===================  ==============================================================================

A process that is killed before the step that counts leaves a copy or a marker in the folder that is
not older than the current version: it does not count, and the next change removes it. One that is
killed before the move leaves a key whose newest version is in the folder and is no marker: the next
who asks for the key moves it, and so does the task that sweeps (:mod:`.unfinished`). So at every
instant each acknowledged version is at the path or in the folder, and counts.

Clients of the file system itself may put a file at the path that says it is older than versions in
the folder. These are found by their ids all the same, and none is removed but markers and the copy
of the current version: the next change of the key, or the sweep, makes that file the newest, and
the version ``null``.

Those who change a key take turns (:mod:`.turns`); and no file is replaced or deleted at its path
but the one that was copied.

A version's id is its place: 16 hexadecimal digits, which count down from the time. What was stored
when the namespace had no versions, or had them suspended, is the version ``null`` of its key, of
which there is one at most; its place is its time of change, which is made later than all before it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

import trio

from control.api import Conflict, Control
from control.api.internals import Change
from control.storage import listing
from control.storage.accounting import PRUNE_SECONDS, REFUSALS, change_of, prune, weight_at
from control.storage.cluster import Cluster
from control.storage.keys import PLACE, VERSIONS, all_keys, key_of, path_for, spelled, version_of
from control.storage.permission import OWNER, owner_of
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.staging import STAGING, place
from control.storage.turns import Turns
from gfs.client import Entry
from gfs.errors import AlreadyExists, FileChanged, GfsError, NotADirectory, NotFound

#: The file's attribute with the id of its version; without it, it is ``null``.
ID = "version"
#: The attribute of a delete marker.
MARKER = "marker"
NULL = "null"
ON, SUSPENDED = "on", "suspended"
_END = 1 << 64
#: The places of null versions end so.
_NULL = "~"
#: Files of the folder that are removed in one step.
REMOVED_AT_ONCE = 256
LOCK_SECONDS = 30.0
CLEAN_UP_SECONDS = 10.0


class Version(NamedTuple):
    """A version that counts."""

    key: str
    entry: Entry
    is_latest: bool
    #: Since when there is a newer one, in ns; 0: it is the latest.
    until_ns: int = 0


def id_of(entry: Entry) -> str:
    return entry.attributes.get(ID, NULL)


def is_marker(entry: Entry) -> bool:
    return MARKER in entry.attributes


def position(entry: Entry) -> str:
    """The place of the version that is at its path."""
    return entry.attributes.get(ID) or f"{_END - 1 - entry.modified_ns:016x}{_NULL}"


def time_of(found: str) -> int:
    """The time of a place, in ns."""
    return _END - 1 - int(found[:16], 16)


def applies(space: Space, path: str) -> bool:
    """Whether the file at the path has versions."""
    return bool(space.versioning) and key_of(path) is not None


def keeps(space: Space, path: str, entry: Entry) -> bool:
    """Whether this file at the path is kept when it is replaced or deleted."""
    return applies(space, path) and not (space.versioning == SUSPENDED and id_of(entry) == NULL)


def version_weight(space: Space, key: str) -> int:
    """As how many files each older version of the key counts, and each delete marker."""
    return weight_at(f"{space.directory}/{spelled(VERSIONS, key)}")


class Turn(NamedTuple):
    """The right to change a key."""

    versions: Versions
    space: Space
    key: str
    #: The file at the path.
    current: Entry | None
    #: The attributes of a new version.
    attributes: Mapping[str, str]
    #: The newest place that is taken; empty: none is.
    newest: str

    @property
    def modified_ns(self) -> int:
        """The time of change of a new version: later than all others are, even if the clock is
        not, since it is the place of what has no id."""
        return max(time.time_ns(), time_of(self.newest) + 1 if self.newest else 0)

    @property
    def is_kept(self) -> bool:
        """Whether the file at the path is to stay as a version."""
        return self.current is not None and keeps(self.space, path_for(self.key), self.current)

    @property
    def more(self) -> int:
        """As how many files more the file at the path will count as a version, if it stays."""
        if not self.is_kept:
            return 0
        directory, path = self.space.directory, path_for(self.key)
        return max(0, version_weight(self.space, self.key) - weight_at(f"{directory}/{path}"))

    @property
    def inode(self) -> int:
        """Of the file at the path; 0: there is none."""
        return self.current.inode if self.current is not None else 0

    async def keep(self) -> None:
        """Copy the current version to the folder, if it is to stay. Raises FileChanged."""
        if self.current is not None and self.is_kept:
            await self.versions.keep(self.space, self.key, self.current)

    async def make_way(self) -> None:
        """Take the current version from the path, to which the new one is about to be moved; it
        stays as a version, or until the new one is there. For that instant nobody finds the object
        over REST; if the turn then fails, it is moved back. Raises FileChanged."""
        if self.current is not None:
            await self.versions.keep(self.space, self.key, self.current)
            await self.versions.drop(self.space, self.current, forever=self.is_kept)


class Deleted(NamedTuple):
    marker: Entry
    #: Whether the file that was at the path went to the trash: it is no version that stays.
    is_in_trash: bool


class Versions:
    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        busy = "others are changing this: try again"
        self._turns = Turns(control, "versions", LOCK_SECONDS, busy)

    # --- reading ------------------------------------------------------------------

    async def current(self, space: Space, key: str) -> Entry | None:
        """The file at the path."""
        try:
            found = await self._cluster.fs.stat(f"{space.directory}/{path_for(key)}")
        except (NotFound, NotADirectory):
            return None
        return found if found.kind == "file" else None

    async def latest(self, space: Space, key: str) -> Entry | None:
        """The latest version, perhaps a marker, of a key that has no file at its path."""
        async with aclosing(self._folder(space, key)) as found:
            async for _, entry in found:
                if is_marker(entry):
                    return entry
                async with self.locked(space, key):
                    if await self.current(space, key) is None:
                        await self._promote(space, key, entry)
                return await self.current(space, key)
        return await self.current(space, key)

    async def find(self, space: Space, key: str, version_id: str) -> Entry | None:
        """A version that counts, perhaps a marker."""
        current = await self.current(space, key)
        if current is not None and id_of(current) == version_id:
            return current
        found = await self._older(space, key, version_id)
        if found is None:
            return None
        name, entry = found
        is_older = current is None or name > position(current)
        return entry if is_older or not is_marker(entry) else None

    async def place_of(self, space: Space, key: str, version_id: str) -> str:
        """The place of a version; the last one if it is not there."""
        if version_id != NULL:
            return version_id
        current = await self.current(space, key)
        if current is not None and id_of(current) == NULL:
            return position(current)
        found = await self._older(space, key, NULL)
        return found[0] if found is not None else _NULL

    async def _older(self, space: Space, key: str, version_id: str) -> tuple[str, Entry] | None:
        after = ""
        if version_id != NULL:  # the place right before it
            after = f"{max(0, int(version_id, 16) - 1):016x}{_NULL}"
        async with aclosing(self._folder(space, key, after)) as found:
            async for name, entry in found:
                if version_id in (name, id_of(entry)):
                    return name, entry
                if version_id != NULL:
                    break
        return None

    async def _folder(
        self, space: Space, key: str, after: str = ""
    ) -> AsyncGenerator[tuple[str, Entry], None]:
        """(place, file) of what is in the folder of a key, the newest first."""
        folder, _, name = spelled(VERSIONS, key).rpartition("/")
        start = f"{name}!"
        path = f"{space.directory}/{folder}"
        try:
            async with aclosing(self._cluster.fs.scan(path, f"{start}{after}")) as found:
                async for entry in found:
                    name = entry.path.rpartition("/")[2]
                    if not name.startswith(start):
                        return
                    if entry.kind == "file" and PLACE.fullmatch(name.removeprefix(start)):
                        yield name.removeprefix(start), entry
        except (NotFound, NotADirectory):
            return

    # --- changing -----------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, space: Space, path: str) -> AsyncIterator[Turn]:
        """The right to replace the file at the path, as long as the block lasts."""
        key = key_of(path)
        assert key is not None
        async with self.locked(space, key):
            current, newest = await self._clean(space, key, await self.current(space, key))
            made = {} if space.versioning == SUSPENDED else {ID: _new_place(newest)}
            turn = Turn(self, space, key, current, made, newest)
            try:
                yield turn
            except BaseException:
                if current is not None:  # it may have made way
                    with trio.move_on_after(CLEAN_UP_SECONDS, shield=True), suppress(GfsError):
                        await self._promote_next(space, key, "")
                raise
            if space.versioning == SUSPENDED:
                await self._drop_null(space, key, "", current)

    async def keep(self, space: Space, key: str, current: Entry) -> None:
        """Copy a version to the folder. It takes no room of the quota: its owner has had it for
        the file, which is about to go."""
        fs, owner = self._cluster.fs, owner_of(current)
        staged = f"{STAGING}/{secrets.token_hex(16)}"
        target = f"{spelled(VERSIONS, key)}!{position(current)}"
        async with self._control.ledger.claim(owner, space.id) as claim:
            is_placed = False
            try:
                await fs.snapshot(current.path, staged, parents=True)
                copy = await fs.set_attributes(staged, {}, modified_ns=current.modified_ns)
                if (copy.digest, copy.length, copy.attributes) != (
                    current.digest, current.length, current.attributes,
                ):  # fmt: skip
                    raise FileChanged(current.path)
                await claim.publish_deletion("", 0, self._control.limits, 0.0)
                with trio.CancelScope(shield=True):
                    try:
                        await place(fs, staged, space.directory, target, "")
                    except AlreadyExists:
                        claim.refused()  # one who was killed has kept it
                        return
                    except REFUSALS:
                        claim.refused()
                        raise
                    is_placed = True
                    kept = change_of(copy, came=True, path=f"{space.directory}/{target}")
                    await claim.record([kept], partial(self._spaces.still_exists, space))
            finally:
                if not is_placed:
                    with trio.move_on_after(CLEAN_UP_SECONDS, shield=True), suppress(GfsError):
                        await fs.delete(staged, now=True)

    async def delete(
        self, space: Space, key: str, user_id: str, check: Callable[[Entry | None], None]
    ) -> Deleted:
        """Delete the current version: make a marker. ``check`` refuses by raising; it gets the
        latest version so far, perhaps a marker. Raises Conflict if the file was replaced
        meanwhile by other means."""
        async with self.locked(space, key):
            current, newest = await self._clean(space, key, await self.current(space, key))
            check(current if current is not None else await self._first(space, key))
            is_suspended = space.versioning == SUSPENDED
            made = {} if is_suspended else {ID: _new_place(newest)}
            turn = Turn(self, space, key, current, made, newest)
            await turn.keep()
            marker = await self._mark(space, key, user_id, made, newest)
            is_in_trash = False
            if current is not None:
                try:
                    is_in_trash = await self.drop(space, current, forever=turn.is_kept)
                except FileChanged:
                    raise Conflict("the file was replaced meanwhile: try again") from None
            if is_suspended:
                await self._drop_null(space, key, marker.path)
            return Deleted(marker, is_in_trash)

    async def _mark(
        self, space: Space, key: str, user_id: str, made: Mapping[str, str], newest: str
    ) -> Entry:
        limits = self._control.limits_of(user_id)
        name = made.get(ID) or _new_place(newest) + _NULL
        path = f"{space.directory}/{spelled(VERSIONS, key)}!{name}"
        attributes = {OWNER: user_id, MARKER: "1", **made}
        async with self._control.ledger.claim(user_id, space.id) as claim:
            await claim.publish(weight_at(path), 0, limits)
            with trio.CancelScope(shield=True):
                try:
                    entry = await self._cluster.fs.put(
                        b"", path, parents=space.directory, attributes=attributes, expect=0
                    )
                except REFUSALS:
                    claim.refused()
                    raise
                exists = partial(self._spaces.still_exists, space)
                await claim.record([change_of(entry, came=True)], exists)
        return entry

    async def delete_version(
        self, space: Space, key: str, version_id: str, check: Callable[[Entry], None]
    ) -> Entry | None:
        """Delete a version for good; returns what it was, None if there is none."""
        async with self.locked(space, key):
            current = await self.current(space, key)
            # It may become the version null.
            is_current = current is not None and id_of(current) == version_id
            current, _ = await self._clean(space, key, current)
            if current is not None and is_current:
                check(current)
                await self.drop(space, current)
                await self._promote_next(space, key, "")
                return current
            found = await self._older(space, key, version_id)
            if found is None:
                return None
            name, entry = found
            check(entry)
            first = await self._first(space, key)
            is_first = first is not None and first.inode == entry.inode
            if current is None and is_marker(entry) and is_first:
                # If it is killed in between, the marker does not count any more.
                await self._promote_next(space, key, name)
            await self.drop(space, entry)
            if current is None:
                await self._promote_next(space, key, "")
            return entry

    async def undelete(self, space: Space, key: str) -> Entry | None:
        """Move the version before the delete markers to the path, and remove these: they are newer
        than what is there, and do not count any more. Without markers it made way for one that did
        not come, since the process was killed. Returns None, and does nothing, if a file is at the
        path, or if there are only markers.

        Raises Conflict if a folder is at the path.
        """
        async with self.locked(space, key):
            if await self.current(space, key) is not None:
                return None
            before = None
            async with aclosing(self._folder(space, key)) as found:
                async for _, entry in found:
                    if not is_marker(entry):
                        before = entry
                        break
            if before is None:
                return None
            await self._promote(space, key, before)
            current = await self.current(space, key)
            if current is None:
                raise Conflict("a folder is in its place: move that first")
            await self._clean(space, key, current)
            return current

    async def has_any(self, space: Space, path: str) -> bool:
        """Whether the file at a path, or one below it, has older versions."""
        fs, directory = self._cluster.fs, space.directory
        for start in (f"{spelled(VERSIONS, path)}!", spelled(VERSIONS, f"{path}/")):
            async with aclosing(listing.files(fs, directory, prefix=start)) as found:
                async for _, entry in found:
                    if not is_marker(entry):
                        return True
        return False

    async def _first(self, space: Space, key: str) -> Entry | None:
        """The newest in the folder."""
        async with aclosing(self._folder(space, key)) as found:
            async for _, entry in found:
                return entry
        return None

    async def _promote_next(self, space: Space, key: str, after: str) -> None:
        """Move the newest version after a place to the path, if it is no marker, and nothing is
        there."""
        if await self.current(space, key) is not None:
            return
        async with aclosing(self._folder(space, key, after)) as found:
            async for _, entry in found:
                if not is_marker(entry):
                    await self._promote(space, key, entry)
                return

    async def _promote(self, space: Space, key: str, entry: Entry) -> None:
        """Move a version to the path. A recount that is under way may have seen it at neither."""
        fs, target = self._cluster.fs, path_for(key)
        more = weight_at(f"{space.directory}/{target}") - weight_at(entry.path)
        changes = [Change.moved(entry.inode, owner_of(entry), more)] if more else []
        async with self._control.ledger.claim("", space.id) as claim:
            await claim.publish_deletion("", 0, self._control.limits, 0.0)
            with trio.CancelScope(shield=True):
                try:
                    await place(fs, entry.path, space.directory, target, "")
                except REFUSALS:
                    claim.refused()  # a folder may be there: it stays where it is
                    return
                await self._prune(space, entry)
                exists = partial(self._spaces.still_exists, space)
                await claim.record(changes, exists, moved=True)

    async def _prune(self, space: Space, entry: Entry) -> None:
        folder = entry.path.removeprefix(f"{space.directory}/").rpartition("/")[0]
        with trio.move_on_after(PRUNE_SECONDS):
            await prune(self._cluster.fs, space.directory, folder)

    async def drop(self, space: Space, entry: Entry, *, forever: bool = False) -> bool:
        """Delete exactly this file, of the path or of the folder, with its place in the quota.
        ``forever``: its bytes are kept elsewhere, so it needs no trash. Returns whether it went
        there. Raises FileChanged."""
        fs, owner = self._cluster.fs, owner_of(entry)
        seconds = 0.0 if forever else self._cluster.trash_seconds
        limits = self._control.limits_of(owner)
        async with self._control.ledger.claim("", space.id) as claim:
            is_kept = await claim.publish_deletion(owner, entry.length, limits, seconds)
            with trio.CancelScope(shield=True):
                try:
                    await fs.delete(entry.path, expect=entry.inode, now=not is_kept)
                except NotFound:
                    claim.refused()
                    return False
                except REFUSALS:
                    claim.refused()
                    raise
                await self._prune(space, entry)
                exists = partial(self._spaces.still_exists, space)
                await claim.record([change_of(entry, came=False)], exists)
        return is_kept

    async def _drop_forever(self, space: Space, entries: list[Entry]) -> None:
        """Delete these files of a key's folder in one round trip."""
        paths, inodes = [each.path for each in entries], [each.inode for each in entries]
        async with self._control.ledger.claim("", space.id) as claim:
            await claim.publish_deletion("", 0, self._control.limits, 0.0)
            with trio.CancelScope(shield=True):
                errors = await self._cluster.fs.delete_many(paths, expect=inodes, now=True)
                for error in errors:
                    if error is not None and not isinstance(error, NotFound):
                        raise error  # a recount follows
                await self._prune(space, entries[0])
                exists = partial(self._spaces.still_exists, space)
                gone = [each for each, error in zip(entries, errors, strict=True) if error is None]
                await claim.record([change_of(each, came=False) for each in gone], exists)

    async def _clean(
        self, space: Space, key: str, current: Entry | None
    ) -> tuple[Entry | None, str]:
        """Remove what does not count, and make the file at the path the newest. Returns that, and
        the newest place that is taken. Raises Conflict if it was replaced by other means."""
        newest = position(current) if current is not None else ""
        worthless: list[Entry] = []
        is_behind = False
        async with aclosing(self._folder(space, key)) as found:
            async for name, entry in found:
                newest = min(newest or name, name)
                if current is None or name > position(current):
                    break
                # A marker has no bytes, and a copy of the current version none of its own.
                if is_marker(entry) or name == position(current):
                    worthless.append(entry)
                else:
                    is_behind = True
                if len(worthless) >= REMOVED_AT_ONCE:
                    await self._drop_forever(space, worthless)
                    worthless.clear()
        if worthless:
            await self._drop_forever(space, worthless)
        if current is not None and is_behind:
            current = await self._renew(current, newest)
            newest = position(current)
        if current is not None and id_of(current) == NULL:
            await self._drop_null(space, key, "")
        return current, newest

    async def _renew(self, current: Entry, newest: str) -> Entry:
        """Make the file at the path, which another client has put there, newer than this place. (A
        rename keeps the file's time and its id, a mount stores the time that it was given.)"""
        try:
            return await self._cluster.fs.set_attributes(
                current.path,
                removed=[ID],
                modified_ns=time_of(newest) + 1,
                expect=current.inode,
            )
        except (FileChanged, NotFound):
            raise Conflict("the file was replaced meanwhile: try again") from None

    async def _drop_null(self, space: Space, key: str, but: str, gone: Entry | None = None) -> None:
        """Remove the null version of the folder: there is a newer one. A copy of what was dropped
        already needs no trash."""
        async with aclosing(self._folder(space, key)) as found:
            async for name, entry in found:
                if name.endswith(_NULL) and entry.path != but:
                    is_copy = gone is not None and name == position(gone)
                    await self.drop(space, entry, forever=is_copy)

    def locked(self, space: Space, key: str) -> AbstractAsyncContextManager[None]:
        """Raises Unavailable if others change the key for too long."""
        return self._turns.turn(f"{space.id}/{key}")

    # --- all ----------------------------------------------------------------------

    def every(
        self, space: Space, prefix: str = "", hidden: set[str] | None = None
    ) -> AsyncGenerator[Version, None]:
        """All versions of keys with a prefix, by key, the newest first."""
        fs, directory = self._cluster.fs, space.directory
        older = listing.files(fs, directory, prefix=spelled(VERSIONS, prefix))
        return self.all(all_keys(fs, directory, prefix), older, hidden=hidden)

    async def repair(self, space: Space) -> None:
        """Move versions to their paths that killed processes should have moved there, and put those
        in order that other clients have hidden."""
        folder = f"{space.directory}/{VERSIONS}/"
        hidden: set[str] = set()
        async with aclosing(self.every(space, hidden=hidden)) as found:
            async for each in found:
                is_old = each.entry.path.startswith(folder)
                if each.is_latest and is_old and not is_marker(each.entry):
                    await self.latest(space, each.key)
                await self._reveal(space, hidden)
        await self._reveal(space, hidden)

    async def _reveal(self, space: Space, hidden: set[str]) -> None:
        while hidden:
            key = hidden.pop()
            async with self.locked(space, key):
                await self._clean(space, key, await self.current(space, key))

    async def all(
        self,
        currents: AsyncGenerator[tuple[str, Entry], None],
        older: AsyncGenerator[tuple[str, Entry], None],
        before: str = "",
        hidden: set[str] | None = None,
    ) -> AsyncGenerator[Version, None]:
        """All versions that count, by key, the newest first: those at their paths, as (key, file),
        merged with those in the folder, as (path, file). ``before``: the key whose newer versions
        were listed already. ``hidden`` gets the keys with versions that another client has hidden,
        see :meth:`_clean`."""
        async with aclosing(currents), aclosing(older):
            last, newer_ns, has_null = before, 0, False
            current = await anext(currents, None)
            old = await _next_old(older)
            while current is not None or old is not None:
                if old is None or (current is not None and current[0] <= old[0]):
                    assert current is not None
                    last, entry = current
                    newer, has_null = position(entry), id_of(entry) == NULL
                    newer_ns = time_of(newer)
                    yield Version(last, entry, True)
                    current = await anext(currents, None)
                    while old is not None and old[0] == last and old[1] <= newer:
                        if hidden is not None and old[1] < newer and not is_marker(old[2]):
                            hidden.add(last)
                        old = await _next_old(older)
                    continue
                key, name, entry = old
                if key != last:
                    has_null = False
                if not (has_null and name.endswith(_NULL)):
                    is_latest = key != last
                    yield Version(key, entry, is_latest, 0 if is_latest else newer_ns)
                    newer_ns = time_of(name)
                last = key
                old = await _next_old(older)


async def _next_old(
    older: AsyncGenerator[tuple[str, Entry], None],
) -> tuple[str, str, Entry] | None:
    async for path, entry in older:
        found = version_of(path)
        if found is not None:
            return (*found, entry)
    return None


def _new_place(newest: str) -> str:
    """A place before all others of its key."""
    now = _END - 1 - time.time_ns()
    return f"{min(now, int(newest[:16], 16) - 1) if newest else now:016x}"
