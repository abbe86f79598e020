"""Which replicas are deleted, and when: the paper, section 4.4.

Replicas to be deleted are in :mod:`gfs.master.tables.garbage`. Each order is checked
against the present state once more before it is sent.
"""

from __future__ import annotations

import logging
from itertools import islice

from gfs.diagnostics import event
from gfs.master.metadata import Freed, Store, Txn
from gfs.master.metadata.namespace import chunk_row
from gfs.master.replicas.goals import Goals
from gfs.master.rules.source_and_target import pick_surplus
from gfs.master.tables import CORRUPT, FORGETFUL, LeaseTable, ReplicaMap, ReservationTable, Server
from gfs.protocol.messages import ReplicaName

log = logging.getLogger(__name__)

#: Chunks with too many replicas that are evaluated in one round.
SURPLUS_ROUND = 1_000


class GarbageCollector:
    def __init__(
        self,
        store: Store,
        replica_map: ReplicaMap,
        goals: Goals,
        reservations: ReservationTable,
        leases: LeaseTable,
    ) -> None:
        self._store = store
        self._map = replica_map
        self._servers = replica_map.servers
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._goals = goals
        self._repair = goals.repair
        self._salvage = goals.salvage
        self._reservations = reservations
        self._leases = leases

    def chunks_freed(self, freed: list[Freed]) -> None:
        """Collect chunks that no file has any more, which is durable."""
        now = self._map.now
        for handle, version, length in freed:
            self._garbage.schedule(handle, now)
            for index in self._locations.pop(handle):
                self._map.suspects.unverified.discard((index, handle))
                self._garbage.give_up(index, handle, version, now, length)
            self._repair.forget(handle)
            self._leases.drop(handle)
            self._goals.surplus.pop(handle, None)
            self._goals.moves.pop(handle, None)
            self._goals.possibly_stale.pop(handle, None)
            self._salvage.forget(handle)

    def give_up_reservation(self, handle: int, *, at_once: bool) -> None:
        """Collect the replicas of an upload that ended without a file, after the grace
        if its client might still come back."""
        reservation = self._reservations.pop(handle)
        if reservation is None or handle < self._store.state.kept_below:
            return  # of a file, perhaps, that was published after the restored backup
        now = self._map.now
        if at_once:
            self._garbage.schedule(handle, now)
        for index in reservation.servers:
            if at_once:
                self._garbage.give_up(index, handle, reservation.version, now)
            else:
                self._garbage.orphan(index, handle, reservation.version, now)

    def trim_surplus(self) -> None:
        """Schedule replicas beyond the goal for deletion, once enough are confirmed."""
        if self._map.in_safe_mode:
            return
        now = self._map.now
        with self._store.read() as txn:
            for handle in list(islice(self._goals.surplus, SURPLUS_ROUND)):
                row = chunk_row(txn, handle)
                holders = self._locations.get(handle)
                if row is None or len(holders) <= row.replication:
                    del self._goals.surplus[handle]
                    self._goals.moves.pop(handle, None)
                    continue
                # Chunks that cannot be decided now are evaluated again after the others.
                del self._goals.surplus[handle]
                self._goals.surplus[handle] = None
                confirmed = self._map.confirmed(handle, row.version)
                if len(confirmed) <= row.replication or self._map.is_raising(handle):
                    continue
                if self._leases.current(handle, now) is not None:
                    continue
                moved = self._goals.moves.pop(handle, None)
                victim = pick_surplus(confirmed, moved)
                if victim.index == moved:
                    log.info(
                        "chunk %x was moved away from chunkserver %s",
                        handle,
                        victim.id,
                        extra=event("replica_moved", server=victim.id, chunk=f"{handle:x}"),
                    )
                self._locations.remove(handle, victim.index)
                self._garbage.give_up(victim.index, handle, row.version, now, row.length)

    def to_collect(self) -> list[Server]:
        """Servers that may have replicas to delete."""
        if self._map.in_safe_mode:
            return []
        now = self._map.now
        return [s for s in self._servers.all() if self._garbage.has_due(s.index, now)]

    def deletion_orders(self, server: Server) -> list[ReplicaName]:
        """The replicas that ``server`` must delete, checked against the present state once more."""
        if self._map.in_safe_mode or not server.registration.is_complete:
            return []
        with self._store.read() as txn:

            def refused(handle: int, version: int) -> bool:
                if self._is_wanted(txn, server, handle, version):
                    return True
                known = self._garbage.at(server.index, handle)
                if known is not None and known.kind == CORRUPT:
                    log_repaired(server, handle, version, "deleted")
                return False

            orders = self._garbage.orders(server.index, self._map.now, refused)
        return [ReplicaName(handle, version) for handle, version in orders]

    def _is_wanted(self, txn: Txn, server: Server, handle: int, version: int) -> bool:
        if self._map.is_raising(handle) or handle in self._reservations.publishing:
            return True
        clone = self._repair.active.get(handle)
        if clone is not None and clone.target is server:
            return True
        reservation = self._reservations.get(handle)
        if reservation is not None:
            return server.index in reservation.servers or version >= reservation.version
        row = chunk_row(txn, handle)
        if row is None:
            return False
        holders = self._locations.get(handle)
        if version == row.version and server.index in holders:
            return True
        known = self._garbage.at(server.index, handle)
        if version > row.version and (known is None or known.kind not in (CORRUPT, FORGETFUL)):
            return True  # while one of these, of a version that was only attempted, is useless
        return not self._map.are_enough(handle, row.version, row.replication)


def log_repaired(server: Server, handle: int, version: int, how: str) -> None:
    """Log that a corrupt replica is "replaced" by a good one, or "deleted" because
    there are enough others."""
    log.info(
        "the corrupt replica of chunk %x version %d on chunkserver %s is %s",
        handle,
        version,
        server.id,
        how,
        extra=event(
            "corruption_repaired",
            server=server.id,
            chunk=f"{handle:x}",
            version=version,
            how=how,
        ),
    )
