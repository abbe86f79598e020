"""Announces the present term to peers that may not know it, and learns a higher one
from those that do.

In a handshake both sides send their terms, so a connection is enough. A promoted master
connects to the master before it and to the shadow masters that do not follow it, for as
long as they are away: one that comes back with an old term gets the new one within
seconds, even if no client or chunkserver of the new one ever connects to it. A master
that starts asks first whether it was replaced.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial

import trio

from gfs.diagnostics import event
from gfs.errors import GfsError
from gfs.io import World
from gfs.master.metadata import terms
from gfs.protocol import handshake

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 2.0
#: How long a start waits for shadow masters that may know of another master.
ASK_SECONDS = 1.0


class TermAnnouncer:
    """``identity`` is the master's own."""

    def __init__(self, world: World, identity: handshake.Identity, address: str) -> None:
        self._world = world
        self._identity = identity
        self._address = address
        #: A higher term that a peer sent, or 0.
        self.higher = 0
        self.deposed = trio.Event()

    def met(self, term: int, peer: str) -> None:
        """Take a peer's term. Raises ConnectionResetError if this master's term is over."""
        if term > max(self._identity.term, self.higher):
            log.error(
                "%s knows a master of term %d, this one's is %d: it stops serving",
                peer,
                terms.count(term),
                terms.count(self._identity.term),
                extra=event("deposed", term=terms.count(term)),
            )
            self.higher = term
            self.deposed.set()
        if self.higher:
            raise ConnectionResetError("this master's term is over")

    async def ask(self, addresses: Iterable[str]) -> None:
        """Whether there is a higher term. Processes that do not answer are not waited for."""
        with trio.move_on_after(ASK_SECONDS):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    if address != self._address:
                        nursery.start_soon(partial(self._connect_to, address))

    async def announce(self, addresses: Callable[[], list[str]]) -> None:
        """Connect to them regularly for as long as this runs."""
        while True:
            await self._world.clock.sleep(ANNOUNCE_SECONDS)
            async with trio.open_nursery() as nursery:
                for address in addresses():
                    if address != self._address:
                        nursery.start_soon(partial(self._connect_to, address))

    async def _connect_to(self, address: str) -> None:
        try:
            connection = await handshake.connect(self._world, address, self._identity)
        except (ConnectionError, GfsError) as error:
            log.debug("%s: %s", address, error)
            return
        connection.close()
        with contextlib.suppress(ConnectionResetError):
            self.met(connection.peer_term, address)
