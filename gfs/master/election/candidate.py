"""Getting the hold of the engine for this process, and keeping it.

All times here are durations on this machine's clock that runs on while it is suspended. The hold
counts from the moment *before* the request that the engine answered, and ends here a margin
earlier than there; so the next process gets it later than that, however slow the network is, and
however wrong the wall clocks are. ``since_ns`` is for people.

========  ==================================================================================
state     what this does
========  ==================================================================================
no hold   looks at the engine every ``hold_seconds / POLLS``, and more often while another process
          gives the hold up for this one; takes it when it is free, or was offered to this process,
          and somebody here waits for it
a hold    renews it every ``hold_seconds / RENEWALS``. An engine that does not answer is asked
          again until the hold ends by the clock; one that says that it is another's ends it
========  ==================================================================================

An engine that is away ends the hold of the holder and gives none to others: nobody is the master
until it is back. That is the price of reads that are never old; the counting of the shadow
masters alone would protect only what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TypeVar

import trio

from gfs.diagnostics import event
from gfs.errors import Busy
from gfs.io import Clock
from gfs.master.election.engine import Claim, Engine, EngineAway, View
from gfs.protocol.messages import ElectionReply

log = logging.getLogger(__name__)

POLLS = 12
RENEWALS = 4
#: Between two looks for a hold that is being given up for this process.
SOON_SECONDS = 0.25
#: So often it is asked whether anybody can be elected now, and for so long at most: a master that
#: is handing over acknowledges nothing meanwhile, and the other one waits for 15 s.
LOOKS = 2
LOOK_SECONDS_MAX = 2.0
#: The share of the hold by which it ends here before it ends at the engine: clocks that differ in
#: speed by less than this do no harm.
MARGIN_SHARE = 0.1

T = TypeVar("T")


class Candidate:
    """``run`` must be running; all the rest is for the loop's thread."""

    def __init__(self, clock: Clock, engine: Engine, hold_seconds: float, address: str) -> None:
        self._clock = clock
        self._engine = engine
        self._seconds = hold_seconds
        self._address = address
        self._hold: object | None = None
        self._until = 0.0
        self._wanted = 0
        #: How many of them have been promised it.
        self._awaited = 0
        self._asked = trio.Event()
        self._taken = trio.Event()
        #: Set while there is no hold.
        self.lost = trio.Event()
        self.lost.set()
        #: What the engine showed last; of the holder, its own claim.
        self.view = View()
        self._away_since: float | None = None
        self._reason = ""

    # --- for the others ------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        return self._engine.name

    @property
    def holds(self) -> bool:
        """Whether this process has the hold, so that it may answer as the master."""
        return self._hold is not None and self._clock.elapsed() < self._until

    def status(self) -> ElectionReply:
        claim = self.view.claim
        reply = ElectionReply(0, self._engine.name, hold_ms=int(self._seconds * 1000))
        if claim is not None:
            reply.holder, reply.since_ns = claim.address, claim.since_ns
        if self._away_since is not None:
            reply.away_ms = 1 + int((self._clock.elapsed() - self._away_since) * 1000)
            reply.reason = self._reason
        return reply

    async def acquire(self, soon: bool = False) -> None:
        """Return once this process has the hold. It is kept until it is lost or given up.

        ``soon``: Another process is giving it up for this one."""
        self._wanted += 1
        self._awaited += soon
        if soon:
            self._asked.set()
        try:
            while self._hold is None:
                await self._taken.wait()
        except trio.Cancelled:
            if self._wanted == 1:
                self._drop()  # nobody would use it: it ends by itself
            raise
        finally:
            self._wanted -= 1
            self._awaited -= soon

    async def release(self) -> None:
        """Give the hold up, for any other process."""
        hold = self._drop()
        if hold is not None:
            await self._last_word(self._engine.release(hold))

    async def offer(self, address: str) -> None:
        """Give the hold up to the process at this address."""
        hold, claim = self._drop(), self.view.claim
        if hold is not None and claim is not None:
            offered = Claim(claim.address, claim.since_ns, offered_to=address)
            await self._last_word(self._engine.offer(hold, offered))

    async def record(self, cluster: str) -> str:
        """The id of the cluster that the engine has recorded, which is this one if it had none.
        Raises EngineAway."""
        return await self._call(self._engine.record(cluster), self._seconds)

    # --- the hold ------------------------------------------------------------------------

    async def run(self) -> None:
        """Look, take and renew until cancelled; the hold is then given up."""
        try:
            while True:
                if self._hold is None:
                    self._asked = trio.Event()
                    await self._try()
                    pause = self._seconds / POLLS
                    with trio.move_on_after(min(pause, SOON_SECONDS) if self._awaited else pause):
                        await self._asked.wait()
                else:
                    await self._keep(self._hold)
        finally:
            with trio.CancelScope(shield=True):
                await self.release()

    async def check(self) -> None:
        """Raises Busy if the engine does not answer, so that nobody can be elected."""
        for number in range(LOOKS):
            await self._clock.sleep(number * min(self._seconds / POLLS, SOON_SECONDS))
            if await self.look(min(self._seconds / RENEWALS, LOOK_SECONDS_MAX)):
                return
        raise Busy(
            f"{self._engine.name} does not answer ({self._reason}), so that no other master can "
            "be elected: nothing was changed; try again when it answers"
        )

    async def look(self, seconds: float | None = None) -> bool:
        """Look at the engine; False if it does not answer."""
        try:
            self.view = await self._call(self._engine.view(), seconds or self._seconds)
        except EngineAway as error:
            self._is_away(error)
            return False
        self._is_back()
        return True

    async def _try(self) -> None:
        if not await self.look() or not self._wanted or not self._is_free:
            return
        claim = Claim(self._address, self._clock.time_ns())
        began = self._clock.elapsed()
        try:
            hold = await self._call(self._engine.take(claim, self.view), self._seconds)
        except EngineAway as error:
            self._is_away(error)  # if it was taken nevertheless, it ends by itself
            return
        if hold is None or self._clock.elapsed() >= began + self._lasts:
            return
        if not self._wanted:  # any more
            await self._last_word(self._engine.release(hold))
            return
        self._hold, self._until = hold, began + self._lasts
        self.view = View(claim, self.view.cluster)
        self.lost = trio.Event()
        log.info("this process has the hold of %s", self._engine.name, extra=event("hold_taken"))
        self._taken.set()

    @property
    def _is_free(self) -> bool:
        claim = self.view.claim
        return claim is None or claim.offered_to == self._address

    @property
    def _lasts(self) -> float:
        return self._seconds * (1 - MARGIN_SHARE)

    async def _keep(self, hold: object) -> None:
        """Renew the hold, and return when it is not this process's any more."""
        step = self._seconds / RENEWALS
        pause = step
        while self._hold is hold:
            with trio.move_on_after(min(pause, max(0.0, self._until - self._clock.elapsed()))):
                await self.lost.wait()
            began = self._clock.elapsed()
            if self._hold is not hold:
                return
            if began >= self._until:
                self._lose("it was not renewed in time")
                return
            try:
                renewed = await self._call(self._engine.renew(hold), min(step, self._until - began))
            except EngineAway as error:
                self._is_away(error)
                pause = step / RENEWALS
                continue
            self._is_back()
            pause = step
            if self._hold is not hold:
                return
            if not renewed:
                self._lose("the engine says that it is another's")
                return
            self._until = began + self._lasts

    def _drop(self) -> object | None:
        """From here on nothing is answered."""
        hold, self._hold = self._hold, None
        self._until = 0.0
        if self._taken.is_set():  # else somebody may wait for it
            self._taken = trio.Event()
        self.lost.set()
        return hold

    def _lose(self, reason: str) -> None:
        self._drop()
        log.error(
            "this process has lost the hold of %s: %s",
            self._engine.name,
            reason,
            extra=event("hold_lost", reason=reason),
        )

    async def _last_word(self, call: Awaitable[None]) -> None:
        """Not essential: what is not renewed ends by itself."""
        try:
            await self._call(call, self._seconds / RENEWALS)
        except EngineAway as error:
            self._is_away(error)

    async def _call(self, call: Awaitable[T], seconds: float) -> T:
        with trio.move_on_after(seconds):
            return await call
        raise EngineAway(f"no answer within {seconds:.2g} s")

    def _is_away(self, error: EngineAway) -> None:
        self._reason = str(error)
        if self._away_since is not None:
            return
        self._away_since = self._clock.elapsed()
        left = max(0.0, self._until - self._away_since)
        then = (
            f"this master serves on for {left:.1f} s unless it answers"
            if self._hold is not None
            else "nobody becomes the master until it answers"
        )
        log.warning(
            "%s is away (%s): %s",
            self._engine.name,
            error,
            then,
            extra=event("engine_away", reason=str(error)),
        )

    def _is_back(self) -> None:
        if self._away_since is not None:
            log.info("%s answers again", self._engine.name, extra=event("engine_back"))
            self._away_since = None
