"""The client's side of the control connection to the master.

One multiplexed connection, made when first needed and made again when it is
lost; callers do not notice a master that restarts beyond the time it takes.
Look-ups are simply asked again. A mutation keeps its (client, sequence) over
all attempts, so the master gives the answer it gave the first time.

While uploads are open, a ping keeps the client known to the master; after a
reconnect the reservations are claimed again before anything else is asked.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import trio

from gfs.blocks import Buffer
from gfs.errors import (
    Busy,
    DeadlineExceeded,
    GfsError,
    MasterUnavailable,
    NotEnoughChunkservers,
    ProtocolError,
)
from gfs.io import World
from gfs.protocol import handshake
from gfs.protocol.messages import Done, Message, Ping, PublishedChunk, Reclaim
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

ReplyT = TypeVar("ReplyT", bound=Message)

CALL_SECONDS = 10.0
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
#: A cluster short of servers may only be starting; longer than this it is not.
PLACEMENT_SECONDS = 10.0

#: Handle → what is being written: version, length so far, ids of the servers.
Reservations = dict[int, tuple[int, int, list[str]]]


class MasterClient:
    """Calls to the master that outlive its restarts."""

    def __init__(
        self,
        world: World,
        addresses: Sequence[str],
        identity: handshake.Identity,
        nursery: trio.Nursery,
        retry_seconds: float,
    ) -> None:
        self.id = identity.peer
        self.reservations: Reservations = {}
        self._world = world
        self._addresses = list(addresses)
        self._identity = identity
        self._nursery = nursery
        self._retry_seconds = retry_seconds
        self._rpc: Rpc | None = None
        self._connecting = trio.Lock()
        self._sequence = itertools.count(1)

    def next_sequence(self) -> int:
        return next(self._sequence)

    async def call(
        self, make: Callable[[], Message], kind: type[ReplyT], body: Buffer = b""
    ) -> ReplyT:
        """Ask until there is an answer; ``make`` gives the request for each attempt.

        Raises the master's error, or MasterUnavailable after ``retry_seconds``.
        """
        clock = self._world.clock
        give_up = clock.monotonic() + self._retry_seconds
        short_since: float | None = None
        pause = BACKOFF_SECONDS_MIN
        while True:
            try:
                rpc = await self._connected()
                reply, _ = await rpc.call(make(), body, seconds=CALL_SECONDS)
                break
            except (ConnectionError, DeadlineExceeded, Busy) as error:
                short_since = None  # a master that starts knows no chunkserver yet
                if clock.monotonic() + pause > give_up:
                    where = ", ".join(self._addresses)
                    raise MasterUnavailable(f"no answer from the master at {where}: {error}") from (
                        error
                    )
            except NotEnoughChunkservers:
                now = clock.monotonic()
                short_since = now if short_since is None else short_since
                if now + pause > min(short_since + PLACEMENT_SECONDS, give_up):
                    raise
            await clock.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)
        if not isinstance(reply, kind):
            raise ProtocolError(f"{type(reply).__name__} instead of {kind.__name__}")
        return reply

    async def ask(self, request: Message, kind: type[ReplyT], body: Buffer = b"") -> ReplyT:
        """One request, the same in every attempt."""
        rpc = self._rpc
        if rpc is not None and not rpc.closed:
            # The way nearly all calls go: one attempt, no loop around it.
            try:
                reply, _ = await rpc.call(request, body, seconds=CALL_SECONDS)
                if isinstance(reply, kind):
                    return reply
            except (ConnectionError, DeadlineExceeded, Busy, NotEnoughChunkservers):
                pass
        return await self.call(lambda: request, kind, body)

    async def _connected(self) -> Rpc:
        rpc = self._rpc
        if rpc is not None and not rpc.closed:
            return rpc
        async with self._connecting:
            if self._rpc is None or self._rpc.closed:
                self._rpc = await self._connect()
            return self._rpc

    async def _connect(self) -> Rpc:
        last: Exception | None = None
        for address in self._addresses:
            try:
                connection = await handshake.connect(self._world, address, self._identity)
            except (ConnectionError, DeadlineExceeded) as error:
                last = error
                continue
            self._identity.cluster = connection.peer_cluster
            rpc = Rpc(connection)
            self._nursery.start_soon(rpc.run)
            try:
                await self._claim(rpc)
            except BaseException:
                rpc.close()
                raise
            return rpc
        raise ConnectionError(str(last)) from last

    async def _claim(self, rpc: Rpc) -> None:
        if not self.reservations:
            return
        servers: dict[str, int] = {}
        chunks = [
            PublishedChunk(
                handle, version, length, [servers.setdefault(s, len(servers)) for s in ids]
            )
            for handle, (version, length, ids) in self.reservations.items()
        ]
        request = Reclaim(id=0, client=self.id, servers=list(servers))
        await rpc.call(request, msgspec.msgpack.encode(chunks), seconds=CALL_SECONDS)

    async def ping(self) -> None:
        """Keep the reservations of this client alive, if it has any."""
        if self.reservations:
            try:
                rpc = await self._connected()
                await rpc.call(Ping(id=0), seconds=CALL_SECONDS)
            except (ConnectionError, GfsError) as error:
                log.info("ping: %s", error)

    async def connect_now(self) -> None:
        """Fail early, and clearly, when the cluster cannot be used at all."""
        await self.call(lambda: Ping(id=0), Done)

    def close(self) -> None:
        if self._rpc is not None:
            self._rpc.close()
