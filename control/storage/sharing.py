"""Copies of files that share the chunks of their source: no byte moves.

The file system makes the copy (a snapshot, the paper, section 3.4) under a name of its own in
``STAGING``, outside all storage namespaces: no recount finds it there. It gets its attributes,
and then, in one step, its path, which must be free: a file that is replaced would have to be
counted, and a rename does not report which one that was. What a process that is killed leaves in
``STAGING`` is deleted by the sweep (:mod:`.unfinished`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from control.api import ApiError, Call, Control, NoSuchThing, Unavailable
from control.storage.accounting import REFUSALS, change_of, weight_at
from control.storage.cluster import Cluster
from control.storage.permission import OWNER
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.staging import STAGING, place
from control.storage.versions import Versions, applies
from gfs.blocks import MIB
from gfs.client import Client, Entry
from gfs.errors import GfsError, NotADirectory, NotFound

#: Shorter files are copied sooner than the master has made its five changes.
SHARED_BYTES_MIN = 1 * MIB
CLEAN_UP_SECONDS = 10.0


@dataclass(frozen=True)
class Copy:
    """A copy to be made, for one call."""

    call: Call
    control: Control
    cluster: Cluster
    spaces: Spaces
    space: Space
    path: str
    source: Entry
    attributes: Mapping[str, str]
    #: A folder above the path that must be there.
    within: str = ""
    #: Its time of change; 0: the present time.
    modified_ns: int = 0


async def share(copy: Copy) -> Entry | None:
    """Make the path, where nothing is, a copy of the source with these attributes.

    Returns None if its bytes must be copied instead: something is at the path, the source is
    small or written in place, or was replaced meanwhile.

    Raises Unauthorized or Forbidden, NoSuchThing, TooLarge, QuotaReached, Unavailable.
    """
    space, path, source, fs = copy.space, copy.path, copy.source, copy.cluster.fs
    copy.call.allow(space.target)
    if source.length < SHARED_BYTES_MIN or not source.digest:
        return None
    if await _is_there(fs, f"{space.directory}/{path}"):
        return None
    attributes = {OWNER: copy.call.user.user_id, **copy.attributes}
    if not applies(space, path):
        return await _share(replace(copy, attributes=attributes))
    async with Versions(copy.control, copy.cluster, copy.spaces).turn(space, path) as turn:
        if turn.current is not None:
            return None
        attributes |= turn.attributes
        return await _share(replace(copy, attributes=attributes, modified_ns=turn.modified_ns))


async def _share(copy: Copy) -> Entry | None:
    fs, spaces, space, user_id = copy.cluster.fs, copy.spaces, copy.space, copy.call.user.user_id
    limits = copy.control.limits_of(user_id)
    staged = f"{STAGING}/{secrets.token_hex(16)}"
    full = f"{space.directory}/{copy.path}"
    async with copy.control.ledger.claim(user_id, space.id) as claim:
        await claim.reserve(weight_at(full), copy.source.length, limits)
        is_placed = False
        try:
            entry = await _stage(copy, staged)
            if entry is None:
                return None
            await claim.publish(weight_at(full), entry.length, limits)
            with trio.CancelScope(shield=True):
                try:
                    await place(fs, staged, space.directory, copy.path, copy.within)
                except REFUSALS as refusal:
                    claim.refused()
                    if isinstance(refusal, NotFound):
                        raise _gone(spaces, space) from None
                    return None
                is_placed = True
                exists = partial(spaces.still_exists, space)
                await claim.record([change_of(entry, came=True, path=full)], exists)
            return entry
        finally:
            if not is_placed:
                with trio.move_on_after(CLEAN_UP_SECONDS, shield=True), suppress(GfsError):
                    await fs.delete(staged, now=True)


def _gone(spaces: Spaces, space: Space) -> ApiError:
    if spaces.still_exists(space):
        return Unavailable("the folders of the copy are being deleted: try again")
    return NoSuchThing(f"there is no storage namespace {space.name}")


async def _is_there(fs: Client, full: str) -> bool:
    try:
        await fs.stat(full)
    except NotFound:
        return False
    except NotADirectory:
        pass
    return True


async def _stage(copy: Copy, staged: str) -> Entry | None:
    """Make the copy under its first name. None if the source is another file by now."""
    fs, source = copy.cluster.fs, copy.source
    try:
        await fs.snapshot(source.path, staged, parents=True)
    except (NotFound, NotADirectory):
        return None
    others = source.attributes.keys() - copy.attributes.keys()
    entry = await fs.set_attributes(
        staged,
        copy.attributes,
        removed=sorted(others),
        modified_ns=copy.modified_ns or time.time_ns(),
    )
    is_same = (entry.kind, entry.digest, entry.length) == ("file", source.digest, source.length)
    return entry if is_same else None
