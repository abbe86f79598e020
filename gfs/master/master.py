"""What a running master has in memory, put together.

The tables are plain data; the parts that change them are in :mod:`gfs.master.replicas` and
are given what they need and no more. All of it is synchronous code, called from the loop's
thread. Whatever has to wait is left in queues for :mod:`gfs.master.service.background`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

from gfs.config import MasterSettings
from gfs.diagnostics import event
from gfs.errors import NotFound
from gfs.io import DiskSpace, World
from gfs.master.leases.table import LeaseTable
from gfs.master.metadata.committer import Committer
from gfs.master.metadata.store import HANDLE_RANGE, Effects, Store
from gfs.master.metadata.trash import TrashBook
from gfs.master.metadata.watermark import QuorumWatermark
from gfs.master.replicas import drain, trash_purge
from gfs.master.replicas.balancer import Balancer
from gfs.master.replicas.collector import GarbageCollector
from gfs.master.replicas.garbage import GarbageTable
from gfs.master.replicas.goals import Goals
from gfs.master.replicas.locations import LocationTable, ReservationTable
from gfs.master.replicas.new_chunks import NewChunks
from gfs.master.replicas.planner import RepairPlanner
from gfs.master.replicas.registration import Registration
from gfs.master.replicas.replica_map import ReplicaMap
from gfs.master.replicas.reports import Reports
from gfs.master.replicas.servers import LIVE, STOPPED, Server, ServerTable
from gfs.metrics import Operations
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Done, ForgetShadow, ServerStatus, ShadowStatus

log = logging.getLogger(__name__)

#: So often ``dead_seconds`` passes before a chunk that no chunkserver reported is declared lost.
LOST_PERIODS = 2


async def _without_shadows(request: ForgetShadow) -> Done:
    raise NotFound(f"there is no shadow master {request.address}")


class Master:
    """The tables and parts of a running master."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        self.world = world
        self.settings = settings
        self.store = store
        self.clock = clock = world.clock
        # The world's own may cost a system call for each number.
        self.rng = rng = random.Random(world.random.getrandbits(64))
        self.began_at = clock.monotonic()
        watermark = QuorumWatermark(clock, settings.shadow_wait_seconds)
        self.committer = Committer(world, store, settings.answers_seconds, self._applied, watermark)
        self.uptime = self.committer.uptime
        self.servers = ServerTable(
            store.known_servers(), settings.heartbeat_seconds, settings.dead_seconds, self.began_at
        )
        self.locations = LocationTable()
        self.garbage = GarbageTable(settings.garbage_grace_seconds)
        end = store.state.handle_end
        self.reservations = reservations = ReservationTable(end - HANDLE_RANGE, end)
        self.leases = leases = LeaseTable(settings.lease_seconds, settings.lease_margin_seconds)
        if store.epoch > 1 or store.state.term:
            leases.old_until = self.began_at + settings.lease_seconds
        self.trash = TrashBook(store)
        self.replica_map = known = ReplicaMap(
            clock, store, self.servers, self.locations, self.garbage
        )
        self.goals = goals = Goals(known, store, settings.forgetful_seconds)
        self.repair, self.salvage = goals.repair, goals.salvage
        self.reports = Reports(store, self.committer, known, goals, reservations)
        self.registration = Registration(store, known, goals, reservations)
        self.new_chunks = NewChunks(rng, settings, store, self.committer, known, reservations)
        self.collector = GarbageCollector(store, known, goals, reservations, leases)
        self.planner = RepairPlanner(rng, settings, store, known, goals, leases)
        self.balancer = Balancer(settings, store, known, goals, self.planner, reservations, leases)
        self.operations = Operations(settings.slow_seconds)
        #: Connections served now, for metrics.
        self.connections: set[BulkConnection] = set()
        #: Of the shadow masters: see :mod:`gfs.master.replication.log_sender`.
        self.shadow_status: Callable[[], list[ShadowStatus]] = list
        self.forget_shadow: Callable[[ForgetShadow], Awaitable[Done]] = _without_shadows
        #: Whether a server can be drained is being found out, for one at a time.
        self.drain_checked = False
        #: All chunks are to be looked at: servers are drained, or not any more.
        self.rescan_wanted = False
        self.disk_low = False
        self.metadata_disk: DiskSpace | None = None
        #: When this server's certificate ends; 0: it has none.
        self.certificate_until_ns: Callable[[], int] = int

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    @property
    def may_declare_lost(self) -> bool:
        """Whether chunkservers had the time to report what they have, replicas that were
        being written or verified when this master began included."""
        return self.now >= self.began_at + LOST_PERIODS * self.settings.dead_seconds

    @property
    def is_maintained(self) -> bool:
        """Whether a chunkserver is under maintenance, for a time that has to pass."""
        now_ns = self.uptime.now_ns()
        return any(server.maintenance_until_ns > now_ns for server in self.servers.all())

    def _applied(self, effects: Effects) -> None:
        """What else changes with a commit."""
        self.collector.chunks_freed(effects.freed)
        self.track(effects)
        self.goals.to_evaluate.update(dict.fromkeys(effects.goals))
        for call in effects.then:
            call()

    def track(self, effects: Effects) -> None:
        """Have the tables follow a commit: of this master, or of the one that is followed."""
        for inode, trashed in effects.trashed:
            self.trash.changed(inode, trashed)
        for inode, length in effects.grown:
            self.trash.grown(inode, length)
        for server_id, draining in effects.drains:
            self.set_draining(server_id, draining)
        for server_id, until_ns in effects.maintenance:
            self.servers.maintain(server_id, until_ns)

    @property
    def servers_needed(self) -> int:
        """So many must have room, or new chunks are refused."""
        return min(self.settings.replication, self.settings.replicas_min)

    def shortage(self) -> trash_purge.Shortage | None:
        return (
            trash_purge.shortage(self.servers.all(), self.servers_needed)
            if not self.replica_map.in_safe_mode
            else None
        )

    def set_draining(self, server_id: str, draining: int) -> None:
        """It is to be emptied, is empty, or is as all others; that is durable."""
        server = self.servers.by_id.get(server_id)
        if server is None or server.draining == draining:
            return
        if not server.draining:
            server.granting_then = frozenset(self.replica_map.raising)
        state = drain.NAMES[draining] or "not drained any more"
        log.info(
            "chunkserver %s: %s",
            server_id,
            state,
            extra=event("drain", server=server_id, state=state),
        )
        self.servers.set_draining(server, draining)
        self.rescan_wanted = True

    def is_empty(self, server: Server) -> bool:
        """Nothing is on a draining server, and nothing can come to be there."""
        index = server.index
        return (
            not self.replica_map.in_safe_mode
            and server.state == LIVE
            and server.registered
            and not server.chunks
            and not self.locations.counts.get(index)
            and not server.clones_in
            and not self.reservations.at(index)
            and server.granting_then.isdisjoint(self.replica_map.raising)
            and not any(self.garbage.at(index, handle) for handle in self.repair.lost)
        )

    def server_status(self, server: Server) -> ServerStatus:
        draining = server.draining
        known = self.locations.counts.get(server.index, 0)
        if draining == drain.DRAINED and server.state == LIVE and (known or server.chunks):
            draining = drain.DRAINING  # it came back with something
        status = ServerStatus(
            server.id,
            server.address,
            server.rack,
            server.state,
            max(0, int((self.now - server.last_heard) * 1000)),
            server.chunks,
            server.disks,
            drain.NAMES[draining],
            scrub=server.scrub,
            certificate_until_ns=server.certificate_until_ns,
            maintenance_ms=max(0, server.maintenance_until_ns - self.uptime.now_ns()) // 1_000_000,
        )
        if draining == drain.DRAINED and server.state != LIVE:
            status.state = STOPPED  # as it should be: nobody misses it
        if draining == drain.DRAINING:
            status.drain_chunks = max(known, server.chunks)
            status.drain_uploads = self.reservations.at(server.index)
            status.drain_lost = sum(
                self.garbage.at(server.index, handle) is not None
                and not self.salvage.is_pending(handle)
                for handle in self.repair.lost
            )
        return status
