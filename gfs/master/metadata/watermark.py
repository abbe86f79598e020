"""Answers wait here until enough shadow masters have what they tell on disk.

With ``replicas_before_ack`` = n an answer is given when n shadows have the log up
to the sequence it depends on (which ones count: :mod:`gfs.master.replication.quorum`). The
committer does not wait: it commits the next batch meanwhile, and one acknowledgement
of a shadow opens the gate for all that it covers. So n costs a round trip and a commit
elsewhere, not throughput.

When shadows are missing, what is not begun is refused, and what waits gets
NotEnoughShadows after a while: it is on this master's disk and may or may not
survive it. Asked for again, it is acknowledged when they are back. Nothing is
ever acknowledged early.

What follows from an operation beyond its answer, the deletion of replicas, waits
for as long as it takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gfs.errors import GfsError, NotEnoughShadows
from gfs.io.world import Clock

Release = Callable[[GfsError | None], None]


class Gate:
    """Plain data; the caller tells of commits, acknowledgements and time. Open until it
    is told of shadows."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        #: Enough shadows have everything up to here on disk.
        self._told = math.inf
        self._refusal = ""
        self._answers: deque[tuple[int, float, Release]] = deque()
        self._deeds: deque[tuple[int, Callable[[], None]]] = deque()

    def refusal(self) -> NotEnoughShadows | None:
        """Why nothing can be begun now."""
        return NotEnoughShadows(self._refusal) if self._refusal else None

    def is_open(self, sequence: int) -> bool:
        return sequence <= self._told

    def hold(self, sequence: int, release: Release) -> None:
        """Call ``release`` when everything up to ``sequence`` may be told, now or
        later; with an error if that takes too long."""
        if self.is_open(sequence):
            release(None)
        else:
            self._answers.append((sequence, self._clock.monotonic() + self._seconds, release))

    def hold_deed(self, sequence: int, deed: Callable[[], None]) -> None:
        """The same for what must not happen before, however long it takes."""
        if self.is_open(sequence):
            deed()
        else:
            self._deeds.append((sequence, deed))

    def shadows(self, told: float, refusal: str) -> None:
        """Enough have everything up to ``told`` on disk (infinity: nobody is waited for).
        ``refusal`` says why nothing can be begun now; empty: it can."""
        self._refusal = refusal
        lasting = math.inf not in (told, self._told)
        self._told = max(told, self._told) if lasting else told
        while self._deeds and self._deeds[0][0] <= self._told:
            self._deeds.popleft()[1]()
        while self._answers and self._answers[0][0] <= self._told:
            self._answers.popleft()[2](None)

    def expire(self) -> None:
        """Time has passed."""
        now = self._clock.monotonic()
        while self._answers and self._answers[0][1] <= now:
            _, _, release = self._answers.popleft()
            release(
                NotEnoughShadows(
                    "the shadow masters that must have it (replicas_before_ack) do not yet: "
                    "it is carried out, but not safe; try again"
                )
            )
