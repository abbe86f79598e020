"""Salvage: making a good replica from damaged ones.

All replicas of a chunk's version are damaged, but not in the same places. One of them,
the *base*, is restored: a block that fails its checksum there is taken from any replica
whose bytes match **the base's own** checksum of it. Two replicas of one version may
differ where a writer died, and both be right: a block of one is used for the other only
if it is the same block. So the result is, bit for bit, the base before its damage, and
never a mixture. Other replicas' checksums, lengths and versions do not matter, so a
stale one is useful, too.

A replica cannot be the base if its head cannot be read (then there are no checksums),
if it is of another version, or shorter than the chunk is known to be. All others are
tried, the longest first, and only a complete result is installed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from gfs.blocks import BLOCK_BYTES, SUM_BYTES, block_count, block_sum
from gfs.chunkserver.copies.new_replica import fill, new_replica
from gfs.chunkserver.disks import map_read_error
from gfs.chunkserver.node import Node
from gfs.diagnostics import event, message_id
from gfs.errors import (
    ChunkUnavailable,
    CorruptReplica,
    DiskFailed,
    GfsError,
    NotFound,
    ProtocolError,
    StaleVersion,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import CloneChunk, ReadChunk, ReadReply, VerifyChunk, VerifyReply

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0


class Source(Protocol):
    """A damaged replica. Both methods raise ConnectionError or GfsError."""

    name: str

    async def state(self) -> VerifyReply: ...

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the replica's bytes; the caller verifies them."""

    def close(self) -> None: ...


class Base(NamedTuple):
    length: int
    sums: bytes
    source: Source


async def salvage(node: Node, order: CloneChunk) -> None:
    """Make a good replica of ``order.version`` on this server.

    Raises CorruptReplica if it cannot be made from what all sources have;
    ChunkUnavailable if some did not answer.
    """
    sources: list[Source] = [_Here(node, order)]
    sources += [_There(node, order, address) for address in order.sources]
    try:
        await _Salvage(node, order, sources).run()
    finally:
        for source in sources:
            source.close()


class _Salvage:
    def __init__(self, node: Node, order: CloneChunk, sources: Sequence[Source]) -> None:
        self._node = node
        self._order = order
        #: The sources that still answer.
        self._sources = list(sources)
        self._silent: list[str] = []

    async def run(self) -> None:
        order = self._order
        reason = "no replica has a readable head of that version and length"
        for base in await self._bases():
            lost = await self._make_good(base)
            if lost is None:
                log.warning(
                    "put chunk %016x version %d together from damaged replicas",
                    order.handle,
                    order.version,
                    extra=event(
                        "replica_salvaged", chunk=f"{order.handle:x}", version=order.version
                    ),
                )
                return
            reason = f"no replica has a good block {lost} of the replica at {base.source.name}"
            log.warning("salvage of %016x: %s", order.handle, reason)
        what = f"chunk {order.handle:016x} version {order.version}: {reason}"
        if self._silent:
            raise ChunkUnavailable(f"{what}; no answer from {', '.join(self._silent)}")
        raise CorruptReplica(what)

    async def _bases(self) -> list[Base]:
        """The possible bases, the longest first."""
        order = self._order
        found = []
        for source in list(self._sources):
            try:
                reply = await source.state()
            except (ConnectionError, GfsError) as error:
                self._failed(source, error)
                continue
            is_whole = len(reply.sums) == block_count(reply.length) * SUM_BYTES
            if reply.state != "good" or reply.version != order.version or not is_whole:
                continue
            if reply.length >= order.length:
                found.append(Base(reply.length, reply.sums, source))
        return sorted(found, key=lambda base: -base.length)

    async def _make_good(self, base: Base) -> int | None:
        """Restore a base: returns the first block that no source has, or None if the
        replica is installed."""
        node, order = self._node, self._order
        disk, what = node.store.disks.pick(), f"clone of {order.handle:016x}"
        try:
            async with new_replica(node, disk, order.handle, order.version, what) as file:
                await fill(node, disk, file, base.length, partial(self._blocks, base))
        except _BlockLost as error:
            return error.block
        return None

    async def _blocks(self, base: Base, offset: int, view: memoryview) -> bytes:
        first = offset // BLOCK_BYTES
        end = first + block_count(len(view))
        for block in range(first, end):
            at = block * BLOCK_BYTES - offset
            with view[at : at + BLOCK_BYTES] as part:
                if not await self._fetch(base, block, part):
                    raise _BlockLost(block)
        return base.sums[first * SUM_BYTES : end * SUM_BYTES]

    async def _fetch(self, base: Base, block: int, part: memoryview) -> bool:
        wanted = base.sums[block * SUM_BYTES : (block + 1) * SUM_BYTES]
        # The base itself first: most of its blocks are good.
        for source in sorted(self._sources, key=lambda source: source is not base.source):
            try:
                await source.read(block * BLOCK_BYTES, part)
            except (ConnectionError, GfsError) as error:
                self._failed(source, error)
                continue
            if block_sum(part) == wanted:
                return True
        return False

    def _failed(self, source: Source, error: Exception) -> None:
        """Handle an error of a source. One that does not answer is not asked again;
        other errors concern a block or the replica."""
        log.info("salvage of %016x from %s: %s", self._order.handle, source.name, error)
        if not isinstance(error, (CorruptReplica, DiskFailed, NotFound, StaleVersion)):
            source.close()
            self._sources.remove(source)
            self._silent.append(source.name)


class _BlockLost(Exception):
    """No source has this block."""

    def __init__(self, block: int) -> None:
        super().__init__(f"block {block}")
        self.block = block


class _Here:
    """The replica on this server."""

    name = "this server"

    def __init__(self, node: Node, order: CloneChunk) -> None:
        self._node = node
        self._order = order

    async def state(self) -> VerifyReply:
        return await self._node.verify(_question(self._order))

    async def read(self, offset: int, view: memoryview) -> None:
        store = self._node.store
        async with store.open_chunks.using(self._order.handle) as chunk:
            if offset + len(view) > chunk.file.length:
                raise StaleVersion(f"chunk {self._order.handle:016x} is shorter here")
            # A buffer of its own: a read that hangs may fill it after others have filled the view.
            data = bytearray(len(view))
            try:
                got = await chunk.disk.run(chunk.file.read_at, memoryview(data), offset)
            except OSError as error:
                raise map_read_error(error, f"chunk {self._order.handle:016x}") from error
            if got < len(view):
                # The rest of the buffer has undefined bytes.
                raise CorruptReplica(f"chunk {self._order.handle:016x}: the file was cut short")
            view[:] = data

    def close(self) -> None:
        pass


class _There:
    """The replica on another server."""

    def __init__(self, node: Node, order: CloneChunk, address: str) -> None:
        self._node = node
        self._order = order
        self.name = address
        self._connection: BulkConnection | None = None

    async def state(self) -> VerifyReply:
        with deadline(ANSWER_SECONDS, f"state of the replica at {self.name}"):
            connection = await self._connected()
            await connection.send(_question(self._order))
            reply = await connection.receive_reply()
        if not isinstance(reply, VerifyReply):
            raise ProtocolError(f"{type(reply).__name__} instead of the replica's state")
        return reply

    async def read(self, offset: int, view: memoryview) -> None:
        # Version 0: any version.
        question = ReadChunk(message_id(), self._order.handle, 0, offset, len(view))
        with deadline(ANSWER_SECONDS, f"a block from {self.name}"):
            connection = await self._connected()
            await connection.send(question)
            reply = await connection.receive_reply()
            if not isinstance(reply, ReadReply) or connection.body_bytes != len(view):
                raise ProtocolError(f"{type(reply).__name__} instead of {len(view)} bytes")
            await connection.receive_body(view)

    async def _connected(self) -> BulkConnection:
        if self._connection is None:
            self._connection = await self._node.pool.acquire(self.name)
        return self._connection

    def close(self) -> None:
        # Not returned to the pool: an exchange on it may not have ended.
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _question(order: CloneChunk) -> VerifyChunk:
    return VerifyChunk(message_id(), order.handle, order.version, blocks=False, sums=True)
