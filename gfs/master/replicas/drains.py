"""Chunkservers that give up their replicas, so that they can be taken away (``gfs drain``).

The state of a drain is durable, in the store. Whether one may begin is decided by
:mod:`gfs.master.rules.drain_admission`, and it is carried out by re-replication.
"""

from __future__ import annotations

import logging

from gfs.diagnostics import event
from gfs.master.metadata.rows import DRAINED, DRAINING, NOT_DRAINING
from gfs.master.replicas.goals import Goals
from gfs.master.tables import LIVE, ReplicaMap, ReservationTable, Server

log = logging.getLogger(__name__)

#: The states of a drain as they are shown.
DRAIN_NAMES = {NOT_DRAINING: "", DRAINING: "draining", DRAINED: "drained"}


class Drains:
    def __init__(
        self, replica_map: ReplicaMap, goals: Goals, reservations: ReservationTable
    ) -> None:
        self._map = replica_map
        self._goals = goals
        self._reservations = reservations
        #: Held while it is decided whether a server can be drained: one at a time.
        self.is_deciding = False
        #: All chunks must be evaluated, because the drain of a server has begun or was cancelled.
        self.rescan_wanted = False

    def set(self, server_id: str, draining: int) -> None:
        """Set the state of a server's drain, which is durable already."""
        servers = self._map.servers
        server = servers.by_id.get(server_id)
        if server is None or server.draining == draining:
            return
        if not server.draining:
            servers.granting_then[server.index] = frozenset(self._map.raising)
        state = DRAIN_NAMES[draining] or "not drained any more"
        log.info(
            "chunkserver %s: %s",
            server_id,
            state,
            extra=event("drain", server=server_id, state=state),
        )
        servers.set_draining(server, draining)
        self.rescan_wanted = True

    def is_empty(self, server: Server) -> bool:
        """Whether a draining server has no replicas, and cannot get any."""
        index, garbage = server.index, self._map.garbage
        return (
            not self._map.in_safe_mode
            and server.state == LIVE
            and server.registration.is_complete
            and not server.chunks
            and not self._map.locations.counts.get(index)
            and not server.transfers.clones_in
            and not self._reservations.at(index)
            and self._map.raising.keys().isdisjoint(self._map.servers.granting_then.get(index, ()))
            and not any(
                garbage.at(index, handle) for handle in garbage.among(self._goals.repair.lost)
            )
        )
