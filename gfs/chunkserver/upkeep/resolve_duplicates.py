"""Chunks of which two disks of this server have a file: which one stays.

This happens when a move between the disks was cut short, the removal of a file did not reach
its disk, or a disk came back whose replicas were copied to another one meanwhile. The higher
version stays (:meth:`gfs.chunkserver.replicas.store.ChunkStore.choose`). Of two of the
same version one that is certainly good stays, so one of them is read, and neither is
deleted before. Until then the first one is served, unless it is possibly stale: readers
verify what they get.

A disk that comes back may bring thousands. They are compared one after the other, while
the server serves, at the pace of other background traffic.
"""

from __future__ import annotations

import logging

import trio

from gfs.chunkserver.disks import Disk
from gfs.chunkserver.files import ChunkFile, bad_blocks
from gfs.chunkserver.node import Node
from gfs.chunkserver.packs import open_packed
from gfs.chunkserver.replicas import Duplicate
from gfs.errors import CorruptReplica, GfsError
from gfs.protocol.messages import POSSIBLY_STALE, VerifyChunk

log = logging.getLogger(__name__)

#: The pause before files that were in use are compared again.
AGAIN_SECONDS = 2.0


async def keep_comparing(node: Node) -> None:
    """Compare duplicates whenever there are some. Runs for as long as the server does."""
    store = node.store
    while True:
        await store.duplicates.found.wait()
        await compare_all(node)
        if store.duplicates.files:
            await node.world.clock.sleep(AGAIN_SECONDS)
        else:
            store.duplicates.found = trio.Event()


async def compare_all(node: Node) -> None:
    """Compare each pair of files once, and delete those that are not needed."""
    store = node.store
    for index, handle in list(store.duplicates.files):
        store.duplicates.choose(handle)
        other, known = store.duplicates.files.get((index, handle)), store.inventory.get(handle)
        if other is None or known is None or known.version != other.replica.version:
            continue  # it is decided, or will be when nobody uses what is there
        await node.throttle.take(known.length)
        try:
            await _compare(node, handle, other)
        except (GfsError, OSError) as error:
            log.info(
                "chunk %016x stays on two disks, comparing them again later: %s", handle, error
            )
    await store.remove_duplicates()


async def _compare(node: Node, handle: int, other: Duplicate) -> None:
    """Of two files of one version, keep one that is good. Raises DeadlineExceeded."""
    store = node.store
    is_bad = handle in store.inventory.bad
    for looks_at_other in (is_bad, not is_bad):
        if looks_at_other:
            is_whole = await _is_other_whole(node, handle, other)
        else:
            is_whole = await _is_known_whole(node, handle)
        # Both may have changed by now.
        known = store.inventory.get(handle)
        if store.duplicates.files.get((other.replica.disk, handle)) is not other or known is None:
            return
        if known.version != other.replica.version:
            return
        if is_whole:
            if looks_at_other:
                store.duplicates.prefer(handle, other, is_better=True)
            else:
                store.duplicates.discard(handle, other)
            return
    store.inventory.mark_bad(handle)  # the task that replaces it deletes both
    del store.duplicates.files[other.replica.disk, handle]


async def _is_known_whole(node: Node, handle: int) -> bool:
    reply = await node.verify(VerifyChunk(id=0, handle=handle, version=0))
    return reply.state in ("good", POSSIBLY_STALE)


async def _is_other_whole(node: Node, handle: int, other: Duplicate) -> bool:
    disk = node.store.disks.used.get(other.replica.disk)
    try:
        return disk is not None and await disk.run(_verify_file, disk, handle)
    except OSError as error:
        log.error("%s: %s", disk.chunk_path(handle) if disk else handle, error)
        return False


def _verify_file(disk: Disk, handle: int) -> bool:
    """Blocks. Whether every block of the file matches its sum."""
    packed = open_packed(disk.packs, handle, disk.journal)
    if packed is not None:
        return not bad_blocks(packed)
    try:
        file = ChunkFile.open(disk.files, disk.chunk_path(handle), handle, disk.journal)
    except CorruptReplica:
        return False
    try:
        return not bad_blocks(file)
    finally:
        file.close()
