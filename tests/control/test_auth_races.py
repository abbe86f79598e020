"""What changes while a password is hashed, while a body comes, and before a change is written."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trio
from argon2 import PasswordHasher
from auth_server import PASSWORD, CheapAuth, running
from checks import ok
from computing import ED25519, Computing, Who, computing
from limits import HANG_SECONDS

from control.compute.rows import containers, keys
from control.identity import users as people
from control.identity.access import ADMIN, SESSION
from control.identity.rows import accounts, sessions, tokens, users
from control.quota.limits import overrides
from control.records import Txn

SLOW = "the slow one"


class Gated(PasswordHasher):
    """Stops at the password SLOW until the gate is opened."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.entered = threading.Event()
        self.gate = threading.Event()

    def _wait(self, password: str | bytes) -> None:
        if password == SLOW:
            self.entered.set()
            assert self.gate.wait(HANG_SECONDS)

    def verify(self, hash: str | bytes, password: str | bytes) -> Any:
        self._wait(password)
        return super().verify(hash, password)

    def hash(self, password: str | bytes, **more: Any) -> str:
        self._wait(password)
        return super().hash(password, **more)


@pytest.fixture
def gated() -> Iterator[Gated]:
    hasher = Gated()
    yield hasher
    hasher.gate.set()


async def test_a_right_guess_among_too_many_wrong_ones_learns_nothing(
    tmp_path: Path, gated: Gated
) -> None:
    class GatedAuth(CheapAuth):
        hasher = gated

    async with running(tmp_path, modules=(GatedAuth,), login_failures=2) as server:
        gated.gate.set()
        made = await server.call(
            "POST", "/admin/users", server.admin, username="ada", password=SLOW
        )
        assert made.status_code == 200
        gated.gate.clear()
        gated.entered.clear()
        answers: list[httpx.Response] = []

        async def guess(password: str) -> None:
            answers.append(
                await server.call("POST", "/api/login", username="ada", password=password)
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guess, SLOW)
            await trio.to_thread.run_sync(gated.entered.wait, HANG_SECONDS)
            await guess("no")
            await guess("no")
            gated.gate.set()
        assert [answer.status_code for answer in answers] == [401, 401, 429]
        assert "token" not in answers[-1].json()


class Ending:
    """Every request whose outcome may outlive its credential: (method, route) → path ("": that of
    the route), body.
    All are ada's, who is an administrator; bob is somebody else."""

    def __init__(
        self, c: Computing, ada: Who, account: str, token: str, key: int, container: str
    ) -> None:
        self.ada = ada
        bob = c.bob["user_id"]
        claims = jwt.decode(c.bob["token"], options={"verify_signature": False})
        scopes = {"scopes": {f"storage.{ada['user_id']}": ["read"]}}
        one = f"/api/service-accounts/{account}"
        theirs = f"/compute/admin/containers/{container}"
        name, bob = {"name": "late"}, f"?id={bob}"
        admin = {"username": "late", "password": PASSWORD, "is_admin": True}
        self.of_auth: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
            ("PUT", "/api/password"): ("", {"old": PASSWORD, "new": "another horse battery"}),
            ("POST", "/api/tokens"): ("", {**name, **scopes}),
            ("DELETE", "/api/tokens/{id}"): (f"/api/tokens/{token}", {}),
            ("POST", "/api/service-accounts"): ("", {**name, **scopes}),
            ("DELETE", "/api/service-accounts/{id}"): (one, {}),
            ("PUT", "/api/service-accounts/{id}/scopes"): (f"{one}/scopes", scopes),
            ("POST", "/api/service-accounts/{id}/tokens"): (f"{one}/tokens", name),
            ("POST", "/admin/users"): ("", admin),
            ("PUT", "/admin/users"): (f"/admin/users{bob}", {"display_name": "Late"}),
            ("DELETE", "/admin/users"): (f"/admin/users{bob}", {}),
            ("DELETE", "/admin/sessions"): (f"/admin/sessions?id={claims['jti']}", {}),
            ("PUT", "/admin/quotas"): (f"/admin/quotas{bob}", {"files": 1}),
        }
        self.of_compute: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
            ("POST", "/compute/ssh-keys"): ("", {**name, "public_key": ED25519}),
            ("DELETE", "/compute/ssh-keys/{id}"): (f"/compute/ssh-keys/{key}", {}),
            ("POST", "/compute/containers"): ("", {**name, "ssh_key_ids": [key]}),
            ("POST", "/compute/admin/containers/{id}/stop"): (f"{theirs}/stop", {}),
            ("DELETE", "/compute/admin/containers/{id}"): (theirs, {}),
        }

    @property
    def all(self) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
        every = self.of_auth | self.of_compute
        return {key: (path or key[1], body) for key, (path, body) in every.items()}


@asynccontextmanager
async def ending(place: Path) -> AsyncIterator[tuple[Computing, Ending]]:
    async with computing(place) as c:
        ada = await c.server.new_user("eve", is_admin=True)
        scopes = {f"storage.{ada['user_id']}": ["read"]}
        account = ok(await c.call("POST", "/api/service-accounts", ada, name="a", scopes=scopes))
        token = ok(await c.call("POST", "/api/tokens", ada, name="t", scopes=scopes))
        key = await c.key(ada)
        theirs = await c.running(c.bob)
        yield c, Ending(c, ada, account["id"], token["id"], key["id"], theirs["id"])


async def kept(c: Computing) -> dict[str, list[Any]]:
    """All rows that such a request could change, but for the session that ends."""
    with c.server.app.control.records.read() as txn:
        found: dict[str, list[Any]] = {
            table.name: list(table.scan(txn))
            for table in (users, tokens, accounts, keys, containers)
        }
        found["overrides"] = list(overrides.scan(txn))
        found["sessions"] = [*sessions.by(txn, "user", c.bob["user_id"])]
    return found


async def test_the_table_has_every_change_that_auth_makes_for_who_is_logged_in(
    tmp_path: Path,
) -> None:
    async with ending(tmp_path) as (c, requests):
        known = {
            (route.method, route.path)
            for module, route in c.server.app.table
            if module == "auth" and route.need in (SESSION, ADMIN) and route.method != "GET"
        }
        assert set(requests.of_auth) == known


@pytest.mark.parametrize("how", ["logged out", "deleted"])
async def test_a_session_that_ends_before_its_change_is_written_changes_nothing(
    tmp_path: Path, how: str
) -> None:
    """The records are being written: each request was let in, its body was read, and it waits
    for its turn. What goes before it ends its session."""
    held, go = threading.Event(), threading.Event()
    async with ending(tmp_path) as (c, requests):
        ada = requests.ada
        claims = jwt.decode(ada["token"], options={"verify_signature": False})

        def end(txn: Txn) -> None:
            if how == "deleted":
                people.delete(txn, ada["user_id"], [])
            else:
                sessions.delete(txn, claims["jti"])
            held.set()
            assert go.wait(HANG_SECONDS)

        statuses: dict[tuple[str, str], int] = {}

        async def ask(key: tuple[str, str], path: str, body: dict[str, Any]) -> None:
            statuses[key] = (await c.call(key[0], path, ada, **body)).status_code

        records = c.server.app.control.records
        async with trio.open_nursery() as nursery:
            nursery.start_soon(records.write, end)
            await trio.to_thread.run_sync(held.wait, HANG_SECONDS)
            before = await kept(c)
            for key, (path, body) in requests.all.items():
                nursery.start_soon(ask, key, path, body)
            while len(records._writer._waiting) < len(requests.all):
                await trio.lowlevel.checkpoint()
            go.set()
        assert statuses == dict.fromkeys(requests.all, 401)
        if how == "logged out":
            assert await kept(c) == before
        assert (await c.call("GET", "/api/session", c.bob)).status_code == 200


async def test_a_session_that_ends_before_the_last_byte_of_a_body_changes_nothing(
    tmp_path: Path,
) -> None:
    """Every JSON body of both modules that comes with a credential: the request is let in, as
    100 (Continue) shows, its session ends, and then comes the last byte."""
    async with ending(tmp_path) as (c, requests), AsyncExitStack() as stack:
        paths = {key: path for key, (path, _) in requests.all.items()}
        bodies = {key: body for key, (_, body) in requests.all.items()}
        any_body = {"ssh_enabled": True, "port": 80, "mount_paths": []}
        open_: dict[tuple[str, str], trio.SocketStream] = {}
        for _, route in c.server.app.table:
            key = route.method, route.path
            if not isinstance(route.body, type) or route.need.kind == "public":
                continue
            path = paths.get(key, re.sub(r"\{.*?\}", "none", route.path))
            stream = await stack.enter_async_context(
                await trio.open_tcp_stream("127.0.0.1", c.port)
            )
            body = json.dumps(bodies.get(key, any_body)).encode()
            head = [
                f"{route.method} {path} HTTP/1.1",
                "Host: x",
                f"Authorization: Bearer {requests.ada['token']}",
                f"Content-Length: {len(body)}",
                "Expect: 100-continue",
            ]
            await stream.send_all("\r\n".join([*head, "\r\n"]).encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 "), key
            await stream.send_all(body[:-1])
            open_[key] = stream
        assert len(open_) > len(requests.all) / 2
        before = await kept(c)
        ok(await c.call("POST", "/api/logout", requests.ada))
        for key, stream in open_.items():
            await stream.send_all(b"}")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 "), key
        assert await kept(c) == before


async def test_an_administrator_who_is_deleted_meanwhile_makes_nobody(
    tmp_path: Path, gated: Gated
) -> None:
    class GatedAuth(CheapAuth):
        hasher = gated

    async with running(tmp_path, modules=(GatedAuth,)) as server:
        eve = await server.new_user("eve", is_admin=True)
        answers: list[httpx.Response] = []

        async def make() -> None:
            answers.append(
                await server.call(
                    "POST", "/admin/users", eve, username="back", password=SLOW, is_admin=True
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await trio.to_thread.run_sync(gated.entered.wait, HANG_SECONDS)
            gone = await server.call("DELETE", f"/admin/users?id={eve['user_id']}", server.admin)
            assert gone.status_code == 200
            gated.gate.set()
        assert answers[0].status_code == 401
        names = [
            row["username"]
            for row in (await server.call("GET", "/admin/users", server.admin)).json()
        ]
        assert names == ["admin"]
