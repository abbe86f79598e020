"""The client's side of the control connection to the master.

One multiplexed connection, opened when first needed and again when it is lost; a
restart of the master only delays calls. Look-ups are repeated. A mutation keeps its
(client, sequence) over all attempts, so the master returns its first answer.

With several addresses, the master is the process that answers as one and has the
highest term: the others are shadow masters, or were the master before. A promotion
is one more lost connection, and a moment until the next attempt.
With one address, a shadow master is taken as well, for look-ups.

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
from gfs.diagnostics import REQUEST_MASK, asked_for, request_of
from gfs.diagnostics import request as current_request
from gfs.errors import (
    Busy,
    DeadlineExceeded,
    GfsError,
    MasterUnavailable,
    NotEnoughChunkservers,
    NotTheMaster,
    ProtocolError,
)
from gfs.io import World
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Done, Message, Ping, PublishedChunk, Reclaim
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

ReplyT = TypeVar("ReplyT", bound=Message)

CALL_SECONDS = 10.0
#: A master that answers neither a call in time nor this probe is considered gone.
PING_SECONDS = 2.0
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
#: How long a cluster with too few servers may only be starting.
PLACEMENT_SECONDS = 10.0

#: Handle → the chunk being written: version, length so far, ids of the servers.
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
        #: Number of connections so far: reservations of earlier ones, unless reclaimed, are gone.
        self.connections = 0
        self._rpc: Rpc | None = None
        self._connecting = trio.Lock()
        self._sequence = itertools.count(1)
        self._requests = itertools.count(int.from_bytes(world.random_bytes(4), "big") << 8)

    def new_request(self) -> int:
        """A new request id."""
        return next(self._requests) & REQUEST_MASK or 1

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
                await self._doubt(error)
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
        """One message, the same in every attempt."""
        rpc = self._rpc
        if rpc is not None and not rpc.closed and rpc.peer_term >= self._identity.term:
            # The path of nearly all calls: one attempt, no loop around it.
            try:
                reply, _ = await rpc.call(request, body, seconds=CALL_SECONDS)
                if isinstance(reply, kind):
                    return reply
            except (ConnectionError, DeadlineExceeded, Busy, NotEnoughChunkservers) as error:
                await self._doubt(error)
        number = current_request.get() or request_of(request.id) or self.new_request()
        with asked_for(number):
            return await self.call(lambda: request, kind, body)

    async def _doubt(self, error: Exception) -> None:
        """Probe whether it is still the master. With other addresses to try, one that denies
        it or does not answer is left. Raises NotTheMaster if there are none."""
        if len(self._addresses) == 1:
            if isinstance(error, NotTheMaster):
                raise error
            return
        asked, rpc = self._addresses[0], self._rpc
        if rpc is None:
            return
        if isinstance(error, DeadlineExceeded) and await self._is_there(rpc):
            return  # the request takes long, and would start over elsewhere
        if isinstance(error, (NotTheMaster, DeadlineExceeded)) and self._rpc is rpc:
            self._addresses.sort(key=asked.__eq__)
            self.close()

    async def _is_there(self, rpc: Rpc) -> bool:
        try:
            await rpc.call(Ping(id=0), seconds=PING_SECONDS)
        except (ConnectionError, GfsError):
            return False
        return True

    async def once(self, request: Message, kind: type[ReplyT], seconds: float) -> ReplyT:
        """One attempt, for requests that must not be carried out twice. Raises
        MasterUnavailable if the connection ends: the outcome is not known then."""
        try:
            rpc = await self._connected()
            reply, _ = await rpc.call(request, seconds=seconds)
        except ConnectionError as error:
            raise MasterUnavailable(
                f"no answer from the master, which may have carried out the request: {error}; "
                "look at gfs status before you repeat it"
            ) from error
        if not isinstance(reply, kind):
            raise ProtocolError(f"{type(reply).__name__} instead of {kind.__name__}")
        return reply

    async def _connected(self) -> Rpc:
        rpc = self._rpc
        if rpc is not None and self._is_usable(rpc):
            return rpc
        async with self._connecting:
            if self._rpc is None or not self._is_usable(self._rpc):
                self.close()
                self._rpc = await self._connect()
            return self._rpc

    def _is_usable(self, rpc: Rpc) -> bool:
        """Raises if a chunkserver has announced a newer master since."""
        return not rpc.closed and rpc.peer_term >= self._identity.term

    async def _connect(self) -> Rpc:
        last: Exception | None = None
        for address in self._addresses.copy():
            try:
                connection = await handshake.connect(self._world, address, self._identity)
            except (ConnectionError, DeadlineExceeded) as error:
                last = error
                continue
            refusal = self._refusal(connection)
            if refusal is not None:
                connection.close()
                last = ConnectionError(f"{address} {refusal}")
                continue
            self._identity.cluster = connection.peer_cluster
            rpc = Rpc(connection)
            self._nursery.start_soon(rpc.run)
            try:
                await self._claim(rpc)
            except BaseException:
                rpc.close()
                raise
            self.connections += 1
            # The next time it is asked first.
            self._addresses.sort(key=address.__ne__)
            return rpc
        raise ConnectionError(str(last)) from last

    def _refusal(self, connection: BulkConnection) -> str | None:
        """Why this process is not the master; empty if it is."""
        if connection.peer_role != "master" and len(self._addresses) > 1:
            return f"is a {connection.peer_role}, not the master"
        if connection.peer_term < self._identity.term:
            return "was the master before the present one"
        return None

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
