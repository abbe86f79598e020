"""The file system, held open for as long as the process serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

import gfs
from control.api import Control
from control.errors import BadRequest, Conflict, NoSuchThing, Unavailable
from gfs import config
from gfs.client import Client
from gfs.config import ClientSettings
from gfs.errors import (
    AlreadyExists,
    FileChanged,
    GfsError,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotFound,
)

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 5.0
#: The master's default.
TRASH_SECONDS = 3 * 86400.0


class Cluster:
    """The connection to the file system: made as soon as it can be, and again when it breaks."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._fs: Client | None = None
        #: Set when it is connected for the first time.
        self.connected = trio.Event()
        #: How long deleted files can be undeleted, once the master has reported it.
        self.trash_seconds = TRASH_SECONDS

    @property
    def fs(self) -> Client:
        """Raises Unavailable as long as there is no connection."""
        if self._fs is None:
            raise Unavailable(
                "the storage does not answer right now: try again later", {"Retry-After": "5"}
            )
        return self._fs

    async def learn(self) -> None:
        """Ask the master for the settings that deletions depend on."""
        status = await self.fs.status()
        if status.role == "master":
            self.trash_seconds = status.trash_ms / 1000

    async def hold(self) -> None:
        """Be connected until cancelled, whatever happens to the cluster.

        Raises SettingsError for settings of the client that make no sense.
        """
        settings = config.load(ClientSettings, "client", file=self._control.config)
        pause = BACKOFF_SECONDS_MIN
        logged = ""
        while True:
            try:
                await self._hold_once(settings)
            except (GfsError, OSError) as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("the file system cannot be reached, trying again: %s", logged)
            await trio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)

    async def _hold_once(self, settings: ClientSettings) -> None:
        control = self._control
        async with gfs.connect(
            control.master,
            state=control.state,
            key=control.key,
            tls=control.tls,
            settings=settings,
        ) as fs:
            self._fs = fs
            self.connected.set()
            try:
                await trio.sleep_forever()
            finally:
                self._fs = None


@contextmanager
def as_answers(path: str) -> Iterator[None]:
    """Errors of the file system's namespace become errors of this API.

    ``path`` is the user's name of the file.
    """
    try:
        yield
    except AlreadyExists:
        raise Conflict(f"{path} exists already: send overwrite=true to replace it") from None
    except IsADirectory:
        raise Conflict(f"{path} is a folder") from None
    except NotADirectory:
        raise Conflict(f"{path}: a part of it before a slash is a file") from None
    except FileChanged:
        raise Conflict(f"{path} was replaced or deleted meanwhile: try again") from None
    except NotFound:
        raise NoSuchThing(f"{path} does not exist") from None
    except InvalidName:
        raise BadRequest(f"{path}: this is no valid file name") from None
