"""The connection to the master: registration, heartbeats, orders.

The chunkserver connects, says who it is, reports every replica in batches, then
sends heartbeats on the same connection; the master sends its orders over it,
either as answers to heartbeats or as requests of its own. When the connection
is lost, everything starts over: what the master knows of this server is always
what this server said since it last registered.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import trio

from gfs.chunkserver.clone import clone
from gfs.chunkserver.node import Node
from gfs.errors import GfsError, ProtocolError, StartupError, WrongCluster, WrongClusterKey
from gfs.protocol import handshake
from gfs.protocol.messages import (
    REPORT_RECORDS_MAX,
    CloneChunk,
    Done,
    Failure,
    GrantLease,
    Heartbeat,
    Message,
    Orders,
    Ping,
    Register,
    RegisterReply,
    ReportReplicas,
    RevokeLease,
    VerifyChunk,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

RECONNECT_SECONDS_MIN = 0.1
RECONNECT_SECONDS_MAX = 2.0
REPORT_SECONDS = 30.0
HEARTBEAT_SECONDS_MAX = 5.0
#: Replicas named in one heartbeat's sample; all are named in turn.
SAMPLE_RECORDS = 512
BAD_REPORTS_MAX = 500
#: Orders of the master carried out at once.
ORDERS_AT_ONCE = 32


class MasterLink:
    """Keeps this server registered for as long as ``run`` runs."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.registered = trio.Event()
        self._slots = trio.CapacityLimiter(ORDERS_AT_ONCE)
        self._sample: Iterator[int] = iter(())
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Register, and again whenever the connection ends. Raises StartupError
        if the master refuses this server before it was ever registered."""
        pause = RECONNECT_SECONDS_MIN
        while True:
            started = self._node.world.clock.monotonic()
            try:
                await self._session()
            except (ConnectionError, GfsError) as error:
                if not self.registered.is_set() and isinstance(
                    error, (WrongCluster, WrongClusterKey)
                ):
                    raise StartupError(f"master {self._node.settings.master}: {error}") from None
                log.warning("master %s: %s", self._node.settings.master, error)
            if self._node.world.clock.monotonic() - started > RECONNECT_SECONDS_MAX:
                pause = RECONNECT_SECONDS_MIN
            await self._node.world.clock.sleep(pause)
            pause = min(2 * pause, RECONNECT_SECONDS_MAX)

    async def _session(self) -> None:
        node = self._node
        connection = await handshake.connect(node.world, node.settings.master, node.identity)
        rpc = Rpc(connection, self._take_orders)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery

            async def move() -> None:
                await rpc.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(move)
            try:
                heartbeat_seconds = await self._register(rpc)
                self.registered.set()
                await self._beat(rpc, heartbeat_seconds)
            except (ConnectionError, GfsError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        raise failure or ConnectionResetError("the connection ended")

    # --- what this server says ------------------------------------------------------

    async def _register(self, rpc: Rpc) -> float:
        node, record = self._node, self._node.identity_file.record
        reply, _ = await rpc.call(
            Register(
                id=0,
                server=node.id,
                incarnation=record.incarnation,
                address=node.address,
                rack=node.settings.rack,
                disks=node.store.reports(),
                sequence=record.sequence,
            )
        )
        if not isinstance(reply, RegisterReply):
            raise ProtocolError(f"{type(reply).__name__} as the answer to a registration")
        await self._join(reply)
        handles = list(node.store.inventory)
        batches = range(0, max(1, len(handles)), REPORT_RECORDS_MAX)
        for at in batches:
            body = node.store.pack(handles[at : at + REPORT_RECORDS_MAX])
            complete = at == batches[-1]
            orders, _ = await rpc.call(
                ReportReplicas(id=0, complete=complete), body, seconds=REPORT_SECONDS
            )
            await self._obey(orders)
        return reply.heartbeat_ms / 1000

    async def _join(self, reply: RegisterReply) -> None:
        node, record = self._node, self._node.identity_file.record
        if record.cluster and record.cluster != reply.cluster:
            raise WrongCluster(
                f"the master serves cluster {reply.cluster}, this server's disks belong "
                f"to cluster {record.cluster}"
            )
        if not record.cluster:
            record.cluster = node.identity.cluster = reply.cluster
            await node.world.run_blocking(node.identity_file.save)

    async def _beat(self, rpc: Rpc, seconds: float) -> None:
        node = self._node
        while True:
            sent = node.world.clock.monotonic()
            orders, _ = await rpc.call(
                Heartbeat(
                    id=0,
                    disks=node.store.reports(),
                    chunks=len(node.store.inventory),
                    bad=list(itertools.islice(node.store.bad.values(), BAD_REPORTS_MAX)),
                    leases=node.leases.take_used(),
                ),
                node.store.pack(self._next_sample()),
                seconds=HEARTBEAT_SECONDS_MAX,
            )
            await self._obey(orders, sent)
            await node.world.clock.sleep(seconds)

    def _next_sample(self) -> list[int]:
        sample = list(itertools.islice(self._sample, SAMPLE_RECORDS))
        if len(sample) < SAMPLE_RECORDS:
            self._sample = iter(list(self._node.store.inventory))
        return sample

    # --- what the master says -------------------------------------------------------

    async def _obey(self, orders: Message, sent: float = 0.0) -> None:
        """Carry out the orders in an answer; refuse those of a younger memory."""
        if not isinstance(orders, Orders):
            raise ProtocolError(f"{type(orders).__name__} as the answer to a report")
        node, record = self._node, self._node.identity_file.record
        if orders.sequence < record.sequence:
            if orders.delete:
                log.error(
                    "refused to delete %d replicas: the master is at %d of its operation "
                    "log, this server has seen %d: was old metadata restored?",
                    len(orders.delete),
                    orders.sequence,
                    record.sequence,
                )
            return
        record.sequence = orders.sequence
        node.leases.extend(orders.extend_leases, orders.lease_ms, sent)
        for name in orders.delete:
            try:
                await node.store.delete(name.handle, name.version)
                log.info("deleted chunk %016x version %d", name.handle, name.version)
            except GfsError as error:
                log.warning("order to delete refused: %s", error)

    def _take_orders(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        assert self._nursery is not None
        for message, _ in batch:
            self._nursery.start_soon(self._carry_out, rpc, message)

    async def _carry_out(self, rpc: Rpc, message: Message) -> None:
        async with self._slots:
            try:
                rpc.send(await self._result(message))
            except GfsError as error:
                rpc.send_error(message.id, error)
            except OSError as error:
                rpc.send(Failure(id=message.id, code="disk_failed", message=str(error)))

    async def _result(self, message: Message) -> Message:
        node = self._node
        match message:
            case GrantLease():
                await node.grant(message)
            case RevokeLease():
                await node.revoke(message.handle)
            case CloneChunk():
                await clone(node, message)
            case VerifyChunk():
                reply = await node.verify(message)
                reply.id = message.id
                return reply
            case Ping():
                pass
            case _:
                raise ProtocolError(f"{type(message).__name__} is not served here")
        return Done(id=message.id)
