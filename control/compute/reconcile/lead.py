"""Which process of this machine drives the backend: the one that holds a lock file."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from gfs.errors import StartupError
from gfs.io.filelock import try_flock

#: How soon another process takes over from one that died.
TRY_SECONDS = 1.0


class Lead:
    """The lock, which the kernel takes from whoever dies with it."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"{path}: cannot be used: {error.strerror}") from None
        self.is_mine = False

    def take(self) -> bool:
        """Whether it is this process's now."""
        self.is_mine = self.is_mine or try_flock(self._descriptor)
        return self.is_mine

    async def wait(self) -> None:
        """Until it is this process's."""
        while True:
            if self.take():
                return
            await trio.sleep(TRY_SECONDS)

    def close(self) -> None:
        os.close(self._descriptor)
