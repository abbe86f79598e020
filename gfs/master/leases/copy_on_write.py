"""Copy on write: the paper, section 3.4.

A file that is about to be written and has a chunk which other files have, or had,
gets its own::

    a new handle; each server with a good replica copies it, locally, to that one,
        durably, the first one with the lease
    some did not answer: the others are raised to the next version, as with a grant
    commit "the file has the new chunk"
    answer the client

The chunk that is copied is not written by anybody, so the copies are the same.
Nobody knows of the new handle before the commit; what a failure leaves is garbage.
A replica that is not copied (its server is away, its disk full, a block damaged) is
one that the new chunk lacks, and is made by re-replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gfs.errors import Retryable
from gfs.master.leases.table import FIRST_LEASED_VERSION, Lease
from gfs.master.leases.version_raise import Order, raise_version
from gfs.master.master import Master
from gfs.master.metadata.namespace import plan_replace_chunk
from gfs.master.metadata.rows import Chunk
from gfs.master.replicas.servers import Server
from gfs.protocol.messages import CopyChunk, GrantLease

#: A copy of 64 MiB, with its sync, on a busy disk.
COPY_SECONDS = 20.0


async def copy_shared_chunk(
    master: Master, inode: int, index: int, handle: int, chunk: Chunk, servers: Sequence[Server]
) -> tuple[int, Lease]:
    """Give the file a copy of its chunk ``handle``, whose replicas at ``servers`` are
    copied; returns the copy's handle with its lease.

    Raises a retryable error, or NotFound, and then nothing has changed.
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
