"""Which copies are made now: re-replication and salvage, within their limits.

The chunks below their goals are in the queues of :class:`~.goals.Goals`; the source and
target of a copy are chosen by :mod:`gfs.master.rules`. This class applies both to
chunks that may be copied: not while their versions are raised, nor under a lease.
"""

from __future__ import annotations

import logging
import random

from gfs.config import MasterSettings
from gfs.diagnostics import event
from gfs.errors import CorruptReplica, DiskFailed
from gfs.master.metadata import Store
from gfs.master.metadata.namespace import chunk_row
from gfs.master.metadata.rows import Chunk
from gfs.master.replicas.garbage_collector import log_repaired
from gfs.master.replicas.goals import Goals
from gfs.master.rules.salvage import plan_salvage
from gfs.master.rules.source_and_target import Limits, free_slots, join, plan_clone
from gfs.master.tables import CORRUPT, LIVE, STALE, Clone, Danger, LeaseTable, ReplicaMap, Server
from gfs.protocol.messages import CLONES_MAX, SMALL_REPLICA_BYTES_MAX

log = logging.getLogger(__name__)


class RepairPlanner:
    def __init__(
        self,
        rng: random.Random,
        settings: MasterSettings,
        store: Store,
        replica_map: ReplicaMap,
        goals: Goals,
        leases: LeaseTable,
    ) -> None:
        self._rng = rng
        self._settings = settings
        self._store = store
        self._map = replica_map
        self._servers = replica_map.servers
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._goals = goals
        self._repair = goals.repair
        self._salvage = goals.salvage
        self._leases = leases

    @property
    def limits(self) -> Limits:
        """The present limits of copy orders."""
        set_now, settings = self._store.state.repair, self._settings
        per_server, total = set_now.clones_per_server, set_now.clones_total
        return Limits(
            settings.clones_per_server if per_server < 0 else per_server,
            settings.clones_total if total < 0 else total,
        )

    @property
    def may_copy(self) -> bool:
        return not self._map.in_safe_mode and not self._store.state.repair.paused

    def plan_clones(self) -> list[list[Clone]]:
        """The copies to start now, grouped by order. They count as started."""
        if not self.may_copy:
            return []
        now = self._map.now
        placeable = self._servers.placeable(now)
        servers = self._servers.all()
        silent = len(servers) - len(placeable)
        started: list[list[Clone]] = []
        #: The orders that small chunks may join.
        open_orders: list[list[Clone]] = []
        limits, spared = self.limits, self._servers.spared
        slots = free_slots(servers, placeable, limits)
        can_pair = slots.can_pair

        def is_possible(danger: Danger) -> bool:
            return len(placeable) > danger.have - silent and danger.is_due(spared)

        for handle in self._repair.due(now, is_possible):
            is_room = can_pair and self._repair.orders < limits.total
            if not is_room and not open_orders:
                break
            if open_orders and self._join(handle, open_orders, placeable, now):
                open_orders = [order for order in open_orders if len(order) < CLONES_MAX]
                continue
            if not is_room or not slots.may_fit(self._locations.get(handle)):
                continue  # any slot that becomes free may be for it, so it is not put off
            clone = self._plan_clone(handle, placeable, now, limits)
            if clone is None:
                self._repair.defer(handle, now)
                continue
            self._repair.started(clone)
            started.append([clone])
            if self._is_small(handle, clone.length):
                open_orders.append(started[-1])
            slots = free_slots(servers, placeable, limits)
            can_pair = slots.can_pair
        return started

    def _is_small(self, handle: int, length: int) -> bool:
        """Whether it may be copied with others; after a failure it is copied by itself."""
        return length <= SMALL_REPLICA_BYTES_MAX and not self._repair.failed_at(handle)

    def _join(
        self, handle: int, orders: list[list[Clone]], placeable: list[Server], now: float
    ) -> bool:
        """Add the chunk to an order with others, if that is possible now."""
        held = self._locations.get(handle)
        # First: no order fits most of the chunks that are looked at, and this costs least.
        orders = [
            order
            for order in orders
            if order[0].sources[0].index in held and order[0].target.index not in held
        ]
        if not orders:
            return False
        if self._map.is_raising(handle) or self._leases.current(handle, now) is not None:
            return False
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None or self._leases.may_be_leased(handle, row.attempted, now):
            return False
        if not self._is_small(handle, row.length):
            return False
        holders = [self._servers.get(index) for index in held]

        def refused(server: Server) -> bool:
            return self._garbage.was_ordered(server.index, handle, now)

        joined = join(handle, row.version, row.length, holders, orders, placeable, refused)
        if joined is None:
            return False
        self._repair.started(joined)
        return True

    def plan_released(self, handle: int) -> Clone | None:
        """The copy for which this chunk's lease was revoked, if it can start now,
        before its writer gets the next lease. It counts as started.

        Its slots may have been used meanwhile: then it gets an additional one, since
        otherwise its writer would be held up again and again without a copy."""
        queue = self._repair
        is_full = queue.orders >= self.limits.total
        if not self.may_copy or is_full or handle in queue.active or not queue.is_queued(handle):
            return None
        limits = self.limits._replace(per_server=self.limits.per_server + 1)
        clone = self._plan_clone(
            handle,
            self._servers.placeable(self._map.now),
            self._map.now,
            limits,
        )
        if clone is not None:
            queue.started(clone)
        return clone

    def _plan_clone(
        self, handle: int, placeable: list[Server], now: float, limits: Limits
    ) -> Clone | None:
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            self._repair.forget(handle)
            return None
        if self._map.is_raising(handle):
            return None
        if self._leases.current(handle, now) is not None:
            self._leases.to_revoke[handle] = None
            return None
        if self._leases.may_be_leased(handle, row.attempted, now):
            return None
        holders = [self._servers.get(index) for index in self._locations.get(handle)]

        def refused(server: Server) -> bool:
            return self._garbage.was_ordered(server.index, handle, now)

        clone = plan_clone(
            handle,
            row.version,
            holders,
            placeable,
            refused,
            self._repair.failed_at(handle),
            limits,
            self._rng,
        )
        return None if clone is None else clone._replace(length=row.length)

    def plan_salvages(self, *, repeated: bool) -> list[Clone]:
        """The chunks to salvage now, either those whose salvage has failed before or
        the others. They count as started."""
        started: list[Clone] = []
        if not self.may_copy or not self._salvage.handles:
            return started
        now = self._map.now
        placeable = self._servers.placeable(now)
        with self._store.read() as txn:
            for handle in self._salvage.round():
                if self._repair.orders >= self.limits.total:
                    break
                row = chunk_row(txn, handle)
                clone = self._plan_salvage(row, handle, placeable, now, repeated)
                if clone is not None:
                    self._repair.started(clone)
                    started.append(clone)
        return started

    def _plan_salvage(
        self, row: Chunk | None, handle: int, placeable: list[Server], now: float, repeated: bool
    ) -> Clone | None:
        damaged = [] if row is None else self._map.damaged_holders(handle, row.version)
        if row is None or not damaged or self._locations.get(handle):
            self._salvage.forget(handle)
            return None
        sources = self._remains(handle)
        servers = frozenset(server.index for server in sources)
        if self._salvage.is_repeated(handle, servers) != repeated:
            return None
        if handle in self._repair.active or not self._salvage.is_due(handle, servers, now):
            return None
        if self._map.is_raising(handle) or self._leases.may_be_leased(handle, row.attempted, now):
            return None
        if self._leases.current(handle, now) is not None:
            self._leases.to_revoke[handle] = None
            return None
        targets = [s for s in placeable if not self._garbage.was_ordered(s.index, handle, now)]
        return plan_salvage(handle, row, sources, targets, self.limits, self._rng)

    def _remains(self, handle: int) -> list[Server]:
        """Servers with a corrupt or stale replica, single blocks of which may be useful."""
        of_chunk = self._garbage.replicas.get(handle, {})
        kinds = (CORRUPT, STALE)
        found = [self._servers.get(i) for i, known in of_chunk.items() if known.kind in kinds]
        return [
            server for server in found if server.state == LIVE and server.registration.is_complete
        ]

    def _salvage_ended(self, clone: Clone, error: Exception | None) -> None:
        if error is None:
            self._salvage.forget(clone.handle)
        elif clone.handle in self._salvage.handles:
            servers = frozenset(server.index for server in clone.sources)
            is_hopeless = isinstance(error, CorruptReplica)
            if is_hopeless and not self._salvage.is_hopeless(clone.handle):
                log.error(
                    "chunk %x is lost: no good replica is left, and none can be salvaged: %s",
                    clone.handle,
                    error,
                )
            self._salvage.failed(clone.handle, servers, self._map.now, is_hopeless)

    def order_ended(self, order: list[Clone], failed: dict[int, Exception]) -> None:
        """Note that the copies of an order were made, except those that failed. One that is gone
        again counts as failed: if it is there all the same, its server reports it."""
        for clone in order:
            if clone.handle in self._repair.gone and clone.handle not in failed:
                failed[clone.handle] = DiskFailed(f"chunk {clone.handle:x} is gone from its disk")
        for clone in order:
            self._clone_ended(clone, failed.get(clone.handle))
        copied = [clone for clone in order if clone.handle not in failed]
        if copied:
            self._repair.rate.add(self._map.now, len(copied), sum(clone.length for clone in copied))
            log.info(
                "%d replicas copied to chunkserver %s: chunk %x version %d%s",
                len(copied),
                copied[0].target.id,
                copied[0].handle,
                copied[0].version,
                " and others" * (len(copied) > 1),
                extra=event(
                    "replica_copied",
                    server=copied[0].target.id,
                    chunk=f"{copied[0].handle:x}",
                    version=copied[0].version,
                    replicas=len(copied),
                ),
            )

    def _clone_ended(self, clone: Clone, error: Exception | None) -> None:
        now = self._map.now
        self._repair.ended(clone, now, failed=error is not None)
        if clone.salvage:
            self._salvage_ended(clone, error)
        with self._store.read() as txn:
            row = chunk_row(txn, clone.handle)
        if error is not None:
            log.info(
                "copying chunk %x to chunkserver %s failed: %s",
                clone.handle,
                clone.target.id,
                error,
                extra=event("copy_failed", server=clone.target.id, chunk=f"{clone.handle:x}"),
            )
        elif row is not None and row.version == clone.version and clone.target.rpc is not None:
            known = self._garbage.at(clone.target.index, clone.handle)
            if known is not None and known.kind == CORRUPT:
                log_repaired(clone.target, clone.handle, known.version, "replaced")
            self._garbage.drop(clone.target.index, clone.handle)
            self._goals.add_location(clone.target, clone.handle, clone.version, row.replication)
        elif row is None:
            self._garbage.give_up(clone.target.index, clone.handle, clone.version, now)
        else:
            self._garbage.hold(clone.target.index, clone.handle, clone.version, STALE, now)
        if row is not None:
            self._goals.evaluate(clone.handle, row.version, row.replication)
