"""What chunkservers report of their replicas and disks, and what a verified replica is.

A report is compared with the rows: the replica is good, stale, of a version that only was
attempted, damaged, possibly stale, or of no chunk. See :mod:`gfs.master.replicas.locations`
for the table of cases.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from gfs.diagnostics import event
from gfs.errors import GfsError, ProtocolError
from gfs.master.metadata.committer import Committer, Outcome
from gfs.master.metadata.namespace import Planned, chunk_row, plan_confirm_version
from gfs.master.metadata.operations import CorruptionFound
from gfs.master.metadata.rows import pack_u64, unpack_chunk
from gfs.master.metadata.store import Store, Txn
from gfs.master.replicas.garbage import CORRUPT, FORGETFUL, STALE
from gfs.master.replicas.goals import Goals
from gfs.master.replicas.locations import ReservationTable
from gfs.master.replicas.replica_map import ReplicaMap
from gfs.master.replicas.servers import Server
from gfs.protocol.messages import (
    POSSIBLY_STALE,
    POSSIBLY_STALE_BIT,
    REPLICA_RECORD,
    BadReplica,
    Done,
    VerifyReply,
)

log = logging.getLogger(__name__)


def reported_replicas(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Raises ProtocolError."""
    if len(body) % REPLICA_RECORD.size:
        raise ProtocolError(f"a replica report of {len(body)} bytes is no whole number of entries")
    return REPLICA_RECORD.iter_unpack(body)


class Reports:
    def __init__(
        self,
        store: Store,
        committer: Committer,
        replica_map: ReplicaMap,
        goals: Goals,
        reservations: ReservationTable,
    ) -> None:
        self._store = store
        self._committer = committer
        self._map = replica_map
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._goals = goals
        self._repair = goals.repair
        self._reservations = reservations
        #: Servers with replicas of chunks that were never handed out.
        self._strange: set[int] = set()

    def take_report(self, server: Server, body: bytes) -> None:
        """Compare reported replicas with what they should be; see
        :mod:`gfs.master.replicas.locations`."""
        now = self._map.now
        index, suspects = server.index, self._map.suspects
        holders = self._locations.get
        reported = server.reported
        with self._store.read() as txn:
            get, chunks = txn.get, txn.db.chunks
            for handle, version, length in reported_replicas(body):
                if reported is not None:
                    reported.add(handle)
                row = get(pack_u64(handle), None, chunks)
                if row is None:
                    self._unknown(server, handle, version, length & ~POSSIBLY_STALE_BIT)
                    continue
                current, _, length_min, _, goal = unpack_chunk(row)
                if length & POSSIBLY_STALE_BIT:
                    # A server that was restarted does not know any more what it had found damaged.
                    is_new = reported is not None
                    self._possibly_stale(server, handle, version, current, goal, is_new)
                elif version == current:
                    if length < length_min:
                        self._map.suspect(server, handle)
                        continue
                    if suspects.unverified and (index, handle) in suspects.unverified:
                        suspects.unverified.discard((index, handle))
                        self._goals.to_evaluate[handle] = None
                    if index not in holders(handle):
                        self._good(server, handle, version, goal, now)
                elif version < current:
                    self._behind(server, handle, version, current, goal, now)
                else:
                    self._ahead_of_us(server, handle, version, current)

    def _unknown(self, server: Server, handle: int, version: int, length: int) -> None:
        now = self._map.now
        if handle >= self._reservations.next_handle:
            if server.index not in self._strange:
                self._strange.add(server.index)
                log.warning(
                    "chunkserver %s holds chunks that this master never allocated (%x): they are "
                    "not deleted",
                    server.id,
                    handle,
                )
            return
        reservation = self._reservations.get(handle)
        if reservation is not None and (
            server.index in reservation.servers or version >= reservation.version
        ):
            return
        if not self._garbage.is_ordered(server.index, handle, version, now):
            self._garbage.orphan(server.index, handle, version, now, length)

    def _good(self, server: Server, handle: int, version: int, goal: int, now: float) -> None:
        """A whole replica of the current version that was not known yet."""
        known = self._garbage.at(server.index, handle)
        if known is not None:
            if known.version == version and known.kind not in (STALE, FORGETFUL):
                return  # found corrupt, or one too many: it is to go
            self._garbage.drop(server.index, handle)
        elif self._garbage.is_ordered(server.index, handle, version, now):
            return
        self._goals.add_location(server, handle, version, goal)

    def _behind(
        self, server: Server, handle: int, version: int, current: int, goal: int, now: float
    ) -> None:
        if handle in self._map.raising:
            return
        if server.index in self._locations.get(handle):
            # Also if it was verified a moment ago: until a later report contradicts this
            # one, nothing else is deleted on the strength of this replica.
            self._map.suspects.unverified.add((server.index, handle))
            self._map.suspect(server, handle)
        elif not self._garbage.is_ordered(server.index, handle, version, now):
            self._garbage.hold(server.index, handle, version, STALE, now)
            self._goals.evaluate(handle, current, goal)

    def _possibly_stale(
        self, server: Server, handle: int, version: int, current: int, goal: int, is_whole: bool
    ) -> None:
        """It may lack something, so it is no location; nor does its version mean anything
        if it is above ours: what others have is all that was ever acknowledged.

        One that was found damaged stays so, unless ``is_whole``, as far as its server
        knows: an election reads it first."""
        now = self._map.now
        self._locations.remove(handle, server.index)
        known = self._garbage.at(server.index, handle)
        was_damaged = known is not None and (known.version, known.kind) == (version, CORRUPT)
        if was_damaged and not is_whole:
            self._garbage.hold(server.index, handle, version, CORRUPT, now, forgot=True)
            self._goals.evaluate(handle, current, goal)
            return
        if not self._garbage.is_ordered(server.index, handle, version, now):
            kind = STALE if version < current else FORGETFUL
            self._garbage.hold(server.index, handle, version, kind, now)
        self._goals.evaluate(handle, current, goal)

    def _ahead_of_us(self, server: Server, handle: int, version: int, current: int) -> None:
        """The master failed while it granted this version: take it, durably."""
        if handle in self._map.raising:
            return
        known = self._map.ahead.get(handle)
        if known is not None and known[0] >= version:
            if known[0] == version:
                known[1].add(server.index)
            return
        log.info(
            "chunk %x: chunkserver %s reported version %d, above the master's: it is confirmed",
            handle,
            server.id,
            version,
        )
        self._map.ahead[handle] = (version, {server.index})
        self._committer.submit(
            "",
            0,
            partial(plan_confirm_version, handle=handle, version=version),
            partial(self._taken_ahead, handle, version, current),
        )

    def _taken_ahead(self, handle: int, version: int, before: int, outcome: Outcome) -> None:
        known = self._map.ahead.get(handle)
        if known is None or known[0] != version:
            return
        del self._map.ahead[handle]
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if isinstance(outcome, GfsError) or row is None or row.version != version:
            return
        self._goals.set_locations(handle, version, known[1], before)

    def take_bad(self, server: Server, bad: list[BadReplica]) -> None:
        """What a chunkserver found out about its own replicas."""
        for replica in bad:
            with self._store.read() as txn:
                row = chunk_row(txn, replica.handle)
            if row is None:
                self._unknown(server, replica.handle, replica.version, 0)
            elif 0 < replica.version < row.version:
                self._behind(
                    server,
                    replica.handle,
                    replica.version,
                    row.version,
                    row.replication,
                    self._map.now,
                )
            else:  # version 0: not even its head can be read, nothing is known of it
                self.corrupt(server, replica.handle, replica.version)

    def take_gone(self, server: Server, body: bytes) -> None:
        """These replicas are not there any more: a disk has failed, or files were deleted."""
        index, count = server.index, 0
        for handle, version, _ in reported_replicas(body):
            if server.reported is not None:
                server.reported.discard(handle)
            self._reservations.lost(handle, index)
            if handle in self._map.raising:
                # It may be about to be given a new version there: see set_locations.
                self._map.raising[handle].add(index)
            known = self._garbage.at(index, handle)
            if known is not None and known.version <= version:
                self._garbage.drop(index, handle)
            count += self._goals.drop_location(server, handle)
        if count:
            log.warning(
                "chunkserver %s lost %d replicas: they are re-replicated",
                server.id,
                count,
                extra=event("replicas_lost", server=server.id, replicas=count),
            )

    def corrupt(self, server: Server, handle: int, version: int) -> None:
        """A replica's bytes fail their checksum, for sure."""
        known = self._garbage.at(server.index, handle)
        if known is not None and known.kind == CORRUPT and known.version == version:
            return
        if self._garbage.is_ordered(server.index, handle, version, self._map.now):
            return
        log.warning(
            "corrupt replica: chunk %x version %d on chunkserver %s",
            handle,
            version,
            server.id,
            extra=event("corruption_found", server=server.id, chunk=f"{handle:x}", version=version),
        )
        count = partial(_count_corruption, handle=handle, version=version)
        self._committer.submit("", 0, count, _ignore)
        forgot = known is not None and (known.kind == FORGETFUL or known.forgot)
        self._garbage.hold(server.index, handle, version, CORRUPT, self._map.now, forgot)
        self._locations.remove(handle, server.index)
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is not None:
            self._goals.evaluate(handle, row.version, row.replication)

    def reported_bad(self, server: Server, handle: int) -> None:
        """A reader failed at this replica."""
        if self._map.suspect(server, handle, blocks=True):
            self._repair.block(handle)

    def verified(
        self, server: Server, handle: int, reply: VerifyReply, blocks: bool, length_min: int
    ) -> None:
        """The truth about a suspect; about all of its bytes if ``blocks``. It was to
        hold ``length_min`` when it was asked."""
        now = self._map.now
        self._map.suspects.verified((server.index, handle), now)
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            there = reply.state in ("good", "stale")
            self._reservations.resolve(handle, server.index, reply.version if there else None)
        if row is None or handle in self._map.raising:
            self._repair.unblock(handle)
        elif reply.state == "missing":
            self._garbage.drop(server.index, handle)
            self._goals.drop_location(server, handle)
        elif reply.state == "corrupt" and not reply.version:
            self.corrupt(server, handle, row.version)  # not even its head can be read
        elif reply.state == POSSIBLY_STALE:
            self._possibly_stale(
                server, handle, reply.version, row.version, row.replication, blocks
            )
        elif reply.version < row.version:
            self._garbage.hold(server.index, handle, reply.version, STALE, now)
            self._locations.remove(handle, server.index)
            self._goals.evaluate(handle, row.version, row.replication)
        elif reply.version > row.version and reply.state == "good":
            self._ahead_of_us(server, handle, reply.version, row.version)
        elif reply.state == "corrupt" or reply.length < length_min:
            self.corrupt(server, handle, reply.version)
        else:
            known = self._garbage.at(server.index, handle)
            if known is not None and known.kind == CORRUPT and blocks:
                self._garbage.drop(server.index, handle)
            if server.index in self._locations.get(handle):
                self._repair.unblock(handle)
                if handle in self._garbage.replicas:
                    self._goals.to_evaluate[handle] = (
                        None  # others may have been kept for want of it
                    )
                return
            self._good(server, handle, reply.version, row.replication, now)


def _count_corruption(txn: Txn, handle: int, version: int) -> Planned:
    return CorruptionFound(handle, version), Done(id=0)


def _ignore(_: Outcome) -> None:
    pass
