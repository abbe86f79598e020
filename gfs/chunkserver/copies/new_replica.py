"""A new replica, which replaces the present one only when it is complete."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from gfs.blocks import MIB
from gfs.chunkserver.disks import Disk, describe, map_disk_error
from gfs.chunkserver.files import (
    COPY_BYTES,
    ChunkFile,
    copy_from,
    has_all_of,
    put_unverified,
    read_unverified,
)
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import PackedFile
from gfs.chunkserver.replicas import OpenChunk
from gfs.errors import CorruptReplica, DiskFailed, GfsError
from gfs.io import ReadFailed

#: The size of one request to a source, and of one write.
STEP_BYTES = 1 * MIB


async def copy_bytes(node: Node, source: OpenChunk, disk: Disk, file: ChunkFile) -> None:
    """Fill ``file``, a new replica on ``disk``, with the bytes of ``source``, and
    verify every block. The calls to each disk are separate: if one fails or hangs, the
    other is not blamed.

    Raises CorruptReplica, also if a part of the source cannot be read (see
    :func:`mark_if_unfit`), and ``OSError``.
    """
    length = source.file.length
    try:
        if source.disk is disk and not isinstance(source.file, PackedFile):
            await disk.run(copy_from, file, source.file)
            return
        for at in range(0, length, COPY_BYTES):
            count = min(COPY_BYTES, length - at)
            data = await source.disk.run(read_unverified, source.file, at, count)
            await disk.run(put_unverified, file, at, data)
        await disk.run(has_all_of, file, source.file)
    except ReadFailed as error:
        raise CorruptReplica(f"chunk {source.file.handle:016x}: {describe(error)}") from error


async def mark_if_unfit(node: Node, source: OpenChunk) -> None:
    """After CorruptReplica of a copy: find out whether the source is corrupt, for the
    report to the master. The caller must not hold the chunk's mutex."""
    try:
        is_unfit = bool(await node.bad_blocks(source))
    except CorruptReplica:
        is_unfit = True
    except DiskFailed:
        is_unfit = False
    if is_unfit:
        node.store.open_chunks.mark_unfit(source)


async def fill(
    node: Node,
    disk: Disk,
    file: ChunkFile,
    length: int,
    fetch: Callable[[int, memoryview], Awaitable[bytes]],
) -> None:
    """Write a new replica in steps, which give way to clients. ``fetch`` fills a view with the
    verified bytes at an offset, and returns the sums of their blocks."""
    buffer = await node.buffers.acquire(patience=5.0)
    try:
        for offset in range(0, length, STEP_BYTES):
            view = memoryview(buffer)[: min(STEP_BYTES, length - offset)]
            await node.throttle.take(len(view))
            await disk.run(file.write, offset, view, await fetch(offset, view))
    except BaseException:
        node.buffers.discard(buffer)  # it may be written still, by a thread that hangs
        raise
    node.buffers.release(buffer)


@contextlib.asynccontextmanager
async def new_replica(
    node: Node, disk: Disk, handle: int, version: int, what: str, moved: int | None = None
) -> AsyncIterator[ChunkFile]:
    """An empty replica, for the body to fill: it is installed at the end, or deleted
    after an error. Errors of the disk are raised as errors about ``what``."""
    path = disk.chunk_path(handle) + disk.new_half()
    try:
        file = ChunkFile.create(disk.files, path, handle, version, disk.journal, copied=True)
        try:
            yield file
            await node.store.install(disk, file, moved)
        finally:
            disk.closing.later(file)
    except BaseException as error:
        await node.store.removal.leave(disk, path)
        if isinstance(error, OSError) and not isinstance(error, (GfsError, ConnectionError)):
            raise map_disk_error(error, what) from error
        raise
