"""The backend of another machine, where several control planes share the records.

Requests are rows, which the driver there carries out. What needs the machine itself
(terminals, logs, usage, addresses) is there alone.
"""

from __future__ import annotations

from control.compute.backend.interface import BackendUnavailable, Installation, Spec
from control.compute.backend.none import NoBackend


class Elsewhere(NoBackend):
    def __init__(self, installation: Installation, name: str, host: str) -> None:
        super().__init__(installation)
        self.name = name
        self._host = host

    async def check(self) -> None:
        """It is checked there."""

    def ssh_command(self, spec: Spec) -> str:
        return ""

    def _refusal(self) -> BackendUnavailable:
        return BackendUnavailable(
            f"containers are on the machine {self._host}: its own control plane answers this"
        )
