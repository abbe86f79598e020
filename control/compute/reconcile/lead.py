"""Which process drives the backend: the one that holds a lock file of its machine, and where
several machines share the records, a lock in PostgreSQL, too."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from control.api.internals import SharedLock
from gfs.errors import StartupError
from gfs.io import try_flock

#: How soon another process takes over from one that died, and how soon one that lost the
#: lock stops.
TRY_SECONDS = 1.0


class Lead:
    """The lock. The kernel releases it when its holder dies, and PostgreSQL when it does not
    hear of it any more."""

    def __init__(self, path: Path, lock: SharedLock | None = None) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"{path}: cannot be used: {error.strerror}") from None
        self._lock = lock
        self._has_file = False

    async def take(self) -> bool:
        """Try to take the lock. Returns whether this process has it."""
        self._has_file = self._has_file or try_flock(self._descriptor)
        return self._has_file and (self._lock is None or await self._lock.take())

    async def wait(self) -> None:
        """Wait until this process has the lock."""
        while not await self.take():  # noqa: ASYNC110 - another process has it
            await trio.sleep(TRY_SECONDS)

    async def lost(self) -> None:
        """Wait until this process does not have the lock any more."""
        while self._lock is None or self._lock.is_mine:  # noqa: ASYNC110 - as above
            await trio.sleep(TRY_SECONDS)

    async def release(self) -> None:
        """Leave it to the processes of other machines."""
        if self._lock is not None:
            await self._lock.release()

    def close(self) -> None:
        os.close(self._descriptor)
