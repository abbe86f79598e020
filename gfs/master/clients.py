"""One client's connection: its requests and who answers them.

Look-ups are answered on the spot, a whole batch from one read transaction.
Mutations go to the committer with a callback. Only what has to wait for other
servers, or walks a tree, gets a task of its own, a bounded number at a time.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from gfs.errors import Busy, DiskFull, GfsError, InvalidArgument, NotFound, ProtocolError
from gfs.master import reads, uploads
from gfs.master.committer import CHUNKS_PER_WEIGHT, Callback, Outcome, Plan
from gfs.master.core import Master
from gfs.master.fsck import WALK_SLICE, FsckWalk
from gfs.master.granting import Grants
from gfs.master.names import parse
from gfs.master.namespace import (
    Planned,
    entry_of,
    plan_delete,
    plan_make_directory,
    plan_publish,
    plan_rename,
    plan_set_length,
)
from gfs.master.rows import CLIENT_BYTES_MAX, KIND_DIRECTORY, KIND_FILE
from gfs.master.servers import Server
from gfs.master.store import Txn
from gfs.protocol.messages import (
    LOCATE_CHUNKS_MAX,
    AcquireLease,
    ChunkLocation,
    ClusterTotals,
    Delete,
    DiskUsage,
    DiskUsageReply,
    Done,
    FsckPage,
    GarbageReplica,
    List,
    ListGarbage,
    ListGarbageReply,
    ListReply,
    Locate,
    LocateReply,
    MakeDirectory,
    Message,
    Ping,
    Publish,
    Reclaim,
    Recover,
    Release,
    Rename,
    ReportReplica,
    Reserve,
    SetLength,
    Stat,
    StatReply,
    Status,
    StatusReply,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

#: Requests of one connection that wait or walk, at a time.
TASKS_MAX = 256
GARBAGE_PAGE_MAX = 500
U64_MAX = 2**64 - 1


class ClientSession:
    """``nursery`` runs what takes longer, and ends with the connection."""

    def __init__(self, master: Master, grants: Grants, nursery: trio.Nursery, peer: str) -> None:
        self._master = master
        self._grants = grants
        self._nursery = nursery
        self._peer = peer
        self._tasks = 0

    def handle(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        """Answer a batch, or have it answered later. Never raises."""
        self._master.reservations.heard(self._peer, self._master.now)
        with self._master.store.read() as txn:
            for message, body in batch:
                try:
                    answer = _ANSWERS[type(message)](self, rpc, message, body, txn)
                except KeyError:
                    answer = None
                    self._refuse(rpc, message)
                except Exception as error:
                    answer = None
                    send_failure(rpc, message.id, error)
                if answer is not None:
                    answer.id = message.id
                    rpc.send(answer)

    def _refuse(self, rpc: Rpc, message: Message) -> None:
        name = type(message).__name__
        rpc.send_error(message.id, ProtocolError(f"{name} is not for the master from a client"))

    # --- look-ups ------------------------------------------------------------------------

    def _ping(self, rpc: Rpc, message: Ping, body: bytes, txn: Txn) -> Message:
        return Done(id=0)

    def _stat(self, rpc: Rpc, message: Stat, body: bytes, txn: Txn) -> Message:
        return StatReply(0, reads.stat(txn, message.path))

    def _list(self, rpc: Rpc, message: List, body: bytes, txn: Txn) -> Message:
        entries, more = reads.list_page(txn, message.path, message.after, message.limit)
        return ListReply(0, entries, more)

    def _locate(self, rpc: Rpc, message: Locate, body: bytes, txn: Txn) -> Message:
        """Fewer chunks than asked for if the reply would be too large, never none."""
        if message.first < 0 or message.count < 0:
            raise InvalidArgument(f"chunks {message.first} to {message.count} more")
        _check_u64(message.inode)
        inode, row = reads.open_file(txn, message.path, message.inode)
        entry = entry_of(message.path, inode, row)
        book = uploads.AddressBook()
        chunks: list[ChunkLocation] = []
        count = min(message.count, LOCATE_CHUNKS_MAX)
        if row.kind == KIND_FILE and message.first < row.chunks:
            for chunk in reads.file_chunks(txn, inode, row.length, message.first):
                if len(chunks) >= count or (chunks and book.room <= 0):
                    break
                servers = self._readers_order(chunk.handle)
                positions = book.positions(servers)
                chunks.append(ChunkLocation(chunk.handle, chunk.version, chunk.length, positions))
        return LocateReply(0, entry, book.servers, chunks)

    def _readers_order(self, handle: int) -> list[Server]:
        """Replicas in the order to try them: live ones first, and begun at a
        random one, so that readers spread."""
        master = self._master
        holders = master.locations.get(handle)
        if len(holders) > 1:
            at = int(master.rng.random() * len(holders))
            holders = holders[at:] + holders[:at]
        not_live = master.servers.not_live
        if not_live:
            holders = tuple(sorted(holders, key=not_live.__contains__))
        return [master.servers.get(index) for index in holders]

    def _status(self, rpc: Rpc, message: Status, body: bytes, txn: Txn) -> Message:
        master = self._master
        state = master.store.state
        counts = master.garbage.counts
        totals = ClusterTotals(
            files=state.files,
            directories=state.directories,
            chunks=txn.count(txn.db.chunks),
            bytes=state.bytes,
            under_replicated=master.repair.endangered,
            corrupt=counts["corrupt"],
            lost=len(master.repair.lost),
            orphaned=counts["orphaned"],
            stale=counts["stale"],
            repairs_active=len(master.repair.active),
            repairs_queued=master.repair.queued,
            corruptions=state.corruptions,
        )
        servers = master.servers.status(master.now)
        room = 40_000
        for server in servers:
            room -= 64 + len(server.id) + len(server.address) + len(server.rack)
            room -= sum(48 + len(disk.path) for disk in server.disks)
            if room < 0:
                # A head has a bound: with very many servers the disks are left out.
                server.disks = []
        return StatusReply(0, master.store.cluster, master.store.epoch, servers, totals)

    def _list_garbage(self, rpc: Rpc, message: ListGarbage, body: bytes, txn: Txn) -> Message:
        limit = max(1, min(message.limit, GARBAGE_PAGE_MAX))
        found, more = self._master.garbage.page(message.after, limit)
        servers = self._master.servers
        replicas = [
            GarbageReplica(servers.get(index).id, handle, known.version, known.kind)
            for handle, index, known in found
        ]
        return ListGarbageReply(0, replicas, more)

    def _fsck_page(self, rpc: Rpc, message: FsckPage, body: bytes, txn: Txn) -> Message:
        return FsckWalk(self._master, txn, message).page()

    # --- new files -----------------------------------------------------------------------

    def _reserve(self, rpc: Rpc, message: Reserve, body: bytes, txn: Txn) -> Message:
        self._check_growth(message.client)
        return uploads.reserve(self._master, message)

    def _recover(self, rpc: Rpc, message: Recover, body: bytes, txn: Txn) -> Message:
        self._check_client(message.client)
        return uploads.recover(self._master, message)

    def _reclaim(self, rpc: Rpc, message: Reclaim, body: bytes, txn: Txn) -> Message:
        self._check_client(message.client)
        uploads.reclaim(self._master, message, body)
        return Done(id=0)

    def _release(self, rpc: Rpc, message: Release, body: bytes, txn: Txn) -> Message:
        self._check_client(message.client)
        uploads.release(self._master, message)
        return Done(id=0)

    def _publish(self, rpc: Rpc, message: Publish, body: bytes, txn: Txn) -> None:
        answer = self._answerer(rpc, message.id)
        master = self._master
        self._check_client(message.client, message.sequence)
        if master.committer.join(message.client, message.sequence, answer):
            return
        self._check_growth(message.client)
        upload = uploads.check_publish(master, message, body)
        handles = [chunk.handle for chunk in upload.chunks]
        master.publishing.update(handles)

        def done(outcome: Outcome) -> None:
            master.publishing.difference_update(handles)
            if not isinstance(outcome, GfsError):
                uploads.published(master, upload)
            answer(outcome)

        time_ns = master.clock.time_ns()
        plan = partial(
            plan_publish,
            request=message,
            chunks=upload.chunks,
            replication=upload.replication,
            time_ns=time_ns,
        )
        weight = 1 + len(handles) // CHUNKS_PER_WEIGHT
        master.committer.submit(message.client, message.sequence, plan, done, weight)

    # --- other mutations -------------------------------------------------------------------

    def _make_directory(self, rpc: Rpc, message: MakeDirectory, body: bytes, txn: Txn) -> None:
        self._check_growth(message.client)
        self._mutate(rpc, message, message.client, message.sequence, plan_make_directory)

    def _rename(self, rpc: Rpc, message: Rename, body: bytes, txn: Txn) -> None:
        self._mutate(rpc, message, message.client, message.sequence, plan_rename)

    def _delete(self, rpc: Rpc, message: Delete, body: bytes, txn: Txn) -> None:
        self._mutate(rpc, message, message.client, message.sequence, plan_delete)

    def _set_length(self, rpc: Rpc, message: SetLength, body: bytes, txn: Txn) -> None:
        _check_u64(message.inode)
        self._mutate(rpc, message, message.client, message.sequence, plan_set_length)

    def _mutate(
        self,
        rpc: Rpc,
        message: Message,
        client: str,
        sequence: int,
        plan: Callable[[Txn, Any, int], Planned],
    ) -> None:
        self._check_client(client, sequence)
        time_ns = self._master.clock.time_ns()
        job: Plan = lambda txn: plan(txn, message, time_ns)  # noqa: E731 - it is called once
        self._master.committer.submit(client, sequence, job, self._answerer(rpc, message.id))

    def _answerer(self, rpc: Rpc, request_id: int) -> Callback:
        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, GfsError):
                rpc.send_error(request_id, outcome)
            else:
                outcome.id = request_id
                rpc.send(outcome)

        return answer

    def _check_client(self, client: str, sequence: int = 0) -> None:
        if not 0 < len(client.encode()) <= CLIENT_BYTES_MAX or "\0" in client:
            raise InvalidArgument(f"a client's name has 1 to {CLIENT_BYTES_MAX} bytes, no NUL")
        _check_u64(sequence)
        if client != self._peer:
            self._master.reservations.heard(client, self._master.now)

    def _check_growth(self, client: str) -> None:
        """What adds rows is refused early when their disk is nearly full, so
        that deleting goes on."""
        self._check_client(client)
        if self._master.disk_low:
            raise DiskFull("the master's metadata disk is nearly full: free some space there")

    # --- what takes longer -------------------------------------------------------------------

    def _acquire_lease(self, rpc: Rpc, message: AcquireLease, body: bytes, txn: Txn) -> None:
        self._check_growth(message.client)
        self._start(rpc, message, self._grants.acquire(message))

    def _disk_usage(self, rpc: Rpc, message: DiskUsage, body: bytes, txn: Txn) -> None:
        self._start(rpc, message, self._add_up(message.path))

    def _report_replica(self, rpc: Rpc, message: ReportReplica, body: bytes, txn: Txn) -> Message:
        """Answered at once; the check follows."""
        _check_u64(message.handle)
        master = self._master
        server = master.servers.by_id.get(message.server)
        if server is None:
            raise NotFound(f"there is no chunkserver {message.server}")
        if txn.get(message.handle.to_bytes(8, "big"), None, txn.db.chunks) is not None:
            master.reported_bad(server, message.handle)
        return Done(id=0)

    def _start(self, rpc: Rpc, message: Message, work: Awaitable[Message]) -> None:
        if self._tasks >= TASKS_MAX:
            work.close()  # type: ignore[attr-defined]
            raise Busy(f"{TASKS_MAX} requests of this connection run already: try again")
        self._tasks += 1
        self._nursery.start_soon(self._run, rpc, message.id, work)

    async def _run(self, rpc: Rpc, request_id: int, work: Awaitable[Message]) -> None:
        try:
            answer = await work
            answer.id = request_id
            rpc.send(answer)
        except Exception as error:
            send_failure(rpc, request_id, error)
        finally:
            self._tasks -= 1

    async def _add_up(self, path: str) -> DiskUsageReply:
        """In slices: others are answered in between."""
        usage = DiskUsageReply(0, 0, 0, 0, 0)
        cursor = reads.Cursor()
        root = len(parse(path))
        while True:
            met = 0
            with self._master.store.read() as txn:
                for visit in reads.walk(txn, path, cursor):
                    cursor = reads.Cursor(visit.segments[root:], -1, True)
                    if cursor.segments or visit.row.kind == KIND_FILE:
                        _count(usage, visit)
                    met += 1
                    if met >= WALK_SLICE:
                        break
            if met < WALK_SLICE:
                return usage
            await trio.lowlevel.checkpoint()


def _count(usage: DiskUsageReply, visit: reads.Visit) -> None:
    if visit.row.kind == KIND_DIRECTORY:
        usage.directories += 1
    else:
        usage.files += 1
        usage.bytes += visit.row.length
        usage.replicated_bytes += visit.row.length * visit.row.replication


def send_failure(rpc: Rpc, request_id: int, error: Exception) -> None:
    """Answer any exception. One that is no GfsError is a bug here, or a number
    outside its field's range."""
    if isinstance(error, GfsError):
        rpc.send_error(request_id, error)
    elif isinstance(error, (struct.error, OverflowError)):
        rpc.send_error(request_id, InvalidArgument(f"a number is out of range: {error}"))
    else:
        log.error("a request from %s met a bug", rpc.peer, exc_info=error)
        rpc.send_error(request_id, GfsError(f"the master failed on this request: {error!r}"))


def _check_u64(value: int) -> None:
    if not 0 <= value <= U64_MAX:
        raise InvalidArgument(f"a number of {value} is out of range")


_Answer = Callable[[ClientSession, Rpc, Any, bytes, Txn], Message | None]
_ANSWERS: dict[type[Message], _Answer] = {
    Ping: ClientSession._ping,
    Stat: ClientSession._stat,
    List: ClientSession._list,
    Locate: ClientSession._locate,
    DiskUsage: ClientSession._disk_usage,
    Status: ClientSession._status,
    FsckPage: ClientSession._fsck_page,
    ListGarbage: ClientSession._list_garbage,
    Reserve: ClientSession._reserve,
    Recover: ClientSession._recover,
    Reclaim: ClientSession._reclaim,
    Release: ClientSession._release,
    Publish: ClientSession._publish,
    MakeDirectory: ClientSession._make_directory,
    Rename: ClientSession._rename,
    Delete: ClientSession._delete,
    SetLength: ClientSession._set_length,
    AcquireLease: ClientSession._acquire_lease,
    ReportReplica: ClientSession._report_replica,
}
