"""The inventory: which replicas this server has, on which disk, in which state.

The *inventory* (handle → disk, version, length) is in memory, read from the heads of the
chunk files at start: a chunkserver determines which chunks it has (the paper, 2.6.2).
Plain tables without waits.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from gfs.chunkserver.disks import Disk, DiskSet, identity
from gfs.chunkserver.files import HEAD_BYTES, Intent
from gfs.diagnostics import event
from gfs.errors import CorruptReplica, StaleVersion
from gfs.protocol.messages import POSSIBLY_STALE_BIT, REPLICA_RECORD, BadReplica

log = logging.getLogger(__name__)


#: How many are kept for sharing.
SHARED_MAX = 100_000


class Replica(NamedTuple):
    disk: int
    version: int
    length: int


class Changes:
    """Changes that must still be reported to one master: replicas that appeared or
    disappeared without an order of a master or a client; by handle, and for missing
    ones with the version."""

    def __init__(self) -> None:
        self.gone: dict[int, int] = {}
        self.come: dict[int, None] = {}


class Inventory(Mapping[int, Replica]):
    """The replicas of all disks that are used, by handle."""

    def __init__(self, disks: DiskSet) -> None:
        self._disks = disks
        self._replicas: dict[int, Replica] = {}
        #: One object for all that are equal: many small replicas are, and it is a fifth of
        #: what one takes of memory.
        self._shared: dict[Replica, Replica] = {}
        #: Bytes of data of all replicas, without their heads.
        self.bytes = 0
        #: Damaged replicas, by handle, until a clone replaces them or the master deletes them.
        self.bad: dict[int, BadReplica] = {}
        #: (Handle, version) of damaged replicas on disks that are not in use (yet). They count
        #: as damaged when the disk is used again, until they are verified.
        self.damaged: dict[int, int] = {}
        #: Damaged replicas found since the start.
        self.found_bad = 0
        #: The changes to be reported, by master.
        self.changes: list[Changes] = []
        #: Possibly stale replicas, with their write-intent records.
        self.possibly_stale: dict[int, Intent] = {}

    def __getitem__(self, handle: int) -> Replica:
        return self._replicas[handle]

    def __contains__(self, handle: object) -> bool:
        return handle in self._replicas  # a Mapping's own makes a KeyError for each miss

    def __iter__(self) -> Iterator[int]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def on_disk(self, disk: Disk) -> list[int]:
        """The handles of its replicas."""
        return [h for h, replica in self._replicas.items() if replica.disk == disk.index]

    def damaged_on(self, disk: Disk) -> int:
        """How many of its replicas are damaged."""
        found = (self._replicas.get(handle) for handle in self.bad)
        return sum(each is not None and each.disk == disk.index for each in found)

    def put(self, handle: int, replica: Replica) -> None:
        """Add or update a replica, unless its disk has failed meanwhile."""
        if replica.disk not in self._disks.used:
            return  # its disk failed meanwhile: the replica is gone
        old = self._replicas.get(handle)
        if old is None:
            self._disks.used[replica.disk].chunks += 1
        elif old.disk != replica.disk:
            self._disks.used[old.disk].chunks -= 1
            self._disks.used[replica.disk].chunks += 1
        self.bytes += replica.length - (old.length if old is not None else 0)
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        self._replicas[handle] = self._shared.setdefault(replica, replica)
        bad = self.bad.get(handle)
        if bad is not None and bad.version != replica.version:
            # An upload may restart on it. An order to delete has its new version.
            self.bad[handle] = BadReplica(handle, replica.version, bad.kind)

    def pack(self, handles: Iterable[int]) -> bytes:
        """The report records (see ReportReplicas) of those of ``handles`` that this server has."""
        found, stale = ((h, self._replicas.get(h)) for h in handles), self.possibly_stale
        return b"".join(
            [
                REPLICA_RECORD.pack(h, r.version, r.length | POSSIBLY_STALE_BIT * (h in stale))
                for h, r in found
                if r and h not in self.bad
            ]
        )

    def pack_gone(self, gone: dict[int, int]) -> bytes:
        """The report records of replicas that disappeared and did not come back."""
        return b"".join(
            REPLICA_RECORD.pack(handle, version, 0)
            for handle, version in gone.items()
            if handle not in self._replicas
        )

    def mark_bad(self, handle: int) -> None:
        """Record that this replica is damaged; heartbeats report it until it is replaced or
        deleted."""
        replica = self._replicas.get(handle)
        version = replica.version if replica else 0
        if handle not in self.bad:
            self.found_bad += 1
            log.error(
                "chunk %016x version %d is corrupt here",
                handle,
                version,
                extra=event("corruption_found", chunk=f"{handle:x}", version=version),
            )
        self.bad[handle] = BadReplica(handle, version, "corrupt")

    def check_fit(self, handle: int, possibly_stale: bool = False) -> None:
        """Refuse to build on a replica that is known to be unfit: one whose file was
        deleted while it was open would accept writes that no restart finds. A possibly
        stale one is fit only if ``possibly_stale``."""
        bad = self.bad.get(handle)
        if bad is not None:
            raise CorruptReplica(f"chunk {handle:016x}: the replica here is {bad.kind}")
        if not possibly_stale:
            self.check_not_stale(handle)

    def check_not_stale(self, handle: int) -> None:
        """Refuse to read, or to build on, a possibly stale replica."""
        if handle in self.possibly_stale:
            raise StaleVersion(f"chunk {handle:016x}: the replica here is possibly stale")

    def is_incomplete(self, handle: int) -> bool:
        """Whether the newest states of the replica could not be saved: it is good as
        long as it is open, but not when it is opened again. Only a replacement repairs
        it."""
        replica = self._replicas.get(handle)
        intent = None if replica is None else self._disks.used[replica.disk].intents.get(handle)
        return intent is not None and intent.is_incomplete

    def looks_wrong(self, disk: Disk, handles: list[int]) -> list[tuple[int, bool]]:
        """Blocks. Of these replicas those whose files do not exist (False) or are too short
        (True), by a ``stat``. Raises ``OSError``."""
        found, packed = [], []
        for handle in handles:
            replica = self._replicas.get(handle)
            if replica is None or replica.disk != disk.index:
                continue
            if handle in disk.packs:
                packed.append(handle)
                continue
            try:
                size = disk.files.file_size(disk.chunk_path(handle))
            except FileNotFoundError:
                found.append((handle, False))
            else:
                if replica.length and size < HEAD_BYTES + replica.length:
                    found.append((handle, True))
        try:
            return found + [(handle, True) for handle in disk.packs.cut_short(packed)]
        except OSError as error:
            # That the whole disk was emptied, or unmounted, says more than that a file is gone.
            reason = identity.check_disk(disk)
            if reason:
                raise OSError(errno.ENOTDIR, reason) from error
            raise

    def remove(self, handle: int) -> None:
        """Remove a replica that is no longer here."""
        replica = self._replicas.pop(handle, None)
        if replica is not None:
            self._disks.used[replica.disk].chunks -= 1
            self.bytes -= replica.length
        self.possibly_stale.pop(handle, None)


def log_mended(bad: BadReplica | None, how: str) -> None:
    """Log that a damaged replica was "replaced" by a good one, or "deleted" because the good
    ones are elsewhere."""
    if bad is not None and bad.kind == "corrupt":
        log.info(
            "chunk %016x: the damaged replica is %s",
            bad.handle,
            how,
            extra=event(
                "corruption_repaired", chunk=f"{bad.handle:x}", version=bad.version, how=how
            ),
        )
