"""The backend of another machine, where several control planes share the records.

Requests are rows, which the driver there carries out. What needs the machine itself
(terminals, logs, usage, addresses) is there alone.
"""

from __future__ import annotations

from control.compute.backend.interface import Installation, Spec
from control.compute.backend.none import Refusing


class Elsewhere(Refusing):
    def __init__(self, installation: Installation, name: str, host: str) -> None:
        super().__init__(
            installation,
            f"containers are on the machine {host}: its own control plane answers this",
        )
        self.name = name

    async def check(self) -> None:
        """It is checked there."""

    def ssh_command(self, spec: Spec) -> str:
        return ""
