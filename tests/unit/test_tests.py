"""What the tests themselves rest on: shares, places, and the line that says how far they are."""

from __future__ import annotations

import pytest
from neighbours import place
from progress import LONG_SECONDS, Progress
from share import share, turn


@pytest.mark.parametrize(
    ("percent", "count", "part"), [("25", 200, 50), ("25", 2, 1), ("25", 5, 2), ("100", 7, 7)]
)
def test_a_share_is_rounded_up(
    monkeypatch: pytest.MonkeyPatch, percent: str, count: int, part: int
) -> None:
    monkeypatch.setenv("GFS_TEST_SHARE", percent)
    assert share(count) == part


@pytest.mark.parametrize("count", [1, 2, 5, 8, 200])
@pytest.mark.parametrize("turns", [4, 10])
def test_in_so_many_turns_of_a_part_all_seeds_have_been_run(
    monkeypatch: pytest.MonkeyPatch, turns: int, count: int
) -> None:
    monkeypatch.setenv("GFS_TEST_SHARE", str(100 // turns))
    ran: set[int] = set()
    for number in range(1000, 1000 + turns):
        monkeypatch.setenv("GFS_TEST_TURN", str(number))
        seeds = turn(count)
        assert 0 < len(seeds) <= share(count)
        ran |= set(seeds)
    assert ran == set(range(count))


def test_no_two_processes_of_a_run_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "a run")
    places = set()
    for worker in range(8):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        places.add(place(250))
    assert len(places) == 8


def test_the_line_says_what_is_done_and_what_is_left(pytestconfig: pytest.Config) -> None:
    made = Progress(pytestconfig)
    made._known = {"a": 10.0, "b": 30.0}
    made._total, made._left, made._taken = 2, {"a", "b"}, {"a": 5.0}
    made.pytest_runtest_logstart("a")
    made.pytest_runtest_logfinish("a")
    made.pytest_runtest_logstart("b")
    made._running["b"] = made._began + 20 - LONG_SECONDS - 1
    line = made.line(made._began + 20)
    assert line == "1 of 2 tests, 0 failed, 20 s, about 60 s left (31 s in b)"
