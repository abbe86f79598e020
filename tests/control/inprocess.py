"""An application served for real, on a socket, inside the test's own event loop."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from control.api import Control, Module
from control.app import ControlApp
from control.http import listen, serve
from control.settings import ControlSettings

SECONDS = 60


def make_app(state: Path, *kinds: type[Module], **settings: Any) -> ControlApp:
    """An application of exactly these modules, whatever is installed."""
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
            await nursery.start(functools.partial(serve, app, sockets, proxies=proxies))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
            nursery.cancel_scope.cancel()
