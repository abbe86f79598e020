"""Accepting connections: what the master and the chunkservers share.

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


async def serve(
    world: World,
    listener: Listener,
    identity: handshake.Identity,
    handle: Callable[[BulkConnection], Awaitable[None]],
) -> None:
    """Accept until cancelled; each proven connection is given to ``handle``.

    ``handle`` may raise ``ConnectionError`` or a GfsError: the connection ends.
    It is closed in any case when ``handle`` returns.
    """
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def one(stream: Stream, slot: object) -> None:
        try:
            connection = await handshake.accept(world, stream, identity)
            try:
                await handle(connection)
            finally:
                connection.close()
        except (ConnectionError, GfsError) as error:
            log.info("connection from %s ended: %s", stream.peer, error)
        except Exception:
            log.exception("a connection from %s met a bug", stream.peer)
        finally:
            stream.close()
            slots.release_on_behalf_of(slot)

    async with trio.open_nursery() as nursery:
        while True:
            slot = object()
            await slots.acquire_on_behalf_of(slot)
            nursery.start_soon(one, await listener.accept(), slot)
