"""The ports that other services of this machine have, or have had.

Tenants choose their ports, so a service that is restarted could find its port taken, and
the tenant would receive its logins. So if another service was ever seen to listen on a port
of an address where containers' ports are opened, no container gets that port: not while the
service is down, nor after a restart of the machine. ``foreign-ports`` has these ports, one on
each line; an operator who removes a line gives the port to containers, from the next start
of the control plane.

The listeners are read every :data:`LOOK_SECONDS`. A port on which we could not listen may
belong to a connection for a while, or to a service that is just starting: containers do not
get it until :data:`LOOKS` reads have found no service there. A service that never ran while
the control plane did is not protected.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

import trio

from control.compute.names import PORTS
from control.compute.podman.engine import listeners
from control.compute.podman.network.gateway import Address

log = logging.getLogger("control.compute")

FILE = "foreign-ports"
LOOK_SECONDS = 30.0
LOOKS = 2


class ForeignPorts:
    """See :class:`control.compute.podman.network.gateway.Foreign`.

    Args:
        directory: The directory of the file.
        host: The address where containers' ports are opened; "": each has its own.
        ssh_host, ssh_ports: The address and the ports of their SSH.
    """

    def __init__(
        self, directory: str, host: str, ssh_host: str = "", ssh_ports: range = range(0)
    ) -> None:
        self._path = Path(directory) / FILE
        self._host = host
        self._ssh_host, self._ssh_ports = ssh_host, ssh_ports
        self._ports: set[int] = set()
        #: Those that the file does not have yet.
        self._unwritten: set[int] = set()
        #: Ports on which we could not listen -> how many reads found no service there.
        self._suspected: dict[int, int] = {}
        self.read()

    def read(self) -> None:
        """Read the ports that other processes of ours have written since."""
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
            log.warning("podman: another service has port %d: containers never get it", port)
            self._write()

    def _write(self) -> None:
        try:
            with self._path.open("a") as file:
                file.write("".join(f"{port}\n" for port in sorted(self._unwritten)))
            self._unwritten.clear()
        except OSError as error:
            log.warning("podman: %s cannot be written, it is tried again: %s", self._path, error)

    async def watch(self, own: Callable[[], set[Address]]) -> None:
        """Check until cancelled. ``own`` returns the addresses on which we listen ourselves."""
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
    """Whether the addresses overlap: they are the same, or one stands for every address."""
    return ipaddress.ip_address(host).is_unspecified or own in (host, "0.0.0.0", "::")
