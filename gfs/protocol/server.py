"""Accepting connections, for the master and the chunkservers.

A wrong, hostile or stalled peer costs one connection and one log line.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from gfs.errors import GfsError
from gfs.io import Listener, Stream, World
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection

log = logging.getLogger(__name__)

#: Connections served at once; more wait in the kernel's backlog.
CONNECTIONS_MAX = 8192
#: How often connections are checked for retired keys, if keys can be retired.
KEYS_SECONDS = 1.0
#: How long an exchange that began before its key was retired may continue.
RETIRED_SECONDS = 10.0


async def serve(
    world: World,
    listener: Listener,
    identity: handshake.Identity,
    handle: Callable[[BulkConnection], Awaitable[None]],
    served: set[BulkConnection] | None = None,
) -> None:
    """Accept until cancelled; each proven connection is given to ``handle``.

    ``handle`` may raise ``ConnectionError`` or a GfsError: the connection ends.
    It is closed in any case when ``handle`` returns, and when the cluster key it
    was made with is retired; then an exchange under way may end first, within
    :data:`RETIRED_SECONDS`. Meanwhile it is in ``served``.
    """
    served = set() if served is None else served
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def one(stream: Stream, slot: object) -> None:
        try:
            connection = await handshake.accept(world, stream, identity)
            served.add(connection)
            try:
                await handle(connection)
            finally:
                served.discard(connection)
                connection.close()
        except (ConnectionError, GfsError) as error:
            log.info("connection from %s ended: %s", stream.peer, error)
        except Exception:
            log.exception("a bug ended the connection from %s", stream.peer)
        finally:
            stream.close()
            slots.release_on_behalf_of(slot)

    async with trio.open_nursery() as nursery:
        if identity.credentials.watched:
            nursery.start_soon(_end_retired, world, identity, served)
        while True:
            slot = object()
            await slots.acquire_on_behalf_of(slot)
            nursery.start_soon(one, await listener.accept(), slot)


async def _end_retired(
    world: World, identity: handshake.Identity, served: set[BulkConnection]
) -> None:
    """End the connections that were made with a key that is not accepted any more.

    A connection is not ended in the middle of an exchange, since a change of keys would
    then cost writers a replica; nor between two exchanges that follow one another,
    where the next request may be on its way: the server of the exchanges ends the
    connection after the answer.
    """
    since: dict[BulkConnection, tuple[float, int]] = {}
    while True:
        await world.clock.sleep(KEYS_SECONDS)
        now = world.clock.monotonic()
        keys = identity.credentials.current_keys()
        noticed = since
        since = {}
        for connection in [one for one in served if one.key not in keys]:
            connection.ending = True
            began, exchanges = noticed.get(connection, (now, -1))
            at_rest = not connection.busy and connection.exchanges == exchanges
            if at_rest or now - began >= RETIRED_SECONDS:
                log.warning("connection from %s ended: its key was retired", connection.peer)
                connection.close()
            else:
                since[connection] = began, connection.exchanges
