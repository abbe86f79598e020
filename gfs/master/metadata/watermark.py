"""The quorum watermark: up to which operation enough shadow masters have the log on disk.

With ``replicas_before_ack`` = n an answer is given when n shadows have the log up to the
sequence that the answer depends on (:mod:`gfs.master.replication.quorum` says which shadows
count). The committer does not wait: it commits the next batch meanwhile, and one
acknowledgement of a shadow releases all that it covers. So n costs a round trip and a
commit elsewhere, not throughput.

When shadows are missing, new mutations are refused, and an answer that waits becomes
NotEnoughShadows after a while: the mutation is on this master's disk and may or may not
survive it. Asked for again, it is acknowledged when the shadows are back. Nothing is
ever acknowledged early.

A deferred effect, the deletion of replicas, waits for as long as it takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gfs.errors import GfsError, NotEnoughShadows
from gfs.io.world import Clock

Release = Callable[[GfsError | None], None]


class QuorumWatermark:
    """Plain data; the caller reports acknowledgements and the passing of time. Nobody is
    waited for until the first :meth:`advance`."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        #: Enough shadows have everything up to here on disk.
        self._passed = math.inf
        self._refusal = ""
        self._answers: deque[tuple[int, float, Release]] = deque()
        self._deferred: deque[tuple[int, Callable[[], None]]] = deque()

    def refusal(self) -> NotEnoughShadows | None:
        """Why nothing can be begun now."""
        return NotEnoughShadows(self._refusal) if self._refusal else None

    def has_passed(self, sequence: int) -> bool:
        return sequence <= self._passed

    def answer_after(self, sequence: int, release: Release) -> None:
        """Call ``release`` when everything up to ``sequence`` may be acknowledged, now or
        later; with an error if that takes too long."""
        if self.has_passed(sequence):
            release(None)
        else:
            self._answers.append((sequence, self._clock.monotonic() + self._seconds, release))

    def defer(self, sequence: int, effect: Callable[[], None]) -> None:
        """The same for an effect that must not happen before, however long it takes."""
        if self.has_passed(sequence):
            effect()
        else:
            self._deferred.append((sequence, effect))

    def advance(self, sequence: float, refusal: str) -> None:
        """Enough shadows have everything up to ``sequence`` on disk (infinity: nobody is
        waited for). ``refusal`` says why new mutations are refused; empty: they are not."""
        self._refusal = refusal
        lasting = math.inf not in (sequence, self._passed)
        self._passed = max(sequence, self._passed) if lasting else sequence
        while self._deferred and self._deferred[0][0] <= self._passed:
            self._deferred.popleft()[1]()
        while self._answers and self._answers[0][0] <= self._passed:
            self._answers.popleft()[2](None)

    def expire(self) -> None:
        """Time has passed."""
        now = self._clock.monotonic()
        while self._answers and self._answers[0][1] <= now:
            _, _, release = self._answers.popleft()
            release(
                NotEnoughShadows(
                    "too few shadow masters have acknowledged it (replicas_before_ack): "
                    "the mutation is on the master's disk alone; try again"
                )
            )
