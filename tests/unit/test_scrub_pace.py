"""How fast the scrubber goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfs.blocks import MIB
from gfs.chunkserver.scrub import IDLE_BYTES_PER_SECOND_MIN, bytes_per_second

sizes = st.integers(1, 2**50)
periods = st.floats(60, 30 * 24 * 3600)


@given(sizes, periods, st.lists(st.tuples(st.booleans(), st.floats(1, 10_000)), max_size=30))
def test_a_pass_ends_within_its_period(
    size: int, period: float, times: list[tuple[bool, float]]
) -> None:
    """However clients come and go; after that they stay."""
    left, now = float(size), 0.0
    for busy, seconds in times:
        if left < 1:
            break
        pace = bytes_per_second(left, period - now, busy)
        seconds = min(seconds, left / pace, (period - now) / 2)
        left = max(0.0, left - pace * seconds)
        now += seconds
    if left >= 1:
        now += left / bytes_per_second(left, period - now, busy=True)
    assert now <= period * 1.001 + 1


@given(sizes, periods)
def test_it_steps_back_when_clients_are_served(size: int, seconds: float) -> None:
    busy, idle = (bytes_per_second(size, seconds, busy) for busy in (True, False))
    assert busy <= idle
    assert idle >= IDLE_BYTES_PER_SECOND_MIN
    if size < MIB:
        assert busy < IDLE_BYTES_PER_SECOND_MIN / 10
