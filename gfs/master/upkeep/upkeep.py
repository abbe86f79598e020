"""The master's clock: servers that die, reservations and leases that end, passes that are due;
and after each of these, and whenever an order ended, all that can be started now.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial

import trio

from gfs.diagnostics import event
from gfs.master.leases import Grants
from gfs.master.master import Master
from gfs.master.metadata.rows import DRAINED
from gfs.master.replicas import Reports
from gfs.master.service import drained, forget, plan_drain
from gfs.master.upkeep.balancing import RESCAN_REST_SECONDS, Balancing
from gfs.master.upkeep.copies import Copies
from gfs.master.upkeep.deletions import Deletions
from gfs.master.upkeep.elections import Elections
from gfs.master.upkeep.metadata_disk import watch_space
from gfs.master.upkeep.passes import Passes, guarded
from gfs.master.upkeep.trash import Reclaim, TrashCounts
from gfs.master.upkeep.verifications import Verifications

log = logging.getLogger(__name__)

#: All chunks are evaluated once in this time, in case a change was missed.
RESCAN_SECONDS = 600.0
#: The interval at which endangered chunks that only deleted files have are searched for.
MARK_SECONDS = 60.0
#: At least so many times as long as a search takes there is none.
MARK_RESTS = 10.0
#: For so many ``dead_seconds`` a restarted master waits for a connected server that
#: does not complete its registration.
REGISTRATION_PERIODS_MAX = 4
#: A tick that comes this much late means that the master did not run.
LATE_SECONDS = 2.0


class Upkeep:
    """The background tasks of a master, in ``nursery``."""

    def __init__(
        self, master: Master, directory: str, nursery: trio.Nursery, grants: Grants
    ) -> None:
        self._master = master
        self._directory = directory
        self._nursery = nursery
        self._started = master.now
        self._mark_after = float("-inf")
        #: Names of passes of which one runs at a time.
        self._running: set[str] = set()
        self._passes = Passes(master.world.clock, nursery, self._act)
        self.start_pass = self._passes.start
        self._copies = Copies(master, nursery, self._act)
        self._deletions = Deletions(master, nursery)
        self.reports = Reports(
            master.store, master.committer, master.replica_map, master.goals, master.reservations
        )
        self._verifications = Verifications(master, self.reports, nursery, self._act)
        self._elections = Elections(master, nursery, grants, self._verifications, self._act)
        self._trash_counts = TrashCounts(master.trash, self._passes)

    def start(self) -> None:
        for loop in (self._tick_regularly, Reclaim(self._master).run):
            self._nursery.start_soon(loop)
        self._nursery.start_soon(watch_space, self._master, self._directory)
        self._trash_counts.load()
        if not self._master.servers.awaited:
            self._leave_safe_mode()

    async def _tick_regularly(self) -> None:
        master = self._master
        interval = min(0.5, master.settings.heartbeat_seconds / 2)
        before = master.now
        while True:
            await master.world.clock.sleep(interval)
            now = master.now
            late = now - before - interval
            if late > LATE_SECONDS:
                log.warning(
                    "the master did not run for %.1f s: its machine was suspended or overloaded",
                    late,
                )
                master.servers.forgive(late)
                master.reservations.forgive(late)
            guarded(partial(self._tick, now, now - before), None)
            before = now

    def _tick(self, now: float, passed: float) -> None:
        master = self._master
        dead = master.servers.tick(now, master.committer.uptime.now_ns())
        for server in dead:
            log.warning(
                "chunkserver %s (%s) is dead",
                server.id,
                server.address,
                extra=event("chunkserver_dead", server=server.id),
            )
            if server.rpc is not None:
                server.rpc.close()
        if dead:
            # Of a rack that goes, the trash is searched once.
            taken = map(master.membership.server_died, dead)
            self.start_pass(itertools.chain(*taken, master.goals.mark_trashed()))
        master.servers.decay(passed)
        for handle in master.reservations.expired(now, master.settings.client_silence_seconds):
            if handle not in master.reservations.publishing:
                master.collector.give_up_reservation(handle, at_once=False)
        master.leases.expire(now)
        master.replica_map.garbage.expire(now)
        master.replica_map.suspects.expire(now)
        for server in master.servers.forgettable(now, master.replica_map.locations.counts):
            if master.reservations.at(server.index):
                continue  # an upload that once had a replica there continues
            master.replica_map.garbage.forget_server(server.index)
            master.servers.forget(server)
            master.committer.submit("", 0, partial(forget, server_id=server.id), lambda _: None)
        if now - self._started >= REGISTRATION_PERIODS_MAX * master.settings.dead_seconds:
            master.servers.awaited.clear()  # connected, but never done with registering
        if master.replica_map.in_safe_mode and not master.servers.awaited:
            self._leave_safe_mode()
        if master.goals.repair.endangered and now >= self._mark_after:
            self._mark_after = math.inf  # until that ended
            self.start_pass(self._mark_trashed(now))
        self._trash_counts.start()
        if master.servers.revived:
            self._start_one(master.goals.look_at_revived)
        if master.goals.to_evaluate:
            self._start_one(master.goals.evaluate_changed)
        if master.drains.rescan_wanted and not master.replica_map.in_safe_mode:
            master.drains.rescan_wanted = False
            self.start_pass(master.goals.scan_all())
        for server in drained(master):
            plan = partial(plan_drain, server_id=server.id, draining=DRAINED)
            master.committer.submit("", 0, plan, lambda _: None)
        self._act()

    def _start_one(self, make: Callable[[], Iterator[None]]) -> None:
        """Unless such a pass runs, which may take longer than the next tick."""
        if make.__name__ not in self._running:
            self._running.add(make.__name__)
            self.start_pass(self._run_one(make))

    def _run_one(self, make: Callable[[], Iterator[None]]) -> Iterator[None]:
        try:
            yield from make()
        finally:
            self._running.discard(make.__name__)

    def _mark_trashed(self, began: float) -> Iterator[None]:
        """One pass over the trash, and the time of the next one: the larger the trash is,
        the rarer they are."""
        try:
            yield from self._master.goals.mark_trashed()
        finally:
            now = self._master.now
            self._mark_after = now + max(MARK_SECONDS, MARK_RESTS * (now - began))

    def _leave_safe_mode(self) -> None:
        log.info("all known chunkservers have reported or are dead: the master leaves safe mode")
        self._master.replica_map.in_safe_mode = False
        self.start_pass(self._master.goals.scan_all())
        self._nursery.start_soon(self._rescan_regularly)
        self._nursery.start_soon(Balancing(self._master, self._copies).run)

    async def _rescan_regularly(self) -> None:
        while True:
            await self._master.world.clock.sleep(RESCAN_SECONDS)
            await self._passes.run(self._master.goals.scan_all(), RESCAN_REST_SECONDS)

    def _act(self) -> None:
        """Start all orders that can be started now."""
        guarded(self._start_all, None)

    def _start_all(self) -> None:
        master = self._master
        master.collector.trim_surplus()
        # Copies take all slots that are left: first attempts to salvage a chunk go
        # before them, and repeated ones after them.
        for order in (
            *[[clone] for clone in master.planner.plan_salvages(repeated=False)],
            *master.planner.plan_clones(),
            *[[clone] for clone in master.planner.plan_salvages(repeated=True)],
        ):
            self._copies.start(order)
        self._copies.start_revoking()
        self._verifications.start()
        self._elections.start()
        self._deletions.start()
