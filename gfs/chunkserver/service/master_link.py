"""The connections to the master and its shadows: registration, heartbeats, orders.

The chunkserver connects, registers, reports every replica in batches, then sends
heartbeats on the same connection; the master sends its orders over it, either as
answers to heartbeats or as requests. When the connection is lost, the chunkserver
registers again: so the master's knowledge of this server is always from its last
registration on.

Shadow masters get the same reports and give no orders: their answers are ignored. The
master sends their addresses, which are stored, so that a server that was away during a
promotion finds the next master.

The *term* decides which process is the master: a master of a higher term than any
before is accepted, after that term is stored; from then on connections of masters with
lower terms are refused, with the reason in the handshake.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import trio

from gfs.chunkserver.copies import Batch, copy
from gfs.chunkserver.copies.clone import clone
from gfs.chunkserver.exchanges import Appends
from gfs.chunkserver.node import Node
from gfs.chunkserver.replicas import Changes
from gfs.chunkserver.upkeep import Scrubber, delete_all
from gfs.config import split_addresses
from gfs.diagnostics import event, request, request_of
from gfs.errors import (
    DiskFailed,
    ForeignPeer,
    GfsError,
    ProtocolError,
    StaleVersion,
    StartupError,
    TlsRefused,
    WrongCluster,
    WrongClusterKey,
)
from gfs.failures import plural
from gfs.protocol import handshake
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    REPORT_RECORDS_MAX,
    BadReplica,
    CloneChunk,
    CloneChunks,
    CopyChunk,
    DeleteReplicas,
    DiskOrder,
    DiskOrderReply,
    Done,
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
RECONNECT_SECONDS_MAX = 0.5
REPORT_SECONDS = 30.0
HEARTBEAT_SECONDS_MAX = 5.0
#: Replicas in one heartbeat's sample; all are reported in turn.
SAMPLE_RECORDS = 512
BAD_REPORTS_MAX = 500
MASTERS_MAX = 32
#: How many of these orders are carried out at once; and how many of all others.
LENGTHY = (CloneChunk, CloneChunks, CopyChunk, DeleteReplicas, VerifyChunk)
ORDERS_AT_ONCE = 32
PROMPT_ORDERS_AT_ONCE = 256


class MasterLinks:
    """One connection to each process that is the master or may become it."""

    def __init__(self, node: Node, appends: Appends, scrubber: Scrubber) -> None:
        self._node = node
        self.appends = appends
        self.scrubber = scrubber
        #: Set when a master has accepted this server's registration.
        self.registered = trio.Event()
        self._changed = trio.Event()
        self._links: dict[str, trio.CancelScope] = {}

    async def run(self) -> None:
        """Keep this server registered. Raises StartupError if the master refuses it
        before it was ever registered."""
        async with trio.open_nursery() as nursery:
            while True:
                wanted = self._addresses()
                for address in [known for known in self._links if known not in wanted]:
                    self._links.pop(address).cancel()
                for address in wanted:
                    if address not in self._links:
                        scope = self._links[address] = trio.CancelScope()
                        nursery.start_soon(self._keep, MasterLink(self._node, self, address), scope)
                self._changed = trio.Event()
                await self._changed.wait()

    def _addresses(self) -> list[str]:
        named = split_addresses(self._node.settings.master)
        learnt = self._node.server.record.masters
        return list(dict.fromkeys([*named, *learnt]))[:MASTERS_MAX]

    @staticmethod
    async def _keep(link: MasterLink, scope: trio.CancelScope) -> None:
        with scope:
            await link.run()

    def learnt(self, master: str, shadows: list[str]) -> None:
        """Take the addresses of the shadow masters from the master at this address."""
        record = self._node.server.record
        masters = [master, *shadows][:MASTERS_MAX]
        if shadows and masters != record.masters:
            record.masters = masters
            self._changed.set()


class MasterLink:
    """Keeps this server registered at ``address`` while ``run`` runs."""

    def __init__(self, node: Node, links: MasterLinks, address: str) -> None:
        self._node = node
        self._links = links
        self._address = address
        self._is_master = False
        #: Set when this server has accepted the connected process as its master.
        self._joined = trio.Event()
        #: The last failure in the log: a repeated one is logged at a lower level.
        self._logged = ""
        self._slots = trio.CapacityLimiter(ORDERS_AT_ONCE)
        self._prompt_slots = trio.CapacityLimiter(PROMPT_ORDERS_AT_ONCE)
        self._sample: Iterator[int] = iter(())
        self._bad: Iterator[BadReplica] = iter(())
        self._changes = Changes()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Register, and again whenever the connection ends."""
        pause = RECONNECT_SECONDS_MIN
        while True:
            started = self._node.world.clock.monotonic()
            try:
                await self._session()
            except (ConnectionError, GfsError) as error:
                if not self._links.registered.is_set() and isinstance(
                    error, (TlsRefused, WrongCluster, WrongClusterKey)
                ):
                    raise StartupError(f"master {self._address}: {error}") from None
                if isinstance(error, DiskFailed) and not self._node.identity.cluster:
                    # What is mounted there for the next start must find nothing of this one.
                    await self._node.disk_opening.withdraw()
                    raise StartupError(str(error)) from None
                level = logging.INFO if str(error) == self._logged else logging.WARNING
                self._logged = str(error)
                log.log(level, "master %s: %s", self._address, error)
            if self._node.world.clock.monotonic() - started > RECONNECT_SECONDS_MAX:
                pause = RECONNECT_SECONDS_MIN
            await self._node.world.clock.sleep(pause)
            pause = min(2 * pause, RECONNECT_SECONDS_MAX)

    async def _session(self) -> None:
        node = self._node
        connection = await handshake.connect(node.world, self._address, node.identity)
        if connection.peer_role == "chunkserver":
            connection.close()
            raise ForeignPeer("it is a chunkserver, not a master: give --master a master's address")
        self._is_master = connection.peer_role == "master"
        self._joined = trio.Event()
        rpc = Rpc(connection, self._take_orders)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery

            async def move() -> None:
                await rpc.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(move)
            self._changes = Changes()
            node.store.inventory.changes.append(self._changes)
            try:
                self._check_term(rpc)
                heartbeat_seconds = await self._register(rpc)
                if self._is_master:
                    self._links.registered.set()
                await self._beat(rpc, heartbeat_seconds)
            except (ConnectionError, GfsError) as error:
                failure = error
            finally:
                node.store.inventory.changes.remove(self._changes)
            rpc.close()
            nursery.cancel_scope.cancel()
        raise failure or ConnectionResetError("the connection ended")

    def _check_term(self, rpc: Rpc) -> None:
        """Raises StaleVersion if another master took over from this one."""
        if self._is_master and rpc.peer_term < self._node.identity.term:
            raise StaleVersion("this master was replaced by one of a higher term")

    # --- what this server says ------------------------------------------------------

    async def _register(self, rpc: Rpc) -> float:
        node, record = self._node, self._node.server.record
        reply, _ = await rpc.call(
            Register(
                id=0,
                server=node.id,
                incarnation=record.incarnation,
                address=node.address,
                rack=node.settings.rack,
                disks=node.store.disks.reports(),
                sequence=record.sequence,
                term=record.term,
                packed_bytes_max=node.settings.packed_bytes_max,
            )
        )
        if not isinstance(reply, RegisterReply):
            raise ProtocolError(f"{type(reply).__name__} as the answer to a registration")
        await self._join(rpc, reply)
        handles = list(node.store.inventory)
        batches = range(0, max(1, len(handles)), REPORT_RECORDS_MAX)
        for at in batches:
            body = node.store.inventory.pack(handles[at : at + REPORT_RECORDS_MAX])
            complete = at == batches[-1]
            orders, _ = await rpc.call(
                ReportReplicas(id=0, complete=complete), body, seconds=REPORT_SECONDS
            )
            await self._obey(rpc, orders)
        return reply.heartbeat_ms / 1000

    async def _join(self, rpc: Rpc, reply: RegisterReply) -> None:
        node, record = self._node, self._node.server.record
        if record.cluster and record.cluster != reply.cluster:
            raise WrongCluster(
                f"the master serves cluster {reply.cluster}, this server's disks belong "
                f"to cluster {record.cluster}"
            )
        if not self._is_master:
            return
        self._check_term(rpc)
        if rpc.peer_term > record.term:
            log.warning(
                "a new master, of term %d, at %s",
                rpc.peer_term >> 32,
                self._address,
                extra=event("new_master", term=rpc.peer_term >> 32, address=self._address),
            )
            # Operations of the former master beyond this were given up.
            record.term, record.sequence = rpc.peer_term, reply.sequence
        if not record.cluster:
            record.cluster = node.identity.cluster = reply.cluster
        await self._remember()
        self._joined.set()

    async def _remember(self) -> None:
        """Store cluster and term, now or at another attempt to join. Raises
        StartupError if they can be stored on no disk."""
        if not self._node.server.remembers:
            await self._node.disk_opening.save()

    async def _beat(self, rpc: Rpc, seconds: float) -> None:
        node = self._node
        while True:
            self._check_term(rpc)
            await self._report_changes(rpc)
            sent = node.world.clock.elapsed()
            appended = self._links.appends.unreported() if self._is_master else []
            orders, _ = await rpc.call(
                Heartbeat(
                    id=0,
                    disks=node.store.disks.reports(),
                    chunks=len(node.store.inventory),
                    bad=self._next_bad(),
                    leases=node.leases.take_used() if self._is_master else [],
                    scrub=self._links.scrubber.progress(),
                    appended=appended,
                    certificate_until_ns=node.identity.certificate_until_ns,
                ),
                node.store.inventory.pack(self._next_sample()),
                seconds=HEARTBEAT_SECONDS_MAX,
            )
            self._links.appends.reported(appended)
            await self._obey(rpc, orders, sent)
            await node.world.clock.sleep(seconds)

    async def _report_changes(self, rpc: Rpc) -> None:
        """Report at once the replicas that appeared or disappeared with a disk, before
        the heartbeat that reports the disk."""
        store, changes = self._node.store, self._changes
        while changes.gone or changes.come:
            is_gone = bool(changes.gone)
            if is_gone:
                some = dict(itertools.islice(changes.gone.items(), REPORT_RECORDS_MAX))
                body = store.inventory.pack_gone(some)
            else:
                some = dict.fromkeys(itertools.islice(changes.come, REPORT_RECORDS_MAX), 0)
                body = store.inventory.pack(some)
            orders, _ = await rpc.call(
                ReportReplicas(id=0, complete=False, gone=is_gone), body, seconds=REPORT_SECONDS
            )
            for handle, version in some.items():
                if not is_gone:
                    changes.come.pop(handle, None)
                elif changes.gone.get(handle) == version:
                    del changes.gone[handle]
            await self._obey(rpc, orders)

    def _next_bad(self) -> list[BadReplica]:
        """Some of the damaged replicas; all of them in turn, until they are replaced or deleted."""
        some = list(itertools.islice(self._bad, BAD_REPORTS_MAX))
        if len(some) < BAD_REPORTS_MAX:
            self._bad = iter(list(self._node.store.inventory.bad.values()))
            some += itertools.islice(self._bad, BAD_REPORTS_MAX - len(some))
        return [bad for bad in some if self._node.store.inventory.bad.get(bad.handle) == bad]

    def _next_sample(self) -> list[int]:
        sample = list(itertools.islice(self._sample, SAMPLE_RECORDS))
        if len(sample) < SAMPLE_RECORDS:
            self._sample = iter(list(self._node.store.inventory))
        return sample

    # --- what the master says -------------------------------------------------------

    async def _obey(self, rpc: Rpc, orders: Message, sent: float = 0.0) -> None:
        """Carry out the orders in an answer, if it is a master's."""
        if not isinstance(orders, Orders):
            raise ProtocolError(f"{type(orders).__name__} as the answer to a report")
        if not self._is_master:
            return
        self._check_term(rpc)
        self._links.learnt(self._address, orders.masters)
        self.obey(orders, sent)

    def obey(self, orders: Orders, sent: float = 0.0) -> None:
        """Carry out the orders of a master, unless its metadata is older than what this
        server knows of."""
        record = self._node.server.record
        if orders.sequence >= record.sequence:
            record.sequence = orders.sequence
            self._node.leases.extend(orders.extend_leases, orders.lease_ms, sent)
            self._node.throttle.set_rate(orders.background_bytes_per_second)

    async def delete(self, order: DeleteReplicas) -> None:
        """Carry out DeleteReplicas. Raises StaleVersion if the master's metadata is
        older than what this server knows of."""
        record = self._node.server.record
        if order.sequence < record.sequence:
            raise StaleVersion(
                f"refused to delete {plural(len(order.replicas), 'replica')}: the master is at "
                f"{order.sequence} of its operation log, this server has seen "
                f"{record.sequence}: was old metadata restored?"
            )
        record.sequence = order.sequence
        await delete_all(self._node, order.replicas)

    def _take_orders(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        assert self._nursery is not None
        for message, _ in batch:
            self._nursery.start_soon(self._carry_out, rpc, message, self._joined)

    async def _carry_out(self, rpc: Rpc, message: Message, joined: trio.Event) -> None:
        request.set(request_of(message.id))  # of this task, which does nothing else
        # Orders that a client waits for do not queue behind copies.
        async with self._slots if isinstance(message, LENGTHY) else self._prompt_slots:
            began = self._node.world.clock.monotonic()
            failure: GfsError | None = None
            try:
                if not self._is_master:
                    raise ProtocolError("a shadow master may not give orders")
                await joined.wait()  # for no longer than the registration may take
                self._check_term(rpc)
                rpc.send(await self._result(message))
            except GfsError as error:
                failure = error
                rpc.send_error(message.id, error)
            except OSError as error:
                failure = DiskFailed(str(error))
                rpc.send_error(message.id, failure)
            took = self._node.world.clock.monotonic() - began
            self._node.operations.done(type(message), message.id, took, failure)

    async def _result(self, message: Message) -> Message:
        node = self._node
        match message:
            case GrantLease():
                await node.grant(message)
            case RevokeLease():
                await node.revoke(message.handle, message.patience_ms / 1000)
            case CopyChunk():
                await copy(node, message)
            case DeleteReplicas():
                await self.delete(message)
            case CloneChunks():
                with deadline(message.seconds, "end of the copies"):
                    return await Batch(node, message).run()
            case CloneChunk():
                with deadline(message.seconds, "end of the copy"):
                    await clone(node, message)
            case VerifyChunk():
                reply = await node.verify(message)
                reply.id = message.id
                return reply
            case DiskOrder():
                return DiskOrderReply(id=message.id, disks=await node.disk_orders.order(message))
            case Ping():
                pass
            case _:
                raise ProtocolError(f"{type(message).__name__} is not served here")
        return Done(id=message.id)
