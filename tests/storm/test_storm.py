"""A minute of the storm. ``make storm SECONDS=600`` is the real one."""

from __future__ import annotations

import os
from pathlib import Path

from . import run

SECONDS = 60.0


def test_a_minute_of_the_storm(tmp_path: Path) -> None:
    seed = os.environ.get("GFS_STORM_SEED", "1")
    problems = run.run(tmp_path, seed, SECONDS)
    assert not problems, f"seed {seed}"
