"""Chunks of which two disks of this server have a file.

One of them is served, and in the inventory. The others are kept until it is decided which file
is better: here by version and write-intent record, without reading; else by reading them
(:mod:`gfs.chunkserver.upkeep.resolve_duplicates`).
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from gfs.chunkserver.disks import Disk, DiskSet
from gfs.chunkserver.files import Intent
from gfs.chunkserver.replicas.inventory import Inventory, Replica
from gfs.chunkserver.replicas.open_chunks import OpenChunks


class Duplicate(NamedTuple):
    """A second file of a chunk, on another disk than the one that is served."""

    replica: Replica
    #: The write-intent record, if the replica is possibly stale.
    intent: Intent | None
    is_unfit: bool


class Duplicates:
    """The files that are not served."""

    def __init__(self, disks: DiskSet, inventory: Inventory, open_chunks: OpenChunks) -> None:
        self._disks = disks
        self._inventory = inventory
        self._open_chunks = open_chunks
        #: By (disk, handle). Neither file of such a chunk is deleted before it is decided
        #: which one is better.
        self.files: dict[tuple[int, int], Duplicate] = {}
        #: Set when there are duplicates.
        self.found = trio.Event()
        #: (Disk, handle) of files that are to be deleted: the replica is on another disk.
        self.to_delete: set[tuple[int, int]] = set()

    def of(self, handle: int) -> list[Duplicate]:
        """The duplicates of a chunk, the best one first."""
        if not self.files:
            return []
        some = [self.files[n, handle] for n in self._disks.used if (n, handle) in self.files]
        some.sort(key=lambda other: (other.replica.version, other.intent is None), reverse=True)
        return some

    def choose(self, handle: int) -> None:
        """Decide what can be decided without reading: the higher version stays; of two files
        of one version, one that is not possibly stale is served until both were read. A file
        in use is left for another time."""
        for other in self.of(handle):
            known = self._inventory.get(handle)
            if known is not None and known.version > other.replica.version:
                self.discard(handle, other)
            elif known is None or known.version < other.replica.version:
                self.prefer(handle, other, is_better=True)
            elif handle in self._inventory.possibly_stale and other.intent is None:
                self.prefer(handle, other, is_better=False)

    def discard(self, handle: int, other: Duplicate) -> None:
        """Delete ``other`` later: the file that is served is as good, or better."""
        del self.files[other.replica.disk, handle]
        self.to_delete.add((other.replica.disk, handle))

    def prefer(self, handle: int, other: Duplicate, is_better: bool) -> None:
        """Serve ``other`` instead of the file that is served now, if any, unless that is in
        use. The other file is deleted if ``other`` is certainly better (``is_better``)."""
        known, chunk = self._inventory.get(handle), self._open_chunks.opened(handle)
        if handle in self._open_chunks.busy:
            return
        if chunk is not None and (known is None or chunk.users or chunk.is_pending):
            return
        self.serve(handle, other, is_better)

    def serve(self, handle: int, other: Duplicate, is_better: bool) -> None:
        """As :meth:`prefer`, even if the file is in use."""
        inventory = self._inventory
        here, known = other.replica, inventory.get(handle)
        del self.files[here.disk, handle]
        if known is not None:
            key = known.disk, handle
            if is_better:
                self.to_delete.add(key)
            else:
                intent, is_bad = inventory.possibly_stale.get(handle), handle in inventory.bad
                self.files[key] = Duplicate(known, intent, is_bad)
            self._open_chunks.forget(handle)
        elif handle in inventory.bad:  # another disk has one that cannot be read
            keys = {(n, handle) for n in self._disks.used if n != here.disk}
            self.to_delete.update(keys - self.files.keys())
        inventory.bad.pop(handle, None)
        inventory.put(handle, here)
        for changes in inventory.changes:
            changes.come[handle] = None
        if other.intent is not None:
            inventory.possibly_stale[handle] = other.intent
        if other.is_unfit:
            inventory.mark_bad(handle)

    def discard_up_to(self, handle: int, version: int) -> None:
        """Discard all duplicates up to this version: an order to delete the replica
        includes them."""
        for other in self.of(handle):
            if other.replica.version <= version:
                self.discard(handle, other)

    def forget_disk(self, disk: Disk) -> None:
        """Drop everything about a disk that is no longer used."""
        self.files = {key: each for key, each in self.files.items() if key[0] != disk.index}
        self.to_delete = {key for key in self.to_delete if key[0] != disk.index}
