"""How a long blocking call reports progress.

A call to a disk that does not return for ``disk_hang_seconds`` has hung, and its disk has
failed (:mod:`gfs.chunkserver.disks.disk`). One that reads or syncs many files takes
long on a slow disk, so it reports each of them. That counts only for this call: another
one that hangs at the same time is still detected.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Call:
    """A call that a thread makes; ``ticks`` counts the checks since it last reported progress."""

    __slots__ = ("name", "ticks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ticks = 0


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


@contextmanager
def making(call: Call) -> Iterator[None]:
    """Within this block, progress of this thread counts for ``call``."""
    before, _current.call = _current.call, call
    try:
        yield
    finally:
        _current.call = before


def report_progress() -> None:
    """Report progress of the call that this thread makes."""
    if _current.call is not None:
        _current.call.ticks = 0
