"""What processes that run tests at the same time must not both take."""

from __future__ import annotations

import os
import zlib


def place(count: int) -> int:
    """One of ``count`` places that no other process of this run has, and seldom one of
    another run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return (zlib.crc32(run.encode()) + worker) % count
