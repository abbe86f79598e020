"""Purging what is in the trash, with the room that it takes in the trash of its owners.

The trash does not say whose the files are: in ``default``, and in a storage namespace that others
have written to, they are several users'. So what is purged first gets a name of its own in
``STAGING``, in one step, and with its attributes; then its files are read, deleted for good, and
counted as gone. If a process is killed in between, the sweep (:mod:`.unfinished`) goes on from
there, as often as necessary. Of several that do, the one counts that deletes.

If it is killed after the deletion and before the count, which are milliseconds, or the count fails,
the files count as in the trash until their time there is over.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import trio

from control.api import Control, RecordsFailed, Txn
from control.api.internals import Trash, usage
from control.storage.accounting import weight_in_trash
from control.storage.cluster import Cluster
from control.storage.permission import owner_of
from control.storage.staging import STAGING
from gfs.client import Client, Entry, TrashEntry
from gfs.errors import GfsError, NotADirectory, NotFound

#: The time of the deletion, in ns.
_NAME = re.compile(r"purge-([0-9]{1,19})-[0-9a-f]{16}")


async def stage_purge(cluster: Cluster, deleted: TrashEntry) -> str:
    """Take it from the trash, for :func:`finish_purge`; returns its path. Raises NotFound."""
    name = f"purge-{deleted.deleted_ns}-{secrets.token_hex(8)}"
    path = f"{STAGING}/{name}"
    await cluster.fs.undelete(deleted.path, target=path, inode=deleted.inode)
    return path


def is_purge(path: str) -> bool:
    return _NAME.fullmatch(path.rpartition("/")[2]) is not None


async def finish_purge(control: Control, cluster: Cluster, path: str) -> None:
    """Delete it for good."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    assert found is not None
    fs = cluster.fs
    owners: dict[str, tuple[int, int]] = {}
    try:
        there = await fs.stat(path)
        async with aclosing(_files(fs, there)) as files:
            async for each in files:
                count, length = owners.get(owner_of(each), (0, 0))
                count += weight_in_trash(each.path, path)
                owners[owner_of(each)] = count, length + each.length
        with trio.CancelScope(shield=True):
            await fs.delete(path, recursive=True, expect=there.inode, now=True)
            await take_from_trash(control, cluster, int(found[1]), owners)
    except (NotFound, NotADirectory):
        pass  # another has finished it


async def _files(fs: Client, there: Entry) -> AsyncGenerator[Entry, None]:
    if there.kind == "file":
        yield there
        return
    async with aclosing(fs.files(there.path)) as below:
        async for each in below:
            yield each


async def take_from_trash(
    control: Control, cluster: Cluster, deleted_ns: int, owners: Mapping[str, tuple[int, int]]
) -> None:
    """Count files, by owner, as not in the trash any more."""
    ledger, seconds = control.ledger, cluster.trash_seconds
    then = ledger.now() - max(0.0, time.time() - deleted_ns / 1e9)
    back = [Trash.of(owner, *total, then, seconds) for owner, total in owners.items()]

    def take(txn: Txn) -> None:
        for each in back:
            usage.take_from_trash(txn, each)

    try:
        await ledger.records.write(take)
    except RecordsFailed:
        raise  # and with it this process ends
    except GfsError:
        pass  # see above
