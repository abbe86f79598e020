"""Noticing clients that leave while nothing is read from them.

Nothing of a body is read before the application asks for it, so a client that leaves
would go unnoticed while the application works. One epoll set for the whole server
watches only for the end of each connection (``EPOLLRDHUP``): it costs one system call
per connection, and nothing per request.
"""

from __future__ import annotations

import contextlib
import select
from typing import Protocol

import trio

HANG_UPS_AT_ONCE = 256


class Watched(Protocol):
    """The part of a connection that the watch uses."""

    def hang_up(self, *, reset: bool) -> None:
        """Report that the client has ended its side (or, if *reset*, both)."""


class HangUps:
    """The watch of one server. Descriptors must be removed before they are closed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def add(self, descriptor: int, connection: Watched) -> None:
        """Watch *connection*. Raises OSError if the kernel has no room for it."""
        self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
        self._watched[descriptor] = connection

    def remove(self, descriptor: int) -> None:
        """Stop watching it; does nothing if it is not watched."""
        if self._watched.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Report hang-ups until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, events in self._epoll.poll(0, HANG_UPS_AT_ONCE):
                connection = self._watched.get(descriptor)
                if connection is not None:
                    connection.hang_up(reset=bool(events & (select.EPOLLHUP | select.EPOLLERR)))

    def close(self) -> None:
        self._epoll.close()
