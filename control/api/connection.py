"""A connection to the file system, open for as long as the process serves; and the bound of what
waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import trio

from control.api.runtime import Control
from control.errors import UNAVAILABLE, Unavailable
from gfs.client import Client
from gfs.errors import GfsError

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 5.0
RETRY_AFTER = {"Retry-After": "5"}


class Connection:
    """Connects to the file system as soon as it can, and again when the connection breaks."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._fs: Client | None = None
        #: Set when it is connected for the first time.
        self.connected = trio.Event()

    @property
    def fs(self) -> Client:
        """Raises Unavailable as long as there is no connection."""
        if self._fs is None:
            raise Unavailable(UNAVAILABLE, RETRY_AFTER)
        return self._fs

    async def hold(self) -> None:
        """Stay connected until cancelled, whatever happens to the cluster.

        Raises SettingsError for invalid settings of the client.
        """
        pause = BACKOFF_SECONDS_MIN
        logged = ""
        while True:
            connection = self._control.connect()
            try:
                await self._hold_once(connection)
            except (GfsError, OSError) as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("the file system cannot be reached, trying again: %s", logged)
            await trio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)

    async def _hold_once(self, connection: AbstractAsyncContextManager[Client]) -> None:
        async with connection as fs:
            self._fs = fs
            self.connected.set()
            try:
                await trio.sleep_forever()
            finally:
                self._fs = None


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound how long a request waits for the file system. Raises Unavailable."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise Unavailable(UNAVAILABLE, RETRY_AFTER) from None
