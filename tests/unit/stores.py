"""Opening the disks of a chunkserver without a chunkserver, and without a Trio run."""

from __future__ import annotations

from gfs.chunkserver.disks.disk import Disk
from gfs.chunkserver.disks.loading import read_disk
from gfs.chunkserver.replicas.store import ChunkStore


def new_disk(store: ChunkStore, path: str) -> Disk:
    """A disk that can be used, and was not read yet."""
    store.world.files.make_directories(path)
    store.world.files.sync_directory("/")
    disk = store.disks.new(path)
    disk.open()
    return disk


def load(store: ChunkStore, disk: Disk) -> None:
    """Read a disk, and have the store use it."""
    for _ in store.adopt(disk, read_disk(disk)):
        pass
