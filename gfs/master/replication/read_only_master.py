"""What a shadow master answers: a master's look-ups, out of a followed store.

It keeps the same tables as a master and decides nothing with them: no copies, no
deletions, no grants. Locations come from the chunkservers' own reports
(:class:`FollowedReports`), and between two of those from the master, which sends what it
changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

import trio

from gfs.config import MasterSettings
from gfs.errors import NotTheMaster
from gfs.io import World
from gfs.master.leases.granting import Grants
from gfs.master.master import Master
from gfs.master.metadata.rows import pack_u64, unpack_chunk
from gfs.master.metadata.store import Effects, Store, Txn
from gfs.master.replicas.locations import LocationTable
from gfs.master.replicas.reports import reported_replicas
from gfs.master.replicas.servers import Server
from gfs.master.service.chunkserver_session import ChunkserverSession
from gfs.master.service.client_session import ClientSession, send_failure
from gfs.master.service.status import status_reply
from gfs.protocol.messages import (
    POSSIBLY_STALE_BIT,
    BadReplica,
    ClusterTotals,
    DiskUsage,
    Done,
    FsckPage,
    List,
    ListGarbage,
    ListTrash,
    Locate,
    Message,
    Ping,
    Promote,
    PromoteReply,
    Register,
    RegisterReply,
    ReportReplica,
    Stat,
    Status,
)
from gfs.protocol.rpc import Rpc

#: What a shadow answers as a master does.
READS: tuple[type[Message], ...] = (
    *(Ping, Stat, List, Locate, DiskUsage, FsckPage, ListGarbage, ListTrash),
)
#: Totals that only the master knows, and sends.
REPLICAS = (
    *("under_replicated", "corrupt", "lost", "orphaned", "stale"),
    *("repairs_active", "repairs_queued", "moves_active", "moves_queued"),
    *("salvages", "beyond_repair", "corrupt_kept", "orphaned_bytes"),
    *("trash_purged", "trash_purged_bytes"),
)


class FollowedReports:
    """Locations out of chunkservers' reports, and nothing else: a shadow master deletes
    nothing and repairs nothing, so it need not know what is stale or damaged."""

    def __init__(self, store: Store, locations: LocationTable) -> None:
        self._store = store
        self._locations = locations

    def take_report(self, server: Server, body: bytes) -> None:
        """A replica of a higher version than ours is reported before the log arrives;
        one of a lower version missed a mutation."""
        with self._store.read() as txn:
            for handle, version, length in reported_replicas(body):
                if server.reported is not None:
                    server.reported.add(handle)
                row = txn.get(pack_u64(handle), None, txn.db.chunks)
                if row is None:
                    continue
                current, _, length_min, _, _ = unpack_chunk(row)
                if length & POSSIBLY_STALE_BIT:
                    self._locations.remove(handle, server.index)
                elif version > current or (version == current and length >= length_min):
                    self._locations.add(handle, server.index, 0)
                elif version < current:
                    self._locations.remove(handle, server.index)

    def take_bad(self, server: Server, bad: list[BadReplica]) -> None:
        for replica in bad:
            self._locations.remove(replica.handle, server.index)

    def take_gone(self, server: Server, body: bytes) -> None:
        for handle, _, _ in reported_replicas(body):
            self._locations.remove(handle, server.index)


class ShadowMaster:
    """What a shadow master knows of its master, beside the tables it keeps."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        #: Kept up to date by the log and by reports; nothing runs that would change them.
        self.tables = Master(world, settings, store)
        self.reports = FollowedReports(store, self.tables.locations)
        #: The master that is followed, or was last.
        self.master_address = ""
        #: The newest operation there is, as far as is known.
        self.known_sequence = store.state.sequence
        #: When all that there was, was here.
        self.level_at = self.tables.now
        self.master_totals: ClusterTotals | None = None
        #: A chunkserver's, as the master wants it.
        self.heartbeat_ms = int(settings.heartbeat_seconds * 1000)
        self.tables.committer.closed = self.refusal()

    def refusal(self) -> NotTheMaster:
        where = f"the master is at {self.master_address}" if self.master_address else (
            "it does not know where the master is"
        )  # fmt: skip
        return NotTheMaster(f"this is a shadow master, which serves reads only: {where}")

    @property
    def behind_operations(self) -> int:
        return max(0, self.known_sequence - self.tables.store.state.sequence)

    @property
    def behind_seconds(self) -> float:
        return self.tables.now - self.level_at

    def applied(self, effects: Effects) -> None:
        """What else changes with a commit."""
        for freed in effects.freed:
            self.tables.locations.pop(freed.handle)
        self.tables.track(effects)

    def forget_servers(self) -> None:
        """Remove those that the master has removed: the store has no row of them any more. One
        that is connected may be new, and the row of it on its way."""
        servers = self.tables.servers
        with self.tables.store.read() as txn:
            gone = [
                server
                for server in map(servers.get, servers.not_live)
                if server.rpc is None
                and not self.tables.locations.counts.get(server.index)
                and txn.get(server.id.encode(), None, txn.db.servers) is None
            ]
        for server in gone:
            servers.awaited.discard(server.index)
            servers.forget(server)

    def relocated(self, changes: list[tuple[int, list[str]]]) -> None:
        """What the master changed about locations."""
        for handle, ids in changes:
            known = [self.tables.servers.by_id.get(server_id) for server_id in ids]
            # Their version matters only where replicas are deleted.
            self.tables.locations.replace(handle, [server.index for server in known if server], 0)


class ShadowChunkserverSession(ChunkserverSession):
    """A chunkserver reports to a shadow what it holds, and takes no orders from it."""

    remembers = False

    def __init__(self, shadow: ShadowMaster, start_pass: Callable[[Iterator[None]], None]) -> None:
        super().__init__(shadow.tables, start_pass, shadow.reports)
        self._shadow = shadow

    def _check_memory(self, message: Register) -> None:
        """A shadow may be behind."""

    def _register(self, rpc: Rpc, message: Register) -> Message | None:
        reply = super()._register(rpc, message)
        if isinstance(reply, RegisterReply):
            reply.heartbeat_ms = self._shadow.heartbeat_ms
        return reply


class ShadowClientSession(ClientSession):
    """Look-ups, and the operator's order to promote this shadow."""

    answers: ClassVar = {
        **{kind: ClientSession.answers[kind] for kind in READS},
        Status: lambda self, rpc, message, body, txn: self._shadow_status(message, txn),
        # The master gets such a report from its own clients.
        ReportReplica: lambda self, rpc, message, body, txn: Done(id=0),
        Promote: lambda self, rpc, message, body, txn: self._begin_promotion(rpc, message),
    }

    def __init__(
        self,
        shadow: ShadowMaster,
        promote: Callable[[Promote], Awaitable[PromoteReply]],
        nursery: trio.Nursery,
        peer: str,
    ) -> None:
        super().__init__(shadow.tables, Grants(shadow.tables), nursery, peer)
        self._shadow = shadow
        self._carry_out = promote

    def _refuse(self, rpc: Rpc, message: Message) -> None:
        rpc.send_error(message.id, self._shadow.refusal())

    def _shadow_status(self, message: Status, txn: Txn) -> Message:
        shadow = self._shadow
        reply = status_reply(shadow.tables, txn, message.after)
        known, totals = shadow.master_totals, reply.totals
        if known is not None:
            for name in REPLICAS:
                setattr(totals, name, getattr(known, name))
        reply.role = "shadow"
        reply.sequence = shadow.tables.store.state.sequence
        reply.master = shadow.master_address
        reply.behind_operations = shadow.behind_operations
        reply.behind_ms = int(shadow.behind_seconds * 1000)
        return reply

    def _begin_promotion(self, rpc: Rpc, message: Promote) -> None:
        self._nursery.start_soon(self._promoted, rpc, message)

    async def _promoted(self, rpc: Rpc, message: Promote) -> None:
        request_id = message.id
        try:
            reply = await self._carry_out(message)
        except Exception as error:
            send_failure(rpc, request_id, error)
        else:
            reply.id = request_id
            rpc.send(reply)
