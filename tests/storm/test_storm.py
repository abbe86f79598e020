"""A minute of the storm. ``make storm SECONDS=600`` is the real one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from . import run
from .faults import Away
from .judge import Judge

SECONDS = 60.0
#: What it may take beside all the other tests: that calls take no longer than is promised is
#: for `make storm` to say, and for tests/simulation.
SLOWNESS = 20.0


def test_a_minute_of_the_storm(tmp_path: Path) -> None:
    seed = os.environ.get("GFS_STORM_SEED", "1")
    problems = run.run(tmp_path, seed, SECONDS, slowness=SLOWNESS)
    assert not problems, f"seed {seed}"


def stop(who: int, began: float, ended: float) -> Away:
    return Away(f"chunkserver-{who}", "stop", began, ended)


@pytest.mark.parametrize(
    ("aways", "is_slow"),
    [
        ([], True),
        ([stop(1, 100, 119)], True),
        ([stop(1, 100, 119), stop(2, 100, 119)], False),
        ([stop(1, 100, 119), Away("master", "stop", 100, 119)], True),
        # Number 1 was alone, and has what nobody else has: until another is back for a while.
        ([stop(1, 100, 119), stop(2, 80, 95), stop(3, 85, 99)], False),
        ([stop(1, 100, 119), stop(2, 80, 86), stop(3, 85, 99)], True),
        ([stop(1, 100, 119), stop(2, 80, 90), stop(3, 90, 99)], True),
        ([stop(2, 100, 119), stop(2, 80, 95), stop(3, 85, 99)], True),
    ],
)
def test_which_calls_took_too_long(tmp_path: Path, aways: list[Away], is_slow: bool) -> None:
    problems = judge_one(tmp_path, aways, "read", "ok")
    assert [problem.endswith("took 17.0 s") for problem in problems] == [True] * is_slow


BOTH_STOPPED = [stop(1, 100, 112), stop(2, 105, 119)]
BOTH_KILLED = [stop(1, 102, 103), stop(2, 102, 103.5)]


@pytest.mark.parametrize(
    ("aways", "op", "result", "is_excused"),
    [
        ([], "put", "chunk_unavailable", False),
        ([stop(1, 100, 119)], "put", "chunk_unavailable", False),
        ([Away("master", "stop", 100, 119)], "put", "master_unavailable", False),
        (BOTH_STOPPED, "put", "not_enough_chunkservers", True),
        (BOTH_STOPPED, "read", "chunk_unavailable", True),
        (BOTH_STOPPED, "rest_put", "unreachable", True),
        (BOTH_STOPPED, "put", "master_unavailable", False),
        (BOTH_STOPPED, "put", "internal", False),
        # They came back at once, and a call waits for that.
        (BOTH_KILLED, "put", "chunk_unavailable", False),
        (BOTH_KILLED, "rest_put", "unreachable", False),
        # What was written to number 1 alone cannot be had from any other.
        ([stop(2, 80, 95), stop(3, 85, 99), stop(1, 100, 119)], "read", "chunk_unavailable", True),
        ([stop(2, 80, 95), stop(3, 85, 99), stop(1, 100, 103)], "read", "chunk_unavailable", False),
        # A connection ends with the control plane, and not later.
        ([Away("control", "kill", 114, 117.5)], "rest_put", "unreachable", True),
        ([Away("control", "kill", 114, 117.5)], "put", "chunk_unavailable", False),
        ([Away("control", "kill", 102, 105)], "rest_put", "unreachable", False),
        ([Away("control", "stop", 102, 112)], "rest_put", "unreachable", False),
    ],
)
def test_which_failures_are_excused(
    tmp_path: Path, aways: list[Away], op: str, result: str, is_excused: bool
) -> None:
    problems = judge_one(tmp_path, aways, op, result)
    assert ["failed after 17.0 s" in problem for problem in problems] == [True] * (not is_excused)


def judge_one(directory: Path, aways: list[Away], op: str, result: str) -> list[str]:
    """What is wrong with a call that lasted from second 101 to 118."""
    call = {"client": 1, "id": 1, "op": op, "path": "/f", "began": 101.0}
    call["arguments"] = {"number": 1, "length": 1}
    lines = [call, {"id": 1, "ended": 118.0, "result": result, "text": "", "more": {}}]
    (directory / "calls").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "faults").write_text("".join(json.dumps(asdict(each)) + "\n" for each in aways))
    judge = Judge({1: directory / "calls"}, directory / "faults")
    judge.judge_calls()
    return judge.problems
