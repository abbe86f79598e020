"""The answers of a shadow master: look-ups in its copy of the store.

It has the same tables as a master and decides nothing with them: no copies, no
deletions, no grants. Locations come from the chunkservers' own reports
(:class:`FollowedReports`), and between two of those from the master, which sends its
changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from gfs.config import MasterSettings
from gfs.errors import NotTheMaster
from gfs.io import World
from gfs.master.master import Master
from gfs.master.metadata import Effects, Store, Txn
from gfs.master.metadata.rows import pack_u64, unpack_chunk
from gfs.master.replicas import reported_replicas
from gfs.master.service import ANSWERS, Answer, send_failure, status_reply
from gfs.master.tables import LocationTable, Server
from gfs.protocol.messages import (
    POSSIBLY_STALE_BIT,
    BadReplica,
    ClusterTotals,
    DiskUsage,
    Done,
    Election,
    FsckPage,
    List,
    ListFiles,
    ListGarbage,
    ListTrash,
    Locate,
    Message,
    Ping,
    Promote,
    PromoteReply,
    ReportReplica,
    Stat,
    Status,
)
from gfs.protocol.rpc import Rpc

#: The requests that a shadow master answers as a master does.
READS: tuple[type[Message], ...] = (
    *(Ping, Stat, List, ListFiles, Locate, DiskUsage),
    *(FsckPage, ListGarbage, ListTrash, Election),
)
#: The totals that only the master knows; it sends them.
REPLICAS = (
    *("under_replicated", "corrupt", "lost", "orphaned", "stale"),
    *("repairs_active", "repairs_queued", "moves_active", "moves_queued"),
    *("salvages", "beyond_repair", "corrupt_kept", "orphaned_bytes"),
    *("trash_purged", "trash_purged_bytes"),
)


class FollowedReports:
    """Takes only locations from chunkservers' reports: a shadow master deletes and
    repairs nothing, so it need not know what is stale or corrupt."""

    def __init__(self, store: Store, locations: LocationTable) -> None:
        self._store = store
        self._locations = locations

    def take_report(self, server: Server, body: bytes) -> None:
        """Add the reported replicas to the locations. One of a higher version than ours
        was reported before the log row arrived; one of a lower version missed a
        mutation."""
        with self._store.read() as txn:
            for handle, version, length in reported_replicas(body):
                if server.registration.reported is not None:
                    server.registration.reported.add(handle)
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
    """A shadow master's tables, and what it knows of its master."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        #: The tables, which only the log and reports change.
        self.tables = Master(world, settings, store)
        self.reports = FollowedReports(store, self.tables.replica_map.locations)
        #: The master that is followed, or was last.
        self.master_address = ""
        #: The newest known operation of the master.
        self.known_sequence = store.state.sequence
        #: When this shadow master last had all operations.
        self.level_at = self.tables.now
        self.master_totals: ClusterTotals | None = None
        #: The heartbeat interval of chunkservers, as the master requires it.
        self.heartbeat_ms = int(settings.heartbeat_seconds * 1000)
        self.tables.committer.closed = self.refusal()

    def refusal(self) -> NotTheMaster:
        where = f"the master is at {self.master_address}" if self.master_address else (
            "its address is not known"
        )  # fmt: skip
        return NotTheMaster(f"this is a shadow master, which serves reads only: {where}")

    @property
    def behind_operations(self) -> int:
        return max(0, self.known_sequence - self.tables.store.state.sequence)

    @property
    def behind_seconds(self) -> float:
        return self.tables.now - self.level_at

    def applied(self, effects: Effects) -> None:
        """Update the parts for what a commit has changed."""
        for freed in effects.freed:
            self.tables.replica_map.locations.pop(freed.handle)
        self.tables.track(effects)

    def forget_servers(self) -> None:
        """Remove the chunkservers that the master has removed, of which the store has
        no rows any more. One that is connected may be new, so that its row has not
        arrived yet."""
        servers = self.tables.servers
        with self.tables.store.read() as txn:
            gone = [
                server
                for server in map(servers.get, servers.not_live)
                if server.rpc is None
                and not self.tables.replica_map.locations.counts.get(server.index)
                and txn.get(server.id.encode(), None, txn.db.servers) is None
            ]
        for server in gone:
            servers.awaited.discard(server.index)
            servers.forget(server)

    def relocated(self, changes: list[tuple[int, list[str]]]) -> None:
        """Take the master's changes of locations."""
        for handle, ids in changes:
            known = [self.tables.servers.by_id.get(server_id) for server_id in ids]
            # Their version matters only where replicas are deleted.
            self.tables.replica_map.locations.replace(
                handle, [server.index for server in known if server], 0
            )


class ShadowAnswers:
    """What clients are answered by a shadow master: look-ups, and the operator's order to
    promote it, which ``nursery`` carries out."""

    def __init__(
        self,
        shadow: ShadowMaster,
        promote: Callable[[Promote], Awaitable[PromoteReply]],
        nursery: trio.Nursery,
    ) -> None:
        self._shadow = shadow
        self._promote = promote
        self._nursery = nursery
        self.by_type: dict[type[Message], Answer] = {
            **{kind: ANSWERS[kind] for kind in READS},
            Status: lambda _, rpc, message, body, txn: self._status(message, txn),
            # The master gets such a report from its own clients.
            ReportReplica: lambda _, rpc, message, body, txn: Done(id=0),
            Promote: lambda _, rpc, message, body, txn: self._begin_promotion(rpc, message),
        }

    def _status(self, message: Status, txn: Txn) -> Message:
        shadow = self._shadow
        reply = status_reply(shadow.tables, txn, message.after)
        known, totals = shadow.master_totals, reply.totals
        if known is not None:
            for name in REPLICAS:
                setattr(totals, name, getattr(known, name))
        reply.role = "shadow"
        reply.master = shadow.master_address
        reply.behind_operations = shadow.behind_operations
        reply.behind_ms = int(shadow.behind_seconds * 1000)
        return reply

    def _begin_promotion(self, rpc: Rpc, message: Promote) -> None:
        self._nursery.start_soon(self._promoted, rpc, message)

    async def _promoted(self, rpc: Rpc, message: Promote) -> None:
        request_id = message.id
        try:
            reply = await self._promote(message)
        except Exception as error:
            send_failure(rpc, request_id, error)
        else:
            reply.id = request_id
            rpc.send(reply)
