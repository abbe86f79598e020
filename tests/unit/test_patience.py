"""Who is waited for, and for how long: plain decisions, in virtual time."""

from __future__ import annotations

import pytest
import trio

from gfs.chunkserver.node.pulse import STUCK_SECONDS, Calls
from gfs.errors import DeadlineExceeded
from gfs.protocol.deadline import deadline
from gfs.protocol.patience import PULSE_SECONDS, WORK_SECONDS, Patience, Pulses
from gfs.testing import Universe, run_simulated


@pytest.mark.parametrize("before", [0.0, 1.9, 60.0])
def test_a_disk_is_stuck_when_no_call_has_ended_for_so_long(before: float) -> None:
    """However long calls took before."""
    calls = Calls()
    calls.begin("before", -before)
    calls.end("before", 0.0)
    assert not calls.is_stuck(99.0), "nobody waits for it"
    calls.begin("call", 100.0)
    assert not calls.is_stuck(100.0 + STUCK_SECONDS)
    assert calls.is_stuck(100.01 + STUCK_SECONDS)
    calls.give_up("call")
    assert not calls.is_stuck(999.0)


def test_a_disk_that_gets_anything_done_is_not_stuck() -> None:
    calls = Calls()
    calls.begin("long", 0.0)
    for number in range(20):
        calls.begin(number, number)
        calls.end(number, number + 0.9)
        assert not calls.is_stuck(number + 1.0)
    assert calls.is_stuck(19.91 + STUCK_SECONDS)


def test_a_server_may_not_work_on_one_answer_forever() -> None:
    pulses = Pulses()
    for _ in range(int(WORK_SECONDS / PULSE_SECONDS)):
        pulses.count()
    with pytest.raises(DeadlineExceeded):
        pulses.count()


@pytest.mark.parametrize("is_alive", [True, False])
def test_who_sends_waits_for_a_peer_that_is_heard(is_alive: bool) -> None:
    """It does not read, and says that it works; or does not."""

    async def main() -> float:
        universe = Universe(1)
        here, there = (universe.machine(name).start_process().world for name in "ab")
        listener = await there.network.listen("b:1")
        stream = await here.network.connect("b:1")
        peer = await listener.accept()
        patience = Patience(here.clock)

        async def work() -> None:
            while is_alive:
                await trio.sleep(PULSE_SECONDS)
                await peer.send_all(b".")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(patience.run)
            nursery.start_soon(work)
            began = trio.current_time()
            with (
                pytest.raises(DeadlineExceeded),
                deadline(3 * PULSE_SECONDS, "progress") as scope,
                patience.sending(scope, stream, 3 * PULSE_SECONDS),
            ):
                await stream.send_all(bytes(64 * 1024 * 1024))
            took = trio.current_time() - began
            nursery.cancel_scope.cancel()
        return took

    assert (run_simulated(1, main) >= WORK_SECONDS) == is_alive
