"""Answers are released in order, when enough shadows have what they depend on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gfs.errors import GfsError, NotEnoughShadows
from gfs.master.metadata.watermark import QuorumWatermark

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 3)),
        st.tuples(st.just("reported"), st.one_of(st.integers(-1, 40), st.just(math.inf))),
        st.tuples(st.just("time"), st.integers(1, 6)),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_nothing_is_released_before_enough_shadows_have_it(steps: list[tuple[str, float]]) -> None:
    clock: Any = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    watermark = QuorumWatermark(clock, 5.0)
    sequence = number = 0
    given_at: dict[int, float] = {}
    waiting: dict[int, int] = {}
    deeds: dict[int, int] = {}
    best = [math.inf]
    for kind, value in steps:
        if kind == "reported":
            reported = min(value, sequence) if value < math.inf else value
            best[0] = reported if math.inf in (reported, best[0]) else max(reported, best[0])
            watermark.advance(reported, "" if reported == value else "too few")
            refusal = watermark.refusal()
            assert (refusal is None) == (reported == value)
        elif kind == "time":
            clock.now += value
            watermark.expire()
        else:
            sequence += int(value)
            number += 1
            waiting[number], deeds[number] = sequence, sequence
            given_at[number] = clock.now

            def release(error: GfsError | None, number: int = number) -> None:
                needed = waiting.pop(number)
                if error is None:
                    assert needed <= best[0], "released too early"
                else:
                    assert isinstance(error, NotEnoughShadows)
                    assert clock.now - given_at[number] >= 5.0

            def deed(number: int = number) -> None:
                assert deeds.pop(number) <= best[0], "done too early"

            watermark.answer_after(sequence, release)
            watermark.defer(sequence, deed)
        for held, needed in waiting.items():
            assert needed > best[0], "held back for nothing"
            if kind == "time":
                assert clock.now - given_at[held] < 5.0, "held back for too long"
        assert all(needed > best[0] for needed in deeds.values()), "not done"
