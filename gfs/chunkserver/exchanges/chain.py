"""The connection to the next server of a write chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from gfs.chunkserver.node import Node
from gfs.diagnostics import message_id
from gfs.errors import (
    DeadlineExceeded,
    GfsError,
    ProtocolError,
    ReplicaUnavailable,
    StaleVersion,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import Watch, deadline
from gfs.protocol.frames import encode_frame, encode_head
from gfs.protocol.messages import (
    Failure,
    Message,
    Packet,
    PacketAck,
    ServerAddress,
    VerifyChunk,
    VerifyReply,
    Working,
    WriteChunk,
)
from gfs.protocol.patience import SILENT_SECONDS, Pulses

#: Packets up to this size fit into any socket's buffer.
SMALL_PACKET_BYTES = 64 * 1024


class ChainBroken(Exception):
    """Another server of the chain failed; ``failure`` is for the upstream."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def chain_broken(server: ServerAddress, error: BaseException) -> ChainBroken:
    """``server`` is the one that failed."""
    text = f"chunkserver {server.id} at {server.address}: {error}"
    code = error.code if isinstance(error, GfsError) else ReplicaUnavailable.code
    return ChainBroken(Failure(id=0, code=code, message=text, server=server.id))


class Downstream:
    """The sender's side of the connection to the next server."""

    def __init__(self, node: Node, watch: Watch, server: ServerAddress) -> None:
        self._node = node
        self._watch = watch
        self.server = server
        self._connection: BulkConnection | None = None
        self._prefix = b""
        #: Whether that server has to answer or to read now.
        self.awaited = False

    def broken(self, error: BaseException) -> ChainBroken:
        return chain_broken(self.server, error)

    async def open(self, request: WriteChunk) -> None:
        """Connect. The request itself is sent together with the first packet."""
        try:
            self._connection = await self._node.pool.acquire(self.server.address)
        except (ConnectionError, GfsError) as error:
            raise self.broken(error) from None
        self._prefix = encode_frame(request)

    async def send(self, packet: Packet, size: int, body: memoryview) -> None:
        """Send the packet, whose body is of ``size``, and the first bytes of that."""
        frame, self._prefix = self._prefix + encode_head(packet, size), b""
        await self._send(frame, body, size <= SMALL_PACKET_BYTES)

    async def send_more(self, body: memoryview) -> None:
        """Send the next bytes of a large packet."""
        await self._send(b"", body, False)

    async def _send(self, frame: bytes, body: memoryview, is_small: bool) -> None:
        assert self._connection is not None
        self._watch.expect(SILENT_SECONDS, "progress")
        self.awaited = True
        try:
            if is_small:
                await self._connection.send_frames(frame, body)
            else:
                scope, stream = self._watch.scope, self._connection.stream
                with self._node.patience.sending(scope, stream, SILENT_SECONDS):
                    await self._connection.send_frames(frame, body)
        except ConnectionError as error:
            # It may have sent the reason before it closed the connection.
            await self._check_last_message()
            raise self.broken(error) from None
        self.awaited = False

    async def _check_last_message(self) -> None:
        assert self._connection is not None
        with trio.move_on_after(0.2):
            try:
                while True:
                    message = await self._connection.receive()
                    if not isinstance(message, Working):
                        self._check(message)
            except (ConnectionError, ProtocolError):
                return

    async def receive_ack(self) -> PacketAck:
        assert self._connection is not None
        self.awaited = True
        pulses = Pulses()
        try:
            while True:
                self._watch.expect(SILENT_SECONDS, "acknowledgement")
                message = await self._connection.receive()
                if not isinstance(message, Working):
                    break
                pulses.count()
        except (ConnectionError, GfsError) as error:
            raise self.broken(error) from None
        self.awaited = False
        return self._check(message)

    def _check(self, message: Message) -> PacketAck:
        if isinstance(message, Failure):
            if message.code != DeadlineExceeded.code:
                message.server = message.server or self.server.id
            raise ChainBroken(message)
        if not isinstance(message, PacketAck):
            raise self.broken(ProtocolError(f"{type(message).__name__} instead of an ack"))
        return message

    def finish(self, clean: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if clean:
            self._node.pool.release(connection, self.server.address)
        else:
            connection.close()


@asynccontextmanager
async def asked(
    node: Node, server: ServerAddress, question: Message
) -> AsyncIterator[tuple[BulkConnection, Message]]:
    """One exchange with another server of the chain. Raises ChainBroken."""
    connection: BulkConnection | None = None
    clean = False
    try:
        with deadline(SILENT_SECONDS, f"answer from {server.address}"):
            connection = await node.pool.acquire(server.address)
            await connection.send(question)
            yield connection, await connection.receive_reply()
        clean = True
    except (ConnectionError, GfsError) as error:
        raise chain_broken(server, error) from None
    finally:
        if connection is not None:
            if clean:
                node.pool.release(connection, server.address)
            else:
                connection.close()


async def length_at(node: Node, server: ServerAddress, handle: int, version: int) -> int:
    """How many bytes that server's replica has, which is good and of this version. Raises
    ChainBroken."""
    question = VerifyChunk(id=message_id(), handle=handle, version=version, blocks=False)
    async with asked(node, server, question) as (_, reply):
        if not isinstance(reply, VerifyReply):
            raise ProtocolError(f"{type(reply).__name__} instead of a replica's state")
        if reply.state != "good" or reply.version != version:
            raise StaleVersion(
                f"its replica is {reply.state} and has version {reply.version}, not {version}"
            )
        return reply.length
