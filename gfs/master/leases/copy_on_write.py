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

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gfs.errors import Retryable
from gfs.master.leases.table import FIRST_LEASED_VERSION, Lease
from gfs.master.metadata.namespace import plan_replace_chunk
from gfs.master.metadata.rows import Chunk
from gfs.master.replicas.servers import Server
from gfs.protocol.messages import CopyChunk, GrantLease, Message

if TYPE_CHECKING:
    from gfs.master.leases.granting import Grants

#: A copy of 64 MiB, with its sync, on a busy disk.
COPY_SECONDS = 20.0
#: One that does not answer a grant within this is left out.
GRANT_SECONDS = 2.0
ROUNDS_MAX = 4


async def unshare(
    grants: Grants,
    inode: int,
    index: int,
    handle: int,
    chunk: Chunk,
    failed: frozenset[int],
) -> tuple[int, Lease]:
    """Give the file a copy of its chunk ``handle``; returns it with its lease.

    Raises a retryable error, or NotFound, and then nothing has changed.
    """
    master = grants.master
    servers = grants.candidates(handle, chunk, failed, or_failed=True)
    with master.chunk_in_the_making() as (target, gone):
        version, chain, sent = await _copy(grants, handle, chunk.version, target, servers)
        indexes = tuple(server.index for server in chain)
        await grants.commit(
            partial(
                plan_replace_chunk,
                inode=inode,
                index=index,
                shared=handle,
                handle=target,
                version=version,
            ),
            partial(master.set_locations, target, version, indexes, version, gone),
        )
    lease = master.leases.granted(target, version, indexes, inode, sent)
    return target, lease


async def _copy(
    grants: Grants, handle: int, version: int, target: int, servers: Sequence[Server]
) -> tuple[int, list[Server], float]:
    """(version, chain, when it was sent)."""
    first = FIRST_LEASED_VERSION
    order: Callable[[int], Message] = partial(CopyChunk, 0, handle, version, target, first)
    seconds = COPY_SECONDS
    for attempt in range(first, first + ROUNDS_MAX):
        sent = grants.master.now
        chain, silent = await grants.tell(target, servers, order, seconds)
        if not chain:
            break
        if not silent and chain[0] is servers[0]:
            return attempt, chain, sent
        servers = chain
        order, seconds = partial(GrantLease, 0, target, attempt, attempt + 1), GRANT_SECONDS
    raise Retryable(f"no replica of chunk {handle:x} could be copied: try again")
