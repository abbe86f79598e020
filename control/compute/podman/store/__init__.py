"""The storage of containers: their disks (:mod:`.disks`) and their image (:mod:`.images`)."""

from control.compute.podman.store.disks import ETC, USERS, Disk, Disks
from control.compute.podman.store.images import Images

__all__ = [
    "ETC",
    "USERS",
    "Disk",
    "Disks",
    "Images",
]
