"""The processes that seeds run in: none is waited for in vain, and none lost without a word."""

from __future__ import annotations

import signal

import pytest

from . import crew
from .crew import run_all

#: No process needs so long to start in and to run what has an end, however busy the machine.
PATIENCE = 300.0


def lost(seed: int, why: str, is_late: bool) -> str:
    return f"{seed} {'late' if is_late else 'dead'} {why}"


def fine(seed: int) -> str:
    return f"{seed} fine"


def two_dies(seed: int) -> str:
    if seed == 2:
        signal.raise_signal(signal.SIGKILL)
    return fine(seed)


def two_has_no_end(seed: int) -> str:
    while seed == 2:
        pass
    return fine(seed)


def two_hears_nothing(seed: int) -> str:
    if seed == 2:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    return two_has_no_end(seed)


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_seed_is_run_once(jobs: int) -> None:
    assert sorted(run_all(fine, iter(range(7)), jobs, PATIENCE, lost)) == [
        f"{seed} fine" for seed in range(7)
    ]


def test_a_process_that_dies_takes_its_seed_alone() -> None:
    found = {text[0]: text for text in run_all(two_dies, iter(range(6)), 2, PATIENCE, lost)}
    assert len(found) == 6
    assert found.pop("2") == "2 dead its process ended with exit code -9"
    assert all(text.endswith("fine") for text in found.values())


def test_a_seed_without_end_is_reported_with_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "GRACE_SECONDS", PATIENCE)
    found = {text[0]: text for text in run_all(two_has_no_end, iter(range(5)), 2, 3.0, lost)}
    assert len(found) == 5
    assert found["2"].startswith("2 late no end after 3 s")
    assert "in two_has_no_end" in found.pop("2")
    assert all(text.endswith("fine") for text in found.values())


def test_a_seed_that_cannot_be_interrupted_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "GRACE_SECONDS", 0.5)
    (found,) = run_all(two_hears_nothing, iter([2]), 1, 1.0, lost)
    assert found.startswith("2 late no end after 1 s")


def test_processes_end_with_whoever_looks_at_them() -> None:
    outcomes = run_all(two_has_no_end, iter([1, 2]), 2, 600.0, lost)
    assert next(outcomes) == "1 fine"
    outcomes.close()  # which would wait for what has no end
