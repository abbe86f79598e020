"""Turns of those who change one thing: complete an upload, or change the versions of a key.

Of the tasks and processes of a machine one has the lock of a byte of a file, whose place is that of
the name; the kernel releases it when the process dies. Of several machines, whose records are in
PostgreSQL, one has a lock there, as for recounts. Who waits too long gets an error, and may try
again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b

import trio

from control.api import Control, Unavailable
from control.api.internals import SharedLock
from gfs.io import try_lock_byte

#: Longer than most objects take to be put together.
COMPLETION_SECONDS = 600.0
_POLL_SECONDS = (0.002, 0.2)


class Turns:
    """``what`` is their file; ``busy`` what is answered after ``seconds`` of waiting."""

    def __init__(self, control: Control, what: str, seconds: float, busy: str) -> None:
        self._control = control
        self._what = what
        self._seconds = seconds
        self._busy = busy

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """As the only one with this name. Raises Unavailable."""
        at = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 2
        path = self._control.directory / f"{self._what}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        shared = self._control.records.lock(f"{self._what} {name}")
        try:
            try:
                with trio.fail_after(self._seconds):
                    await _wait(lock, at, shared)
            except trio.TooSlowError:
                raise Unavailable(self._busy, {"Retry-After": "5"}) from None
            yield
        finally:
            if shared is not None:
                with trio.CancelScope(shield=True):
                    await shared.release()
            os.close(lock)


def completions(control: Control) -> Turns:
    """Of those who complete one upload in parts, over S3 or over REST: each would copy all of its
    parts, replace what was stored since, and where versions are kept make one of its own."""
    busy = "another request completes this upload: try again later"
    return Turns(control, "completions", COMPLETION_SECONDS, busy)


async def _wait(lock: int, at: int, shared: SharedLock | None) -> None:
    pause, pause_max = _POLL_SECONDS
    while not try_lock_byte(lock, at):
        await trio.sleep(pause)
        pause = min(2 * pause, pause_max)
    while shared is not None and not await shared.take():
        await trio.sleep(pause)
        pause = min(2 * pause, pause_max)
