"""A disk: its directory and state, every call that is made to it, the identity that it
carries (``server.json``), and how its replicas are read at the start; and the set of all
disks of a server. Who watches them and carries out the operator's orders for them is
:mod:`gfs.chunkserver.node.disk_manager`."""

from gfs.chunkserver.disks.disk import Disk, map_disk_error
from gfs.chunkserver.disks.disk_set import DiskSet
from gfs.chunkserver.disks.identity import Identity, ServerRecord
from gfs.chunkserver.disks.loading import Contents, read_disk

__all__ = [
    "Contents",
    "Disk",
    "DiskSet",
    "Identity",
    "ServerRecord",
    "map_disk_error",
    "read_disk",
]
