"""Background traffic gives way to clients, and has the machine when they are away."""

from __future__ import annotations

from gfs.io import Clock

#: A client's exchange in this many last seconds makes the server busy.
BUSY_SECONDS = 1.0
#: Far below what a copy waits for its next bytes.
GIVE_SECONDS_MAX = 5.0


class Throttle:
    """Paces clones and scrubbing: ``bytes_per_second`` while clients are being
    served, unlimited otherwise. ``active`` exchanges are counted by the service.

    What is read, copied and scrubbed for this server itself has one budget; what others
    copy from here another one of the same size, so that a copy is not paid for twice
    where all servers are both."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        self._clock = clock
        self._rate = max(1, bytes_per_second)
        self._next_taken = self._next_given = 0.0
        self._last_client = float("-inf")
        self.active = 0

    def client_starts(self) -> None:
        self.active += 1

    def client_ends(self) -> None:
        self.active -= 1
        self._last_client = self._clock.monotonic()

    @property
    def busy(self) -> bool:
        return self.active > 0 or self._clock.monotonic() - self._last_client < BUSY_SECONDS

    async def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may move."""
        if not self.busy:
            self._next_taken = 0.0
            return
        start = max(self._next_taken, self._clock.monotonic())
        self._next_taken = start + count / self._rate
        await self._wait(start)

    async def give(self, count: int) -> None:
        """Wait until another server may have ``count`` more bytes; no longer than it
        has patience for, though the rate be missed."""
        if not self.busy:
            self._next_given = 0.0
            return
        now = self._clock.monotonic()
        start = min(max(self._next_given, now), now + GIVE_SECONDS_MAX)
        self._next_given = start + count / self._rate
        await self._wait(start)

    async def _wait(self, start: float) -> None:
        seconds = start - self._clock.monotonic()
        if seconds > 0:
            await self._clock.sleep(seconds)
