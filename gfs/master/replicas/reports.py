"""What chunkservers report of their replicas, and the results of verifications.

A report is compared with the rows: the replica is good, stale, of an attempted version,
corrupt, possibly stale, or of no chunk. See :mod:`gfs.master.tables.locations` for the
table of cases.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from gfs.diagnostics import event
from gfs.errors import GfsError, ProtocolError
from gfs.master.metadata import Committer, Outcome, Store, Txn
from gfs.master.metadata.namespace import Planned, chunk_row, plan_confirm_version
from gfs.master.metadata.operations import CorruptionFound
from gfs.master.metadata.rows import pack_u64, unpack_chunk
from gfs.master.replicas.goals import Goals
from gfs.master.tables import CORRUPT, FORGETFUL, STALE, ReplicaMap, ReservationTable, Server
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
        raise ProtocolError(f"a replica report of {len(body)} bytes: not a whole number of entries")
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
        #: Servers with replicas of chunks whose handles were never allocated.
        self._strange: set[int] = set()

    def take_report(self, server: Server, body: bytes) -> None:
        """Compare reported replicas with the rows; see
        :mod:`gfs.master.tables.locations`."""
        now = self._map.now
        index, suspects = server.index, self._map.suspects
        holders = self._locations.get
        reported = server.registration.reported
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
                    # A restarted server does not know any more which replicas it had found corrupt.
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
        if handle < self._store.state.kept_below:
            return  # of a file, perhaps, that was made after the restored backup
        if not self._garbage.is_ordered(server.index, handle, version, now):
            self._garbage.orphan(server.index, handle, version, now, length)

    def _good(self, server: Server, handle: int, version: int, goal: int, now: float) -> None:
        """Take a good replica that was not known yet."""
        known = self._garbage.at(server.index, handle)
        if known is not None:
            if known.version == version and known.kind not in (STALE, FORGETFUL):
                return  # found corrupt, or one too many: it will be deleted
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
            # Also if it was verified a moment ago: until a later report contradicts
            # this one, no other replica is deleted because of this one.
            self._map.suspects.unverified.add((server.index, handle))
            self._map.suspect(server, handle)
        elif not self._garbage.is_ordered(server.index, handle, version, now):
            self._garbage.hold(server.index, handle, version, STALE, now)
            self._goals.evaluate(handle, current, goal)

    def _possibly_stale(
        self, server: Server, handle: int, version: int, current: int, goal: int, is_whole: bool
    ) -> None:
        """Take a possibly stale replica, which is not a location. If its version is
        above ours, that is not taken: the other replicas have everything that was
        acknowledged.

        One that was found corrupt remains corrupt, unless its server knows that it
        ``is_whole``: an election has it read first."""
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
        """Confirm a version that an earlier master attempted before it failed, durably."""
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
        """Take a chunkserver's findings about its own replicas."""
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
            else:  # version 0: not even its head can be read, so nothing is known of it
                self.corrupt(server, replica.handle, replica.version)

    def take_gone(self, server: Server, body: bytes) -> None:
        """Take a report of missing replicas: their disk has failed, or files were deleted."""
        index, count = server.index, 0
        for handle, version, _ in reported_replicas(body):
            if server.registration.reported is not None:
                server.registration.reported.discard(handle)
            self._reservations.lost(handle, index)
            if handle in self._map.raising:
                # A grant may be raising it there right now: see set_locations.
                self._map.raising[handle].add(index)
            self._repair.note_gone(handle, index)
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
        """Record a corrupt replica."""
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

    def verified(
        self, server: Server, handle: int, reply: VerifyReply, blocks: bool, length_min: int
    ) -> None:
        """Take the result of a verification, of all bytes if ``blocks``. The replica
        had to have ``length_min`` bytes when it was requested."""
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
                        None  # garbage may have been kept because this replica was missing
                    )
                return
            self._good(server, handle, reply.version, row.replication, now)


def _count_corruption(txn: Txn, handle: int, version: int) -> Planned:
    return CorruptionFound(handle, version), Done(id=0)


def _ignore(_: Outcome) -> None:
    pass
