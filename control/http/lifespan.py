"""Starting and shutting down an ASGI application (the ``lifespan`` protocol)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import trio

from control.http.service import Application

log = logging.getLogger("control.http")

STARTUP_SECONDS = 60.0
SHUTDOWN_SECONDS = 60.0
MESSAGES_MAX = 2
"""How many messages it gets: startup and shutdown."""


class LifespanFailed(Exception):
    """The application refused to start, or did not start or stop in time."""


class Lifespan:
    """Runs the application's lifespan task.

    Args:
        ended: Called when that task fails after the startup: the application's
            background tasks are gone, and it must not go on without them.

    Attributes:
        state: The state that the application's startup leaves for its requests.
        failure: The error that the startup raised, or that ended the application later.
    """

    def __init__(self, app: Application, ended: Callable[[], None]) -> None:
        self.state: dict[str, Any] = {}
        self.failure: BaseException | None = None
        self._app = app
        self._ended = ended
        self._supported = True
        self._started = trio.Event()
        self._stopped = trio.Event()
        self._to_app, self._messages = trio.open_memory_channel[dict[str, str]](MESSAGES_MAX)

    async def run(self) -> None:
        """Run the application's lifespan task, in a nursery."""
        scope = {
            "type": "lifespan",
            "asgi": {"spec_version": "2.0", "version": "3.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._messages.receive, self._send)
        except Exception as error:
            # Before the startup this means that the application knows no lifespan.
            if self._started.is_set() and self.failure is None:
                self.failure = error
                self._ended()
        finally:
            self._supported = False
            self._started.set()
            self._stopped.set()

    async def start(self) -> None:
        """Return once the application has started, or :attr:`failure` is set.

        Raises:
            LifespanFailed: It takes too long.
        """
        await self._ask("lifespan.startup", self._started, STARTUP_SECONDS)

    async def stop(self) -> None:
        """Return once the application has shut down.

        Raises:
            LifespanFailed: It takes too long.
        """
        await self._ask("lifespan.shutdown", self._stopped, SHUTDOWN_SECONDS)

    async def _ask(self, kind: str, done: trio.Event, seconds: float) -> None:
        if not self._supported:
            return
        await self._to_app.send({"type": kind})
        with trio.move_on_after(seconds) as scope:
            await done.wait()
        if scope.cancelled_caught:
            raise LifespanFailed(f"the application did not answer {kind} in {seconds:g} seconds")

    async def _send(self, message: Any) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._started.set()
        elif kind == "lifespan.startup.failed":
            # Frameworks send this while they handle the error, and pass on only its text. The
            # error itself is more useful to the person who started the server.
            self.failure = sys.exc_info()[1] or LifespanFailed(message.get("message", ""))
            self._started.set()
        elif kind == "lifespan.shutdown.complete":
            self._stopped.set()
        elif kind == "lifespan.shutdown.failed":
            log.error("the application's shutdown failed: %s", message.get("message", ""))
            self._stopped.set()
        else:
            raise ValueError(f"an application cannot send {kind} in its lifespan")
