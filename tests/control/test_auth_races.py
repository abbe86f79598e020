"""What changes while a password is hashed: the one wait that is long in these routes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trio
from argon2 import PasswordHasher
from auth_server import PASSWORD, CheapAuth, Server, running

from control.identity import users as people
from control.records import Txn

SECONDS = 30
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
            assert self.gate.wait(SECONDS)

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


async def test_a_right_guess_among_too_many_wrong_ones_is_told_nothing(
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
            await trio.to_thread.run_sync(gated.entered.wait, SECONDS)
            await guess("no")
            await guess("no")
            gated.gate.set()
        assert [answer.status_code for answer in answers] == [401, 401, 429]
        assert "token" not in answers[-1].json()


@pytest.mark.parametrize("what", ["user", "session", "password"])
async def test_who_is_deleted_meanwhile_changes_nothing(tmp_path: Path, what: str) -> None:
    """The records are being written: eve's request was let in and waits for its turn, and
    what goes before it deletes her."""
    held, go = threading.Event(), threading.Event()
    async with running(tmp_path) as server:
        eve, bob = await server.new_user("eve", is_admin=True), await server.new_user("bob")
        records = server.app.control.records
        claims = jwt.decode(bob["token"], options={"verify_signature": False})

        def delete_eve(txn: Txn) -> None:
            people.delete(txn, eve["user_id"], [])
            held.set()
            assert go.wait(SECONDS)

        answers: list[httpx.Response] = []

        async def ask() -> None:
            method, path, body = {
                "user": ("DELETE", f"/admin/users?id={bob['user_id']}", {}),
                "session": ("DELETE", f"/admin/sessions?id={claims['jti']}", {}),
                "password": ("PUT", "/api/password", {"old": PASSWORD, "new": "long enough"}),
            }[what]
            answers.append(await server.call(method, path, eve, **body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(records.write, delete_eve)
            await trio.to_thread.run_sync(held.wait, SECONDS)
            nursery.start_soon(ask)
            await waits_to_be_written(server)
            go.set()
        assert answers[0].status_code == 401
        assert (await server.call("GET", "/api/session", bob)).status_code == 200
        names = [
            row["username"]
            for row in (await server.call("GET", "/admin/users", server.admin)).json()
        ]
        assert names == ["admin", "bob"]


async def waits_to_be_written(server: Server) -> None:
    """Until a change waits for the one that is being written."""
    while not server.app.control.records._writer._waiting:
        await trio.lowlevel.checkpoint()


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
            await trio.to_thread.run_sync(gated.entered.wait, SECONDS)
            gone = await server.call("DELETE", f"/admin/users?id={eve['user_id']}", server.admin)
            assert gone.status_code == 200
            gated.gate.set()
        assert answers[0].status_code == 401
        names = [
            row["username"]
            for row in (await server.call("GET", "/admin/users", server.admin)).json()
        ]
        assert names == ["admin"]
