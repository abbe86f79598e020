"""What all parts of one client share."""

from __future__ import annotations

from gfs.client.master import MasterClient
from gfs.config import ClientSettings
from gfs.io import World
from gfs.protocol.buffers import BufferPool
from gfs.protocol.messages import ServerAddress
from gfs.protocol.pool import BulkPool

#: A chunkserver that failed this client is asked last for this long.
SUSPECT_SECONDS = 10.0


class ClientCore:
    """World, settings, master, connections, buffers; and which servers to avoid."""

    def __init__(
        self, world: World, settings: ClientSettings, master: MasterClient, pool: BulkPool
    ) -> None:
        self.world = world
        self.settings = settings
        self.master = master
        self.pool = pool
        self.buffers = BufferPool(settings.memory_bytes)
        self._suspects: dict[str, float] = {}

    def suspect(self, server: str) -> None:
        if server:
            self._suspects[server] = self.world.clock.monotonic() + SUSPECT_SECONDS

    def suspects(self) -> list[str]:
        """Ids of the servers that failed this client lately."""
        now = self.world.clock.monotonic()
        self._suspects = {s: until for s, until in self._suspects.items() if until > now}
        return list(self._suspects)

    def in_order(self, servers: list[ServerAddress]) -> list[ServerAddress]:
        """The order to try replicas in: as the master gave them, suspects last."""
        suspects = self.suspects()
        return sorted(servers, key=lambda server: server.id in suspects)
