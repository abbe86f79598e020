"""State that all parts of one client share."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from gfs.client.master import MasterClient
from gfs.config import ClientSettings
from gfs.diagnostics import CALL_BITS, asked_for, request
from gfs.errors import CorruptReplica, DiskFull, GfsError, NotFound, ProtocolError, StaleVersion
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
from gfs.protocol.patience import Patience
from gfs.protocol.pool import BulkPool

log = logging.getLogger(__name__)

#: For this long a chunkserver that failed this client is asked last.
SUSPECT_SECONDS = 10.0
#: One without space: until its report has reached the master, which may make room.
FULL_SECONDS = 2.0
#: Codes of failures of one replica, not of its server.
OF_REPLICAS = frozenset((NotFound.code, StaleVersion.code, CorruptReplica.code))
#: Many small uploads at once reserve for each other: up to this many chunks in
#: one call, each used within this time or given back.
RESERVE_AT_ONCE = 16
RESERVED_SECONDS = 5.0
#: Well below the master's client_silence_seconds.
UPKEEP_SECONDS = 10.0


class Reserved:
    """A chunk to write, and its chain."""

    __slots__ = ("chain", "connection", "handle", "until", "version")

    def __init__(
        self,
        chunk: ChunkLocation,
        servers: list[ServerAddress],
        until: float,
        connection: int,
    ) -> None:
        self.handle = chunk.handle
        self.version = chunk.version
        self.chain = [servers[index] for index in chunk.servers]
        self.until = until
        #: The connection to the master that it was reserved on: it is not released on another.
        self.connection = connection


class ClientCore:
    """World, settings, master, connections, buffers; and the servers to avoid."""

    def __init__(
        self, world: World, settings: ClientSettings, master: MasterClient, pool: BulkPool
    ) -> None:
        self.world = world
        self.settings = settings
        self.master = master
        self.pool = pool
        self.buffers = BufferPool(settings.memory_bytes)
        self.patience = Patience(world.clock)
        self._suspects: dict[str, float] = {}
        #: Uploads under way, for sharing reservations and memory.
        self.uploads = 0
        self._reserved: dict[int, list[Reserved]] = {}

    def present_request(self) -> int:
        """The id of the present task's request; a new one if it has none."""
        return request.get() or self.master.new_request()

    def message_id(self) -> int:
        """The id of a message that opens an exchange with a chunkserver."""
        return self.present_request() << CALL_BITS

    def suspect(self, server: str, code: str = "") -> None:
        """A server failed this client, which avoids it for some time. It does not if the
        failure's ``code`` concerns only the replica there: of a file that was deleted since,
        for example."""
        if server and code not in OF_REPLICAS:
            seconds = FULL_SECONDS if code == DiskFull.code else SUSPECT_SECONDS
            self._suspects[server] = self.world.clock.monotonic() + seconds

    def suspects(self) -> list[str]:
        """Ids of the servers that failed this client lately."""
        now = self.world.clock.monotonic()
        self._suspects = {s: until for s, until in self._suspects.items() if until > now}
        return list(self._suspects)

    def in_order(self, servers: list[ServerAddress]) -> list[ServerAddress]:
        """The order to try replicas in: as the master gave them, suspects last."""
        if not self._suspects:
            return servers.copy()
        suspects = self.suspects()
        return sorted(servers, key=lambda server: server.id in suspects)

    async def reserve(self, replication: int) -> tuple[Reserved, int]:
        """A chunk to write, with the goal it was placed for (0 asks for the
        cluster's). Raises NotEnoughChunkservers."""
        spare = self._reserved.setdefault(replication, [])
        suspects = set(self.suspects()) if self._suspects else None
        while spare:
            reserved = spare.pop()
            good = not suspects or suspects.isdisjoint(s.id for s in reserved.chain)
            good = good and reserved.connection == self.master.connections
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
        connection = self.master.connections
        fresh = [Reserved(chunk, reply.servers, until, connection) for chunk in reply.chunks]
        if not fresh or not all(reserved.chain for reserved in fresh):
            raise ProtocolError("the master reserved a chunk without servers")
        spare.extend(fresh[1:])
        return fresh[0], reply.replication

    async def release(self, handles: list[int]) -> None:
        """Release reserved chunks. This only speeds the clean-up and need not succeed."""
        for handle in handles:
            self.master.reservations.pop(handle, None)
        if not handles:
            return
        try:
            await self.master.ask(Release(id=0, client=self.master.id, handles=handles), Done)
        except (ConnectionError, GfsError) as error:
            log.info("release: %s", error)

    async def release_spare(self, everything: bool = False) -> None:
        """Release chunks that were reserved ahead and not used in time."""
        now = self.world.clock.monotonic()
        late = []
        for spare in self._reserved.values():
            late += [r.handle for r in spare if everything or r.until <= now]
            spare[:] = [r for r in spare if not everything and r.until > now]
        await self.release(late)

    async def upkeep(self) -> None:
        """Ping the master; release unused reservations. Runs as long as the client."""
        while True:
            await self.world.clock.sleep(UPKEEP_SECONDS)
            await self.release_spare()
            await self.master.ping()


MethodT = TypeVar("MethodT", bound=Callable[..., Coroutine[Any, Any, Any]])


def one_request(method: MethodT) -> MethodT:
    """All messages of one call of ``method`` carry the same request id, that of the caller
    if it has one. Errors name it.

    For methods of classes with a ``_core``, except generators: those take an id once and
    enter ``asked_for`` themselves.
    """

    @functools.wraps(method)
    async def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if request.get():
            return await method(self, *args, **kwargs)
        core: ClientCore = self._core
        with asked_for(core.master.new_request()):
            return await method(self, *args, **kwargs)

    return cast(MethodT, wrapped)
