"""How long a test waits for what must come, before it says that it does not.

A promise in seconds is held in virtual time, where it is exact (``tests/simulation``). With real
time a test asserts what happens and in which order, and this guards against a hang alone: it says
nothing of how fast anything is, on however busy a machine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")

#: No step of any test takes so long, whatever else the machine does.
HANG_SECONDS = 300.0
#: Many a look is a command, and who waits long need not look so often.
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.02, 0.5
POLL_SHARE = 0.1


def _pause(waited: float) -> float:
    return min(max(POLL_SHARE * waited, POLL_SECONDS_MIN), POLL_SECONDS_MAX)


def wait_for(condition: Callable[[], T], what: str) -> T:
    """What ``condition`` returns, soon after that is true."""
    began = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited = time.monotonic() - began
        assert waited < HANG_SECONDS, f"no {what} within {HANG_SECONDS:g} s"
        time.sleep(_pause(waited))


async def wait_until(condition: Callable[[], Awaitable[T]], what: str) -> T:
    """The same for a task."""
    began = trio.current_time()
    while True:
        with trio.move_on_after(HANG_SECONDS):
            found = await condition()
            if found:
                return found
        waited = trio.current_time() - began
        assert waited < HANG_SECONDS, f"no {what} within {HANG_SECONDS:g} s"
        await trio.sleep(_pause(waited))
