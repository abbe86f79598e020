"""Opening the disks of a chunkserver, closing them, and saving its record on them.

All directories are opened at the same time, each with a watch for calls that hang. A disk
that cannot be used is left out, and reported with the reason; the server ends only if
there is no other.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Collection, Iterator, Sequence

import msgspec
import trio

from gfs.chunkserver.disks import (
    FAILED,
    MISSING,
    TICK_SECONDS,
    Contents,
    Disk,
    describe,
    identity,
    read_disk,
)
from gfs.chunkserver.disks.identity import DRAINING, REMOVED, Identity, MissingDisk, ServerRecord
from gfs.chunkserver.replicas import ChunkStore
from gfs.errors import StartupError
from gfs.io import World

log = logging.getLogger(__name__)

#: How long the end of the process, or a retry, waits for the calls to a disk.
CLOSE_SECONDS = 2.0


class DiskOpening:
    """Opens and closes the disks of one chunkserver, and saves its record on them."""

    def __init__(
        self,
        world: World,
        directories: Sequence[str],
        store: ChunkStore,
        server: Identity,
    ) -> None:
        self._world = world
        self._directories = [directory.rstrip("/") or "/" for directory in directories]
        self._store = store
        self._disks = store.disks
        self._server = server
        self._saving = trio.Lock()
        #: Disks that are being opened, or closed after that failed: also watched for calls
        #: that hang.
        self.watched: set[Disk] = set()

    async def open(self) -> None:
        """Read all disks. Raises StartupError if none can be used, or if the server's identity
        cannot be read."""
        if not self._directories or len(set(self._directories)) != len(self._directories):
            raise StartupError("a chunkserver needs one or more different directories (--dir)")
        refused: StartupError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tick)
            try:
                await self._open()
            except StartupError as error:
                refused = error
            nursery.cancel_scope.cancel()
        if refused is not None:
            await self.close()
            raise refused

    async def _open(self) -> None:
        found = await self.look_at(self._directories)
        records = {disk.path: record for disk, record in found.items() if record is not None}
        unread = [disk for disk in self._disks.down.values() if disk.down == FAILED]
        if unread and not records:
            raise StartupError(
                "no disk can be read, so this chunkserver's identity is unknown: "
                + "; ".join(f"{disk.path}: {disk.health.reason}" for disk in unread)
            )
        self._server.begin(self._world, records)
        self._disks.server = self._server.record.id
        self._store.inventory.damaged.update(self._server.record.damaged)
        for disk in self._disks.down.values():
            self._disks.log_failed(disk, 0)
        # The disks that were added while it ran.
        known = [each.path for each in self._server.record.disks if each.state != REMOVED]
        found |= await self.look_at([path for path in known if path not in self._directories])
        await self.use(found)
        for disk in self._disks.down.values():
            at = self._server.at(disk.path)
            if at is not None:
                disk.id, disk.mount.point = disk.id or at.id, disk.mount.point or at.mount
        if not self._disks.used:
            reasons = [f"{disk.path}: {disk.health.reason}" for disk in self._disks.down.values()]
            raise StartupError("; ".join(reasons) or "all directories were removed (gfs disk add)")
        try:
            await self.save()
        except StartupError:
            if not records:
                raise
            # Or disks that were full at a start would stay out of use because of this.
            log.exception("server.json could not be written; the server starts nevertheless")

    async def look_at(self, paths: Sequence[str]) -> dict[Disk, ServerRecord | None]:
        """Read the identity in each directory; one that cannot be read has failed."""
        found: dict[Disk, ServerRecord | None] = {}

        async def look(disk: Disk) -> None:
            with _fails(disk):
                found[disk] = await disk.run(identity.look_at, disk)

        async with trio.open_nursery() as nursery:
            for path in paths:
                disk = self._disks.new(path)
                self.watched.add(disk)
                nursery.start_soon(look, disk)
        return {disk: found[disk] for disk in sorted(found, key=lambda disk: disk.index)}

    async def use(
        self,
        found: dict[Disk, ServerRecord | None],
        *,
        may_be_new: bool = False,
        is_forced: bool = False,
        taken: Collection[int] | None = None,
    ) -> None:
        """Lock and read the disks at the same time, then adopt them one by one.

        ``may_be_new``: an empty one may take the place of another, and a removed one is used
        again. Not on the file systems that are ``taken``, nor on the root file system if that is
        not None, nor where another one was mounted, unless ``is_forced``.
        """
        named: dict[str, Disk] = {disk.id: disk for disk in self._disks.used.values()}
        contents: dict[Disk, Contents] = {}

        async def read(disk: Disk, record: ServerRecord | None) -> None:
            with _fails(disk):
                await disk.run(identity.take_disk, disk, record, is_forced, taken)
                contents[disk] = await disk.run(read_disk, disk)

        async with trio.open_nursery() as nursery:
            for disk, record in found.items():
                known = self._server.at(disk.path)
                is_removed = known is not None and known.state == REMOVED
                if is_removed and not may_be_new:
                    log.warning(
                        "%s was removed from this server and is not used: remove it from "
                        "--dir, or use it again with gfs disk add",
                        disk.path,
                    )
                    continue
                with _fails(disk):
                    if not is_forced:
                        identity.check_mount(disk, known, record)
                    if is_removed or (may_be_new and record is None):
                        known = None
                    disk.id = identity.name_disk(
                        self._world, self._server.record.id, known, record, named
                    )
                    disk.drain.is_wanted = known is not None and known.state == DRAINING
                    disk.health.is_suspect = known is not None and known.doubted
                    named[disk.id] = disk
                    nursery.start_soon(read, disk, record)
        # Of two files of one chunk that differ in nothing else, the one on the disk that it was
        # moved to was written last.
        for disk in sorted(found, key=lambda disk: (disk.drain.is_wanted, disk.health.is_suspect)):
            if disk in contents and not disk.down:
                for _ in self._store.adopt(disk, contents.pop(disk)):
                    await trio.lowlevel.checkpoint()
                self._server.put(disk, DRAINING if disk.drain.is_wanted else "")
            self.watched.discard(disk)

    async def tick(self) -> None:
        """Notice calls that hang, until cancelled."""
        while True:
            await self._world.clock.sleep(TICK_SECONDS)
            for disk in (*self._disks.used.values(), *self.watched):
                disk.tick()

    async def close(self) -> None:
        """Close all disks. One that hangs is left to the end of the process."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            known = *self._disks.used.values(), *self._disks.down.values()
            for disk in (*known, *self.watched):
                if not disk.calls.running:
                    await self._world.run_blocking(disk.close, abandon_on_cancel=True)

    async def withdraw(self) -> None:
        """Delete what a new server, which the master has refused, has made on its disks, now or
        at an earlier start that ended before it was refused."""
        async with self._saving:
            for disk in list(self._disks.used.values()):
                with contextlib.suppress(OSError):
                    await disk.run(identity.leave_disk, disk)

    async def save(self) -> None:
        """Save the server's record on every disk that is used. Raises StartupError if
        it can be saved on none; a full disk may keep an older one."""
        async with self._saving:
            record, inventory = self._server.record, self._store.inventory
            if not self._disks.down and all(each.is_adopted for each in self._disks.used.values()):
                inventory.damaged.clear()
            damaged = {each.handle: each.version for each in inventory.bad.values() if each.version}
            record.damaged = list((damaged | inventory.damaged).items())[: identity.DAMAGED_MAX]
            record.revision += 1
            record = msgspec.structs.replace(record)  # as it is now
            refused: list[str] = []

            async def save(disk: Disk) -> None:
                try:
                    await disk.run(identity.save_record, disk, record)
                    self._server.saved(record)
                except MissingDisk as error:
                    disk.fail(MISSING, str(error))
                    refused.append(f"{disk.path}: {error}")
                except OSError as error:
                    refused.append(f"{disk.path}: {describe(error)}")

            used = list(self._disks.used.values())
            async with trio.open_nursery() as nursery:
                for disk in used:
                    nursery.start_soon(save, disk)
            if len(refused) == len(used):
                reason = "; ".join(refused) or "this chunkserver has no disk left that can be used"
                raise StartupError(f"{identity.NAME} cannot be written: {reason}")
            for each in refused:
                log.error("%s cannot be written: %s", identity.NAME, each)


@contextlib.contextmanager
def _fails(disk: Disk) -> Iterator[None]:
    """An error in this block fails the disk, unless it has failed already."""
    try:
        yield
    except MissingDisk as error:
        disk.fail(MISSING, str(error))
    except identity.DamagedRecord as error:
        disk.fail(
            FAILED,
            f"{error}: copy {identity.NAME} from another directory of this chunkserver, or "
            "empty this one",
        )
    except OSError as error:
        disk.health.lacks_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        disk.fail(MISSING if error.errno == errno.ENOTDIR else FAILED, describe(error))
