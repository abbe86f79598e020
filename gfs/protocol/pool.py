"""Idle bulk connections, by address, so that an exchange need not connect."""

from __future__ import annotations

from collections import defaultdict, deque

from gfs.io import World
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.patience import SILENT_SECONDS

#: How many idle connections are kept open per address, and for how long. Servers close
#: idle connections later than that, so a pooled one is rarely closed.
IDLE_MAX = 64
IDLE_SECONDS = 30.0


class BulkPool:
    """``acquire`` gives a connection for one exchange; give it back with
    ``release`` when the exchange ended well, else ``close`` it."""

    def __init__(self, world: World, identity: handshake.Identity) -> None:
        self._world = world
        self._identity = identity
        self._idle: dict[str, deque[tuple[float, BulkConnection]]] = defaultdict(deque)
        self._closed = False

    async def acquire(self, address: str) -> BulkConnection:
        """Raises what :func:`gfs.protocol.handshake.connect` raises."""
        idle = self._idle[address]
        now = self._world.clock.monotonic()
        while idle:
            since, connection = idle.pop()
            if now - since <= IDLE_SECONDS and not connection.stream.ended():
                return connection
            connection.close()
        with deadline(SILENT_SECONDS, f"connection to {address}"):
            return await handshake.connect(self._world, address, self._identity)

    def release(self, connection: BulkConnection, address: str) -> None:
        idle = self._idle[address]
        if self._closed or connection.closed or len(idle) >= IDLE_MAX or connection.body_bytes:
            connection.close()
            return
        now = self._world.clock.monotonic()
        idle.append((now, connection))
        while idle and now - idle[0][0] > IDLE_SECONDS:
            idle.popleft()[1].close()

    def close(self) -> None:
        self._closed = True
        for idle in self._idle.values():
            while idle:
                idle.pop()[1].close()
