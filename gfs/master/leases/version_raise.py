"""Raising a chunk's replicas to a new version that each of them is known to have.

A replica that did not answer may or may not have the new version. So the others are
raised once more, without it, until all recipients of a version have answered. Granting
a lease, making the first replicas of a chunk, and copy on write differ in the message
and in what is committed before it: the caller gives the order of each round.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from gfs.errors import CorruptReplica, GfsError, NotFound, StaleVersion
from gfs.master.master import Master
from gfs.master.tables import Server
from gfs.protocol.messages import Message

log = logging.getLogger(__name__)

#: A replica that answers a grant so much later than the first one is left out. If all
#: disks are slow, no answer comes soon, and then all are waited for longer.
GRANT_SECONDS = 2.0
GRANT_SECONDS_MAX = 5.0
ROUNDS_MAX = 4
#: After these errors a replica does not have the version that was ordered. After others
#: it may: a restart may find data that a disk could not sync.
REFUSALS = (StaleVersion, CorruptReplica, NotFound)


class Order(NamedTuple):
    """The order that one round sends to every server."""

    #: The version of a replica after it has carried out the order.
    version: int
    #: Makes the message that grants a lease of so many milliseconds (0: no lease).
    message: Callable[[int], Message]
    seconds: float = GRANT_SECONDS


class Raised(NamedTuple):
    version: int
    #: The servers of the last round; the first one is the primary.
    chain: list[Server]
    #: When the order was sent: the lease counts from then.
    sent: float

    @property
    def indexes(self) -> tuple[int, ...]:
        return tuple(server.index for server in self.chain)


async def raise_version(
    master: Master,
    handle: int,
    servers: Sequence[Server],
    version: int,
    next_order: Callable[[int], Awaitable[Order]],
    *,
    lease: bool = True,
) -> Raised | None:
    """Raise the replicas at ``servers``, which have ``version``; None if that failed.

    ``next_order`` gets the present version of the replicas.
    """
    for _ in range(ROUNDS_MAX):
        order = await next_order(version)
        sent = master.now
        chain, is_unknown = await _send(master, handle, servers, order, lease)
        if not chain:
            return None
        if not is_unknown and chain[0] is servers[0]:
            return Raised(order.version, chain, sent)
        servers, version = chain, order.version
    return None


async def _send(
    master: Master, handle: int, servers: Sequence[Server], order: Order, lease: bool
) -> tuple[list[Server], bool]:
    """Send the order to all servers at once, to the first one as the primary. Returns
    the servers that carried it out, in order, and whether the outcome at some server is
    not known."""
    took: set[int] = set()
    unknown: set[int] = set()

    async def one(server: Server, lease_ms: int) -> None:
        rpc = server.rpc
        if rpc is None:
            return
        unknown.add(server.index)
        try:
            seconds = max(order.seconds, GRANT_SECONDS_MAX)
            await rpc.call(order.message(lease_ms), seconds=seconds)
            took.add(server.index)
            unknown.discard(server.index)
            nursery.cancel_scope.deadline = min(
                nursery.cancel_scope.deadline, trio.current_time() + order.seconds
            )
        except GfsError as error:
            log.info("chunkserver %s refused a grant of %x: %s", server.id, handle, error)
            if isinstance(error, REFUSALS):
                unknown.discard(server.index)
        except ConnectionError as error:
            log.info("chunkserver %s did not answer a grant of %x: %s", server.id, handle, error)

    async with trio.open_nursery() as nursery:
        for at, server in enumerate(servers):
            is_primary = lease and not at
            nursery.start_soon(one, server, master.leases.lease_ms if is_primary else 0)
    return [server for server in servers if server.index in took], bool(unknown)
