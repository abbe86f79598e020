"""One connection of a process to each cluster, however many file systems and threads use it.

fsspec makes a file system object for each thread, pickles it, and never lets it go. So an
object has no connection of its own: it says where the cluster is, and finds the client here.
A process that was forked, or that unpickled an object, connects at its first call.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from msgspec.structs import replace

from gfs import config
from gfs.client import sync
from gfs.config import ClientSettings


class Place(NamedTuple):
    """Where a cluster is: the arguments of :func:`gfs.client.connect`, never a key itself."""

    master: tuple[str, ...] | None = None
    state: str | None = None
    key: str | None = None
    tls: str | None = None
    retry_seconds: float | None = None


class _Try:
    """Only one thread connects to a place. What comes of it is that of all that wait: each trying
    in its turn, the last would know after many deadlines that the cluster is down. They wait for
    a lock, which a Ctrl-C leaves free at whichever step it comes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.error: Exception | None = None


_clients: dict[Place, sync.SyncClient] = {}
_tries: dict[Place, _Try] = {}


def client_of(place: Place) -> sync.SyncClient:
    """The client for a place. Raises as :func:`gfs.client.connect` does."""
    found = _clients.get(place)
    if found is not None and not found.closed:
        return found
    mine = _tries.setdefault(place, _Try())
    with mine.lock:
        found = _clients.get(place)
        if found is not None and not found.closed:
            return found
        if mine.error is not None:
            raise mine.error
        try:
            found = _clients[place] = _connect(place)
        except Exception as error:
            _tries.pop(place, None)  # who comes now tries again
            mine.error = error
            raise
        return found


def _connect(place: Place) -> sync.SyncClient:
    settings = config.load(ClientSettings, "client")
    if place.retry_seconds is not None:
        settings = replace(settings, retry_seconds=place.retry_seconds)
    return sync.connect(
        place.master, state=place.state, key=place.key, tls=place.tls, settings=settings
    )


def disconnect(place: Place) -> None:
    """Close the client for a place, if there is one."""
    found = _clients.pop(place, None)
    if found is not None:
        found.close()


# Who connects is a thread of another process, not of this one.
os.register_at_fork(after_in_child=_tries.clear)
