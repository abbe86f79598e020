"""What a test leaves open, apart from what other tests' threads open meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from limits import HANG_SECONDS

POLL_SECONDS = 0.02

Descriptors = set[tuple[str, str]]


def open_descriptors() -> Descriptors:
    """(number, what it is) of all of this process."""
    gc.collect()
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """What this thread opens within is closed in the end: sockets, and files.

    Clients that another test has left running in a thread may connect anew at any
    time, and stay: so a socket counts for the thread that makes it.
    """
    made: weakref.WeakSet[socket.socket] = weakref.WeakSet()
    thread, make = threading.get_ident(), socket.socket.__init__

    def noted(self: socket.socket, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        if threading.get_ident() == thread:
            made.add(self)

    def left() -> list[str]:
        gc.collect()
        files = {each for each in open_descriptors() - before if each[1].startswith("/")}
        sockets = [repr(each) for each in made if each.fileno() != -1]
        return sorted(sockets + [path for _, path in files])

    before = open_descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "__init__", noted)
        yield
    deadline = time.monotonic() + HANG_SECONDS
    while still := left():
        assert time.monotonic() < deadline, f"left open: {still}"
        time.sleep(POLL_SECONDS)
