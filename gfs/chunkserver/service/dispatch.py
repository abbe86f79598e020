"""Dispatches the messages of clients, and of other chunkservers."""

from __future__ import annotations

from gfs.chunkserver.copies import serve_replicas
from gfs.chunkserver.exchanges import (
    Appends,
    FromConnection,
    SmallRequests,
    SmallWriter,
    WriteExchange,
    serve_read,
)
from gfs.chunkserver.node import Node
from gfs.diagnostics import request, request_of
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    AppendRecords,
    Done,
    Failure,
    LookFor,
    Message,
    Multiplex,
    Ping,
    ReadChunk,
    ReadReplicas,
    VerifyChunk,
    WriteChunk,
)


class Dispatcher:
    """Serves connections; holds the queues of record appends, which they share."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.appends = Appends(node)
        self.small_writer = SmallWriter(node)

    async def serve(self, connection: BulkConnection) -> None:
        """All exchanges of one connection, one after another."""
        node, clock, idle = self._node, self._node.world.clock, self._node.connections.idle
        while not connection.ending:
            idle[connection] = clock.monotonic()
            try:
                message = await connection.receive_or_end()
            finally:
                del idle[connection]
            if message is None:
                return
            if isinstance(message, Multiplex):
                await SmallRequests(node, connection, self.small_writer).run()
                return
            is_client = _is_from_client(connection, message)
            if is_client:
                node.throttle.client_starts()
            began = clock.monotonic()
            # Not reset: this task does no other work between two exchanges.
            request.set(request_of(message.id))
            connection.failure = None
            connection.busy = True
            connection.exchanges += 1
            try:
                if not await self._exchange(connection, message):
                    return
            finally:
                connection.busy = False
                idle.pop(connection, None)
                if is_client:
                    node.throttle.client_ends()
                took = clock.monotonic() - began
                node.operations.done(type(message), message.id, took, connection.failure)

    async def _exchange(self, connection: BulkConnection, message: Message) -> bool:
        node = self._node
        if isinstance(message, WriteChunk):
            return await WriteExchange(node, FromConnection(node, connection), message).run()
        if isinstance(message, AppendRecords):
            return await self.appends.serve(connection, message)
        with deadline(node.settings.idle_seconds * 4, "the peer to read the answer"):
            if isinstance(message, ReadChunk):
                is_well = await serve_read(node, connection, message)
                if is_well and connection.failure is None:
                    node.read_bytes += message.length
                return is_well
            if isinstance(message, ReadReplicas):
                await connection.send(*await serve_replicas(node, message))
            else:
                await connection.send(await self._answer(message))
        return True

    async def _answer(self, message: Message) -> Message:
        if isinstance(message, VerifyChunk):
            return await self._node.verify(message)
        if isinstance(message, LookFor):
            return await self._node.look_for(message)
        if isinstance(message, Ping):
            return Done(id=message.id)
        name = type(message).__name__
        return Failure(id=message.id, code="protocol", message=f"{name} is not served here")


def _is_from_client(connection: BulkConnection, message: Message) -> bool:
    """Whether background work is limited because of it. Reads of other chunkservers are
    for copies, except for a few appends; their writes are those of clients, along the
    chain."""
    return connection.peer_role != "chunkserver" or not isinstance(
        message, (ReadChunk, ReadReplicas, VerifyChunk)
    )
