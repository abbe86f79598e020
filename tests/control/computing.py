"""The module ``compute`` behind a real socket, with two users and a scripted world."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import scripted
import trio
from auth_server import CheapAuth, Server, running
from checks import ok

from control.compute import Compute
from control.compute.rows import containers

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"
Who = dict[str, Any]


class Computing:
    """A running server with ada and bob, and the world that its backend works on."""

    def __init__(self, server: Server, module: Compute, world: scripted.World) -> None:
        self.server = server
        self.module = module
        self.world = world
        self.admin = server.admin
        self.ada: Who = {}
        self.bob: Who = {}

    @property
    def port(self) -> int:
        return self.server.http.base_url.port or 0

    async def call(
        self, method: str, path: str, who: Who | None = None, **body: Any
    ) -> httpx.Response:
        return await self.server.call(method, path, who, **body)

    async def key(self, who: Who, name: str = "laptop", line: str = ED25519) -> dict[str, Any]:
        answer = await self.call("POST", "/compute/ssh-keys", who, name=name, public_key=line)
        made: dict[str, Any] = ok(answer)
        return made

    async def container(self, who: Who, **body: Any) -> dict[str, Any]:
        """A container, with a key of its own if none is said."""
        if "ssh_key_ids" not in body:
            known = ok(await self.call("GET", "/compute/ssh-keys", who))["ssh_keys"]
            body["ssh_key_ids"] = [known[0]["id"] if known else (await self.key(who))["id"]]
        answer = await self.call("POST", "/compute/containers", who, **{"name": "box", **body})
        made: dict[str, Any] = ok(answer)
        return made

    async def running(self, who: Who, **body: Any) -> dict[str, Any]:
        made = await self.container(who, **body)
        return await self.until(who, made["id"], "running")

    async def until(self, who: Who, container_id: str, status: str) -> dict[str, Any]:
        """The container, once it has this status."""
        number = -1
        while True:
            number = self.module.changes.number()
            found: dict[str, Any] = ok(
                await self.call("GET", f"/compute/containers/{container_id}", who)
            )
            if found["status"] == status:
                return found
            await self.module.changes.after(number)

    async def until_empty(self) -> None:
        """Until nothing is left of any container: not in the world, not in the records."""
        while True:
            if not self.world.things and not self.rows():
                return
            await trio.sleep(0.005)

    def rows(self) -> list[Any]:
        with self.module.control.records.read() as txn:
            return list(containers.scan(txn))


@asynccontextmanager
async def computing(
    state: Path, kind: type[Compute] = Compute, **settings: Any
) -> AsyncIterator[Computing]:
    with mock.patch.dict(os.environ, {"GFS_COMPUTE_BACKEND": "scripted:make"}):
        async with running(state, modules=(CheapAuth, kind), **settings) as server:
            module = server.app.modules[1]
            assert isinstance(module, Compute)
            backend = module.backend
            assert isinstance(backend, scripted.Scripted)
            made = Computing(server, module, backend.world)
            if server.admin:
                made.ada = await server.new_user("ada")
                made.bob = await server.new_user("bob")
            yield made
