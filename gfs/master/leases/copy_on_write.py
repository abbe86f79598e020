"""Copy on write: the paper, section 3.4.

A file that is about to be written and has a chunk which other files have, or had, gets
a copy of its own::

    a new handle; each server with a good replica copies it, locally, to that one,
        durably, the first one with the lease
    some did not answer: the others are raised to the next version, as with a grant
    commit "the file has the new chunk"
    answer the client

Nobody writes the chunk that is copied, so the copies are equal. No client knows the new
handle before the commit; after a failure the copies are garbage. If a replica cannot be
copied (its server is away, its disk full, a block damaged), the new chunk lacks one,
which re-replication makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gfs.errors import Retryable
from gfs.master.leases.version_raise import Order, raise_version
from gfs.master.master import Master
from gfs.master.metadata.namespace import plan_replace_chunk
from gfs.master.metadata.rows import Chunk
from gfs.master.tables import FIRST_LEASED_VERSION, Lease, Server
from gfs.protocol.messages import CopyChunk, GrantLease

#: The time for a copy of 64 MiB, with its sync, on a busy disk.
COPY_SECONDS = 20.0


async def copy_shared_chunk(
    master: Master, inode: int, index: int, handle: int, chunk: Chunk, servers: Sequence[Server]
) -> tuple[int, Lease]:
    """Give the file a copy of its chunk ``handle``, whose replicas at ``servers`` are
    copied; returns the copy's handle with its lease.

    Raises a retryable error, or NotFound; then nothing has changed.
    """
    with master.new_chunks.in_the_making() as (target, gone):

        async def next_order(version: int) -> Order:
            if not version:
                first = FIRST_LEASED_VERSION
                copy = partial(CopyChunk, 0, handle, chunk.version, target, first)
                return Order(first, copy, COPY_SECONDS)
            return Order(version + 1, partial(GrantLease, 0, target, version, version + 1))

        raised = await raise_version(master, target, servers, 0, next_order)
        if raised is None:
            raise Retryable(f"no replica of chunk {handle:x} could be copied: try again")
        version, indexes = raised.version, raised.indexes
        await master.committer.perform(
            partial(
                plan_replace_chunk,
                inode=inode,
                index=index,
                shared=handle,
                handle=target,
                version=version,
            ),
            partial(master.goals.set_locations, target, version, indexes, version, gone),
        )
    lease = master.leases.granted(target, version, indexes, inode, raised.sent)
    return target, lease
