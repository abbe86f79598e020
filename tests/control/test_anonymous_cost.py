"""What requests of strangers cost the master and the records: docs/security.md has the table, and
here its numbers are counted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from auth_server import PASSWORD, CheapAuth, Server, running
from harness import Cluster

from control.app import ControlApp
from control.installed import discover
from control.records import Table
from control.storage import Storage
from control.testing import make_app
from gfs.client.master import MasterClient

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (`(?:GET|POST) [^|]*) \| (\d+)[^|]*\| (\d+)[^|]*\|", re.MULTILINE)
SPACES = 10
#: More than what is kept beside its name.
FILE_BYTES = 300_000
LISTING = "GET /storage/files"


@dataclass
class Cost:
    questions: int = 0
    rows: int = 0


#: Of the request that a task works for; None: of none.
cost: ContextVar[Cost | None] = ContextVar("cost", default=None)
asking: ContextVar[bool] = ContextVar("asking", default=False)


def table() -> dict[str, Cost]:
    """From the documentation: the most that a request may cost."""
    text = (ROOT / "docs/security.md").read_text().partition("## What a stranger may cost")[2]
    found: dict[str, Cost] = {}
    for routes, questions, rows in ROW.findall(text):
        for route in re.findall(r"`(\w+ [^`]+)`", routes):
            found[route] = Cost(int(questions), int(rows))
    return found


def named_in_table() -> set[str]:
    text = (ROOT / "docs/security.md").read_text().partition("## What a stranger may cost")[2]
    return set(re.findall(r"`((?:GET|POST) [^`?]+)`", text.partition("\n## ")[0]))


def test_every_route_without_a_credential_is_in_the_table(tmp_path: Path) -> None:
    app = make_app(tmp_path, *discover().values())
    anonymous = {
        f"{route.method} {route.path.replace(':space', '').replace(':path', '')}"
        for _, route in app.table
        if route.need.kind in ("public", "anybody") or route.need.is_open
    }
    # What is listed has a test of its own.
    assert named_in_table() | {LISTING} == anonymous | {LISTING}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """The costs of the requests, in order; those of background work are nobody's."""
    found: list[Cost] = []
    handle, row = ControlApp.handle_request, Table._row

    async def handle_request(self: ControlApp, *words: Any) -> Any:
        found.append(Cost())
        cost.set(found[-1])
        return await handle(self, *words)

    def read(self: Table[Any], *words: Any) -> Any:
        if (current := cost.get()) is not None:
            current.rows += 1
        return row(self, *words)

    def counting(name: str, count: Any) -> None:
        real = getattr(MasterClient, name)

        async def ask(self: MasterClient, first: Any, *words: Any, **named: Any) -> Any:
            current = cost.get()
            if current is None or asking.get():
                return await real(self, first, *words, **named)
            current.questions += count(first)
            token = asking.set(True)
            try:
                return await real(self, first, *words, **named)
            finally:
                asking.reset(token)

        monkeypatch.setattr(MasterClient, name, ask)

    monkeypatch.setattr(ControlApp, "handle_request", handle_request)
    monkeypatch.setattr(Table, "_row", read)
    for name in ("ask", "call"):
        counting(name, lambda _: 1)
    for name in ("ask_many", "ask_now"):
        counting(name, len)
    return found


@asynccontextmanager
async def visited(cluster: Cluster) -> AsyncIterator[tuple[Server, str]]:
    """The API with public storage namespaces and a file; the address of a link to that."""
    async with running(cluster.state, modules=(CheapAuth, Storage)) as server:
        for number in range(SPACES):
            body = {"name": f"space-{number}", "visibility": 2}
            await server.call("POST", "/storage/namespaces", server.admin, **body)
        auth = {"Authorization": f"Bearer {server.admin['token']}"}
        for number in range(3):
            url = f"/storage/space-0/folder/file-{number}?overwrite=true"
            (await server.http.put(url, content=bytes(FILE_BYTES), headers=auth)).raise_for_status()
        made = await server.http.post(
            "/storage/namespaces/space-0/shares", json={"path": "folder/file-0"}, headers=auth
        )
        made.raise_for_status()
        yield server, made.json()["url"]


async def test_what_a_stranger_costs_is_no_more_than_the_table_says(
    cluster: Cluster, counted: list[Cost]
) -> None:
    most = table()
    async with visited(cluster) as (server, link):
        requests = {
            "GET /storage/download": "/storage/download?namespace=space-0&name=folder/file-0",
            "GET /storage/download/{namespace}/{path}": "/storage/download/space-0/folder/file-0",
            "GET /storage/{namespace}/{path}": "/storage/space-0/folder/file-0",
            "GET /share/{id}": link,
            "GET /storage/namespaces/{namespace}/entries": (
                "/storage/namespaces/space-0/entries?folder=folder"
            ),
            "GET /storage/namespaces": f"/storage/namespaces?limit={SPACES}",
            "GET /storage/status": "/storage/status",
            "GET /healthz": "/healthz",
            "GET /readyz": "/readyz",
            "GET /metrics": "/metrics",
            "GET /openapi.json": "/openapi.json",
            "GET /docs": "/docs",
        }
        for route, path in requests.items():
            counted.clear()
            answer = await server.http.get(path)
            assert answer.status_code == 200, (route, answer.text)
            (found,) = counted
            print(route, found)
            assert found.questions <= most[route].questions, route
            # It is for each of them, and there is one from the start.
            times = SPACES + 1 if route == "GET /storage/namespaces" else 1
            assert found.rows <= times * most[route].rows, route
        for username in ("admin", "nobody"):
            counted.clear()
            await server.call("POST", "/api/login", username=username, password=PASSWORD)
            (found,) = counted
            print("login", found)
            assert (found.questions, found.rows <= most["POST /api/login"].rows) == (0, True)
        await server.call("POST", "/api/logout")


async def test_a_crowd_of_strangers_costs_no_more_than_one(
    cluster: Cluster, counted: list[Cost]
) -> None:
    """Each second, however many ask."""
    async with visited(cluster) as (server, _):
        for path in ("/storage/status", "/readyz"):
            counted.clear()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(server.http.get, path)
            rounds = 1 + (trio.current_time() - began)
            assert len(counted) == 100
            assert sum(each.questions for each in counted) <= rounds
