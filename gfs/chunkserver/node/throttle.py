"""Limits background traffic while clients are served."""

from __future__ import annotations

from gfs.io import Clock

#: The server is busy if a client had an exchange within this time.
BUSY_SECONDS = 1.0
#: How late a waiting task notices a new rate, or that no client is left.
LOOK_SECONDS = 1.0


class Throttle:
    """Paces clones and scrubbing: ``bytes_per_second`` while clients are being
    served, unlimited otherwise. A copy is limited by the server that makes it (the
    paper, 4.3), so reads by other servers for their copies do not count as clients.
    ``active`` are the exchanges with clients."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        self._clock = clock
        self._own_rate = self._rate = max(1, bytes_per_second)
        self._next = 0.0
        self._last_client = float("-inf")
        self.active = 0

    def set_rate(self, bytes_per_second: int) -> None:
        """Set the rate that an operator wants; -1: the original one. Waiting tasks are
        scheduled again."""
        rate = self._own_rate if bytes_per_second < 0 else max(1, bytes_per_second)
        if rate != self._rate:
            self._rate, self._next = rate, 0.0

    def client_starts(self) -> None:
        self.active += 1

    def client_ends(self) -> None:
        self.active -= 1
        self._last_client = self._clock.monotonic()

    @property
    def busy(self) -> bool:
        return self.active > 0 or self._clock.monotonic() - self._last_client < BUSY_SECONDS

    async def give_way(self, worked_seconds: float) -> None:
        """If clients are served, sleep for that long, so that they get half of the time."""
        if self.busy:
            await self._clock.sleep(worked_seconds)

    async def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may move."""
        rate, start = 0.0, 0.0
        while self.busy:
            now = self._clock.monotonic()
            if rate != self._rate:
                rate, start = self._rate, max(self._next, now)
                self._next = start + count / rate
            if start <= now:
                return
            await self._clock.sleep(min(start - now, LOOK_SECONDS))
        self._next = self._clock.monotonic()
