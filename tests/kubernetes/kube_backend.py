"""The backend under test, driven by a test, and what its watch reports."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import backend_seen
import trio
from apiserver import Identity
from backend_seen import Seen
from kube_api import Api
from limits import HANG_SECONDS

from control.compute.backend import Installation, Port, Sighting, Spec
from control.compute.kubernetes import Kubernetes, make
from control.compute.kubernetes.client.api import Api as OurApi
from control.compute.kubernetes.manifests import namespace_name
from control.compute.settings import ComputeSettings

DOMAIN = "compute.example.org"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"
SHELL = ["/bin/sh", "-c"]

_NUMBERS = itertools.count()


def spec(**changes: Any) -> Spec:
    """One with ids that nobody else has."""
    given: dict[str, Any] = {
        "user_id": f"u{next(_NUMBERS):05d}",
        "ssh_keys": (KEY,),
        "ssh_enabled": True,
        "mount_paths": ("/root", "/srv/data"),
        "ports": (Port(8080, 80),),
    }
    return backend_seen.spec(**{**given, **changes})


def name_of(of: Spec) -> str:
    """Of its namespace."""
    return namespace_name(of.user_id, of.id)


def path_of(of: Spec, rest: str = "", *, api: str = "/api/v1") -> str:
    return f"{api}/namespaces/{name_of(of)}{rest}"


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


#: All that a test makes; the conftest closes them.
OPENED: list[OurApi] = []


def made(identity: Identity, installation: str = "", **settings: Any) -> Kubernetes:
    return made_with(installation, kubeconfig=str(identity.kubeconfig), **settings)


def made_with(installation: str = "", **settings: Any) -> Kubernetes:
    here = Installation(
        id=installation or secrets.token_hex(8), domain=DOMAIN, image="unused", directory="unused"
    )
    backend = make(here, ComputeSettings(**settings))
    OPENED.append(backend._api)
    return backend


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


def started(identity: Identity, installation: str) -> Spec:
    """A container that this installation has started and that runs."""
    one = spec()

    async def start() -> None:
        async with running(identity, installation) as here:
            await here.start(one)

    trio.run(start)
    return one


async def labelled(kube: Api, path: str, of: Spec) -> list[Any]:
    return await kube.items(path, labelSelector=f"gfs.control/container={of.id}")


async def limit(kube: Api, namespace: str, **hard: str) -> None:
    """A quota that holds already."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    await kube.create(quotas, {"metadata": {"name": "tests"}, "spec": {"hard": hard}})
    await kube.wait_one(f"{quotas}/tests", lambda found: found["status"].get("hard") == hard)
