"""What tests of backends share: a container as it is wished, and a watch that remembers."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Any

import trio
from limits import HANG_SECONDS

from control.compute.backend import Sighting, Spec

USER = "aZ09bY"


def spec(**changes: Any) -> Spec:
    """One with an id that nobody else has."""
    given: dict[str, Any] = {
        "id": secrets.token_hex(4),
        "user_id": USER,
        "name": "box",
        "image": "an-image",
        "architecture": "amd64",
        "cpus": 0.5,
        "memory_mb": 256,
        "storage_gb": 1,
        "ssh_keys": (),
        "ssh_enabled": False,
        "mount_paths": ("/root",),
        "ports": (),
        "generation": 1,
    }
    return Spec(**{**given, **changes})


class Seen:
    """A watch that remembers everything."""

    def __init__(self) -> None:
        self.now: dict[str, Sighting] = {}
        self.all: list[Sighting] = []
        self.was_gone: list[str] = []
        self.lost_exposure: set[str] = set()
        self.syncs: list[set[str]] = []
        self._changed = trio.Event()

    def seen(self, sighting: Sighting) -> None:
        if self.now.get(sighting.id) != sighting:
            self.now[sighting.id] = sighting
            self.all.append(sighting)
        self._poke()

    def gone(self, container_id: str) -> None:
        self.now.pop(container_id, None)
        self.was_gone.append(container_id)
        self._poke()

    def exposure_lost(self, container_id: str) -> None:
        self.lost_exposure.add(container_id)
        self._poke()

    def synced(self, present: set[str]) -> None:
        for lost in self.now.keys() - present:
            del self.now[lost]
        self.syncs.append(present)
        self._poke()

    def _poke(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def phases(self, of: Spec) -> list[str]:
        """Of this generation, each once, in the order they came."""
        came = [
            each.phase for each in self.all if (each.id, each.generation) == (of.id, of.generation)
        ]
        return [phase for phase, _ in itertools.groupby(came)]

    async def until(self, condition: Callable[[], Any]) -> None:
        with trio.move_on_after(HANG_SECONDS):
            while not condition():
                await self._changed.wait()
            return
        raise TimeoutError(f"after {HANG_SECONDS:g} s what is seen is still {self.now}")

    async def phase(self, of: Spec, phase: str, reason: str = "") -> Sighting:
        """The sighting, once it is of this generation, in ``phase``, and says ``reason``."""

        def is_there() -> bool:
            seen = self.now.get(of.id)
            return (
                seen is not None
                and seen.phase == phase
                # Where no run is left, nothing says which it was.
                and seen.generation in (of.generation, 0)
                and reason in seen.reason
            )

        await self.until(is_there)
        return self.now[of.id]
