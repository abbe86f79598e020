"""One chunkserver's connection: registration, reports, heartbeats.

Everything is answered at once, from memory and one read transaction. Whether an order
is safe is decided in :mod:`gfs.master.replicas`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from gfs.diagnostics import event
from gfs.errors import GfsError, ProtocolError, StaleVersion
from gfs.master.master import Master
from gfs.master.metadata import Outcome, Txn
from gfs.master.metadata.namespace import Planned, inode_row, plan_note_append
from gfs.master.metadata.operations import ServerForgotten, ServerRemembered
from gfs.master.metadata.rows import FLAG_TRASHED
from gfs.master.service.client_session import send_failure
from gfs.master.tables import Server
from gfs.protocol.messages import (
    AppendedChunk,
    BadReplica,
    Done,
    Heartbeat,
    Message,
    Orders,
    Ping,
    Register,
    RegisterReply,
    ReportReplicas,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

SERVER_ID_BYTES_MAX = 64
LEASES_EXTENDED_MAX = 4096


class TakesReports(Protocol):
    """Takes reports, see :class:`gfs.master.replicas.reports.Reports`."""

    def take_report(self, server: Server, body: bytes) -> None: ...

    def take_bad(self, server: Server, bad: list[BadReplica]) -> None: ...

    def take_gone(self, server: Server, body: bytes) -> None: ...


class ChunkserverSession:
    """``start_pass`` runs a pass over all chunks in the background. ``reports`` are a master's
    own or a shadow master's. A shadow master gives ``heartbeat_ms``, the interval that its
    master wants. It records no chunkserver, since it gets them from the log, and refuses
    none that has seen later operations, since it may be behind."""

    def __init__(
        self,
        master: Master,
        start_pass: Callable[[Iterator[None]], None],
        reports: TakesReports,
        heartbeat_ms: Callable[[], int] | None = None,
    ) -> None:
        self._master = master
        self._reports = reports
        self._shadow_heartbeat_ms = heartbeat_ms
        self._start_pass = start_pass
        self.server: Server | None = None

    def handle(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        """Answer a batch of requests. Never raises."""
        for message, body in batch:
            try:
                answer = self._answer(rpc, message, body)
            except Exception as error:
                send_failure(rpc, message.id, error)
            else:
                if answer is not None:
                    answer.id = message.id
                    rpc.send(answer)

    def _answer(self, rpc: Rpc, message: Message, body: bytes) -> Message | None:
        if type(message) is Register:
            return self._register(rpc, message)
        known = _ANSWERS.get(type(message))
        if known is None:
            name = type(message).__name__
            raise ProtocolError(f"{name} is not for the master from a chunkserver")
        server = self.server
        if server is None:
            raise ProtocolError(f"{type(message).__name__} before Register")
        if server.rpc is not rpc:
            raise StaleVersion("this chunkserver has a newer connection: this one is closed")
        self._master.servers.heard(server, self._master.now)
        return known(self, server, message, body)

    def ended(self, rpc: Rpc) -> None:
        """The connection has ended."""
        if self.server is not None and self._master.servers.disconnected(self.server, rpc):
            log.info(
                "chunkserver %s disconnected",
                self.server.id,
                extra=event("chunkserver_disconnected", server=self.server.id),
            )

    # --- registration ----------------------------------------------------------------------

    def _register(self, rpc: Rpc, message: Register) -> Message | None:
        master = self._master
        if not 0 < len(message.server.encode()) <= SERVER_ID_BYTES_MAX:
            raise ProtocolError(f"a chunkserver id has 1 to {SERVER_ID_BYTES_MAX} bytes")
        shadow_heartbeat_ms = self._shadow_heartbeat_ms
        if shadow_heartbeat_ms is None:
            self._check_memory(message)
            if not rpc.peer_cluster:  # it has never registered
                master.servers.check_mounts(message.address, message.disks)
        server, changed = master.servers.register(
            message.server,
            message.incarnation,
            message.address,
            message.rack,
            message.disks,
            rpc,
            master.now,
        )
        server.particulars.packed_bytes_max = message.packed_bytes_max
        self.server = server
        reply = RegisterReply(
            id=message.id,
            cluster=master.store.cluster,
            sequence=master.committer.sequence,
            heartbeat_ms=int(master.settings.heartbeat_seconds * 1000),
        )
        if shadow_heartbeat_ms is not None:
            reply.heartbeat_ms = shadow_heartbeat_ms()
            return reply
        if not changed:
            return reply
        master.committer.submit(
            "",
            0,
            partial(_remember, server=server),
            partial(_registered, rpc, reply),
        )
        return None

    def _check_memory(self, message: Register) -> None:
        """Refuse a chunkserver that has seen a later operation of this term: orders
        from older metadata would delete live data (lizardfs#416). In a new term the
        operations that the promoted shadow master lacked are given up."""
        sequence, term = self._master.committer.sequence, self._master.store.state.term
        if message.term != term or message.sequence <= sequence:
            return
        log.error(
            "chunkserver %s has seen operation %d, but this master's metadata ends at %d and may "
            "be an old copy: the chunkserver is refused",
            message.server,
            message.sequence,
            sequence,
        )
        raise StaleVersion(
            f"this master's metadata ends at operation {sequence}, but this chunkserver has seen "
            f"operation {message.sequence}: restore newer metadata"
        )

    def _report(self, server: Server, message: ReportReplicas, body: bytes) -> Message:
        if message.gone:
            self._reports.take_gone(server, body)
        else:
            self._reports.take_report(server, body)
        if message.complete:
            self._start_pass(self._master.membership.finish_registration(server))
        return self._orders(server, [])

    # --- heartbeats --------------------------------------------------------------------------

    def _heartbeat(self, server: Server, message: Heartbeat, body: bytes) -> Message:
        master = self._master
        master.membership.set_disks(server, message.disks)
        server.chunks = message.chunks
        server.particulars.scrub = message.scrub
        server.particulars.certificate_until_ns = message.certificate_until_ns
        master.balancer.end_shifts(server)
        self._reports.take_bad(server, message.bad)
        self._reports.take_report(server, body)
        for appended in message.appended:
            self._note_append(appended)
        return self._orders(server, message.leases[:LEASES_EXTENDED_MAX])

    def _note_append(self, appended: AppendedChunk) -> None:
        """Take the length after an append, so that listings are up to date, and a
        replica that has lost bytes which every other has is detected."""
        plan = partial(
            plan_note_append, appended=appended, time_ns=self._master.world.clock.time_ns()
        )
        self._master.committer.submit("", 0, plan, lambda _: None)

    def _orders(self, server: Server, leases: list[int]) -> Orders:
        master = self._master
        return Orders(
            id=0,
            sequence=master.committer.sequence,
            delete=[],
            extend_leases=[handle for handle in leases if self._extend(server, handle)],
            lease_ms=master.leases.lease_ms,
            masters=self._masters(),
            background_bytes_per_second=master.store.state.repair.bytes_per_second,
        )

    def _masters(self) -> list[str]:
        return self._master.store.standing.peers

    def _extend(self, server: Server, handle: int) -> bool:
        """Extend the lease of a primary that has mutated the chunk lately, unless the
        file was deleted, or the chunk waits for a copy or a snapshot."""
        master = self._master
        lease = master.leases.current(handle, master.now)
        if lease is None or handle in master.leases.to_revoke or handle in master.leases.revoking:
            return False
        with master.store.read() as txn:
            row = inode_row(txn, lease.inode)
        if row is None or row.flags & FLAG_TRASHED:
            return False
        return master.leases.extend(handle, server.index, master.now)

    def _ping(self, server: Server, message: Ping, body: bytes) -> Message:
        return Done(id=0)


def _remember(txn: Txn, server: Server) -> Planned:
    """Record the chunkserver, for which a restarted master waits."""
    return ServerRemembered(server.id, server.address, server.rack, server.mounts), Done(id=0)


def forget(txn: Txn, server_id: str) -> Planned:
    return ServerForgotten(server_id), Done(id=0)


def _registered(rpc: Rpc, reply: RegisterReply, outcome: Outcome) -> None:
    if isinstance(outcome, GfsError):
        log.warning("a new chunkserver could not be recorded: %s", outcome)
    rpc.send(reply)


_Answer = Callable[[ChunkserverSession, Server, Any, bytes], Message]
_ANSWERS: dict[type[Message], _Answer] = {
    ReportReplicas: ChunkserverSession._report,
    Heartbeat: ChunkserverSession._heartbeat,
    Ping: ChunkserverSession._ping,
}
