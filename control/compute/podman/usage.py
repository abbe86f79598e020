"""How much of the disk a container takes: what its run has written and its volumes.

Podman can add that up only for everything on the machine at once, so it is counted here,
with bounds: one count at a time, at most every :data:`FRESH_SECONDS` for one container, no
more than :data:`ENTRIES_MAX` files. What cannot be read (rootless, other users' files) or
is too much makes it unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import trio

__all__ = ["DiskUsage"]

FRESH_SECONDS = 60.0
ENTRIES_MAX = 500_000
#: Of a second count while the first runs: unknown, rather than a wait.
WAIT_SECONDS = 2.0


class DiskUsage:
    """Counts, and remembers for a while."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, int | None]] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def bytes_of(self, container_id: str, directories: Sequence[str]) -> int | None:
        """The last count, if it is fresh, else a new one; None when it is not known."""
        now = time.monotonic()
        if (known := self._known.get(container_id)) and now - known[0] < FRESH_SECONDS:
            await trio.lowlevel.checkpoint()
            return known[1]
        self._known = {
            key: value for key, value in self._known.items() if now - value[0] < FRESH_SECONDS
        }
        with trio.move_on_after(WAIT_SECONDS):
            counted = await trio.to_thread.run_sync(
                _count, list(directories), limiter=self._limiter, abandon_on_cancel=True
            )
            self._known[container_id] = (time.monotonic(), counted)
            return counted
        # It goes on in its thread; too long to be begun again soon.
        self._known[container_id] = (time.monotonic(), None)
        return None


def _count(directories: list[str]) -> int | None:
    total = 0
    entries = 0
    seen: set[tuple[int, int]] = set()
    while directories:
        try:
            with os.scandir(directories.pop()) as listed:
                for entry in listed:
                    entries += 1
                    if entries > ENTRIES_MAX:
                        return None
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return total
