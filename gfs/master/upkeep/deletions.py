"""Replicas that chunkservers are ordered to delete."""

from __future__ import annotations

import logging

import trio

from gfs.errors import DeadlineExceeded, GfsError
from gfs.master.master import Master
from gfs.master.tables import Server
from gfs.protocol.messages import DeleteReplicas

log = logging.getLogger(__name__)

#: The deadline of an order to delete: a server answers far sooner.
DELETE_SECONDS = 60.0


class Deletions:
    def __init__(self, master: Master, nursery: trio.Nursery) -> None:
        self._master = master
        self._nursery = nursery
        #: Indexes of the servers that are deleting replicas.
        self._collecting: set[int] = set()

    def start(self) -> None:
        for server in self._master.collector.to_collect():
            if server.index not in self._collecting:
                self._collecting.add(server.index)
                self._nursery.start_soon(self._collect, server)

    async def _collect(self, server: Server) -> None:
        """Have one server delete its garbage, one order after another."""
        master = self._master
        try:
            while orders := master.collector.deletion_orders(server):
                order = DeleteReplicas(0, master.committer.sequence, orders)
                try:
                    if server.rpc is None:
                        raise ConnectionResetError("its connection ended")
                    await server.rpc.call(order, seconds=DELETE_SECONDS)
                except DeadlineExceeded as error:
                    log.warning(
                        "chunkserver %s did not answer an order to delete replicas: %s",
                        server.id,
                        error,
                    )
                    return  # it may still do so: its reports of them are ignored for a while
                except (GfsError, ConnectionError) as error:
                    log.warning("chunkserver %s did not delete replicas: %s", server.id, error)
                master.replica_map.garbage.answered(server.index)
        finally:
            self._collecting.discard(server.index)
