"""Deleting one file, or a whole folder, with its place in the quotas."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio

from control.api import Call, Conflict, Control, NoSuchThing
from control.storage.accounting import PRUNE_SECONDS, REFUSALS, change_of, prune
from control.storage.cluster import Cluster, as_answers
from control.storage.keys import key_of
from control.storage.permission import may_remove, owner_of
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.versions import Versions, is_marker, keeps
from gfs.client import Entry
from gfs.errors import NotADirectory, NotFound

#: So often a file that is replaced while it is deleted is looked at again.
REPLACED_MAX = 40


class Kept(NamedTuple):
    """Whether what was deleted is kept, and until when."""

    is_kept: bool
    #: In unix seconds; None: it is not kept, or as a version, which has no end.
    until: int | None = None

    @classmethod
    def in_trash(cls, cluster: Cluster, is_kept: bool) -> Kept:
        """What was deleted just now."""
        return cls(is_kept, int(time.time() + cluster.trash_seconds) if is_kept else None)


async def delete_file(
    call: Call,
    cluster: Cluster,
    spaces: Spaces,
    space: Space,
    path: str,
    check: Callable[[Entry], None] = lambda _: None,
) -> Kept:
    """Delete the file at ``path``, and the folders that are empty then.

    ``check`` refuses a file by raising. Raises NoSuchThing if there is none, Unauthorized or
    Forbidden, Conflict.
    """
    for left in reversed(range(REPLACED_MAX)):
        call.allow(space.target)
        try:
            entry = await cluster.fs.stat(f"{space.directory}/{path}")
        except (NotFound, NotADirectory):
            break
        if entry.kind != "file":
            break
        may_remove(call, space, entry)
        check(entry)
        try:
            return await delete_entry(call.control, cluster, spaces, space, path, entry)
        except Conflict:
            if not left:
                raise
    raise NoSuchThing(f"{path} does not exist")


async def delete_entry(
    control: Control, cluster: Cluster, spaces: Spaces, space: Space, path: str, entry: Entry
) -> Kept:
    """Delete exactly this file, for whatever reason. Raises NoSuchThing, Conflict.

    In a storage namespace with versions it is kept as one. Shielded: if the client leaves now, the
    outcome must still be recorded.
    """
    key = key_of(path)
    if space.versioning and key is not None:

        def check(current: Entry | None) -> None:
            if current is None or is_marker(current):
                raise NoSuchThing(f"{path} does not exist")
            if current.inode != entry.inode:
                raise Conflict(f"{path} was replaced or deleted meanwhile: try again")

        versions = Versions(control, cluster, spaces)
        gone = await versions.delete(space, key, owner_of(entry), check)
        if keeps(space, path, entry):
            return Kept(True)
        return Kept.in_trash(cluster, gone.is_in_trash)
    fs, owner = cluster.fs, owner_of(entry)
    async with control.ledger.claim("", space.id) as claim:
        is_kept = await claim.publish_deletion(
            owner, entry.length, control.limits_of(owner), cluster.trash_seconds
        )
        with as_answers(path), trio.CancelScope(shield=True):
            try:
                await fs.delete(entry.path, expect=entry.inode, now=not is_kept)
            except REFUSALS:
                claim.refused()
                raise
            # This comes before the change is recorded: if this process is killed here, a
            # recount follows, which removes empty folders.
            with trio.move_on_after(PRUNE_SECONDS):
                await prune(fs, space.directory, path.rpartition("/")[0])
            exists = partial(spaces.still_exists, space)
            await claim.record([change_of(entry, came=False)], exists)
    return Kept.in_trash(cluster, is_kept)


async def remove_folder(
    control: Control, cluster: Cluster, spaces: Spaces, space: Space, folder: str, aside: str
) -> bool:
    """Delete ``folder`` with its files, which nobody will undelete; returns whether it was there.

    First it is moved to ``aside``, in one step. So of several that delete it one does, and
    from then on nothing can be added to it that would not be counted. A process that is killed
    here may leave ``aside``, to be deleted later (as ``folder`` and ``aside``). ``aside`` must
    sort before ``folder``: a recount that is under way then counts no file twice.
    """
    fs, there = cluster.fs, f"{space.directory}/{aside}"
    async with control.ledger.claim("", space.id) as claim:
        await claim.publish_deletion("", 0, control.limits, 0.0)
        with trio.CancelScope(shield=True):
            try:
                if folder != aside:
                    await fs.rename(f"{space.directory}/{folder}", there)
                found = [entry async for entry in fs.files(there)]
                await fs.delete(there, recursive=True, now=True)
            except (NotFound, NotADirectory):
                claim.refused()
                return False
            exists = partial(spaces.still_exists, space)
            await claim.record([change_of(entry, came=False) for entry in found], exists)
    with trio.move_on_after(PRUNE_SECONDS):
        await prune(fs, space.directory, folder.rpartition("/")[0])
    return True
