"""The backend under test, driven by a test, and what its watch reports."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from apiserver import Identity
from kube_api import Api
from limits import HANG_SECONDS

from control.compute.backend import Installation, Port, Sighting, Spec
from control.compute.kubernetes import Kubernetes, make
from control.compute.kubernetes.manifests import namespace_name
from control.compute.settings import ComputeSettings

DOMAIN = "compute.example.org"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"
SHELL = ["/bin/sh", "-c"]

_NUMBERS = itertools.count()


def spec(**changes: Any) -> Spec:
    """One with ids that nobody else has."""
    given: dict[str, Any] = {
        "id": secrets.token_hex(4),
        "user_id": f"u{next(_NUMBERS):05d}",
        "name": "box",
        "image": "localhost/gfs-compute:latest",
        "architecture": "amd64",
        "cpus": 1,
        "memory_mb": 512,
        "storage_gb": 5,
        "ssh_keys": (KEY,),
        "ssh_enabled": True,
        "mount_paths": ("/root", "/srv/data"),
        "ports": (Port(8080, 80),),
        "generation": 1,
    }
    return Spec(**{**given, **changes})


def name_of(of: Spec) -> str:
    """Of its namespace."""
    return namespace_name(of.user_id, of.id)


def path_of(of: Spec, rest: str = "", *, api: str = "/api/v1") -> str:
    return f"{api}/namespaces/{name_of(of)}{rest}"


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
                and (seen.phase, seen.generation) == (phase, of.generation)
                and reason in seen.reason
            )

        await self.until(is_there)
        return self.now[of.id]


class Running:
    """A backend and what its watch has reported."""

    def __init__(self, backend: Kubernetes, seen: Seen) -> None:
        self.backend = backend
        self.seen = seen

    async def start(self, of: Spec) -> Sighting:
        """A container that runs."""
        await self.backend.create(of)
        await self.backend.start(of)
        return await self.seen.phase(of, "running")


def made(identity: Identity, installation: str = "", **settings: Any) -> Kubernetes:
    here = Installation(
        id=installation or secrets.token_hex(8), domain=DOMAIN, image="unused", directory="unused"
    )
    return make(here, ComputeSettings(kubeconfig=str(identity.kubeconfig), **settings))


@asynccontextmanager
async def running(
    identity: Identity, installation: str = "", **settings: Any
) -> AsyncIterator[Running]:
    """One with its watch. Its containers stay: another may have the same installation."""
    backend = made(identity, installation, **settings)
    seen = Seen()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(HANG_SECONDS):
            await nursery.start(lambda task_status: backend.run(seen, task_status=task_status))
        yield Running(backend, seen)
        nursery.cancel_scope.cancel()


async def labelled(kube: Api, path: str, of: Spec) -> list[Any]:
    return await kube.items(path, labelSelector=f"gfs.control/container={of.id}")
