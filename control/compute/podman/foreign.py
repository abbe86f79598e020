"""Which ports other services of this machine have, or have had.

Tenants choose their ports, so a service that is restarted could find its own taken, and
the tenant receive its logins. So a port that somebody else was ever seen to listen on,
where containers' ports are opened, is never a container's: not while that service is
down, nor after a restart of the machine. ``foreign-ports`` has them, one a line; whoever
takes a line out gives the port to containers, from the next start of the control plane.

It is looked every :data:`LOOK_SECONDS`. What remains: a service that was never up while
the control plane looked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

import trio

from control.compute.gateway import Address
from control.compute.names import PORTS
from control.compute.podman.processes import listeners

__all__ = ["ForeignPorts"]

log = logging.getLogger("control.compute")

FILE = "foreign-ports"
LOOK_SECONDS = 30.0


class ForeignPorts:
    """See :class:`control.compute.gateway.Foreign`.

    Args:
        directory: Where the file is.
        host: The address where containers' ports are opened; "": each has its own.
    """

    def __init__(self, directory: str, host: str) -> None:
        self._path = Path(directory) / FILE
        self._host = host
        self._ports: set[int] = set()
        #: Of these, what the file does not have yet.
        self._unwritten: set[int] = set()
        self.read()

    def read(self) -> None:
        """What other processes of ours have written since."""
        with contextlib.suppress(FileNotFoundError):
            words = self._path.read_text().split()
            self._ports |= {int(word) for word in words if word.isdecimal()}

    def has(self, port: int) -> bool:
        return port in self._ports

    def add(self, port: int) -> None:
        if port not in self._ports:
            self._ports.add(port)
            self._unwritten.add(port)
            log.warning("podman: port %d is another service's: containers never get it", port)
            self._write()

    def _write(self) -> None:
        try:
            with self._path.open("a") as file:
                file.write("".join(f"{port}\n" for port in sorted(self._unwritten)))
            self._unwritten.clear()
        except OSError as error:
            log.warning("podman: %s cannot be written, and is tried again: %s", self._path, error)

    async def watch(self, own: Callable[[], set[Address]]) -> None:
        """Look for ever. ``own`` tells where we listen ourselves."""
        while True:
            await self.look(own)
            await trio.sleep(LOOK_SECONDS)

    async def look(self, own: Callable[[], set[Address]]) -> None:
        ours = own()
        found = await trio.to_thread.run_sync(listeners, "self", abandon_on_cancel=True)
        ours |= own()
        if self._unwritten:
            self._write()
        for host, port in found:
            if port in PORTS and (host, port) not in ours and self._overlaps(host):
                self.add(port)

    def _overlaps(self, host: str) -> bool:
        """Whether one cannot listen at both: one is every address, or they are the same."""
        is_any = ipaddress.ip_address(host).is_unspecified
        return is_any or self._host in (host, "0.0.0.0", "::")
