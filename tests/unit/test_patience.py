"""Who is waited for, and for how long: plain decisions and real sockets."""

from __future__ import annotations

import pytest
import trio

from gfs.chunkserver.node.pulse import PACE_SECONDS, STUCK_SECONDS_MAX, STUCK_SECONDS_MIN, Pace
from gfs.errors import DeadlineExceeded
from gfs.io import real_world
from gfs.protocol import patience as patience_module
from gfs.protocol.deadline import deadline
from gfs.protocol.patience import PULSE_SECONDS, WORK_SECONDS, Patience, Pulses


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


def test_a_server_may_not_work_on_one_answer_for_ever() -> None:
    pulses = Pulses()
    for _ in range(int(WORK_SECONDS / PULSE_SECONDS)):
        pulses.count()
    with pytest.raises(DeadlineExceeded):
        pulses.count()


@pytest.mark.parametrize("is_alive", [True, False])
async def test_who_sends_waits_for_a_peer_that_is_heard(
    is_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not read, and tells that it works; or does not."""
    monkeypatch.setattr(patience_module, "PULSE_SECONDS", 0.02)
    monkeypatch.setattr(patience_module, "WORK_SECONDS", 1.0)
    world = real_world()
    listener = await world.network.listen("127.0.0.1:0")
    stream = await world.network.connect(listener.address)
    peer = await listener.accept()
    patience = Patience(world.clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)

        async def work() -> None:
            while is_alive:
                await trio.sleep(0.02)
                await peer.send_all(b".")

        nursery.start_soon(work)
        began = trio.current_time()
        with (
            pytest.raises(DeadlineExceeded),
            deadline(0.3, "progress") as scope,
            patience.sending(scope, stream, 0.3),
        ):
            await stream.send_all(bytes(64 * 1024 * 1024))
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    peer.close()
    stream.close()
    listener.close()
    assert (took >= 1.0) == is_alive
