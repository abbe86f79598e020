"""Who is waited for, and for how long: plain decisions, in virtual time."""

from __future__ import annotations

import pytest
import trio

from gfs.chunkserver.node.pulse import PACE_SECONDS, STUCK_SECONDS_MAX, STUCK_SECONDS_MIN, Pace
from gfs.errors import DeadlineExceeded
from gfs.protocol.deadline import deadline
from gfs.protocol.patience import PULSE_SECONDS, WORK_SECONDS, Patience, Pulses
from gfs.testing import Universe, run_simulated


def pace_after(calls: list[tuple[float, float]]) -> Pace:
    """Of a disk that was called so: (when a call began, how long it took)."""
    pace = Pace()
    for number, (began, took) in enumerate(calls):
        pace.begin(number, began)
        pace.end(number, began + took)
    return pace


@pytest.mark.parametrize(
    ("calls", "patience"),
    [
        ([], STUCK_SECONDS_MIN),
        ([(0, 0.001)] * 9, STUCK_SECONDS_MIN),
        ([(0, 1.0), (0, 0.01)], 4.0),
        ([(0, 3.0)], STUCK_SECONDS_MAX),
        ([(-2 * PACE_SECONDS, 0.0), (-PACE_SECONDS / 2, 1.0), (0, 0.0)], 4.0),
        ([(-3 * PACE_SECONDS, 0.0), (-2.9 * PACE_SECONDS, 1.0), (0, 0.0)], STUCK_SECONDS_MIN),
    ],
)
def test_a_disk_is_stuck_when_it_gets_on_much_slower_than_lately(
    calls: list[tuple[float, float]], patience: float
) -> None:
    pace = pace_after(calls)
    now = 10.0
    assert not pace.is_stuck(now + 99), "nobody waits for it"
    pace.begin("call", now)
    assert not pace.is_stuck(now + patience - 0.01)
    assert pace.is_stuck(now + patience + 0.01)


def test_a_disk_that_gets_anything_done_is_not_stuck() -> None:
    pace = Pace()
    pace.begin("long", 0.0)
    for number in range(20):
        pace.begin(number, number / 2)
        pace.end(number, number / 2 + 0.4)
        assert not pace.is_stuck(number / 2 + 0.9)
    assert pace.is_stuck(9.9 + 4 * 0.4 + 0.01)


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
