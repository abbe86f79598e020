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
    call = {"client": 1, "id": 1, "op": "read", "path": "/f", "arguments": {}, "began": 101.0}
    lines = [call, {"id": 1, "ended": 118.0, "result": "ok", "text": "", "more": {}}]
    (tmp_path / "calls").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "faults").write_text("".join(json.dumps(asdict(each)) + "\n" for each in aways))
    judge = Judge({1: tmp_path / "calls"}, tmp_path / "faults")
    judge.judge_calls()
    assert [problem.endswith("took 17.0 s") for problem in judge.problems] == [True] * is_slow
