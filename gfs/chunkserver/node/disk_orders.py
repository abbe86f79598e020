"""The orders that add, drain, remove and retry a disk while its chunkserver runs.

Some disks are tried again without an order of an operator: one that hung and whose calls
have all returned since, one that was full when it was opened, and all disks of a server that has
none left.

*Draining* moves the replicas to the server's other disks, one after the other: each is
copied unchanged, verified, and replaces the old one only if that was not written
meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from gfs.chunkserver.disks import FAILED, Disk
from gfs.chunkserver.disks.identity import DRAINING, REMOVED, Identity
from gfs.chunkserver.node.disk_opening import CLOSE_SECONDS, DiskOpening
from gfs.chunkserver.node.disk_watch import DiskWatch, Task
from gfs.chunkserver.replicas import ChunkStore
from gfs.diagnostics import event
from gfs.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DiskFailed,
    GfsError,
    InvalidArgument,
    NotFound,
)
from gfs.failures import plural
from gfs.io import World
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import Disk as DiskReport
from gfs.protocol.messages import DiskOrder

log = logging.getLogger(__name__)

#: How often disks are tried again that are not used because they were full, or any of a server
#: that has none left.
RETRY_SECONDS = 5.0
#: How long an order waits for the previous one.
ORDER_SECONDS = 30.0


class DiskOrders:
    """Runs the disks of one chunkserver, and changes which there are."""

    def __init__(
        self, world: World, store: ChunkStore, server: Identity, opening: DiskOpening
    ) -> None:
        self._world = world
        self._store = store
        self._disks = store.disks
        self._server = server
        self._opening = opening
        self._watch = DiskWatch(world, store.disks, server, opening)
        #: Held by the task that changes which disks there are.
        self._changing = trio.Lock()
        #: Of the present order.
        self._taken: Sequence[int] = ()

    async def run(self, tasks: Sequence[Task]) -> None:
        """Watch the disks, and run ``tasks`` for each that is used, for as long as it is."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._retry_all)
            await self._watch.run(tasks, self._try_again)

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
            self._taken = order.taken
            await act(self, path)
            await self._opening.save()
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
                f"{path} is {down.down} ({down.health.reason}): run gfs disk retry, or remove"
            )
        known = ", ".join(each.path for each in self._disks.reports())
        raise NotFound(f"this chunkserver has no disk {path}; it has {known}")

    async def _add(self, path: str, is_forced: bool = False) -> None:
        if any(disk.path == path for disk in self._disks.used.values()):
            raise AlreadyExists(f"{path} is a disk of this chunkserver already")
        own = [disk.mount.device for disk in self._disks.used.values()]
        await self._reopen(path, may_be_new=True, is_forced=is_forced, taken=(*own, *self._taken))

    async def _add_forced(self, path: str) -> None:
        await self._add(path, is_forced=True)

    async def _retry(self, path: str) -> None:
        if path not in self._disks.down:
            self._used(path)  # raises if it is not this server's; else it works
            return
        await self._reopen(path)

    async def _reopen(
        self,
        path: str,
        may_be_new: bool = False,
        is_forced: bool = False,
        taken: Sequence[int] | None = None,
    ) -> None:
        old, known = self._disks.down.get(path), self._server.at(path)
        if old is not None:
            with deadline(CLOSE_SECONDS, f"return of all calls to {path}, which hang"):
                await old.closing.closed.wait()
        watched = set(self._opening.watched)
        try:
            found = await self._opening.look_at([path])
            await self._opening.use(found, may_be_new=may_be_new, is_forced=is_forced, taken=taken)
        except BaseException:
            for disk in self._opening.watched - watched:
                disk.fail(FAILED, "the order to use it was cancelled")
            raise
        finally:
            failed = self._disks.down.get(path)
            if failed is not None and failed is not old:
                if known is not None:
                    failed.id = failed.id or known.id
                    failed.mount.point = failed.mount.point or known.mount
                self._watch.close(failed)
                if old is None:
                    del self._disks.down[path]  # it was never a disk of this server
        if failed is not None:
            raise DiskFailed(f"{path} cannot be used: {failed.health.reason}")
        disk = self._used(path)
        try:
            await self._opening.save()  # before its identity on the disk is checked
        finally:
            self._watch.begin(disk)
        log.warning("disk %s is in use", path, extra=event("disk_used", disk=path))

    async def _drain(self, path: str) -> None:
        disk = self._used(path)
        if all(other.drain.is_wanted or other is disk for other in self._disks.used.values()):
            raise InvalidArgument(
                f"{path} is the only disk of this chunkserver that takes new replicas: add "
                "another one (gfs disk add), or drain the whole server (gfs drain)"
            )
        disk.drain.is_wanted = True
        disk.drain.begun.set()
        self._server.put(disk, DRAINING)

    async def _undrain(self, path: str) -> None:
        disk = self._used(path)
        disk.drain.is_wanted = False
        self._server.put(disk)

    async def _remove(self, path: str, gives_up_damaged: bool = False) -> None:
        down = self._disks.down.get(path)
        if down is None:
            disk = self._used(path)
            others = self._store.duplicates.files
            chunks = disk.chunks + sum(index == disk.index for index, _ in others)
            damaged, drains = self._store.inventory.damaged_on(disk), disk.drain.is_wanted
            if drains and chunks == damaged > 0 and not gives_up_damaged:
                raise InvalidArgument(
                    f"all that {path} has left is {plural(damaged, 'damaged replica')}: as long as "
                    "there is a good one anywhere, wait for the repair (gfs status). What gfs fsck "
                    "calls lost is on no other disk: remove this one without it by gfs disk remove "
                    "--give-up-damaged, or delete these files"
                )
            if (chunks and not (gives_up_damaged and chunks == damaged)) or not drains:
                raise InvalidArgument(
                    f"{path} has {plural(chunks, 'replica')} and is {disk.state}: run gfs disk "
                    "drain first; gfs status --disks shows when it is empty"
                )
            self._store.release(disk)
            down = disk
        self._disks.down.pop(path, None)
        self._server.put(down, REMOVED)

    async def _remove_damaged(self, path: str) -> None:
        await self._remove(path, gives_up_damaged=True)

    async def _retry_all(self) -> None:
        """Try disks again, as a restart would."""
        while True:
            await self._world.clock.sleep(RETRY_SECONDS)
            for path, disk in list(self._disks.down.items()):
                if disk.health.lacks_room or not self._disks.used:
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


_ACTS: dict[str, Callable[[DiskOrders, str], Awaitable[None]]] = {
    "add": DiskOrders._add,
    "add-unmounted": DiskOrders._add_forced,
    "retry": DiskOrders._retry,
    "drain": DiskOrders._drain,
    "undrain": DiskOrders._undrain,
    "remove": DiskOrders._remove,
    "remove-damaged": DiskOrders._remove_damaged,
}
