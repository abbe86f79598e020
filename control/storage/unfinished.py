"""What is under way, and what is left of it: uploads in parts, copies without a path, versions.

An upload in parts, over S3 (:mod:`control.s3.uploads`) or over REST (:mod:`.resuming`), is a folder
of its storage namespace, ``.s3-uploads/ID``, with a file for each part. It ends when the folder is
moved aside, in one step, so that of several ends one counts, and no part can be added any more (it
is published only into a folder that is there); then it is deleted. A process that is killed in
between leaves a folder ``-…``.

Of the processes of a machine that serve files one sweeps: each hour, and what was left before it
started, since that may be of one that was killed. A folder or a file that two machines delete at
the same time is counted by the one that did.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import trio

from control.api import ApiError, Control, RecordsFailed, SettingsError
from control.api.internals import Lock
from control.storage.cluster import Cluster
from control.storage.deletion import remove_folder
from control.storage.keys import UPLOADS
from control.storage.purging import finish_purge, is_purge
from control.storage.replacing import LEFT_SECONDS as REPLACING_SECONDS
from control.storage.replacing import is_replacing, put_back
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.staging import STAGING
from control.storage.versions import Versions
from gfs.client import Client, Entry
from gfs.config import Settings, load
from gfs.errors import GfsError, NotADirectory, NotFound

log = logging.getLogger(__name__)

#: How often is swept, at least.
SWEEP_SECONDS_MAX = 3600.0
#: A copy that takes longer was left by a process that was killed.
LEFT_SECONDS = 24 * 3600.0
#: The folders of uploads, and of those that are being deleted.
_OURS = re.compile(r"[0-9a-f]{32}|-[0-9a-f]{16}")


#: The attribute of a file that has the id of the upload that it was.
UPLOAD = "upload"


class StorageSettings(Settings, frozen=True, kw_only=True):
    """Table ``[storage]`` of the settings file, or ``GFS_STORAGE_*``."""

    #: Uploads in parts that began longer ago are aborted.
    upload_seconds: float = 7 * 86400.0

    def check(self) -> None:
        if not self.upload_seconds >= 1:
            raise SettingsError("storage.upload_seconds: at least 1")


def folder_of(upload_id: str) -> str:
    return f"{UPLOADS}/{upload_id}"


def is_upload(entry: Entry) -> bool:
    """Whether it is the folder of an upload. Over REST anybody could once make others there."""
    return entry.kind == "directory" and bool(_OURS.fullmatch(entry.path.rpartition("/")[2]))


async def upload_folders(fs: Client, space: Space) -> AsyncGenerator[Entry, None]:
    """The folders of uploads, by id; before them those that are being deleted."""
    try:
        async with aclosing(fs.scan(f"{space.directory}/{UPLOADS}")) as found:
            async for entry in found:
                if is_upload(entry):
                    yield entry
    except (NotFound, NotADirectory):
        return


async def end_upload(
    control: Control, cluster: Cluster, spaces: Spaces, space: Space, folder: str
) -> None:
    """Delete an upload with its parts: the one who moves the folder aside does."""
    aside = f"{UPLOADS}/-{secrets.token_hex(8)}"
    await remove_folder(control, cluster, spaces, space, folder, aside)


class Sweeper:
    """Deletes, and repairs, what killed processes and clients that gave up have left."""

    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces) -> None:
        self._parts = (control, cluster, spaces)
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._versions = Versions(*self._parts)
        self._seconds = load(StorageSettings, "storage", file=control.config).upload_seconds

    async def run(self) -> None:
        """Sweep for as long as the process serves."""
        lock = Lock(self._control.directory / "sweep.lock")
        period_ns = int(1e9 * min(SWEEP_SECONDS_MAX, max(1.0, self._seconds / 4)))
        started_ns = time.time_ns()
        await self._cluster.connected.wait()
        while True:
            left_ns = _left_ns(lock.path, started_ns, period_ns)
            if left_ns <= 0 and lock.take():
                try:
                    await self.sweep(time.time_ns() - int(self._seconds * 1e9))
                    now_ns = time.time_ns()
                    os.utime(lock.path, ns=(now_ns, now_ns))
                finally:
                    lock.close()
            await trio.sleep((left_ns if left_ns > 0 else period_ns) / 1e9)

    async def sweep(self, before_ns: int) -> None:
        """Once. Uploads that began before go."""
        try:
            await self._sweep_staged()
        except RecordsFailed:
            raise  # and with it this process ends
        except GfsError as error:
            log.warning("old copies could not be removed: %s", error)
        for space in await self._spaces.all():
            try:
                await self._sweep_uploads(space, before_ns)
                if space.versioning:
                    await self._versions.repair(space)
            except RecordsFailed:
                raise  # and with it this process ends
            except (GfsError, ApiError) as error:
                log.warning("old uploads to %s could not be removed: %s", space.name, error)

    async def _sweep_staged(self) -> None:
        fs, now_ns = self._cluster.fs, time.time_ns()
        with suppress(NotFound):
            async with aclosing(fs.scan(STAGING)) as found:
                async for entry in found:
                    if is_purge(entry.path):
                        await finish_purge(self._control, self._cluster, entry.path)
                    elif is_replacing(entry.path):
                        if entry.created_ns < now_ns - int(REPLACING_SECONDS * 1e9):
                            await put_back(*self._parts, entry.path)
                    elif entry.created_ns < now_ns - int(LEFT_SECONDS * 1e9):
                        with suppress(NotFound):
                            await fs.delete(entry.path, recursive=True, now=True)

    async def _sweep_uploads(self, space: Space, before_ns: int) -> None:
        async with aclosing(upload_folders(self._cluster.fs, space)) as found:
            async for entry in found:
                name = entry.path.rpartition("/")[2]
                folder = folder_of(name)
                if name.startswith("-"):  # its end was broken off
                    await remove_folder(*self._parts, space, folder, folder)
                elif entry.created_ns < before_ns:
                    log.info("an upload in parts to %s is aborted: it is too old", space.name)
                    await end_upload(*self._parts, space, folder)


def _left_ns(swept: Path, started_ns: int, period_ns: int) -> int:
    """Until a sweep is due. ``swept`` was last changed at the end of one, of any process."""
    try:
        last_ns = swept.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    left_ns = last_ns + period_ns - time.time_ns()
    # If it is more than the period, the clock was stepped back.
    return left_ns if last_ns > started_ns and left_ns <= period_ns else 0
