"""The state of a running master in memory, and the parts that change it.

The tables are plain data; the parts that change them are in :mod:`gfs.master.replicas` and
get only what they need. All of it is synchronous code, called from the loop's thread.
Work that has to wait is left in queues for :mod:`gfs.master.upkeep`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from gfs.config import MasterSettings
from gfs.diagnostics import event
from gfs.errors import NotFound
from gfs.io import DiskSpace, World
from gfs.master.metadata import HANDLE_RANGE, Committer, Effects, QuorumWatermark, Store
from gfs.master.metadata.rows import DRAINED, DRAINING, NOT_DRAINING
from gfs.master.metadata.trash import TrashBook
from gfs.master.replicas import (
    Balancer,
    GarbageCollector,
    Goals,
    Membership,
    NewChunks,
    RepairPlanner,
)
from gfs.master.rules import trash_purge
from gfs.master.tables import (
    LIVE,
    STOPPED,
    GarbageTable,
    LeaseTable,
    LocationTable,
    ReplicaMap,
    ReservationTable,
    Server,
    ServerTable,
)
from gfs.metrics import Operations
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import (
    Done,
    ElectionReply,
    ForgetShadow,
    ServerStatus,
    ShadowStatus,
)

log = logging.getLogger(__name__)

#: After so many ``dead_seconds`` a chunk that no chunkserver has reported is declared lost.
LOST_PERIODS = 2


DRAIN_NAMES = {NOT_DRAINING: "", DRAINING: "draining", DRAINED: "drained"}


async def _without_shadows(request: ForgetShadow) -> Done:
    raise NotFound(f"there is no shadow master {request.address}")


class Master:
    """The tables and parts of a running master."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        self.world = world
        self.settings = settings
        self.store = store
        self.clock = clock = world.clock
        # The world's own generator may cost a system call per number.
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
        self.membership = Membership(store, known, goals, reservations)
        self.new_chunks = NewChunks(rng, settings, store, self.committer, known, reservations)
        self.collector = GarbageCollector(store, known, goals, reservations, leases)
        self.planner = RepairPlanner(rng, settings, store, known, goals, leases)
        self.balancer = Balancer(settings, store, known, goals, self.planner, reservations, leases)
        self.operations = Operations(settings.slow_seconds)
        #: Connections served now, for metrics.
        self.connections: set[BulkConnection] = set()
        #: Commands about shadow masters: see :mod:`gfs.master.shadows.log_sender`.
        self.shadow_status: Callable[[], list[ShadowStatus]] = list
        self.forget_shadow: Callable[[ForgetShadow], Awaitable[Done]] = _without_shadows
        #: Who has the hold, if an engine elects the masters.
        self.election: Callable[[], ElectionReply] = partial(ElectionReply, 0)
        #: Held while it is decided whether a server can be drained: one at a time.
        self.drain_checked = False
        #: All chunks must be evaluated, because the drain of a server has begun or was cancelled.
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
        """Whether chunkservers had the time to report all replicas, also those that
        were being written or verified when this master began."""
        return self.now >= self.began_at + LOST_PERIODS * self.settings.dead_seconds

    @property
    def is_maintained(self) -> bool:
        """Whether a chunkserver is under maintenance, so that its time has to be counted."""
        now_ns = self.uptime.now_ns()
        return any(server.maintenance_until_ns > now_ns for server in self.servers.all())

    def _applied(self, effects: Effects) -> None:
        """Update the parts for what a commit has changed."""
        self.collector.chunks_freed(effects.freed)
        self.track(effects)
        self.goals.to_evaluate.update(dict.fromkeys(effects.goals))
        for call in effects.then:
            call()

    def track(self, effects: Effects) -> None:
        """Update the tables after a commit of this master, or of the one that is followed."""
        for inode, trashed in effects.trashed:
            self.trash.changed(inode, trashed)
        for inode, length in effects.replaced:
            self.trash.replaced(inode, length)
        for inode, length in effects.grown:
            self.trash.grown(inode, length)
        for server_id, draining in effects.drains:
            self.set_draining(server_id, draining)
        for server_id, until_ns in effects.maintenance:
            self.servers.maintain(server_id, until_ns)

    @property
    def servers_needed(self) -> int:
        """So many servers must have room, otherwise new chunks are refused."""
        return min(self.settings.replication, self.settings.replicas_min)

    def shortage(self) -> trash_purge.Shortage | None:
        return (
            trash_purge.shortage(self.servers.all(), self.servers_needed)
            if not self.replica_map.in_safe_mode
            else None
        )

    def set_draining(self, server_id: str, draining: int) -> None:
        """Set the state of a server's drain, which is durable already."""
        server = self.servers.by_id.get(server_id)
        if server is None or server.draining == draining:
            return
        if not server.draining:
            self.servers.granting_then[server.index] = frozenset(self.replica_map.raising)
        state = DRAIN_NAMES[draining] or "not drained any more"
        log.info(
            "chunkserver %s: %s",
            server_id,
            state,
            extra=event("drain", server=server_id, state=state),
        )
        self.servers.set_draining(server, draining)
        self.rescan_wanted = True

    def is_empty(self, server: Server) -> bool:
        """Whether a draining server has no replicas, and cannot get any."""
        index = server.index
        return (
            not self.replica_map.in_safe_mode
            and server.state == LIVE
            and server.registration.is_complete
            and not server.chunks
            and not self.locations.counts.get(index)
            and not server.transfers.clones_in
            and not self.reservations.at(index)
            and self.replica_map.raising.keys().isdisjoint(
                self.servers.granting_then.get(index, ())
            )
            and not any(
                self.garbage.at(index, handle) for handle in self.garbage.among(self.repair.lost)
            )
        )

    def server_status(self, server: Server) -> ServerStatus:
        draining = server.draining
        known = self.locations.counts.get(server.index, 0)
        if draining == DRAINED and server.state == LIVE and (known or server.chunks):
            draining = DRAINING  # it came back with replicas
        status = ServerStatus(
            server.id,
            server.address,
            server.rack,
            server.state,
            max(0, int((self.now - server.last_heard) * 1000)),
            server.chunks,
            server.disks,
            DRAIN_NAMES[draining],
            scrub=server.particulars.scrub,
            certificate_until_ns=server.particulars.certificate_until_ns,
            maintenance_ms=max(0, server.maintenance_until_ns - self.uptime.now_ns()) // 1_000_000,
        )
        if draining == DRAINED and server.state != LIVE:
            status.state = STOPPED  # as intended: it is not missing
        if draining == DRAINING:
            status.drain_chunks = max(known, server.chunks)
            status.drain_uploads = self.reservations.at(server.index)
            status.drain_lost = sum(
                self.garbage.at(server.index, handle) is not None
                and not self.salvage.is_pending(handle)
                for handle in self.garbage.among(self.repair.lost)
            )
        return status
