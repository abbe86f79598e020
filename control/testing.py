"""Serves modules in a test's own event loop, on a real socket; for authors of modules.

See ``docs/modules.md``. It needs ``httpx``, which only tests need.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import trio
from argon2 import PasswordHasher

from control.api import Control, Module
from control.app import ControlApp
from control.auth import FILE_NAME, Auth
from control.http import listen, serve
from control.installed import check_clashes
from control.settings import ControlSettings

__all__ = ["Cloud", "make_app", "served", "serving"]

SECONDS = 300.0


class CheapAuth(Auth):
    """``Auth`` whose hashes of passwords cost nothing."""

    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Cloud:
    """The served modules. :meth:`user` creates users; ``anonymous`` is a client without one."""

    def __init__(self, app: ControlApp, anonymous: httpx.AsyncClient, clients: AsyncExitStack):
        self.app = app
        self.anonymous = anonymous
        self._clients = clients

    async def user(self, name: str) -> httpx.AsyncClient:
        """A client with the session of a new user; ``admin`` exists from the start.

        The header ``Authorization`` of the client has the token of the session.
        """
        directory = self.app.control.directory
        password = (directory / FILE_NAME).read_text().strip()
        if name != "admin":
            admin = await self.user("admin")
            made = {"username": name, "password": password}
            (await admin.post("/admin/users", json=made)).raise_for_status()
        login = {"username": name, "password": password}
        answer = (await self.anonymous.post("/api/login", json=login)).raise_for_status()
        return await self._clients.enter_async_context(
            httpx.AsyncClient(
                base_url=self.anonymous.base_url,
                headers={"Authorization": f"Bearer {answer.json()['token']}"},
                timeout=SECONDS,
                trust_env=False,
                verify=False,
            )
        )


@asynccontextmanager
async def serving(
    state: Path, *modules: type[Module], seconds: float = SECONDS, **settings: Any
) -> AsyncIterator[Cloud]:
    """Serve ``modules`` and ``auth`` until the block ends, for ``seconds`` at most.

    Other installed modules are not served. ``settings`` are those of ``[control]``. An error
    of a module that would end the process is raised here.
    """
    app = make_app(state, CheapAuth, *modules, **settings)
    async with served(app, seconds) as anonymous, AsyncExitStack() as clients:
        yield Cloud(app, anonymous, clients)


def make_app(state: Path, *kinds: type[Module], **settings: Any) -> ControlApp:
    """An application of exactly these modules. Raises StartupError if two clash."""
    check_clashes(kinds)
    control = Control(ControlSettings(sync=False, **settings), state, kinds)
    return ControlApp(control, [kind(control) for kind in kinds])


@asynccontextmanager
async def served(app: ControlApp, seconds: float = SECONDS) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``app``, which is served until the block ends, for ``seconds`` at most."""
    sockets = listen("127.0.0.1:0")
    port = sockets[0].getsockname()[1]
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            proxies = app.control.settings.proxies
            run = functools.partial(serve, cast(Any, app), sockets, proxies=proxies)
            await nursery.start(run)
            url = f"http://127.0.0.1:{port}"
            # Without this it would read the certificates of all authorities, which is slow.
            async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
                yield client
            nursery.cancel_scope.cancel()
