"""How a long blocking call says that it goes on.

A call to a disk that does not return for ``disk_hang_seconds`` has hung, and its disk has
failed (:mod:`gfs.chunkserver.disks.disk`). One that reads or syncs many things takes long on a
disk that is merely slow, so it reports each of them. That counts for this call alone: one
that hangs beside it is found all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Call:
    """A call that a thread makes; ``ticks`` is how often it was seen since it last
    reported."""

    __slots__ = ("name", "ticks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ticks = 0


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


@contextmanager
def making(call: Call) -> Iterator[None]:
    """Within this block this thread makes ``call``."""
    before, _current.call = _current.call, call
    try:
        yield
    finally:
        _current.call = before


def report_progress() -> None:
    """The call that this thread makes has got something done."""
    if _current.call is not None:
        _current.call.ticks = 0
