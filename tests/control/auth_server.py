"""The module ``auth`` behind a real socket, and what its tests do to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from control.api import Module
from control.app import ControlApp
from control.auth.first_start import FILE_NAME
from control.testing import SECONDS, CheapAuth, make_app, served

PASSWORD = "correct horse"


class Hands:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


class Server:
    """A running server and the administrator's session."""

    def __init__(self, app: ControlApp, http: httpx.AsyncClient, state: Path) -> None:
        self.app = app
        self.http = http
        self.state = state
        self.admin: dict[str, Any] = {}

    @property
    def control(self) -> Path:
        return self.state / "control"

    async def login(self, username: str, password: str = PASSWORD) -> dict[str, Any]:
        answer = await self.http.post(
            "/api/login", json={"username": username, "password": password}
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def login_status(self, username: str, password: str = PASSWORD) -> int:
        answer = await self.call("POST", "/api/login", username=username, password=password)
        return answer.status_code

    async def new_user(self, username: str, **more: Any) -> dict[str, Any]:
        """A user and his session: the answer to his login."""
        answer = await self.call(
            "POST", "/admin/users", self.admin, username=username, password=PASSWORD, **more
        )
        assert answer.status_code == 200, answer.text
        return await self.login(username)

    async def call(
        self, method: str, path: str, who: dict[str, Any] | None = None, **body: Any
    ) -> httpx.Response:
        """A request with the credential in ``who["token"]`` and ``body`` as JSON."""
        headers = (
            {} if who is None else {"Authorization": f"Bearer {who['token']}".encode("latin-1")}
        )
        return await self.http.request(method, path, headers=headers, json=body or None)


@contextlib.asynccontextmanager
async def running(
    state: Path, *, modules: tuple[type[Module], ...] = (CheapAuth,), **settings: Any
) -> AsyncIterator[Server]:
    """Serve from ``state``; the administrator is logged in with the first password."""
    app = make_app(state, *modules, **settings)
    async with served(app) as http:
        http.timeout = httpx.Timeout(SECONDS)
        server = Server(app, http, state)
        first = state / "control" / FILE_NAME
        if first.exists():
            server.admin = await server.login("admin", first.read_text().strip())
        yield server
