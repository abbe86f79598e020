"""The quorum watermark: up to which operation enough shadow masters have the log on disk.

With ``replicas_before_ack`` = n an answer is sent when n shadow masters have the log up
to the sequence that the answer depends on (:mod:`gfs.master.shadows.quorum` says
which shadows count). The committer does not wait: it commits the next batch meanwhile,
and one acknowledgement of a shadow master releases all answers that it covers. So n
costs latency (a round trip and a commit elsewhere) and no throughput.

When shadow masters are missing, new mutations are refused, and a waiting answer becomes
NotEnoughShadows after a while: the mutation is on this master's disk and may be lost
with it. A retry is acknowledged when the shadow masters are back. Nothing is ever
acknowledged early.

A deferred effect (the deletion of replicas) waits without a limit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gfs.errors import GfsError, NotEnoughShadows
from gfs.io import Clock

Release = Callable[[GfsError | None], None]


class QuorumWatermark:
    """Plain data; the caller reports acknowledgements and the passing of time. Nothing
    waits until the first :meth:`advance`."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        #: Enough shadow masters have everything up to this sequence on disk.
        self._passed = math.inf
        self._refusal = ""
        self._answers: deque[tuple[int, float, Release]] = deque()
        self._deferred: deque[tuple[int, Callable[[], None]]] = deque()

    def refusal(self) -> NotEnoughShadows | None:
        """Why new mutations are refused; empty if they are not."""
        return NotEnoughShadows(self._refusal) if self._refusal else None

    def has_passed(self, sequence: int) -> bool:
        return sequence <= self._passed

    def answer_after(self, sequence: int, release: Release) -> None:
        """Call ``release`` when everything up to ``sequence`` may be acknowledged, now
        or later; with an error if that takes too long."""
        if self.has_passed(sequence):
            release(None)
        else:
            self._answers.append((sequence, self._clock.monotonic() + self._seconds, release))

    def defer(self, sequence: int, effect: Callable[[], None]) -> None:
        """The same for an effect, without a time limit."""
        if self.has_passed(sequence):
            effect()
        else:
            self._deferred.append((sequence, effect))

    def advance(self, sequence: float, refusal: str) -> None:
        """Enough shadow masters have everything up to ``sequence`` on disk (infinity:
        none is needed). ``refusal`` says why new mutations are refused; empty: they are
        not."""
        self._refusal = refusal
        lasting = math.inf not in (sequence, self._passed)
        self._passed = max(sequence, self._passed) if lasting else sequence
        while self._deferred and self._deferred[0][0] <= self._passed:
            self._deferred.popleft()[1]()
        while self._answers and self._answers[0][0] <= self._passed:
            self._answers.popleft()[2](None)

    def expire(self) -> None:
        """Fail the answers that have waited too long."""
        now = self._clock.monotonic()
        while self._answers and self._answers[0][1] <= now:
            _, _, release = self._answers.popleft()
            release(
                NotEnoughShadows(
                    "too few shadow masters have acknowledged it (replicas_before_ack): "
                    "the mutation is only on the master's disk: try again"
                )
            )
