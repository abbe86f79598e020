"""What this process has open, for tests that nothing is left open."""

from __future__ import annotations

import contextlib
import gc
import os
import time

#: Threads of other tests open and close at any time; what is left open stays.
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.02

Descriptors = set[tuple[str, str]]


def open_descriptors() -> Descriptors:
    """(number, what it is). What another test left open may be closed at any time, so
    their count says nothing."""
    gc.collect()
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def assert_none_left(before: Descriptors) -> None:
    """Nothing is open for good that was not open ``before``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := open_descriptors() - before:
        assert time.monotonic() < deadline, f"left open: {sorted(left)}"
        time.sleep(POLL_SECONDS)
