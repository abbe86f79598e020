"""One client's connection: its requests and their handlers.

Look-ups are answered at once, a batch from one read transaction.
Mutations go to the committer with a callback. Only requests that wait for other
servers, or walk a tree, get a task of their own, a bounded number at a time; of the pages of
trees one connection gets one in each turn of the loop, however many it has asked for.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import trio

from gfs.diagnostics import request, request_of, working_for
from gfs.errors import (
    Busy,
    DiskFull,
    GfsError,
    InvalidArgument,
    NotEnoughShadows,
    NotFound,
    NotTheMaster,
    ProtocolError,
)
from gfs.master.leases import Grants
from gfs.master.master import Master
from gfs.master.metadata import (
    CHUNKS_PER_WEIGHT,
    Callback,
    Outcome,
    Plan,
    Txn,
    lookups,
    subtree,
    trash,
)
from gfs.master.metadata.namespace import (
    Planned,
    entry_of,
    plan_delete,
    plan_join,
    plan_make_directory,
    plan_prune,
    plan_publish,
    plan_rename,
    plan_set_attributes,
    plan_set_length,
    plan_set_replication,
)
from gfs.master.metadata.rows import CLIENT_BYTES_MAX, KIND_FILE
from gfs.master.service import drain_command, operator_commands, uploads
from gfs.master.service.disk_usage import disk_usage
from gfs.master.service.fsck import FsckWalk, garbage_page
from gfs.master.service.held_answers import HELD, HeldAnswers
from gfs.master.service.snapshots import Snapshots
from gfs.master.service.status import status_reply
from gfs.master.tables import AddressBook, Server
from gfs.protocol.messages import (
    LOCATE_CHUNKS_MAX,
    AcceptRestore,
    AcquireLease,
    ChunkLocation,
    Delete,
    DiskOrder,
    DiskUsage,
    Done,
    Drain,
    Election,
    EmptyTrash,
    ForgetServer,
    ForgetShadow,
    FsckPage,
    Join,
    List,
    ListFiles,
    ListFilesReply,
    ListGarbage,
    ListReply,
    ListTrash,
    ListTrashReply,
    Locate,
    LocateReply,
    Maintenance,
    MakeDirectory,
    Message,
    Mutation,
    Ping,
    Promote,
    Prune,
    Publish,
    Reclaim,
    Recover,
    Release,
    Rename,
    Repair,
    ReportReplica,
    Reserve,
    SetAttributes,
    SetLength,
    SetReplication,
    Snapshot,
    Stat,
    StatReply,
    Status,
    Undelete,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

#: The most requests of one connection that wait or walk at a time.
TASKS_MAX = 256
U64_MAX = 2**64 - 1


Answer = Callable[[Any, Rpc, Any, bytes, Txn], Message | None]


def _not_for_clients(message: Message) -> GfsError:
    return ProtocolError(f"{type(message).__name__} is not for the master from a client")


class ClientSession:
    """``nursery`` runs the longer requests, and ends with the connection. ``answers`` are the
    requests that are served, by default all of :data:`ANSWERS`: a shadow master serves fewer.
    All others get the error ``refusal``."""

    def __init__(
        self,
        master: Master,
        grants: Grants,
        nursery: trio.Nursery,
        peer: str,
        snapshots: Snapshots | None = None,
        answers: Mapping[type[Message], Answer] | None = None,
        refusal: Callable[[Message], GfsError] = _not_for_clients,
    ) -> None:
        self._master = master
        self._grants = grants
        self._snapshots = snapshots
        self._nursery = nursery
        self._peer = peer
        self._answers = ANSWERS if answers is None else answers
        self._refusal = refusal
        self._tasks = 0
        self._listing = trio.Lock()
        #: If nothing is answered that may still be lost with this master.
        self._held: HeldAnswers | None = None

    def handle(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        """Answer a batch, or have it answered later. Never raises."""
        master = self._master
        began = master.now
        answered: list[Message] = []
        master.reservations.heard(self._peer, began)
        held = self._held
        if held is None and master.settings.elect:
            held = self._held = HeldAnswers(rpc, master.committer.watermark)
        with master.store.read() if held is None else master.store.snapshot() as txn:
            for message, body in batch:
                to = held if held is not None and type(message) in HELD else rpc
                try:
                    known = self._answers[type(message)]
                    if isinstance(message, Mutation) and self._is_retry(rpc, message, txn):
                        continue
                    answer = known(self, rpc, message, body, txn)
                except KeyError:
                    to.send_error(message.id, self._refusal(message))
                except Exception as error:
                    failure = send_failure(to, message.id, error)
                    took = master.now - began
                    master.operations.done(type(message), message.id, took, failure)
                else:
                    if answer is not None:
                        answer.id = message.id
                        to.send(answer)
                        answered.append(message)
        if held is not None:
            held.release_after(txn.state.sequence)
        # They are sent together, so each has taken this long.
        master.operations.all_done(answered, master.now - began)

    def _is_retry(self, rpc: Rpc, message: Mutation, txn: Txn) -> bool:
        """Whether this is a retry, which gets the first answer. This is checked before
        anything else: the first attempt, or a later request, may have changed what the
        retry would find."""
        self._check_client(message.client, message.sequence)
        answer = self._answerer(rpc, message)
        return self._master.committer.join(txn, message.client, message.sequence, answer)

    # --- look-ups ------------------------------------------------------------------------

    def _stat(self, rpc: Rpc, message: Stat, body: bytes, txn: Txn) -> Message:
        return StatReply(0, lookups.stat(txn, message.path))

    def _list(self, rpc: Rpc, message: List, body: bytes, txn: Txn) -> Message:
        entries, more = lookups.list_page(txn, message.path, message.after, message.limit)
        return ListReply(0, entries, more)

    def _list_trash(self, rpc: Rpc, message: ListTrash, body: bytes, txn: Txn) -> Message:
        book, wall_ns = self._master.trash, self._master.committer.uptime.wall_ns
        entries, cursor = trash.page(
            txn, book, message.path, message.cursor, message.limit, wall_ns
        )
        return ListTrashReply(0, entries, cursor)

    def _locate(self, rpc: Rpc, message: Locate, body: bytes, txn: Txn) -> Message:
        """The reply has fewer chunks than requested if it would be too large, but at least one."""
        if message.first < 0 or message.count < 0:
            raise InvalidArgument(
                f"{message.count} chunks from chunk {message.first} on cannot be located"
            )
        _check_u64(message.inode)
        inode, row = lookups.open_file(txn, message.path, message.inode)
        entry = entry_of(message.path, inode, row)
        book = AddressBook()
        chunks: list[ChunkLocation] = []
        count = min(message.count, LOCATE_CHUNKS_MAX, row.chunks - message.first)
        if row.kind == KIND_FILE and count > 0:
            found = lookups.file_chunks(txn, inode, row.length, message.first)
            for chunk in islice(found, count):
                if chunks and book.room <= 0:
                    break
                servers = self._readers_order(chunk.handle, chunk.version)
                positions = book.positions(servers)
                chunks.append(ChunkLocation(chunk.handle, chunk.version, chunk.length, positions))
        return LocateReply(0, entry, book.servers, chunks)

    def _readers_order(self, handle: int, version: int) -> list[Server]:
        """The replicas in the order to try them: live ones first, starting with a
        random one, to spread the readers. If there are only damaged ones, these: most
        of their blocks are good, and readers verify each."""
        master = self._master
        holders = master.replica_map.locations.get(handle)
        if not holders and handle in master.goals.salvage.handles:
            return master.replica_map.damaged_holders(handle, version)
        if len(holders) > 1:
            at = int(master.rng.random() * len(holders))
            holders = holders[at:] + holders[:at]
        not_live = master.servers.not_live
        if not_live:
            holders = tuple(sorted(holders, key=not_live.__contains__))
        return list(map(master.servers.get, holders))

    def _promote(self, rpc: Rpc, message: Promote, body: bytes, txn: Txn) -> Message:
        raise InvalidArgument("this is the master already: name a shadow master")

    # --- new files -----------------------------------------------------------------------

    def _reserve(self, rpc: Rpc, message: Reserve, body: bytes, txn: Txn) -> Message:
        self._check_client(message.client)
        self._check_growth()
        return uploads.reserve(self._master, message)

    def _reclaim(self, rpc: Rpc, message: Reclaim, body: bytes, txn: Txn) -> Message:
        self._check_client(message.client)
        uploads.reclaim(self._master, message, body)
        return Done(id=0)

    def _publish(self, rpc: Rpc, message: Publish, body: bytes, txn: Txn) -> None:
        answer = self._answerer(rpc, message)
        master = self._master
        _check_u64(message.modified_ns)
        self._check_growth()
        upload = uploads.check_publish(master, message, body)
        handles = [chunk.handle for chunk in upload.chunks]
        master.reservations.publishing.update(handles)

        def done(outcome: Outcome) -> None:
            master.reservations.publishing.difference_update(handles)
            if not isinstance(outcome, GfsError) or (
                isinstance(outcome, NotEnoughShadows) and uploads.is_published(master, upload)
            ):
                uploads.published(master, upload)
            answer(outcome)

        time_ns = master.world.clock.time_ns()
        plan = partial(
            plan_publish,
            request=message,
            chunks=upload.chunks,
            replication=upload.replication,
            time_ns=time_ns,
        )
        weight = 1 + len(handles) // CHUNKS_PER_WEIGHT
        master.committer.submit(message.client, message.sequence, plan, done, weight)

    def _join(self, rpc: Rpc, message: Join, body: bytes, txn: Txn) -> None:
        _check_u64(message.modified_ns)
        self._check_growth()
        sources, goal = uploads.check_join(self._master, message, body)
        time_ns = self._master.world.clock.time_ns()
        self._master.committer.submit(
            message.client,
            message.sequence,
            partial(plan_join, request=message, sources=sources, replication=goal, time_ns=time_ns),
            self._answerer(rpc, message),
            1 + len(sources),
        )

    # --- other mutations -------------------------------------------------------------------

    def _delete(self, rpc: Rpc, message: Delete, body: bytes, txn: Txn) -> None:
        plan = partial(plan_delete, trash_ns=int(self._master.settings.trash_seconds * 1e9))
        self._mutate(rpc, message, plan)

    def _undelete(self, rpc: Rpc, message: Undelete, body: bytes, txn: Txn) -> None:
        _check_u64(message.inode)
        self._check_growth()
        self._mutate(rpc, message, trash.plan_undelete)

    def _set_replication(self, rpc: Rpc, message: SetReplication, body: bytes, txn: Txn) -> None:
        default = self._master.settings.replication
        goal = uploads.check_replication(message.replication, default)
        chunks = lookups.stat(txn, message.path).chunks
        self._master.committer.submit(
            message.client,
            message.sequence,
            partial(plan_set_replication, request=message, goal=goal),
            self._answerer(rpc, message),
            1 + chunks // CHUNKS_PER_WEIGHT,
        )

    def _set_attributes(self, rpc: Rpc, message: SetAttributes, body: bytes, txn: Txn) -> None:
        _check_u64(message.modified_ns)
        self._check_growth()
        plan = partial(plan_set_attributes, request=message)
        answer = self._answerer(rpc, message)
        self._master.committer.submit(message.client, message.sequence, plan, answer)

    def _set_length(self, rpc: Rpc, message: SetLength, body: bytes, txn: Txn) -> None:
        _check_u64(message.inode)
        if self._master.leases.is_held(message.inode):
            raise Busy("a snapshot is being made of the file: try again in a moment")
        self._mutate(rpc, message, plan_set_length)

    def _mutate(
        self, rpc: Rpc, message: Mutation, plan: Callable[[Txn, Any, int], Planned]
    ) -> None:
        time_ns = self._master.world.clock.time_ns()
        job: Plan = lambda txn: plan(txn, message, time_ns)  # noqa: E731 - it is called once
        answer = self._answerer(rpc, message)
        self._master.committer.submit(message.client, message.sequence, job, answer)

    def _answerer(self, rpc: Rpc, message: Message) -> Callback:
        master, request_id = self._master, message.id
        began = master.now

        def answer(outcome: Outcome) -> None:
            took = master.now - began
            if isinstance(outcome, GfsError):
                rpc.send_error(request_id, outcome)
                master.operations.done(type(message), request_id, took, outcome)
            else:
                outcome.id = request_id
                rpc.send(outcome)
                master.operations.done(type(message), request_id, took)

        return answer

    def _check_client(self, client: str, sequence: int = 0) -> None:
        if not 0 < len(client.encode()) <= CLIENT_BYTES_MAX or "\0" in client:
            raise InvalidArgument(f"a client's name has 1 to {CLIENT_BYTES_MAX} bytes, no NUL")
        _check_u64(sequence)
        if client != self._peer:
            self._master.reservations.heard(client, self._master.now)

    def _check_growth(self) -> None:
        """Refuse mutations that add rows when the disk is nearly full, so that
        deletions remain possible."""
        if self._master.metadata_disk.is_low:
            raise DiskFull("the master's metadata disk is nearly full: free some space there")

    # --- what takes longer -------------------------------------------------------------------

    def _acquire_lease(self, rpc: Rpc, message: AcquireLease, body: bytes, txn: Txn) -> None:
        self._check_client(message.client)
        self._check_growth()
        self._start(rpc, message, self._grants.acquire(message))

    def _snapshot(self, rpc: Rpc, message: Snapshot, body: bytes, txn: Txn) -> None:
        self._check_growth()
        if self._snapshots is None:
            raise NotTheMaster("this is a shadow master")
        self._start(rpc, message, self._snapshots.ask(message))

    def _list_files(self, rpc: Rpc, message: ListFiles, body: bytes, txn: Txn) -> None:
        self._start(rpc, message, self._list_in_turn(message))

    def _report_replica(self, rpc: Rpc, message: ReportReplica, body: bytes, txn: Txn) -> Message:
        """Answer at once; the replica is verified afterwards."""
        _check_u64(message.handle)
        master = self._master
        server = master.servers.by_id.get(message.server)
        if server is None:
            raise NotFound(f"there is no chunkserver {message.server}")
        if txn.get(message.handle.to_bytes(8, "big"), None, txn.db.chunks) is not None:
            master.goals.reported_bad(server, message.handle)
        return Done(id=0)

    def _start(self, rpc: Rpc, message: Message, work: Awaitable[Message]) -> None:
        if self._tasks >= TASKS_MAX:
            work.close()  # type: ignore[attr-defined]
            raise Busy(f"{TASKS_MAX} requests of this connection run already: try again")
        self._tasks += 1
        self._nursery.start_soon(self._run, rpc, message, work)

    async def _run(self, rpc: Rpc, message: Message, work: Awaitable[Message]) -> None:
        request_id, began = message.id, self._master.now
        request.set(request_of(request_id))  # of this task, which does nothing else
        failure: GfsError | None = None
        held = self._held
        to = held if held is not None and type(message) in HELD else rpc
        try:
            answer = await work
            answer.id = request_id
            to.send(answer)
        except Exception as error:
            failure = send_failure(to, request_id, error)
        finally:
            self._tasks -= 1
        if isinstance(to, HeldAnswers):
            with self._master.store.snapshot() as txn:  # no older than what was read
                to.release_after(txn.state.sequence)
        self._master.operations.done(type(message), request_id, self._master.now - began, failure)

    async def _list_in_turn(self, message: ListFiles) -> ListFilesReply:
        async with self._listing:
            with self._master.store.read() as txn:
                return ListFilesReply(0, *subtree.page(txn, message))


def send_failure(rpc: Rpc | HeldAnswers, request_id: int, error: Exception) -> GfsError:
    """Answer with an exception; returns the error that was sent. An exception other
    than a GfsError is a bug, or a number outside its field's range."""
    if isinstance(error, GfsError):
        failure = error
    elif isinstance(error, (struct.error, OverflowError)):
        failure = InvalidArgument(f"a number is out of range: {error}")
    else:
        with working_for(request_of(request_id)):
            log.error(
                "a request from %s failed because of a bug in the master", rpc.peer, exc_info=error
            )
        failure = GfsError(f"the master failed on this request: {error!r}")
    rpc.send_error(request_id, failure)
    return failure


def _check_u64(value: int) -> None:
    if not 0 <= value <= U64_MAX:
        raise InvalidArgument(f"a number of {value} is out of range")


def _planned(plan: Callable[[Txn, Any, int], Planned], *, grows: bool = False) -> Answer:
    """To a mutation that ``plan`` carries out in the committer; ``grows``: it adds rows."""

    def answer(session: ClientSession, rpc: Rpc, message: Any, body: bytes, txn: Txn) -> None:
        if grows:
            session._check_growth()
        session._mutate(rpc, message, plan)

    return answer


def _of_upload(work: Callable[[Master, Any], Message]) -> Answer:
    """To a request about chunks that the client has reserved."""

    def answer(session: ClientSession, rpc: Rpc, message: Any, body: bytes, txn: Txn) -> Message:
        session._check_client(message.client)
        return work(session._master, message)

    return answer


def _commanded(work: Callable[[Master, Any], Awaitable[Message]]) -> Answer:
    """To a request that gets a task of its own."""
    return lambda session, rpc, message, body, txn: session._start(
        rpc, message, work(session._master, message)
    )


ANSWERS: dict[type[Message], Answer] = {
    Ping: lambda session, rpc, message, body, txn: Done(id=0),
    Stat: ClientSession._stat,
    List: ClientSession._list,
    ListFiles: ClientSession._list_files,
    Locate: ClientSession._locate,
    DiskUsage: _commanded(disk_usage),
    Status: lambda session, rpc, message, body, txn: status_reply(
        session._master, txn, message.after
    ),
    FsckPage: lambda session, rpc, message, body, txn: FsckWalk(
        session._master, txn, message
    ).page(),
    ListGarbage: lambda session, rpc, message, body, txn: garbage_page(session._master, message),
    Reserve: ClientSession._reserve,
    Recover: _of_upload(uploads.recover),
    Reclaim: ClientSession._reclaim,
    Release: _of_upload(uploads.release),
    Publish: ClientSession._publish,
    Join: ClientSession._join,
    MakeDirectory: _planned(plan_make_directory, grows=True),
    Rename: _planned(plan_rename),
    Delete: ClientSession._delete,
    Prune: _planned(plan_prune),
    ListTrash: ClientSession._list_trash,
    Undelete: ClientSession._undelete,
    EmptyTrash: _planned(trash.plan_empty),
    SetLength: ClientSession._set_length,
    SetReplication: ClientSession._set_replication,
    SetAttributes: ClientSession._set_attributes,
    Snapshot: ClientSession._snapshot,
    AcquireLease: ClientSession._acquire_lease,
    Drain: _commanded(drain_command.drain),
    DiskOrder: _commanded(drain_command.order_disk),
    ReportReplica: ClientSession._report_replica,
    Promote: ClientSession._promote,
    Election: lambda session, rpc, message, body, txn: session._master.process.election(),
    ForgetShadow: _commanded(lambda master, message: master.process.forget_shadow(message)),
    ForgetServer: _commanded(operator_commands.forget),
    Maintenance: _commanded(operator_commands.maintain),
    Repair: _commanded(operator_commands.repair),
    AcceptRestore: _commanded(operator_commands.accept_restore),
}
