"""The table of chunkservers that a reply carries once, however many chunks refer to it."""

from __future__ import annotations

from gfs.master.replicas.servers import Server
from gfs.protocol.messages import PAGE_BYTES_MAX, ServerAddress

#: What a ChunkLocation takes on the wire, without and per server; and what an
#: address takes beside its strings.
LOCATION_BYTES, LOCATION_SERVER_BYTES, ADDRESS_BYTES = 24, 3, 12


class AddressBook:
    """The ``servers`` table of a reply, and what room it leaves."""

    def __init__(self, room: int = PAGE_BYTES_MAX) -> None:
        self.servers: list[ServerAddress] = []
        self.room = room
        self._positions: dict[int, int] = {}

    def position(self, server: Server) -> int:
        at = self._positions.get(server.index)
        if at is None:
            at = self._positions[server.index] = len(self.servers)
            wire = server.wire
            self.servers.append(wire)
            self.room -= ADDRESS_BYTES + len(wire.id) + len(wire.address) + len(wire.rack)
        return at

    def positions(self, servers: list[Server]) -> list[int]:
        self.room -= LOCATION_BYTES + LOCATION_SERVER_BYTES * len(servers)
        return [self.position(server) for server in servers]
