"""The events of a simulated run, in order: a hash of all, and the last ones as text."""

from __future__ import annotations

import hashlib
from collections import deque

import trio

#: Events kept for a failure's report.
TAIL_EVENTS = 400


class Trace:
    """Events of a run. Two runs were the same if and only if their digests are equal."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._tail: deque[tuple[float, str]] = deque(maxlen=TAIL_EVENTS)
        self.events = 0

    def add(self, event: str) -> None:
        """Note ``event`` at the present virtual time (0 outside a run)."""
        now = trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
        self.events += 1
        self._hash.update(f"{now!r} {event}\n".encode())
        self._tail.append((now, event))

    def digest(self) -> str:
        return self._hash.hexdigest()

    def tail(self, count: int = TAIL_EVENTS) -> str:
        """The last ``count`` events, one per line, as ``seconds event``."""
        lines = list(self._tail)[-count:]
        return "\n".join(f"{at:12.6f} {event}" for at, event in lines)
