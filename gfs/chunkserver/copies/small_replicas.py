"""Copying small replicas, many at a time.

One by one, a replica of a kilobyte costs a message from the master, two to the source,
five thread hops and three syncs: 175 a second. Here the master names many in one order,
the source answers one request with as many as fit into a MiB, and the target makes 64
of them in one thread hop: it writes their bytes, starts the write-back, and then syncs
each file. The first sync makes the file system commit the metadata of all of them, so
the others hardly wait. Then the files get their names, and each folder is synced once.

The target verifies each replica as always, and each can fail by itself. A replica that
cannot be copied in this way (it is large, the chunk has a replica here already, or the
order names other sources for it) is copied like a large one: see
:mod:`gfs.chunkserver.copies.clone`. A file under a temporary name may have its state
before its bytes are synced: after a crash it is deleted at the next start.

Sketch for 64 replicas of 1 KiB, idle: source 64 * (open, 2 reads, close: 40 µs); target
64 * (create, 2 writes, start, sync, rename: 150 µs) and 10 ms of waiting for the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import trio

from gfs.blocks import MIB, REPLICA_HEAD_BYTES, block_count, block_sums
from gfs.chunkserver.copies.clone import STEP_SECONDS, clone, unfit
from gfs.chunkserver.disks import Disk, map_disk_error
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import open_packed
from gfs.chunkserver.replicas import Made
from gfs.diagnostics import event, message_id
from gfs.errors import (
    Busy,
    ChunkUnavailable,
    CorruptReplica,
    DiskFailed,
    GfsError,
    ProtocolError,
    StaleVersion,
)
from gfs.failures import plural
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    POSSIBLY_STALE,
    SMALL_REPLICA_BYTES_MAX,
    CloneChunk,
    CloneChunks,
    CloneChunksReply,
    CloneFailure,
    ReadReplicas,
    ReadReplicasReply,
    ReplicaName,
    ReplicaState,
)

log = logging.getLogger(__name__)

#: Replicas made, or read, in one thread hop; and threads that do so for one order.
STEP = 64
THREADS = 4
#: The most bytes of replicas in one answer.
READ_BYTES_MAX = 1 * MIB


# --- the source -----------------------------------------------------------------------


async def serve_replicas(node: Node, request: ReadReplicas) -> tuple[ReadReplicasReply, bytes]:
    """Answer with the first of the requested replicas, as many as fit."""
    states: list[ReplicaState] = []
    by_disk: dict[Disk, list[ReplicaName]] = {}
    store, room = node.store, READ_BYTES_MAX
    for name in request.replicas:
        replica = store.inventory.get(name.handle)
        if replica is None or store.inventory.is_incomplete(name.handle):
            states.append(ReplicaState(name.handle, "missing" if replica is None else "corrupt"))
        elif name.handle in store.inventory.bad or name.handle in store.inventory.possibly_stale:
            kind = "corrupt" if name.handle in store.inventory.bad else POSSIBLY_STALE
            states.append(ReplicaState(name.handle, kind, replica.version))
        elif replica.length > SMALL_REPLICA_BYTES_MAX:
            states.append(ReplicaState(name.handle, "large"))
        else:
            room -= replica.length
            if room < 0:
                break
            by_disk.setdefault(store.disks.used[replica.disk], []).append(name)
    body = bytearray()
    for disk, names in by_disk.items():
        for at in range(0, len(names), STEP):
            for state, data in await _read_some(node, disk, names[at : at + STEP]):
                states.append(state)
                body += data
    node.read_bytes += len(body)
    return ReadReplicasReply(request.id, states), bytes(body)


async def _read_some(
    node: Node, disk: Disk, names: list[ReplicaName]
) -> list[tuple[ReplicaState, bytes]]:
    # An open replica may have states that its file lacks.
    opened = {name.handle: node.store.open_chunks.opened(name.handle) for name in names}
    used = [chunk for chunk in opened.values() if chunk is not None]
    for chunk in used:
        chunk.users += 1
    try:
        files = {handle: chunk.file for handle, chunk in opened.items() if chunk is not None}
        return await disk.run(_read_all, node, disk, names, files)
    except OSError as error:
        raise map_disk_error(error, plural(len(names), "replica")) from error
    finally:
        for chunk in used:
            chunk.users -= 1
            node.store.open_chunks.close_if_unused(chunk)


def _read_all(
    node: Node, disk: Disk, names: list[ReplicaName], files: dict[int, ChunkFile]
) -> list[tuple[ReplicaState, bytes]]:
    """Blocks. The receiver verifies the bytes."""
    found = []
    for name in names:
        file = files.get(name.handle) or open_packed(disk.packs, name.handle, disk.journal)
        try:
            if file is not None:
                found.append(_read(name, file))
                continue
            path = disk.chunk_path(name.handle)
            file = ChunkFile.open(disk.files, path, name.handle, disk.journal)
            try:
                found.append(_read(name, file))
            finally:
                file.close()
        except FileNotFoundError:
            found.append((ReplicaState(name.handle, "missing"), b""))
        except (CorruptReplica, StaleVersion, OSError):
            # It may also be written just now. A single copy reads it twice.
            found.append((ReplicaState(name.handle, "large"), b""))
    return found


def _read(name: ReplicaName, file: ChunkFile) -> tuple[ReplicaState, bytes]:
    length = file.length
    if file.version != name.version:
        return ReplicaState(name.handle, "stale", file.version), b""
    if length > SMALL_REPLICA_BYTES_MAX:
        return ReplicaState(name.handle, "large"), b""
    data = bytearray(length)
    with memoryview(data) as view:
        if length and file.read_at(view, 0) < length:
            raise CorruptReplica(f"chunk {name.handle:016x}: the file was cut short")
    sums = file.sums(0, block_count(length))
    return ReplicaState(name.handle, "good", file.version, length, sums), bytes(data)


# --- the target -----------------------------------------------------------------------


class Batch:
    """One order to copy replicas. Carried out once."""

    def __init__(self, node: Node, order: CloneChunks) -> None:
        self._node = node
        self._order = order
        self._failures: dict[int, CloneFailure] = {}
        #: For :func:`clone`.
        self._singly: list[ReplicaName] = []

    async def run(self) -> CloneChunksReply:
        """Make good replicas of all these; the reply has the failures."""
        node, order = self._node, self._order
        mine: list[ReplicaName] = []
        for name in order.replicas:
            if name.handle in node.cloning:
                self._fail(name.handle, Busy(f"chunk {name.handle:016x} is being copied already"))
            elif node.store.is_absent(name.handle) and not order.others:
                mine.append(name)
            else:
                self._singly.append(name)
        held = {name.handle for name in mine}
        node.cloning |= held
        try:
            await self._copy_all(mine)
        finally:
            node.cloning -= held
        for name in self._singly:
            await self._clone(name)
        self._fail_lost()
        if len(self._singly) < len(order.replicas):
            log.info(
                "copied %d of %d replicas from %s",
                len(order.replicas) - len(self._failures),
                len(order.replicas),
                order.source,
                extra=event("replicas_copied", source=order.source, replicas=len(order.replicas)),
            )
        return CloneChunksReply(order.id, list(self._failures.values()))

    def _fail(self, handle: int, error: GfsError, server: str = "") -> None:
        server = server or getattr(error, "server", "")
        self._failures[handle] = CloneFailure(handle, error.code, str(error), server)

    def _fail_lost(self) -> None:
        """A disk may fail, or a file vanish, while the others are still copied. The master has
        heard then that the replica is gone, and would take it for there."""
        for name in self._order.replicas:
            replica = self._node.store.inventory.get(name.handle)
            if replica is not None and replica.version == name.version:
                continue
            if name.handle not in self._failures:
                lost = DiskFailed(f"chunk {name.handle:016x}: the copy was lost meanwhile")
                self._fail(name.handle, lost)

    async def _clone(self, name: ReplicaName) -> None:
        sources = [self._order.source, *self._order.others]
        try:
            await clone(self._node, CloneChunk(self._order.id, name.handle, name.version, sources))
        except (GfsError, OSError) as error:
            failure = error if isinstance(error, GfsError) else ChunkUnavailable(str(error))
            self._fail(name.handle, failure)

    async def _copy_all(self, names: list[ReplicaName]) -> None:
        node, source = self._node, self._order.source
        rest = names
        try:
            connection = await node.pool.acquire(source)
            clean = False
            try:
                while rest:
                    rest = await self._copy_some(connection, rest)
                clean = True
            finally:
                if clean:
                    node.pool.release(connection, source)
                else:
                    connection.close()
        except (ConnectionError, GfsError) as error:
            if not isinstance(error, GfsError):
                error = ChunkUnavailable(f"from {source}: {error}")
            for name in names:
                if node.store.is_absent(name.handle) and name.handle not in self._failures:
                    self._fail(name.handle, error)

    async def _copy_some(
        self, connection: BulkConnection, names: list[ReplicaName]
    ) -> list[ReplicaName]:
        """Copy as many as one answer has; returns the others."""
        node = self._node
        with deadline(STEP_SECONDS, "replicas"):
            await connection.send(ReadReplicas(message_id(), names))
            reply = await connection.receive_reply()
            if not isinstance(reply, ReadReplicasReply):
                raise ProtocolError(f"{type(reply).__name__} instead of replicas")
            body = memoryview(await connection.read_body())
        if not reply.states:
            raise ProtocolError("no replica in the answer")
        wanted = {name.handle: name for name in names}
        made = []
        for state in reply.states:
            name = wanted.pop(state.handle)
            data, body = body[: state.length], body[state.length :]
            if state.state == "large":
                self._singly.append(name)
            elif state.state != "good":
                error = unfit(name.handle, name.version, state.state, state.version)
                self._fail(name.handle, error, connection.peer_id)
            elif len(data) != state.length or block_sums(data) != state.sums:
                error = unfit(name.handle, name.version, "corrupt", state.version)
                self._fail(name.handle, error, connection.peer_id)
            else:
                made.append(Made(name.handle, name.version, data, state.sums))
        await node.throttle.take(sum(len(one.data) + REPLICA_HEAD_BYTES for one in made))
        await self._make_all(made)
        return list(wanted.values())

    async def _make_all(self, made: list[Made]) -> None:
        steps = iter([made[at : at + STEP] for at in range(0, len(made), STEP)])
        threads = min(THREADS, max(1, self._node.settings.disk_threads // 2))
        async with trio.open_nursery() as nursery:
            for _ in range(threads):
                nursery.start_soon(self._work, steps)

    async def _work(self, steps: Iterator[list[Made]]) -> None:
        node = self._node
        for step in steps:
            began = node.world.clock.monotonic()
            try:
                failed = await node.store.install_new(node.store.disks.pick(), step)
            except GfsError as error:
                failed = dict.fromkeys([one.handle for one in step], error)
            for handle, failure in failed.items():
                self._fail(handle, failure)
            await node.throttle.give_way(node.world.clock.monotonic() - began)
