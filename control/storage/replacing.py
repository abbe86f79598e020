"""Replacing a file by one that is moved to its path.

A rename that replaces does not say which file it replaced, and that one would not be counted. So
the old file is deleted, and then the new one gets its path, which is two steps. In between a copy
of the old one, which shares its chunks, is in ``STAGING``, with a note of what was to become of it.
If nothing is at the path afterwards, the old one gets it again: at once, or by the sweep
(:mod:`.unfinished`) if the process was killed or the master was away. So it also comes back if
somebody has deleted the new one before that sweep: a file too many, and never one too few.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import msgspec
import trio

from control.api import ApiError, Control, NoSuchThing, RecordsFailed
from control.storage.accounting import REFUSALS, change_of
from control.storage.cluster import Cluster, as_answers
from control.storage.deletion import delete_entry
from control.storage.permission import owner_of
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.staging import STAGING, place
from gfs.client import Client, Entry
from gfs.errors import AlreadyExists, GfsError, IsADirectory, NotADirectory, NotFound

log = logging.getLogger(__name__)

CLEAN_UP_SECONDS = 10.0
#: After so long the process that replaces was killed: it needs a few changes of names.
LEFT_SECONDS = 600.0
_NAME = re.compile(r"replaced-[0-9a-f]{16}")
#: The files of the folder.
_NOTE, _OLD = "note", "old"


class _Note(msgspec.Struct):
    """Which file was to be replaced."""

    space: str
    space_id: str
    path: str


@asynccontextmanager
async def replacing(
    control: Control, cluster: Cluster, spaces: Spaces, space: Space, path: str, old: Entry
) -> AsyncIterator[None]:
    """Delete ``old``, which is at the path. The block moves the new file there; if it is left by an
    exception and nothing is at the path, the old file comes back. Raises NoSuchThing, Conflict."""
    fs, parts = cluster.fs, (control, cluster, spaces)
    folder = f"{STAGING}/replaced-{secrets.token_hex(8)}"
    is_refused = False
    try:
        with as_answers(path):
            note = _Note(space.name, space.id, path)
            await fs.put(msgspec.json.encode(note), f"{folder}/{_NOTE}", parents=True)
            await fs.snapshot(old.path, f"{folder}/{_OLD}")
            await fs.set_attributes(f"{folder}/{_OLD}", {}, modified_ns=old.modified_ns)
        try:
            await delete_entry(*parts, space, path, old)
        except ApiError:
            is_refused = True  # another has moved it, deleted it or replaced it
            raise
        yield
    except BaseException:
        with _cleaning():
            await (_drop(fs, folder) if is_refused else put_back(*parts, folder))
        raise
    with _cleaning():
        await _drop(fs, folder)


def is_replacing(path: str) -> bool:
    return _NAME.fullmatch(path.rpartition("/")[2]) is not None


async def put_back(control: Control, cluster: Cluster, spaces: Spaces, folder: str) -> None:
    """Give the old file of this folder its path again, if nothing is there, and delete the
    folder."""
    fs = cluster.fs
    try:
        note = msgspec.json.decode(await fs.get(f"{folder}/{_NOTE}"), type=_Note)
        space = spaces.get(note.space)
        if space.id == note.space_id:
            old = await fs.stat(f"{folder}/{_OLD}")
            await _place_back(control, cluster, spaces, space, note.path, old)
    except (AlreadyExists, IsADirectory, NotADirectory, NotFound, NoSuchThing, msgspec.DecodeError):
        pass  # the new one was placed, or another is there, or the old one was not deleted yet
    await _drop(fs, folder)


async def _drop(fs: Client, folder: str) -> None:
    with suppress(NotFound):
        await fs.delete(folder, recursive=True, now=True)


async def _place_back(
    control: Control, cluster: Cluster, spaces: Spaces, space: Space, path: str, old: Entry
) -> None:
    """It takes no room that its owner did not have. Raises AlreadyExists and others."""
    async with control.ledger.claim(owner_of(old), space.id) as claim:
        await claim.publish_deletion("", 0, control.limits, 0.0)
        with trio.CancelScope(shield=True):
            try:
                await place(cluster.fs, old.path, space.directory, path, "")
            except REFUSALS:
                claim.refused()
                raise
            log.warning("a file of %s that could not be replaced is back", space.name)
            back = change_of(old, came=True, path=f"{space.directory}/{path}")
            await claim.record([back], partial(spaces.still_exists, space))


@contextmanager
def _cleaning() -> Iterator[None]:
    """What cannot be done now the sweep does."""
    with trio.move_on_after(CLEAN_UP_SECONDS, shield=True):
        try:
            yield
        except RecordsFailed:
            raise
        except GfsError as error:
            log.warning("what was to be replaced cannot be put in order yet: %s", error)
