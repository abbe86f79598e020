"""All disks of a chunkserver: opening them at the start, watching them, and the orders
that add, drain, remove and retry one while the server runs.

*At the start* all directories are opened at the same time, each with a watch for calls that
hang. A disk that cannot be used is left out, and reported with the reason;
the server ends only if there is no other.

*While it runs* each disk that is used has a few tasks of its own. They end when it
fails; then its files are closed, as soon as no thread uses them any more, so that it can
be unmounted. A failed disk stays out until the operator has it tried again, or the
server is restarted. Two are tried again unasked: one that hung and whose calls have all
returned since, and those of a server that has no disk left.

*Draining* moves the replicas to the server's other disks, one after the other: each is
copied as it is, verified, and takes the place of the old one only if that was not
written meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import msgspec
import trio

from gfs.chunkserver.disks import identity
from gfs.chunkserver.disks.disk import FAILED, MISSING, TICK_SECONDS, Disk, describe
from gfs.chunkserver.disks.identity import DRAINING, REMOVED, Identity, MissingDisk, ServerRecord
from gfs.chunkserver.disks.loading import Contents, read_disk
from gfs.chunkserver.replicas.store import ChunkStore
from gfs.diagnostics import event
from gfs.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DiskFailed,
    GfsError,
    InvalidArgument,
    NotFound,
    StartupError,
)
from gfs.io import World
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import Disk as DiskReport
from gfs.protocol.messages import DiskOrder

log = logging.getLogger(__name__)

#: How often a disk's space and identity are checked.
CHECK_SECONDS = 2.0
#: How often a server without any usable disk tries all of them again.
RETRY_SECONDS = 5.0
#: How long the end of the process, or a retry, waits for the calls to a disk.
CLOSE_SECONDS = 2.0
#: How long an order waits for the previous one.
ORDER_SECONDS = 30.0

Task = Callable[[Disk], Awaitable[None]]


class DiskManager:
    """Opens, watches and closes the disks of one chunkserver."""

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
        #: Held by the task that changes which disks there are.
        self._changing = trio.Lock()
        #: Disks that are being opened: also watched for calls that hang.
        self._watched: set[Disk] = set()
        self._nursery: trio.Nursery | None = None
        self._tasks: Sequence[Task] = ()

    # --- the start ------------------------------------------------------------------

    async def open(self) -> None:
        """Read all disks. Raises StartupError if none can be used, or if the server's identity
        cannot be read."""
        if not self._directories or len(set(self._directories)) != len(self._directories):
            raise StartupError("a chunkserver needs one or more different directories (--dir)")
        refused: StartupError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            try:
                await self._open()
            except StartupError as error:
                refused = error
            nursery.cancel_scope.cancel()
        if refused is not None:
            await self.close()
            raise refused

    async def _open(self) -> None:
        found = await self._look_at(self._directories)
        records = {disk.path: record for disk, record in found.items() if record is not None}
        unread = [disk for disk in self._disks.down.values() if disk.down == FAILED]
        if unread and not records:
            raise StartupError(
                "no disk can be read, so this chunkserver's identity is unknown: "
                + "; ".join(f"{disk.path}: {disk.reason}" for disk in unread)
            )
        self._server.begin(self._world, records)
        self._disks.server = self._server.record.id
        self._store.inventory.damaged.update(self._server.record.damaged)
        for disk in self._disks.down.values():
            self._disks.log_failed(disk, 0)
        # Those that were added while it ran.
        known = [each.path for each in self._server.record.disks if each.state != REMOVED]
        found |= await self._look_at([path for path in known if path not in self._directories])
        await self._use(found)
        for disk in self._disks.down.values():
            at = self._server.at(disk.path)
            disk.id = disk.id or (at.id if at is not None else "")
        if not self._disks.used:
            reasons = [f"{disk.path}: {disk.reason}" for disk in self._disks.down.values()]
            raise StartupError("; ".join(reasons) or "all directories were removed (gfs disk add)")
        try:
            await self.save()
        except StartupError:
            if not records:
                raise
            # Or disks that were full at a start would stay out of use because of this.
            log.exception("server.json could not be written; the server starts nevertheless")

    async def _look_at(self, paths: Sequence[str]) -> dict[Disk, ServerRecord | None]:
        """Read the identity in each directory; one that cannot be read has failed."""
        found: dict[Disk, ServerRecord | None] = {}

        async def look(disk: Disk) -> None:
            with _fails(disk):
                found[disk] = await disk.run(identity.read_record, self._world.files, disk.path)

        async with trio.open_nursery() as nursery:
            for path in paths:
                disk = self._disks.new(path)
                self._watched.add(disk)
                nursery.start_soon(look, disk)
        return {disk: found[disk] for disk in sorted(found, key=lambda disk: disk.index)}

    async def _use(self, found: dict[Disk, ServerRecord | None]) -> None:
        """Lock and read the disks at the same time, then adopt them one by one."""
        named: dict[str, Disk] = {disk.id: disk for disk in self._disks.used.values()}
        contents: dict[Disk, Contents] = {}

        async def read(disk: Disk, record: ServerRecord | None) -> None:
            with _fails(disk):
                await disk.run(identity.take_disk, disk, record)
                contents[disk] = await disk.run(read_disk, disk)

        async with trio.open_nursery() as nursery:
            for disk, record in found.items():
                known = self._server.at(disk.path)
                if known is not None and known.state == REMOVED:
                    log.warning(
                        "%s was removed from this server and is not used: remove it from "
                        "--dir, or use it again with gfs disk add",
                        disk.path,
                    )
                    continue
                with _fails(disk):
                    disk.id = identity.name_disk(
                        self._world, self._server.record.id, known, record, named
                    )
                    disk.draining = known is not None and known.state == DRAINING
                    disk.is_suspect = known is not None and known.doubted
                    named[disk.id] = disk
                    nursery.start_soon(read, disk, record)
        for disk in found:
            if disk in contents and not disk.down:
                self._store.adopt(disk, contents[disk])
                self._server.put(disk, DRAINING if disk.draining else "")
            self._watched.discard(disk)

    # --- while it runs --------------------------------------------------------------

    async def run(self, tasks: Sequence[Task]) -> None:
        """Watch the disks, and run ``tasks`` for each that is used, for as long as it is."""
        self._tasks = tasks
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tick)
                nursery.start_soon(self._retry_all)
                for disk in self._disks.used.values():
                    nursery.start_soon(self._tend, disk)
                for disk in self._disks.down.values():
                    nursery.start_soon(self._close_disk, disk)
        finally:
            self._nursery = None

    async def _tick(self) -> None:
        while True:
            await self._world.clock.sleep(TICK_SECONDS)
            for disk in (*self._disks.used.values(), *self._watched):
                disk.tick()

    async def _tend(self, disk: Disk) -> None:
        async with trio.open_nursery() as nursery:
            for task in (*self._tasks, self._watch, self._close_files):
                nursery.start_soon(_while_used, task, disk)
            await disk.ended.wait()
            nursery.cancel_scope.cancel()
        await self._close_disk(disk)

    async def _watch(self, disk: Disk) -> None:
        """Keep its space current, and check that it is still mounted."""
        while True:
            try:
                reason = await disk.run(self._check, disk)
                if reason:
                    disk.fail(MISSING, reason)
            except OSError:
                pass  # the disk has failed by it, or a single read has
            await self._world.clock.sleep(CHECK_SECONDS)

    def _check(self, disk: Disk) -> str:
        disk.measure()
        return identity.check_disk(disk, self._server.record.id)

    async def _close_files(self, disk: Disk) -> None:
        """Close the files that nobody uses any more, many in one call."""
        while True:
            await disk.closing.wait()
            disk.closing = trio.Event()
            await disk.run(disk.close_files)

    async def _close_disk(self, disk: Disk) -> None:
        """Close everything on a disk that is no longer used, once no thread is in a call to
        it."""
        lost = disk.may_have_lost
        if lost:
            await self._suspect(disk)
        while disk.running:
            await self._world.clock.sleep(TICK_SECONDS)
        if disk.may_have_lost and not lost:
            await self._suspect(disk)  # a call that hung was refused at last
        await self._world.run_blocking(disk.close, abandon_on_cancel=True)
        self._watched.discard(disk)
        disk.end_closing(partial(self._start, self._close_rest, disk))
        if disk.hung:
            log.info("%s: all calls to it have returned: trying it again", disk.path)
            await self._try_again(disk.path)

    async def _close_rest(self, disk: Disk) -> None:
        """Close a file that a copy waiting for its source, or a reader, had open until now."""
        await self._world.run_blocking(disk.close_files, abandon_on_cancel=True)

    async def _suspect(self, disk: Disk) -> None:
        """Record on the other disks that this one failed, for the next start that reads it."""
        self._server.suspect(disk.path)
        try:
            await self.save()
        except StartupError as error:
            log.error("%s", error)

    async def close(self) -> None:
        """Close all disks. One that hangs is left to the end of the process."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            known = *self._disks.used.values(), *self._disks.down.values()
            for disk in (*known, *self._watched):
                if not disk.running:
                    await self._world.run_blocking(disk.close, abandon_on_cancel=True)

    async def save(self) -> None:
        """The server's record is on every disk that is used when this returns. Raises
        StartupError if no disk takes it; a full disk may keep an older one."""
        async with self._saving:
            record, inventory = self._server.record, self._store.inventory
            if not self._disks.down:
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

    # --- orders ---------------------------------------------------------------------

    async def order(self, order: DiskOrder) -> list[DiskReport]:
        """Carry out an operator's order; returns the disks as they are afterwards.

        The change is on all disks that are used when this returns. Raises NotFound,
        AlreadyExists, InvalidArgument, DeadlineExceeded, or DiskFailed with the reason.
        """
        path = order.path.rstrip("/")
        if not path.startswith("/"):
            raise InvalidArgument(f"{order.path!r} is not an absolute path: name the disk by one")
        act = _ACTS.get(order.action)
        if act is None:
            raise InvalidArgument(f"unknown disk order {order.action!r}")
        with deadline(ORDER_SECONDS, "end of the previous order"):
            await self._changing.acquire()
        try:
            await act(self, path)
            await self.save()
        finally:
            self._changing.release()
        return self._disks.reports()

    def _used(self, path: str) -> Disk:
        for disk in self._disks.used.values():
            if disk.path == path:
                return disk
        down = self._disks.down.get(path)
        if down is not None:
            raise DiskFailed(
                f"{path} is {down.down} ({down.reason}): run gfs disk retry, or remove"
            )
        known = ", ".join(each.path for each in self._disks.reports())
        raise NotFound(f"this chunkserver has no disk {path}; it has {known}")

    async def _add(self, path: str) -> None:
        if any(disk.path == path for disk in self._disks.used.values()):
            raise AlreadyExists(f"{path} is a disk of this chunkserver already")
        await self._reopen(path, may_be_new=True)

    async def _retry(self, path: str) -> None:
        if path not in self._disks.down:
            self._used(path)  # raises if it is not this server's; else it works
            return
        await self._reopen(path, may_be_new=False)

    async def _reopen(self, path: str, may_be_new: bool) -> None:
        old, known = self._disks.down.get(path), self._server.at(path)
        if old is not None:
            with deadline(CLOSE_SECONDS, f"return of all calls to {path}, which hang"):
                await old.closed.wait()
        watched = set(self._watched)
        try:
            found = await self._look_at([path])
            for record in found.values():
                if may_be_new and known and (record is None or known.state == REMOVED):
                    self._server.drop(path)
            await self._use(found)
        except BaseException:
            for disk in self._watched - watched:
                disk.fail(FAILED, "the order to use it was cancelled")
            raise
        finally:
            self._server.keep(path, known)
            failed = self._disks.down.get(path)
            if failed is not None and failed is not old:
                failed.id = failed.id or (known.id if known is not None else "")
                self._start(self._close_disk, failed)
                if old is None:
                    del self._disks.down[path]  # it was never a disk of this server
        if failed is not None:
            raise DiskFailed(f"{path} cannot be used: {failed.reason}")
        disk = self._used(path)
        try:
            await self.save()  # before its identity on the disk is checked
        finally:
            self._start(self._tend, disk)
        log.warning("disk %s is in use", path, extra=event("disk_used", disk=path))

    def _start(self, task: Task, disk: Disk) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, disk)

    async def _drain(self, path: str) -> None:
        disk = self._used(path)
        if all(other.draining or other is disk for other in self._disks.used.values()):
            raise InvalidArgument(
                f"{path} is the only disk of this chunkserver that takes new replicas: add "
                "another one (gfs disk add), or drain the whole server (gfs drain)"
            )
        disk.draining = True
        disk.to_drain.set()
        self._server.put(disk, DRAINING)

    async def _undrain(self, path: str) -> None:
        disk = self._used(path)
        disk.draining = False
        self._server.put(disk)

    async def _remove(self, path: str) -> None:
        down = self._disks.down.get(path)
        if down is None:
            disk = self._used(path)
            others = self._store.duplicates.files
            chunks = disk.chunks + sum(index == disk.index for index, _ in others)
            if chunks or not disk.draining:
                raise InvalidArgument(
                    f"{path} holds {chunks} replicas and is {disk.state}: run gfs disk drain "
                    "first; gfs status --disks shows when it is empty"
                )
            self._store.release(disk)
            down = disk
        self._disks.down.pop(path, None)
        self._server.put(down, REMOVED)

    async def _retry_all(self) -> None:
        """A server without any disk tries them again, as a restart would."""
        while True:
            await self._world.clock.sleep(RETRY_SECONDS)
            if not self._disks.used:
                for path in list(self._disks.down):
                    await self._try_again(path)

    async def _try_again(self, path: str) -> None:
        while path in self._disks.down:
            try:
                await self.order(DiskOrder(0, "", path, "retry"))
            except DeadlineExceeded:  # another order takes long, perhaps for another disk
                await self._world.clock.sleep(RETRY_SECONDS)
            except (GfsError, OSError) as error:
                log.warning("%s cannot be used yet: %s", path, error)
                return


_ACTS: dict[str, Callable[[DiskManager, str], Awaitable[None]]] = {
    "add": DiskManager._add,
    "retry": DiskManager._retry,
    "drain": DiskManager._drain,
    "undrain": DiskManager._undrain,
    "remove": DiskManager._remove,
}


async def _while_used(task: Task, disk: Disk) -> None:
    try:
        await task(disk)
    except OSError:
        if not disk.down:
            raise


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
        disk.fail(MISSING if error.errno == errno.ENOTDIR else FAILED, describe(error))
