"""Reads: whole blocks are sent with ``sendfile``, smaller pieces are verified here.

For whole blocks the stored sums are sent in the head and the client verifies, so damage on
the disk, in memory or on the wire is detected in one place, and no byte of the body enters
this process. A reader of a piece of a block cannot verify it: then this server reads and
verifies the blocks around it.

Nothing here waits for a disk on the loop's thread: one that hangs would hold up all
others, and the heartbeats, so the master would take the server for dead. A small read from
the page cache (``preadv2`` with ``RWF_NOWAIT``) needs no thread; every other read runs in one
of the disk's threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from gfs.blocks import BLOCK_BYTES, Buffer, block_sum
from gfs.chunkserver.disks import Disk, map_read_error
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import PackedFile
from gfs.chunkserver.replicas import OpenChunk
from gfs.errors import CorruptReplica, GfsError, InvalidArgument, StaleVersion
from gfs.io import ReadFailed
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import Failure, ReadChunk, ReadReply

#: Reads of whole blocks up to this size are not worth a ``sendfile``.
SENDFILE_BYTES_MIN = 64 * 1024 + 1
#: The longest piece that this server verifies; longer ranges must be read in whole blocks.
PIECE_BYTES_MAX = 1024 * 1024


async def serve_read(node: Node, connection: BulkConnection, request: ReadChunk) -> bool:
    """Answer one read. False if the connection cannot be used again."""
    try:
        if request.length < SENDFILE_BYTES_MIN:
            await connection.send(*await read_small(node, request))
            return True
        async with _opened(node, request) as chunk:
            if _is_whole(chunk.file, request):
                return await _send_blocks(node, connection, chunk, request)
            await connection.send(*await _piece(node, chunk, request))
    except GfsError as error:
        await connection.send(
            Failure(id=request.id, code=error.code, message=str(error), server=node.id)
        )
    return True


def read_open(node: Node, request: ReadChunk) -> tuple[ReadReply, Buffer] | None:
    """The answer to a read of at most a block, if the file is open, or the replica packed, and
    the page cache has the bytes. Raises a GfsError."""
    store = node.store
    store.inventory.check_not_stale(request.handle)
    if request.length >= SENDFILE_BYTES_MIN:
        return None
    chunk = store.open_chunks.opened(request.handle)
    try:
        if chunk is not None:
            store.open_chunks.used_now(request.handle)
            return _cached(chunk.file, request)
        disk = store.open_chunks.disk_at_rest(request.handle)
        return None if disk is None else _packed(disk, request)
    except OSError as error:
        if isinstance(error, GfsError):
            raise
        return None


def _packed(disk: Disk, request: ReadChunk) -> tuple[ReadReply, Buffer] | None:
    """All of a packed replica is read by its record: to make its file object costs more than
    all the rest."""
    packs = disk.packs
    record = packs.get(request.handle)
    if record is None:
        return None
    is_all = not request.offset and request.length == record.length
    if not is_all or request.version > record.version:
        return _cached(PackedFile(packs, record, disk.journal), request)
    data = bytearray(record.length)
    if not (packs.read_cached(memoryview(data), record.offset) and packs.has(record)):
        return None
    return ReadReply(request.id, 0, record.length, True, record.sum), data


def _cached(file: ChunkFile, request: ReadChunk) -> tuple[ReadReply, Buffer] | None:
    _check(file, request)
    if _is_whole(file, request):
        end = request.offset + request.length
        sums = file.stored_sums(request.offset // BLOCK_BYTES, end)
        data = bytearray(request.length)
        if sums is None or not file.read_at_cached(memoryview(data), request.offset):
            return None
        return ReadReply(request.id, request.offset, request.length, True, sums), data
    piece = file.read_verified_cached(request.offset, request.length)
    if piece is None:
        return None
    return ReadReply(request.id, request.offset, request.length, False, block_sum(piece)), piece


async def read_small(node: Node, request: ReadChunk) -> tuple[ReadReply, Buffer]:
    """The answer to a read of at most a block, or of a piece. Raises a GfsError."""
    async with _opened(node, request) as chunk:
        if not _is_whole(chunk.file, request):
            return await _piece(node, chunk, request)
        sums = await _sums(node, chunk, request)
        reply = ReadReply(request.id, request.offset, request.length, True, sums)
        return reply, await _unverified(node, chunk, request)


@contextlib.asynccontextmanager
async def _opened(node: Node, request: ReadChunk) -> AsyncIterator[OpenChunk]:
    """The replica, open, if it can answer; marked if it turns out to be damaged."""
    node.store.inventory.check_not_stale(request.handle)
    async with node.store.open_chunks.using(request.handle) as chunk:
        try:
            _check(chunk.file, request)
            yield chunk
        except CorruptReplica:
            node.store.open_chunks.mark_unfit(chunk)
            raise


def _check(file: ChunkFile, request: ReadChunk) -> None:
    if file.version < request.version:
        raise StaleVersion(
            f"chunk {file.handle:016x} has version {file.version} here, not {request.version}"
        )
    if request.offset < 0 or request.length < 1:
        raise InvalidArgument(f"a read of {request.length} bytes at {request.offset}")
    if request.offset + request.length > file.length:
        raise StaleVersion(
            f"chunk {file.handle:016x} has {file.length} bytes here, "
            f"not {request.offset + request.length}"
        )


def _is_whole(file: ChunkFile, request: ReadChunk) -> bool:
    end = request.offset + request.length
    return not request.offset % BLOCK_BYTES and (
        not end % BLOCK_BYTES or end == file.length or request.length > BLOCK_BYTES
    )


async def _sums(node: Node, chunk: OpenChunk, request: ReadChunk) -> bytes:
    """The stored sums of the blocks asked for.

    A replica may be longer than its file requires: it may have unacknowledged bytes of
    a writer that died, or records appended meanwhile. If the file ends inside a block
    there is no stored sum of that part: then the block is verified here, and the part
    gets a sum of its own.
    """
    file = chunk.file
    first, end = request.offset // BLOCK_BYTES, request.offset + request.length
    stored = file.stored_sums(first, end)
    if stored is not None:
        return stored
    part = end % BLOCK_BYTES
    data = await _verified(node, chunk, end - part, part)
    return file.sums(first, request.length // BLOCK_BYTES) + block_sum(data)


async def _verified(node: Node, chunk: OpenChunk, offset: int, length: int) -> bytes:
    """A piece, verified. A failure may be due to a write under way: only a second read with
    writers held off counts."""
    try:
        # Small and most often in the page cache: cheaper than a thread hop.
        data = chunk.file.read_verified_cached(offset, length)
        if data is not None:
            return data
        try:
            return await chunk.disk.run(chunk.file.read_verified, offset, length)
        except CorruptReplica:
            async with chunk.mutex:
                return await chunk.disk.run(chunk.file.read_verified, offset, length)
    except OSError as error:
        raise map_read_error(error, f"chunk {chunk.file.handle:016x}") from error


async def _unverified(node: Node, chunk: OpenChunk, request: ReadChunk) -> bytearray:
    """Whole blocks, for the client to verify."""
    file, data = chunk.file, bytearray(request.length)
    try:
        if file.read_at_cached(memoryview(data), request.offset):
            return data
        got = await chunk.disk.run(file.read_at, memoryview(data), request.offset)
    except OSError as error:
        raise map_read_error(error, f"chunk {request.handle:016x}") from error
    if got < len(data):
        raise CorruptReplica(f"chunk {request.handle:016x}: the file was cut short")
    return data


async def _send_blocks(
    node: Node, connection: BulkConnection, chunk: OpenChunk, request: ReadChunk
) -> bool:
    file = chunk.file
    reply = ReadReply(
        id=request.id,
        offset=request.offset,
        length=request.length,
        whole=True,
        sums=await _sums(node, chunk, request),
    )
    try:
        await connection.send_file(
            reply,
            file.file,
            file.data_offset + request.offset,
            request.length,
            run=chunk.disk.run,
        )
    except EOFError:
        # The head was sent, so an error can only be reported by ending the connection.
        node.store.open_chunks.mark_unfit(chunk)
        return False
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        if isinstance(error, ReadFailed):
            node.store.open_chunks.mark_unfit(chunk)
        return False
    return True


async def _piece(node: Node, chunk: OpenChunk, request: ReadChunk) -> tuple[ReadReply, bytes]:
    if request.length > PIECE_BYTES_MAX:
        raise InvalidArgument(
            f"a read of {request.length} bytes must start and end at 64 KiB boundaries"
        )
    data = await _verified(node, chunk, request.offset, request.length)
    return ReadReply(request.id, request.offset, request.length, False, block_sum(data)), data
