"""The disks of a chunkserver: which ones are used, and which one gets the next new replica."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.disks.disk import Disk
from gfs.config import ChunkserverSettings
from gfs.diagnostics import event
from gfs.errors import DiskFailed, DiskFull
from gfs.io import World
from gfs.protocol.messages import Disk as DiskReport

log = logging.getLogger(__name__)


class DiskSet:
    """``on_failure`` is called once for each disk that fails, in the loop's thread."""

    def __init__(
        self, world: World, settings: ChunkserverSettings, on_failure: Callable[[Disk], None]
    ) -> None:
        self._world = world
        self._settings = settings
        self._on_failure = on_failure
        self._indexes = itertools.count()
        self.reserve_bytes = settings.reserve_bytes
        #: This chunkserver's id, for the log.
        self.server = ""
        #: The disks that are used, by index; an index is never used again.
        self.used: dict[int, Disk] = {}
        #: The disks that are not used, by path.
        self.down: dict[str, Disk] = {}

    def new(self, path: str) -> Disk:
        """A disk of this server, not opened and not used yet."""
        index = next(self._indexes)
        return Disk(self._world, index, path, self._settings, self._on_failure)

    def pick(self, need_bytes: int = CHUNK_BYTES) -> Disk:
        """The disk for a new replica: the one with most free space.

        Raises DiskFull if all disks have only their reserve left.
        """
        used = [disk for disk in self.used.values() if disk.takes_new]
        fit = [disk for disk in used if disk.space.has_room(self.reserve_bytes)]
        if not used:
            raise DiskFailed("no disk of this chunkserver can be used: see gfs status --disks")
        if not fit:
            raise DiskFull("no disk of this chunkserver has space above its reserve")
        disk = max(fit, key=lambda d: (d.space.free_bytes - d.space.begun_bytes, -d.chunks))
        disk.space.begun_bytes += need_bytes
        return disk

    def reports(self) -> list[DiskReport]:
        return [disk.report() for disk in (*self.used.values(), *self.down.values())]

    def log_failed(self, disk: Disk, lost: int) -> None:
        """Log a failed disk; at a start, once the server's id is known."""
        log.error(
            "disk %s is %s: %s. Its %d replicas will be re-replicated from other servers. "
            "When it works again: gfs disk retry %s %s",
            disk.path,
            disk.down,
            disk.health.reason,
            lost,
            self.server,
            disk.path,
            extra=event(
                "disk_failed",
                server=self.server,
                disk=disk.path,
                state=disk.down,
                reason=disk.health.reason,
                replicas=lost,
            ),
        )
