"""Which replicas are moved now, so that disks fill evenly and all racks are used (the
paper, 4.3). The rules are in :mod:`gfs.master.rules.moves`; a move is a copy,
after which the collector deletes the replica at the old place.
"""

from __future__ import annotations

from gfs.blocks import packed_bytes, stored_bytes
from gfs.config import MasterSettings
from gfs.master.metadata import Store, Txn
from gfs.master.metadata.namespace import chunk_row
from gfs.master.metadata.rows import Chunk
from gfs.master.replicas.goals import Goals
from gfs.master.replicas.repair_planner import RepairPlanner
from gfs.master.rules import moves
from gfs.master.tables import LIVE, Clone, LeaseTable, ReplicaMap, ReservationTable, Server
from gfs.protocol.messages import CLONES_MAX, SMALL_REPLICA_BYTES_MAX

#: The greatest age of a server's report of its disks: it checks them every 0.75 s.
SPACE_AGE_SECONDS = 4.0
#: After so many chunks in a row that have no slot the others of a slice are not looked at: to
#: look takes longer than an order to move some hundred.
HELD_UP_MAX = 64
#: So many chunks are remembered as moved.
MOVED_MAX = 65_536


class Balancer:
    def __init__(
        self,
        settings: MasterSettings,
        store: Store,
        replica_map: ReplicaMap,
        goals: Goals,
        planner: RepairPlanner,
        reservations: ReservationTable,
        leases: LeaseTable,
    ) -> None:
        self._settings = settings
        self._store = store
        self._map = replica_map
        self._servers = replica_map.servers
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._goals = goals
        self._repair = goals.repair
        self._planner = planner
        self._reservations = reservations
        self._leases = leases
        #: The orders under way; and whether disks are being balanced.
        self.move_orders = 0
        self.balancing = False
        self._means: moves.Means | None = None
        #: Chunks that were moved since balancing began; the last ones of them.
        self._moved: dict[int, None] = {}

    @property
    def moves_total(self) -> int:
        """How many orders may run at once only for balance."""
        set_now = self._store.state.repair.moves_total
        return self._settings.moves_total if set_now < 0 else set_now

    def may_move(self) -> bool:
        """Whether replicas may be moved for balance now."""
        return (
            self._planner.may_copy
            and not self._repair.repairing
            and self.moves_total > 0
            and self._move_plan().is_possible
        )

    def _move_plan(self) -> moves.Plan:
        # Once begun, balancing continues until no server is above the mean.
        difference = 0.0 if self.balancing else self._settings.balance_share
        return moves.Plan(self._servers.placeable(self._map.now), difference, self._means)

    def begin_balancing(self) -> None:
        """Begin a pass over all chunks, with the mean disk use of the last moment in
        which nothing moved."""
        if not self.balancing:
            self._moved.clear()
        servers = [
            server for server in self._servers.placeable(self._map.now) if server.total_bytes
        ]
        if not any(server.transfers.shifts for server in servers):
            self._means = moves.means_of(servers)

    def plan_moves(self, handles: list[int]) -> tuple[list[list[Clone]], list[int]]:
        """The copies to start now for those of these chunks that should be moved,
        grouped by order; they count as started. And the chunks for which there is no
        slot now."""
        plan = self._move_plan()
        rest: list[int] = []
        orders: list[list[Clone]] = []
        open_orders: dict[moves.Move, list[Clone]] = {}
        now = self._map.now
        held_up = 0
        #: The holders of chunks for which there was no slot, nor an order to join. No slot
        #: becomes free here, so others with the same holders need not be looked at.
        stuck: set[tuple[int, ...]] = set()
        refused: set[int] = set()
        placeable = self._servers.placeable(now)
        packed_max = min([server.particulars.packed_bytes_max for server in placeable], default=0)
        with self._store.read() as txn:
            for at, handle in enumerate(handles):
                if held_up >= HELD_UP_MAX:
                    return orders, handles[at:] + rest  # next time the others first
                held = self._locations.get(handle)
                if held in stuck and not open_orders:
                    rest.append(handle)
                    held_up += 1
                    continue
                row = self._movable(txn, handle)
                if row is None:
                    continue
                is_packed = 0 < row.length <= packed_max
                size = packed_bytes(row.length) if is_packed else stored_bytes(row.length)
                is_small = row.length <= SMALL_REPLICA_BYTES_MAX

                def can_begin(
                    move: moves.Move, handle: int = handle, is_small: bool = is_small
                ) -> bool:
                    if self._garbage.was_ordered(move.target.index, handle, now):
                        refused.add(handle)
                        return False
                    return (is_small and move in open_orders) or self._has_move_slot(move)

                holders = [self._servers.get(index) for index in held]
                move = plan.move(holders, size, can_begin, handle in self._moved)
                if move is None:
                    if plan.was_held_up:
                        rest.append(handle)
                        held_up += 1
                        if handle not in refused:
                            stuck.add(held)
                    continue
                held_up = 0
                victim, target = move
                clone = Clone(handle, row.version, target, (victim,), length=row.length, moves=True)
                order = open_orders.get(move, []) if is_small else []
                if order:
                    order.append(clone._replace(joined=True))
                    if len(order) == CLONES_MAX:
                        del open_orders[move]
                else:
                    order = [clone]
                    orders.append(order)
                    self.move_orders += 1
                    if is_small:
                        open_orders[move] = order
                plan.begin(move, size)
                self._note_moved(handle)
                self._goals.moves[handle] = victim.index
                self._repair.started(order[-1])
                target.transfers.begin(handle, size)
                victim.transfers.begin(handle, -size)
        return orders, rest

    def _note_moved(self, handle: int) -> None:
        self._moved[handle] = None
        if len(self._moved) > MOVED_MAX:
            del self._moved[next(iter(self._moved))]

    def _has_move_slot(self, move: moves.Move) -> bool:
        per_server = self._planner.limits.per_server
        return (
            self.move_orders < self.moves_total
            and move.victim.transfers.clones_out < per_server
            and move.target.transfers.clones_in < per_server
        )

    def _movable(self, txn: Txn, handle: int) -> Chunk | None:
        """The chunk's row, if a replica of it may be moved now."""
        busy = (
            self._reservations.publishing,
            self._goals.moves,
            self._goals.surplus,
            self._repair.active,
        )
        if any(handle in each for each in busy) or self._map.is_raising(handle):
            return None
        if self._repair.is_known(handle) or self._repair.rests(handle, self._map.now):
            return None
        holders = self._locations.get(handle)
        servers = [self._servers.get(index) for index in holders]
        if any(s.state != LIVE or not s.registration.is_complete or s.draining for s in servers):
            return None  # the locations will change soon
        row, now = chunk_row(txn, handle), self._map.now
        if row is None or len(holders) < row.replication:
            return None
        if self._leases.current(handle, now) is not None or self._leases.may_be_leased(
            handle, row.attempted, now
        ):
            return None
        return row

    def end_shifts(self, server: Server) -> None:
        """After a heartbeat: drop the moves to and from the server that ended before
        its last report of its disks."""
        now = self._map.now
        for handle, shift in list(server.transfers.shifts.items()):
            if shift.ended_at is not None and now < shift.ended_at + SPACE_AGE_SECONDS:
                continue  # there may be many of these
            if self._is_shifting(server, handle, now):
                server.transfers.set_ended(handle, None)
            elif shift.ended_at is None:
                server.transfers.set_ended(handle, now)
            else:
                server.transfers.end(handle)

    def _is_shifting(self, server: Server, handle: int, now: float) -> bool:
        return (
            handle in self._goals.moves
            or handle in self._repair.active
            or self._garbage.at(server.index, handle) is not None
            or self._garbage.was_ordered(server.index, handle, now)
        )

    def order_ended(self, order: list[Clone]) -> None:
        """Note that the copies of an order were made, or failed."""
        self.move_orders -= order[0].moves
