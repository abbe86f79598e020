"""Watching the disks of a chunkserver: each disk that is used has a few tasks of its own.

They end when it fails; then its files are closed, as soon as no thread uses them any more,
so that it can be unmounted. A failed disk stays out until the operator has it tried again,
or the server is restarted. One that hung is tried again without an order, once its calls
have all returned.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from gfs.chunkserver.disks import MISSING, TICK_SECONDS, Disk, DiskSet, identity
from gfs.chunkserver.disks.identity import Identity
from gfs.chunkserver.node.disk_opening import DiskOpening
from gfs.errors import StartupError
from gfs.io import ReadFailed, World

log = logging.getLogger(__name__)

#: How often a disk's space and identity are checked. A disk that hangs is named within ten
#: seconds: this, ``disk_hang_seconds`` (8 by default), and the second until the next heartbeat.
CHECK_SECONDS = 0.75

Task = Callable[[Disk], Awaitable[None]]


class DiskWatch:
    """Runs the tasks of each disk, and closes the disks that have failed."""

    def __init__(
        self, world: World, disks: DiskSet, server: Identity, opening: DiskOpening
    ) -> None:
        self._world = world
        self._disks = disks
        self._server = server
        self._opening = opening
        self._nursery: trio.Nursery | None = None
        self._tasks: Sequence[Task] = ()
        self._try_again: Callable[[str], Awaitable[None]]

    async def run(self, tasks: Sequence[Task], try_again: Callable[[str], Awaitable[None]]) -> None:
        """Watch the disks, and run ``tasks`` for each that is used, for as long as it is.

        ``try_again`` is called with the path of a disk that hung, once all calls to it have
        returned and it is closed.
        """
        self._tasks, self._try_again = tasks, try_again
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._opening.tick)
                for disk in self._disks.used.values():
                    self.begin(disk)
                for disk in self._disks.down.values():
                    self.close(disk)
        finally:
            self._nursery = None

    def begin(self, disk: Disk) -> None:
        """Start the tasks of a disk that is used now."""
        self._start(self._tend, disk)

    def close(self, disk: Disk) -> None:
        """Start closing a disk that has failed."""
        self._start(self._close_disk, disk)

    def _start(self, task: Task, disk: Disk) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, disk)

    async def _tend(self, disk: Disk) -> None:
        async with trio.open_nursery() as nursery:
            for task in (*self._tasks, self._watch, self._close_files):
                nursery.start_soon(_while_used, task, disk)
            await disk.closing.ended.wait()
            nursery.cancel_scope.cancel()
        await self._close_disk(disk)

    async def _watch(self, disk: Disk) -> None:
        """Keep its space current, and check that it is still mounted."""
        while True:
            try:
                reason = await disk.run(self._check, disk)
                if reason:
                    disk.fail(MISSING, reason)
            except ReadFailed:
                # Neither copy of its record can be read, which the next start needs.
                await self._save()
            except OSError:
                pass  # it has failed the disk
            await self._world.clock.sleep(CHECK_SECONDS)

    def _check(self, disk: Disk) -> str:
        disk.measure()
        return identity.check_disk(disk, self._server.record.id)

    async def _close_files(self, disk: Disk) -> None:
        """Close the files that nobody uses any more, many in one call."""
        while True:
            await disk.closing.wanted.wait()
            disk.closing.wanted = trio.Event()
            await disk.run(disk.closing.close_files)

    async def _close_disk(self, disk: Disk) -> None:
        """Close everything on a disk that is no longer used, once no thread is in a call to
        it."""
        lost = disk.health.may_have_lost
        if lost:
            await self._suspect(disk)
        while disk.calls.running:
            await self._world.clock.sleep(TICK_SECONDS)
        if disk.health.may_have_lost and not lost:
            await self._suspect(disk)  # a call that hung has returned an error
        await self._world.run_blocking(disk.close, abandon_on_cancel=True)
        self._opening.watched.discard(disk)
        disk.closing.finish(partial(self._start, self._close_rest, disk))
        if disk.health.hung:
            log.info("%s: all calls to it have returned: trying it again", disk.path)
            await self._try_again(disk.path)

    async def _close_rest(self, disk: Disk) -> None:
        """Close a file that a copy waiting for its source, or a reader, had open until now."""
        await self._world.run_blocking(disk.closing.close_files, abandon_on_cancel=True)

    async def _suspect(self, disk: Disk) -> None:
        """Record on the other disks that this one failed, for the next start that reads it."""
        self._server.suspect(disk.path)
        await self._save()

    async def _save(self) -> None:
        try:
            await self._opening.save()
        except StartupError as error:
            log.error("%s", error)


async def _while_used(task: Task, disk: Disk) -> None:
    try:
        await task(disk)
    except OSError:
        if not disk.down:
            raise
