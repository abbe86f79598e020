"""The connection to the file system, open for as long as the process serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext

import trio

from control.api import (
    BadRequest,
    Conflict,
    Connection,
    Control,
    NoSuchThing,
    Principal,
    Unavailable,
)
from control.api.internals import InTheWay
from gfs.errors import (
    AlreadyExists,
    FileChanged,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotFound,
)

#: The master's default.
TRASH_SECONDS = 3 * 86400.0
#: Questions of listings without a credential that one process asks the master at once, and
#: listings that wait for their first one. Each takes the master some 5 ms, so none waits for a
#: second before its answer begins; from then on its connection can be ended for another.
STRANGERS_AT_ONCE = 4
STRANGERS_WAITING_MAX = 64
RETRY_AFTER = {"Retry-After": "2"}


class Cluster(Connection):
    """The connection, and what deletions must know of the file system."""

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        #: How long deleted files can be undeleted, once the master has reported it.
        self.trash_seconds = TRASH_SECONDS
        self._strangers = trio.CapacityLimiter(STRANGERS_AT_ONCE)

    def turn(self, who: Principal | None) -> AbstractAsyncContextManager[object]:
        """Entered for each question of a listing; without a credential a few ask at a time.

        Raises Unavailable if too many wait already.
        """
        if who is not None:
            return nullcontext()
        if self._strangers.statistics().tasks_waiting >= STRANGERS_WAITING_MAX:
            raise Unavailable(
                "many others list files without a credential just now: try again, or log in",
                RETRY_AFTER,
            )
        return self._strangers

    async def learn(self) -> None:
        """Ask the master for the settings that deletions depend on."""
        status = await self.fs.status()
        if status.role == "master":
            self.trash_seconds = status.trash_ms / 1000


@contextmanager
def as_answers(path: str) -> Iterator[None]:
    """Translate errors of the file system's namespace to errors of this API.

    ``path`` is the user's name of the file.
    """
    try:
        yield
    except AlreadyExists:
        raise Conflict(f"{path} exists already: send overwrite=true to replace it") from None
    except IsADirectory:
        raise InTheWay(f"{path} is a folder") from None
    except NotADirectory:
        raise InTheWay(f"{path}: a part of it before a slash is a file") from None
    except FileChanged:
        raise Conflict(f"{path} was replaced or deleted meanwhile: try again") from None
    except NotFound:
        raise NoSuchThing(f"{path} does not exist") from None
    except InvalidName:
        raise BadRequest(f"{path}: this is no valid file name") from None
