"""Noticing the deaths of containers' first processes, independently of Podman.

For each container a conmon process waits and reports its end to Podman. If conmon is
killed, nothing reports it; so the kernel is asked, too, with one descriptor for each
container, all in one epoll.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

import trio

#: How long conmon and Podman's clean-up have to report the same end.
AFTER_SECONDS = 0.5


class Deaths:
    """Calls ``touch(container_id, seconds)`` when a container's first process has died."""

    def __init__(self, touch: Callable[[str, float], None]) -> None:
        self._touch = touch
        self._pids: dict[str, tuple[int, int]] = {}
        self._ids: dict[int, str] = {}
        self._epoll: select.epoll | None = None

    async def run(self) -> None:
        with select.epoll() as epoll:
            self._epoll = epoll
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    for descriptor, _ in epoll.poll(0):
                        container_id = self._ids[descriptor]
                        self.forget(container_id)
                        self._touch(container_id, AFTER_SECONDS)
            finally:
                for container_id in list(self._pids):
                    self.forget(container_id)
                self._epoll = None

    def expect(self, container_id: str, pid: int) -> None:
        """Watch ``pid``, which is the container's first process now."""
        known = self._pids.get(container_id)
        if self._epoll is None or pid <= 0 or (known and known[0] == pid):
            return
        self.forget(container_id)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._touch(container_id, AFTER_SECONDS)
            return
        except OSError:
            return  # no descriptor is left: the next list notices the end
        self._epoll.register(descriptor, select.EPOLLIN)
        self._pids[container_id] = (pid, descriptor)
        self._ids[descriptor] = container_id

    def forget(self, container_id: str) -> None:
        _, descriptor = self._pids.pop(container_id, (0, -1))
        if descriptor >= 0:
            self._ids.pop(descriptor, None)
            with contextlib.suppress(OSError):
                if self._epoll is not None:
                    self._epoll.unregister(descriptor)
            os.close(descriptor)
