"""A replica made beside whatever is here, and put in its place only when it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from gfs.chunkserver.disks.disk import Disk, describe, map_disk_error
from gfs.chunkserver.files.chunkfile import COPY_BYTES, ChunkFile
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.replicas.open_chunks import OpenChunk
from gfs.errors import CorruptReplica, DiskFailed, GfsError
from gfs.io.world import ReadFailed


async def copy_bytes(node: Node, source: OpenChunk, disk: Disk, file: ChunkFile) -> None:
    """Fill ``file``, a new replica on ``disk``, with what ``source`` has; every block of it is
    verified when this returns. Each disk makes its own calls: one that cannot be read, or
    hangs, says nothing of the other.

    Raises CorruptReplica, too if a part of the source cannot be read: see
    :func:`mark_if_unfit`; ``OSError``.
    """
    length = source.file.length
    try:
        if source.disk is disk:
            await disk.run(file.copy_from, source.file)
            return
        for at in range(0, length, COPY_BYTES):
            count = min(COPY_BYTES, length - at)
            data = await source.disk.run(source.file.read_unverified, at, count)
            await disk.run(file.put_unverified, at, data)
        await disk.run(file.has_all_of, source.file)
    except ReadFailed as error:
        if source.disk.down:
            raise
        raise CorruptReplica(f"chunk {source.file.handle:016x}: {describe(error)}") from error


async def mark_if_unfit(node: Node, source: OpenChunk) -> None:
    """After CorruptReplica of a copy: have the master know if it is the source's fault.
    Nobody may hold the chunk's mutex."""
    try:
        is_unfit = bool(await node.bad_blocks(source))
    except DiskFailed:  # one sector cannot be read, or all of the disk has failed by now
        is_unfit = not source.disk.down
    if is_unfit:
        node.store.open_chunks.mark_unfit(source)


@contextlib.asynccontextmanager
async def new_replica(
    node: Node, disk: Disk, handle: int, version: int, what: str, moved: int | None = None
) -> AsyncIterator[ChunkFile]:
    """An empty replica, for the block to fill: installed at its end, or nothing of it is
    left. What the disk refuses is raised as the error it means for ``what``."""
    path = disk.chunk_path(handle) + ".clone"
    node.store.forget_half(disk, path)
    try:
        file = ChunkFile.create(disk.files, path, handle, version, disk.journal, copied=True)
        try:
            yield file
            await node.store.install(disk, file, moved)
        finally:
            disk.close_later(file)
    except BaseException as error:
        await node.store.leave(disk, path)
        if isinstance(error, OSError) and not isinstance(error, (GfsError, ConnectionError)):
            raise map_disk_error(error, what) from error
        raise
