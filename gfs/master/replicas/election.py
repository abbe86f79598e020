"""Possibly stale replicas, and when a surviving one of them is elected.

With ``durability = "replicated"`` a machine that lost its power may come back with
replicas that lack what was last written; its chunkserver says which ones may
(:mod:`gfs.chunkserver.files.intents`). Such a *possibly stale* replica is no location: it is not
read, written or copied, and it is deleted when enough good ones are there, like a stale
one. Messages and files call it ``forgetful``.

If there is no other (the power of all machines was lost), what they lack is lost, but
not the rest of the chunk: then one of them, the best, is *elected*. That is a grant,
as for a lease, to this one replica: a new version, attempted durably before its server is
asked, so that no other replica can ever be taken for a current one beside it, whenever
its server comes back, and whatever it has.

============================================  =====================================
there is                                      a possibly stale replica is
============================================  =====================================
a good one, on a live or silent server        garbage, once the goal is met
no good one; a server is away that may have   waited with: the chunk is lost until
it (for less than ``forgetful_seconds``)      then
no good one, and no server to wait for        elected, if it is the best one: of
                                              the highest version, whole by its
                                              checksums, the longest of these
============================================  =====================================

A master does not know which servers have a replica of a chunk, if it was started
since they were heard of; so it waits for every server that is away. One that was
drained holds nothing.

No replica is elected that is not whole by its checksums, or shorter than it was when
the writes began that it may lack: such a chunk is lost. One that is shorter
than its file is filled up with zeros, since what is missing was written by such writes.
"""

from __future__ import annotations

from collections.abc import Iterable

from gfs.master.replicas.drain import DRAINED
from gfs.master.replicas.servers import LIVE, Server
from gfs.protocol.messages import POSSIBLY_STALE, VerifyReply


def awaited(servers: Iterable[Server], now: float, patience_seconds: float) -> bool:
    """Whether some server is away that might bring a better replica."""
    return any(
        now - server.last_heard < patience_seconds
        for server in servers
        if (server.state != LIVE or not server.registered) and server.draining != DRAINED
    )


def best(found: Iterable[tuple[Server, VerifyReply]]) -> Server | None:
    """Which of these, that were read and verified, lacks least."""
    whole = [(server, reply) for server, reply in found if reply.state == POSSIBLY_STALE]
    if not whole:
        return None
    return max(whole, key=lambda each: (each[1].version, each[1].length, -each[0].index))[0]
