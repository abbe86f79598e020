"""A disk: its directory and state, every call that is made to it, the identity record
on it (``server.json``), and how its replicas are read at a start; and the set of all
disks of a server. :mod:`gfs.chunkserver.node` opens and watches them, and carries out the
operator's orders about them."""

from gfs.chunkserver.disks.calls import TICK_SECONDS
from gfs.chunkserver.disks.disk import FAILED, MISSING, STATES, Disk
from gfs.chunkserver.disks.disk_set import DiskSet
from gfs.chunkserver.disks.health import describe, map_disk_error, map_read_error
from gfs.chunkserver.disks.loading import Contents, Found, read_disk, unlink_for_good

__all__ = [
    "FAILED",
    "MISSING",
    "STATES",
    "TICK_SECONDS",
    "Contents",
    "Disk",
    "DiskSet",
    "Found",
    "describe",
    "identity",
    "map_disk_error",
    "map_read_error",
    "read_disk",
    "unlink_for_good",
]
