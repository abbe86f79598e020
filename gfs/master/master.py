"""The state of a running master in memory, and the parts that change it.

The tables are plain data; the parts that change them are in :mod:`gfs.master.replicas` and
get only what they need. All of it is synchronous code, called from the loop's thread.
Work that has to wait is left in queues for :mod:`gfs.master.upkeep`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gfs.config import MasterSettings
from gfs.errors import NotFound
from gfs.io import DiskSpace, World
from gfs.master.metadata import HANDLE_RANGE, Committer, Effects, QuorumWatermark, Store
from gfs.master.metadata.trash import TrashBook
from gfs.master.replicas import (
    Balancer,
    Drains,
    GarbageCollector,
    Goals,
    Membership,
    NewChunks,
    RepairPlanner,
)
from gfs.master.rules import trash_purge
from gfs.master.tables import (
    GarbageTable,
    LeaseTable,
    LocationTable,
    ReplicaMap,
    ReservationTable,
    ServerTable,
)
from gfs.metrics import Operations
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import (
    Done,
    ElectionReply,
    ForgetShadow,
    ShadowStatus,
)


def _not_elected() -> ElectionReply:
    return ElectionReply(0)


async def _without_shadows(request: ForgetShadow) -> Done:
    raise NotFound(f"there is no shadow master {request.address}")


@dataclass
class Process:
    """What the process that a master runs in knows: it has the connections, the shadow masters
    (:mod:`gfs.master.shadows.log_sender`), the candidate and the certificate."""

    #: Connections served now, for metrics.
    connections: set[BulkConnection] = field(default_factory=set)
    shadow_status: Callable[[], list[ShadowStatus]] = list
    forget_shadow: Callable[[ForgetShadow], Awaitable[Done]] = _without_shadows
    #: Who has the hold, if an engine elects the masters.
    election: Callable[[], ElectionReply] = _not_elected
    #: When this server's certificate ends; 0: it has none.
    certificate_until_ns: Callable[[], int] = int


@dataclass
class MetadataDisk:
    """The disk that the metadata is on, as :mod:`gfs.master.upkeep.metadata_disk` last saw it."""

    space: DiskSpace | None = None
    #: Mutations that make the metadata grow are refused.
    is_low: bool = False


class Master:
    """The tables and parts of a running master."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        self.world = world
        self.settings = settings
        self.store = store
        clock, now = world.clock, world.clock.monotonic()
        # The world's own generator may cost a system call per number.
        self.rng = rng = random.Random(world.random.getrandbits(64))
        watermark = QuorumWatermark(clock, settings.shadow_wait_seconds)
        self.committer = Committer(world, store, settings.answers_seconds, self._applied, watermark)
        self.servers = ServerTable(
            store.known_servers(), settings.heartbeat_seconds, settings.dead_seconds, now
        )
        end = store.state.handle_end
        self.reservations = reservations = ReservationTable(end - HANDLE_RANGE, end)
        self.leases = leases = LeaseTable(settings.lease_seconds, settings.lease_margin_seconds)
        if store.epoch > 1 or store.state.term:
            leases.old_until = now + settings.lease_seconds
        self.trash = TrashBook(store)
        garbage = GarbageTable(settings.garbage_grace_seconds)
        self.replica_map = known = ReplicaMap(clock, store, self.servers, LocationTable(), garbage)
        self.goals = goals = Goals(known, store, settings.forgetful_seconds)
        self.membership = Membership(store, known, goals, reservations)
        self.new_chunks = NewChunks(rng, settings, store, self.committer, known, reservations)
        self.collector = GarbageCollector(store, known, goals, reservations, leases)
        self.planner = RepairPlanner(rng, settings, store, known, goals, leases)
        self.balancer = Balancer(settings, store, known, goals, self.planner, reservations, leases)
        self.drains = Drains(known, goals, reservations)
        self.operations = Operations(settings.slow_seconds)
        self.metadata_disk = MetadataDisk()
        self.process = Process()

    @property
    def now(self) -> float:
        return self.world.clock.monotonic()

    @property
    def is_maintained(self) -> bool:
        """Whether a chunkserver is under maintenance, so that its time has to be counted."""
        now_ns = self.committer.uptime.now_ns()
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
            self.drains.set(server_id, draining)
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
