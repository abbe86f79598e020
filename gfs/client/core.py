"""State that all parts of one client share."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import trio

from gfs.client.master import MasterClient
from gfs.client.rounds import Rounds
from gfs.config import ClientSettings
from gfs.diagnostics import CALL_BITS, asked_for, request
from gfs.errors import (
    Busy,
    CorruptReplica,
    DiskFull,
    GfsError,
    NotFound,
    OlderRelease,
    ProtocolError,
    StaleVersion,
)
from gfs.io import World
from gfs.protocol.buffers import BufferPool
from gfs.protocol.links import Links
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
#: One without space is avoided until its report has reached the master, which may make room.
FULL_SECONDS = 2.0
#: Codes of failures of one replica, not of its server.
OF_REPLICAS = frozenset((NotFound.code, StaleVersion.code, CorruptReplica.code))
#: A client that writes much reserves ahead: up to this many chunks in one call, each used
#: within this time or given back. One that reserved within ``BUSY_SECONDS`` writes much.
RESERVE_AT_ONCE = 256
RESERVED_SECONDS = 5.0
BUSY_SECONDS = 1.0
#: What is not released in this time is garbage for the master to find.
RELEASE_SECONDS = 1.0
#: Well below the master's client_silence_seconds.
UPKEEP_SECONDS = 10.0


@asynccontextmanager
async def flat_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that raises a single failure without a group: its tasks never fail, so
    an exception is the caller's own."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


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


class _Asked:
    """A call for chunks that is under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.given_up = False
        self.error: Exception | None = ConnectionAbortedError("the client is closed")
        self.fresh: list[Reserved] = []
        self.replication = 0


class ClientCore:
    """World, settings, connection to the master, connections to chunkservers, buffers;
    and the servers to avoid."""

    def __init__(
        self,
        world: World,
        settings: ClientSettings,
        master: MasterClient,
        pool: BulkPool,
        links: Links,
    ) -> None:
        self.world = world
        self.settings = settings
        self.master = master
        self.pool = pool
        self.links = links
        self.buffers = BufferPool(settings.memory_bytes)
        self.patience = Patience(world.clock)
        #: Until when these servers are avoided; and those of them that had no space.
        self._suspects: dict[str, float] = {}
        self._full: set[str] = set()
        #: Uploads under way, for sharing reservations and memory.
        self.uploads = 0
        self._reserved: dict[tuple[int, bool], list[Reserved]] = {}
        #: By goal, and whether together: when chunks were reserved last, and how many.
        self._last_reserved: dict[tuple[int, bool], tuple[float, int]] = {}
        #: Small files that are stored or read at the same time: see :mod:`gfs.client.small`.
        self.puts: Rounds[Any]
        self.gets: Rounds[Any]

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
            is_full = code == DiskFull.code
            (self._full.add if is_full else self._full.discard)(server)
            seconds = FULL_SECONDS if is_full else SUSPECT_SECONDS
            self._suspects[server] = self.world.clock.monotonic() + seconds

    def suspect_after_small(self, error: BaseException, chain: list[ServerAddress]) -> None:
        """A small write failed at the server that the error names, or at the first. One that is
        busy, or whose disk is slow, has said so: the exchange that follows waits for it. One of an
        older release knows exchanges alone."""
        if not isinstance(error, (Busy, OlderRelease)):
            self.suspect(getattr(error, "server", "") or chain[0].id, getattr(error, "code", ""))

    def suspects(self) -> list[str]:
        """Ids of the servers that failed this client lately."""
        now = self.world.clock.monotonic()
        self._suspects = {s: until for s, until in self._suspects.items() if until > now}
        return list(self._suspects)

    def suspects_any(self, servers: list[ServerAddress]) -> bool:
        """Whether one of these servers failed this client lately."""
        return bool(self._suspects) and not {s.id for s in servers}.isdisjoint(self.suspects())

    def in_order(self, servers: list[ServerAddress]) -> list[ServerAddress]:
        """The order to try replicas in: as the master gave them, suspects last."""
        if not self._suspects:
            return servers.copy()
        suspects = self.suspects()
        return sorted(servers, key=lambda server: server.id in suspects)

    async def reserve(self, replication: int) -> tuple[Reserved, int]:
        """A chunk of a large file: as :meth:`reserve_all`, on servers of its own."""
        taken, replication = await self.reserve_all(1, replication, together=False)
        return taken[0], replication

    async def reserve_all(
        self, count: int, replication: int, together: bool = True
    ) -> tuple[list[Reserved], int]:
        """So many chunks to write, with the goal they were placed for (0 asks for the
        cluster's); ``together``: on the same servers, if they can be. A busy client reserves
        ahead. Raises NotEnoughChunkservers."""
        spare = self._reserved.setdefault((replication, together), [])
        taken = self._take_spare(spare, count)
        goal = replication
        try:
            while len(taken) < count:
                missing = count - len(taken)
                asked = self._ahead(missing, replication, together)
                fresh, goal = await self._reserve_ahead(asked, replication, together)
                # Those that were no file's yet when the connection was lost were not claimed.
                current = self.master.connections
                spare += [each for each in taken if each.connection != current]
                taken = [each for each in taken if each.connection == current] + fresh
                spare += taken[count:]
                del taken[count:]
        except BaseException:
            spare += taken
            raise
        return taken, goal

    def give_back(self, reserved: Reserved, replication: int) -> None:
        """One of :meth:`reserve_all` that was not used."""
        self._reserved.setdefault((replication, True), []).append(reserved)

    def _take_spare(self, spare: list[Reserved], count: int) -> list[Reserved]:
        """Up to so many that can be used still."""
        suspects = set(self.suspects()) if self._suspects else None
        now = self.world.clock.monotonic()
        taken: list[Reserved] = []
        useless: list[int] = []
        while spare and len(taken) < count:
            reserved = spare.pop()
            good = not suspects or suspects.isdisjoint(s.id for s in reserved.chain)
            good = good and reserved.connection == self.master.connections
            if good and reserved.until > now:
                taken.append(reserved)
            else:
                useless.append(reserved.handle)
        if useless:
            self.master.nursery.start_soon(self.release, useless)
        return taken

    def _ahead(self, missing: int, replication: int, together: bool) -> int:
        """How many to reserve: twice as many as the last time, if that was just now."""
        now = self.world.clock.monotonic()
        before, last = self._last_reserved.get((replication, together), (-math.inf, 0))
        busy = 2 * last if now < before + BUSY_SECONDS else 0
        count = max(missing, min(max(self.uploads, busy), RESERVE_AT_ONCE))
        self._last_reserved[replication, together] = now, count
        return count

    async def _reserve_ahead(
        self, count: int, replication: int, together: bool
    ) -> tuple[list[Reserved], int]:
        """Up to ``count`` chunks to write, at least one, in one call. The caller may give up:
        chunks that the master reserves all the same are released."""
        self.master.check_open()
        asked = _Asked()
        self.master.nursery.start_soon(self._reserve, asked, count, replication, together)
        try:
            await asked.done.wait()
        except BaseException:
            asked.given_up = True
            raise
        if asked.error is not None:
            raise asked.error
        return asked.fresh, asked.replication

    async def _reserve(self, asked: _Asked, count: int, replication: int, together: bool) -> None:
        try:
            asked.fresh, asked.replication = await self._reserve_now(count, replication, together)
            asked.error = None
        except (ConnectionError, GfsError) as error:
            asked.error = error
        finally:
            asked.done.set()
        if asked.given_up:
            await self.release([reserved.handle for reserved in asked.fresh])

    async def _reserve_now(
        self, count: int, replication: int, together: bool
    ) -> tuple[list[Reserved], int]:
        is_short = False

        def make() -> Reserve:
            avoid = self.suspects()
            if is_short:
                # Those that failed may be back for long. A full one is so until it has room.
                avoid = [server for server in avoid if server in self._full]
            return Reserve(
                id=0,
                client=self.master.id,
                count=count,
                replication=replication,
                avoid=avoid,
                together=together,
            )

        def short() -> None:
            nonlocal is_short
            is_short = True

        reply = await self.master.call(make, ReserveReply, short=short)
        until = self.world.clock.monotonic() + RESERVED_SECONDS
        connection = self.master.connections
        fresh = [Reserved(chunk, reply.servers, until, connection) for chunk in reply.chunks]
        if not fresh or not all(reserved.chain for reserved in fresh):
            raise ProtocolError("the master reserved a chunk without servers")
        return fresh, reply.replication

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
