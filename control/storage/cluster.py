"""The connection to the file system, open for as long as the process serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from control.api import Connection, Control
from control.errors import BadRequest, Conflict, InTheWay, NoSuchThing
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


class Cluster(Connection):
    """The connection, and what deletions must know of the file system."""

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        #: How long deleted files can be undeleted, once the master has reported it.
        self.trash_seconds = TRASH_SECONDS

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
