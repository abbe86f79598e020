"""How fast the scrubber goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.blocks import MIB
from gfs.chunkserver.upkeep.scrub import IDLE_BYTES_PER_SECOND_MIN, Scrubber, bytes_per_second

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


@pytest.mark.parametrize("days", [30, -30])
def test_a_clock_that_jumps_by_days_delays_a_pass_by_one_period_at_most(days: int) -> None:
    day, now_ns = 86_400.0, 20_000 * 86_400 * 10**9
    clock: Any = SimpleNamespace(monotonic=lambda: 0.0, time_ns=lambda: now_ns)
    record = SimpleNamespace(scrub_began_ns=now_ns)
    node: Any = SimpleNamespace(
        world=SimpleNamespace(clock=clock),
        settings=SimpleNamespace(scrub_seconds=7 * day),
        server=SimpleNamespace(record=record),
    )
    scrubber = Scrubber(node)
    now_ns += int(days * day) * 10**9
    assert scrubber._seconds_left() == (0.0 if days > 0 else 7 * day)
    now_ns += int(3 * day) * 10**9
    assert scrubber._seconds_left() == (0.0 if days > 0 else 4 * day)
