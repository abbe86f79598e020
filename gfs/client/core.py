"""What all parts of one client share."""

from __future__ import annotations

import logging

from gfs.client.master import MasterClient
from gfs.config import ClientSettings
from gfs.errors import GfsError, ProtocolError
from gfs.io import World
from gfs.protocol.buffers import BufferPool
from gfs.protocol.messages import (
    ChunkLocation,
    Done,
    Release,
    Reserve,
    ReserveReply,
    ServerAddress,
)
from gfs.protocol.pool import BulkPool

log = logging.getLogger(__name__)

#: A chunkserver that failed this client is asked last for this long.
SUSPECT_SECONDS = 10.0
#: Many small uploads at once reserve for each other: up to this many chunks in
#: one call, each used within this time or given back.
RESERVE_AT_ONCE = 16
RESERVED_SECONDS = 5.0
#: Well below the master's client_silence_seconds.
UPKEEP_SECONDS = 10.0


class Reserved:
    """A chunk to write, and its chain."""

    __slots__ = ("chain", "handle", "until", "version")

    def __init__(self, chunk: ChunkLocation, servers: list[ServerAddress], until: float) -> None:
        self.handle = chunk.handle
        self.version = chunk.version
        self.chain = [servers[index] for index in chunk.servers]
        self.until = until


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
        #: Uploads under way, for sharing reservations and memory.
        self.uploads = 0
        self._reserved: dict[int, list[Reserved]] = {}

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

    async def reserve(self, replication: int) -> tuple[Reserved, int]:
        """A chunk to write, with the goal it was placed for (0 asks for the
        cluster's). Raises NotEnoughChunkservers."""
        spare = self._reserved.setdefault(replication, [])
        suspects = set(self.suspects())
        while spare:
            reserved = spare.pop()
            good = not suspects.intersection(server.id for server in reserved.chain)
            if good and reserved.until > self.world.clock.monotonic():
                return reserved, replication
            await self.release([reserved.handle])
        count = min(self.uploads, RESERVE_AT_ONCE) or 1
        reply = await self.master.call(
            lambda: Reserve(
                id=0,
                client=self.master.id,
                count=count,
                replication=replication,
                avoid=self.suspects(),
            ),
            ReserveReply,
        )
        until = self.world.clock.monotonic() + RESERVED_SECONDS
        fresh = [Reserved(chunk, reply.servers, until) for chunk in reply.chunks]
        if not fresh or not all(reserved.chain for reserved in fresh):
            raise ProtocolError("the master reserved a chunk without servers")
        spare.extend(fresh[1:])
        return fresh[0], reply.replication

    async def release(self, handles: list[int]) -> None:
        """Give reserved chunks back. It only speeds the clean-up: need not succeed."""
        for handle in handles:
            self.master.reservations.pop(handle, None)
        if not handles:
            return
        try:
            await self.master.ask(Release(id=0, client=self.master.id, handles=handles), Done)
        except (ConnectionError, GfsError) as error:
            log.info("release: %s", error)

    async def release_spare(self, everything: bool = False) -> None:
        """Give back what was reserved ahead and not used in time."""
        now = self.world.clock.monotonic()
        late = []
        for spare in self._reserved.values():
            late += [r.handle for r in spare if everything or r.until <= now]
            spare[:] = [r for r in spare if not everything and r.until > now]
        await self.release(late)

    async def upkeep(self) -> None:
        """Stay known to the master; give back what is not used. Runs with the client."""
        while True:
            await self.world.clock.sleep(UPKEEP_SECONDS)
            await self.release_spare()
            await self.master.ping()
