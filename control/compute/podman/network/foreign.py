"""Which ports other services of this machine have, or have had.

Tenants choose their ports, so a service that is restarted could find its own taken, and
the tenant receive its logins. So a port that somebody else was ever seen to listen on,
where containers' ports or their SSH are opened, is never a container's: not while that service is
down, nor after a restart of the machine. ``foreign-ports`` has them, one a line; whoever
takes a line out gives the port to containers, from the next start of the control plane.

It is looked every :data:`LOOK_SECONDS`. Where we could not listen a connection of somebody's
may have the port for a while, or a service that is just starting: containers do not get it
until :data:`LOOKS` looks have found no service there. What remains: a service that was never
up while the control plane looked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

import trio

from control.compute.names import PORTS
from control.compute.podman.engine.processes import listeners
from control.compute.podman.network.gateway import Address

__all__ = ["ForeignPorts"]

log = logging.getLogger("control.compute")

FILE = "foreign-ports"
LOOK_SECONDS = 30.0
LOOKS = 2


class ForeignPorts:
    """See :class:`control.compute.podman.network.gateway.Foreign`.

    Args:
        directory: Where the file is.
        host: The address where containers' ports are opened; "": each has its own.
        ssh_host, ssh_ports: Where their SSH is.
    """

    def __init__(
        self, directory: str, host: str, ssh_host: str = "", ssh_ports: range = range(0)
    ) -> None:
        self._path = Path(directory) / FILE
        self._host = host
        self._ssh_host, self._ssh_ports = ssh_host, ssh_ports
        self._ports: set[int] = set()
        #: Of these, what the file does not have yet.
        self._unwritten: set[int] = set()
        #: Ports that we could not listen on -> how many looks found no service there.
        self._suspected: dict[int, int] = {}
        self.read()

    def read(self) -> None:
        """What other processes of ours have written since."""
        with contextlib.suppress(FileNotFoundError):
            words = self._path.read_text().split()
            self._ports |= {int(word) for word in words if word.isdecimal()}

    def has(self, port: int) -> bool:
        return port in self._ports or port in self._suspected

    def add(self, port: int) -> None:
        self._suspected[port] = 0

    def _remember(self, port: int) -> None:
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
        """Look for ever. ``own`` returns where we listen ourselves."""
        while True:
            await self.look(own)
            await trio.sleep(LOOK_SECONDS)

    async def look(self, own: Callable[[], set[Address]]) -> None:
        ours = own()
        found = await trio.to_thread.run_sync(listeners, "self", abandon_on_cancel=True)
        ours |= own()
        if self._unwritten:
            self._write()
        for host, port in found - ours:
            if (port in PORTS and _overlap(host, self._host)) or (
                port in self._ssh_ports and _overlap(host, self._ssh_host)
            ):
                self._remember(port)
        looks = {port: count + 1 for port, count in self._suspected.items()}
        self._suspected = {port: count for port, count in looks.items() if count < LOOKS}


def _overlap(host: str, own: str) -> bool:
    """Whether one cannot listen at both: one is every address, or they are the same."""
    return ipaddress.ip_address(host).is_unspecified or own in (host, "0.0.0.0", "::")
