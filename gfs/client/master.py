"""The client's side of the control connection to the master.

One multiplexed connection, opened when first needed and again when it is lost; a
restart of the master only delays calls. Look-ups are repeated. A mutation keeps its
(client, sequence) over all attempts, so a repeated one gets the answer of the first.

With several addresses, the master is the process that answers as one and has the
highest term: the others are shadow masters, or were the master before. To a client a
promotion is a lost connection, followed by another attempt; one that is silent, since it
was stopped or its machine is gone, is a lost connection after ``SILENT_SECONDS``. With one
address, it is waited for, and a shadow master is taken as well, for look-ups.

While uploads are open, a ping keeps the client known to the master; after a
reconnect the reservations are claimed again before anything else is asked.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import trio

from gfs.blocks import Buffer
from gfs.diagnostics import REQUEST_MASK, asked_for, request_of
from gfs.diagnostics import request as current_request
from gfs.errors import (
    Busy,
    DeadlineExceeded,
    ForeignPeer,
    GfsError,
    MasterUnavailable,
    NotEnoughChunkservers,
    NotTheMaster,
    ProtocolError,
    ReplicaUnavailable,
)
from gfs.io import World
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import Done, Message, Ping, PublishedChunk, Reclaim
from gfs.protocol.rpc import Reply, Rpc

log = logging.getLogger(__name__)

ReplyT = TypeVar("ReplyT", bound=Message)

CALL_SECONDS = 10.0
#: A master that sends nothing for this long while it is asked whether it is there is gone, if
#: another one may serve instead. Longer than any pause of one that is only busy.
SILENT_SECONDS = 3.0
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 0.25
#: For this long a cluster with too few servers is taken to be starting.
PLACEMENT_SECONDS = 10.0

#: Handle → the chunk being written: version, length so far, ids of the servers.
Reservations = dict[int, tuple[int, int, list[str]]]


#: After these a request is repeated.
_PASSING = (ConnectionError, DeadlineExceeded, Busy, NotEnoughChunkservers)


def _final(reply: Reply, kind: type[ReplyT]) -> ReplyT | GfsError | None:
    """The answer or the master's refusal; None if it is to be asked again."""
    if isinstance(reply, tuple):
        answer, _ = reply
        return answer if isinstance(answer, kind) else None
    return reply if isinstance(reply, GfsError) and not isinstance(reply, _PASSING) else None


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
        self.nursery = nursery
        self._retry_seconds = retry_seconds
        #: Number of connections so far: reservations of earlier ones, unless reclaimed, are gone.
        self.connections = 0
        #: While there is one, its address is the first.
        self._rpc: Rpc | None = None
        self._turn_seconds = handshake.TURN_SECONDS_MIN
        self._connecting = trio.Lock()
        self._sequence = itertools.count(1)
        self._requests = itertools.count(int.from_bytes(world.random_bytes(4), "big") << 8)

    def new_request(self) -> int:
        """A new request id."""
        return next(self._requests) & REQUEST_MASK or 1

    def next_sequence(self) -> int:
        return next(self._sequence)

    def stamp(self) -> tuple[int, str, int]:
        """The first fields of a new mutation: its id, which the call sets, and what its answer is
        remembered under."""
        return 0, self.id, self.next_sequence()

    async def call(
        self,
        make: Callable[[], Message],
        kind: type[ReplyT],
        body: Buffer = b"",
        unknown: ReplyT | None = None,
        short: Callable[[], None] | None = None,
        refused_seconds: float = math.inf,
    ) -> ReplyT:
        """Ask until there is an answer; ``make`` gives the request for each attempt.
        ``unknown`` stands for the answer of a master of a release that does not know it;
        ``short`` is called each time there are not enough chunkservers.

        Raises the master's error, or MasterUnavailable after ``retry_seconds``, and after
        ``refused_seconds`` in which all addresses refused connections.
        """
        clock = self._world.clock
        give_up = clock.monotonic() + self._retry_seconds
        short_since: float | None = None
        refused_since: float | None = None
        pause = BACKOFF_SECONDS_MIN
        while True:
            try:
                rpc = await self._connected()
                request = make()
                if unknown is not None and rpc.version < request.SINCE:
                    return unknown
                reply, _ = await rpc.call(request, body, seconds=CALL_SECONDS)
                break
            except (ConnectionError, DeadlineExceeded, Busy) as error:
                self._doubt(error)
                short_since = None  # a master that starts knows no chunkserver yet
                now = clock.monotonic()
                if not isinstance(error, ConnectionRefusedError):
                    refused_since = None
                elif refused_since is None:
                    refused_since = now
                is_refused = (
                    refused_since is not None and now + pause > refused_since + refused_seconds
                )
                if is_refused or now + pause > give_up:
                    where = ", ".join(self._addresses)
                    raise MasterUnavailable(f"no answer from the master at {where}: {error}") from (
                        error
                    )
            except NotEnoughChunkservers:
                now = clock.monotonic()
                short_since = now if short_since is None else short_since
                if now + pause > min(short_since + PLACEMENT_SECONDS, give_up):
                    raise
                if short is not None:
                    short()
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
                self._doubt(error)
        number = current_request.get() or request_of(request.id) or self.new_request()
        with asked_for(number):
            return await self.call(lambda: request, kind, body)

    async def ask_many(
        self, requests: Sequence[tuple[Message, Buffer]], kind: type[ReplyT]
    ) -> list[ReplyT | GfsError]:
        """Many messages in one send; each answered as by :meth:`ask`, errors in their places."""
        found: dict[int, ReplyT | GfsError] = {}
        try:
            rpc = await self._connected()
            replies = await (await rpc.start(requests, CALL_SECONDS)).replies()
        except (ConnectionError, GfsError):
            replies = []  # each is asked by itself, and has its own error
        for index, reply in enumerate(replies):
            answer = _final(reply, kind)
            if answer is not None:
                found[index] = answer

        async def ask(index: int) -> None:
            request, body = requests[index]
            try:
                found[index] = await self.ask(request, kind, body)
            except GfsError as error:
                found[index] = error

        if len(found) < len(requests):
            async with trio.open_nursery() as nursery:
                for index in range(len(requests)):
                    if index not in found:
                        nursery.start_soon(ask, index)
        return [found[index] for index in range(len(requests))]

    async def ask_now(
        self, requests: Sequence[tuple[Message, Buffer]], kind: type[ReplyT]
    ) -> list[ReplyT | GfsError | None]:
        """As :meth:`ask_many`, but each is sent once, before this waits for anything. None where
        there is no answer: it may have been carried out."""
        rpc = self._rpc
        calls = None
        if rpc is not None and rpc.peer_term >= self._identity.term:
            with contextlib.suppress(GfsError):
                calls = rpc.start_now(requests, CALL_SECONDS)
        if calls is None:
            return [None] * len(requests)
        return [_final(reply, kind) for reply in await calls.replies()]

    def _doubt(self, error: Exception) -> None:
        """Leave a process that says that it is not the master. Raises NotTheMaster if there is
        no other address."""
        if isinstance(error, NotTheMaster):
            if len(self._addresses) == 1:
                raise error
            self._leave()

    def _leave(self) -> None:
        """End the connection; the other addresses are tried before this one."""
        if self._rpc is not None:
            self._addresses.sort(key=self._addresses[0].__eq__)
            self.close()

    async def once(self, request: Message, kind: type[ReplyT], seconds: float) -> ReplyT:
        """One attempt, for requests that must not be carried out twice, once a master answers.
        Raises MasterUnavailable if the connection ends: the outcome is not known then."""
        await self.connect_now()
        try:
            rpc = await self._connected()
            reply, _ = await rpc.call(request, seconds=seconds)
        except ReplicaUnavailable:
            raise  # the master's answer
        except ConnectionError as error:
            raise MasterUnavailable(
                f"no answer from the master, which may have carried out the request: {error}; "
                "look at gfs status before you repeat it"
            ) from error
        if not isinstance(reply, kind):
            raise ProtocolError(f"{type(reply).__name__} instead of {kind.__name__}")
        return reply

    def check_open(self) -> None:
        """Raises MasterUnavailable."""
        if self.nursery.cancel_scope.cancel_called:
            raise MasterUnavailable("the client is closed")

    async def _connected(self) -> Rpc:
        self.check_open()
        rpc = self._rpc
        if rpc is not None and self._is_usable(rpc):
            return rpc
        async with self._connecting:
            rpc = self._rpc
            if rpc is None or not self._is_usable(rpc):
                if rpc is not None and rpc.was_silent:
                    self._leave()
                self.close()
                rpc = self._rpc = await self._connect()
            return rpc

    def _is_usable(self, rpc: Rpc) -> bool:
        """Raises if a chunkserver has reported a higher term since."""
        return not rpc.closed and rpc.peer_term >= self._identity.term

    async def _connect(self) -> Rpc:
        last: Exception | None = None
        hopeless: GfsError | None = None
        is_refused = True
        is_one_of_many = len(self._addresses) > 1
        turn = self._turn_seconds if is_one_of_many else math.inf
        for address in self._addresses.copy():
            try:
                with deadline(turn, f"answer from {address}"):
                    connection = await handshake.connect(self._world, address, self._identity)
            except (ConnectionError, DeadlineExceeded) as error:
                last = error
                is_refused = is_refused and isinstance(error, ConnectionRefusedError)
                continue
            except GfsError as error:  # of this address; the master may be at another one
                hopeless = error
                continue
            if connection.peer_role == "chunkserver":
                connection.close()
                hopeless = ForeignPeer(f"{address}: it is a chunkserver, not a master")
                continue
            refusal = self._refusal(connection)
            if refusal is not None:
                connection.close()
                is_refused = False
                last = ConnectionError(f"{address} {refusal}")
                continue
            self._identity.cluster = connection.peer_cluster
            rpc = Rpc(
                connection,
                silent_seconds=SILENT_SECONDS if is_one_of_many else math.inf,
                probe=partial(Ping, id=0),
            )
            self.nursery.start_soon(rpc.run)
            try:
                await self._claim(rpc)
            except BaseException:
                rpc.close()
                raise
            self.connections += 1
            # The next attempt starts with this address.
            self._addresses.sort(key=address.__ne__)
            self._turn_seconds = handshake.TURN_SECONDS_MIN
            return rpc
        self._turn_seconds = min(2 * self._turn_seconds, handshake.TURN_SECONDS_MAX)
        kind = ConnectionRefusedError if is_refused else ConnectionError
        if hopeless is None:
            raise kind(str(last)) from last
        if last is None:
            raise hopeless
        raise kind(f"{last}; {hopeless}") from last

    def _refusal(self, connection: BulkConnection) -> str | None:
        """Why this process is not the master; empty if it is."""
        if connection.peer_role != "master" and len(self._addresses) > 1:
            return f"is a {connection.peer_role}, not the master"
        if connection.peer_term < self._identity.term:
            return "was the master before the present one"
        return None

    async def _claim(self, rpc: Rpc) -> None:
        if self.reservations:
            request, body = self._reclaim()
            await rpc.call(request, body, seconds=CALL_SECONDS)

    async def claim(self) -> None:
        """Have the master take the reservations again that it has given up."""
        request, body = self._reclaim()
        await self.ask(request, Done, body)

    def _reclaim(self) -> tuple[Reclaim, bytes]:
        servers: dict[str, int] = {}
        chunks = [
            PublishedChunk(
                handle, version, length, [servers.setdefault(s, len(servers)) for s in ids]
            )
            for handle, (version, length, ids) in self.reservations.items()
        ]
        request = Reclaim(id=0, client=self.id, servers=list(servers))
        return request, msgspec.msgpack.encode(chunks)

    async def ping(self) -> None:
        """Keep the reservations of this client alive, if it has any."""
        if self.reservations:
            try:
                rpc = await self._connected()
                await rpc.call(Ping(id=0), seconds=CALL_SECONDS)
            except (ConnectionError, GfsError) as error:
                log.info("ping: %s", error)

    async def connect_now(self, refused_seconds: float = math.inf) -> None:
        """Wait for a master that answers. Raises MasterUnavailable after ``retry_seconds``, and
        after ``refused_seconds`` in which all addresses refused connections."""
        await self.call(lambda: Ping(id=0), Done, refused_seconds=refused_seconds)

    def close(self) -> None:
        rpc, self._rpc = self._rpc, None
        if rpc is not None:
            rpc.close()
