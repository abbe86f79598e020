"""A hold that nobody waits for any more is not kept: it would keep out those who could serve."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from limits import HANG_SECONDS

from gfs.io.real import RealClock
from gfs.master.election.candidate import Candidate
from gfs.master.election.engine import Claim, View

HOLD_SECONDS = 30.0


class _Engine:
    """It gives the hold to whoever asks, ``when``."""

    name = "the engine"

    def __init__(self, when: str) -> None:
        self._when = when
        self.asked, self.answer = trio.Event(), trio.Event()
        self.waiting = trio.CancelScope()
        self.has_hold = False

    async def view(self) -> View:
        await trio.lowlevel.checkpoint()
        return View(None, "c", 0)

    async def take(self, claim: Claim, seen: View) -> object:
        self.has_hold = True
        self.asked.set()
        if self._when == "when nobody waits":
            await self.answer.wait()
        else:
            self.waiting.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
        return "hold"

    async def renew(self, hold: object) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def offer(self, hold: object, claim: Claim) -> None:
        raise AssertionError

    async def release(self, hold: object) -> None:
        await trio.lowlevel.checkpoint()
        self.has_hold = False

    async def record(self, cluster: str) -> str:
        raise AssertionError


@pytest.mark.parametrize("when", ["when nobody waits", "as the last one gives up"])
async def test_a_hold_that_comes_too_late_is_not_kept(when: str) -> None:
    engine = _Engine(when)
    candidate = Candidate(RealClock(), engine, HOLD_SECONDS, "here:1")

    async def give_up() -> None:
        await engine.asked.wait()
        engine.waiting.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(candidate.run)
        with engine.waiting:
            nursery.start_soon(give_up)
            await candidate.acquire()
        assert engine.waiting.cancelled_caught
        engine.answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not candidate.holds
        assert not engine.has_hold or when == "as the last one gives up"
        nursery.cancel_scope.cancel()


async def test_a_release_does_not_make_those_who_wait_miss_the_hold() -> None:
    candidate = Candidate(RealClock(), _Engine("at once"), HOLD_SECONDS, "here:1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(candidate.acquire)
        await trio.testing.wait_all_tasks_blocked()
        await candidate.release()
        nursery.start_soon(candidate.run)
        with trio.fail_after(HANG_SECONDS):
            await candidate.acquire()
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1, "only the renewals go on"
        nursery.cancel_scope.cancel()
