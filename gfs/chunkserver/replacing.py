"""A replica made beside whatever is here, and put in its place only when it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from gfs.chunkserver.chunkfile import ChunkFile
from gfs.chunkserver.disk import Disk, map_disk_error
from gfs.errors import GfsError

if TYPE_CHECKING:
    from gfs.chunkserver.node import Node


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
