"""Looks at all chunks, now and then, for replicas that would be better elsewhere."""

from __future__ import annotations

from functools import partial

import trio

from gfs.master.master import Master
from gfs.master.replicas import SLICE
from gfs.master.upkeep.copies import Copies
from gfs.master.upkeep.passes import guarded

#: How long the rescan pauses between slices.
RESCAN_REST_SECONDS = 0.05
#: The pause between two passes for rebalancing: after one that moved replicas, and
#: after one that moved none.
REBALANCE_SECONDS = 1.0
REBALANCE_IDLE_SECONDS = 15.0
#: So long a pass waits for an order to end before it tries again: slots also become free by
#: servers that come.
SLOT_SECONDS = 1.0


class Balancing:
    def __init__(self, master: Master, copies: Copies) -> None:
        self._master = master
        self._copies = copies

    async def run(self) -> None:
        master, rest = self._master, REBALANCE_SECONDS
        while True:
            await master.world.clock.sleep(rest)
            if guarded(master.balancer.may_move, False):
                master.balancer.balancing = await self._rebalance()
            else:
                master.balancer.balancing = master.balancer.balancing and self._is_moving()
            rest = REBALANCE_SECONDS if master.balancer.balancing else REBALANCE_IDLE_SECONDS

    async def _rebalance(self) -> bool:
        """Make a pass over all chunks, and move those that should be elsewhere; whether
        any was moved."""
        master = self._master
        has_moved = False
        guarded(master.balancer.begin_balancing, None)
        for todo in master.replica_map.locations.slices(SLICE):
            while len(todo) and guarded(master.balancer.may_move, False):
                planned = guarded(partial(master.balancer.plan_moves, todo), None)
                if planned is None:
                    break
                orders, todo = planned
                for order in orders:
                    has_moved = True
                    self._copies.start(order)
                if todo:
                    with trio.move_on_after(SLOT_SECONDS):
                        await self._copies.order_ended.wait()
            await master.world.clock.sleep(RESCAN_REST_SECONDS)
        # Moves under way may have hidden that more should be moved.
        return has_moved or self._is_moving()

    def _is_moving(self) -> bool:
        return any(server.transfers.shifts for server in self._master.servers.all())
