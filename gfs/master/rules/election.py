"""Possibly stale replicas, and when one of them is elected as the surviving replica.

With ``durability = "replicated"`` a machine that lost power may come back with replicas
that lack the last writes; its chunkserver reports which ones may
(:mod:`gfs.chunkserver.files.intents`). Such a *possibly stale* replica is not a
location: it is not read, written or copied, and it is deleted when there are enough
good ones, like a stale one. Messages and files call it ``forgetful``.

If there is no other (all machines lost power), the writes that all of them lack are
lost, but not the rest of the chunk: then the best of them is *elected*. The election is
a grant, as for a lease, to this one replica: a new version, attempted durably before
its server is asked, so that no other replica can be taken for a current one later,
whenever its server comes back and whatever version it has.

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

A master that was started while servers were away does not know their replicas; so it
waits for every absent server. A drained server has no replicas.

A replica is not elected if its checksums fail, or if it is shorter than it was before
the writes that it may lack: if there is no other, the chunk is lost. A replica that is
shorter than its file requires is extended with zeros, since the missing bytes were
written by such writes.
"""

from __future__ import annotations

from collections.abc import Iterable

from gfs.master.metadata.rows import DRAINED
from gfs.master.tables import LIVE, Server
from gfs.protocol.messages import POSSIBLY_STALE, VerifyReply


def awaited(servers: Iterable[Server], now: float, patience_seconds: float) -> bool:
    """Whether an absent server might bring a better replica."""
    return any(
        now - server.last_heard < patience_seconds
        for server in servers
        if (server.state != LIVE or not server.registration.is_complete)
        and server.draining != DRAINED
    )


def best(found: Iterable[tuple[Server, VerifyReply]]) -> Server | None:
    """The best of these replicas, which were read and verified."""
    whole = [(server, reply) for server, reply in found if reply.state == POSSIBLY_STALE]
    if not whole:
        return None
    return max(whole, key=lambda each: (each[1].version, each[1].length, -each[0].index))[0]
