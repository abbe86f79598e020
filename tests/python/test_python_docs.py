"""Every block of Python in docs/python.md, as a user runs it whose cluster is where ``gfs up``
keeps it."""

from __future__ import annotations

from pathlib import Path

from harness import Cluster, python
from needs import need_modules
from readme import ROOT, blocks, python_step
from test_python_foreign import NEEDED


def test_the_page_shows_what_happens(cluster: Cluster, tmp_path: Path) -> None:
    need_modules(*NEEDED, install="make test-python")
    for number, (language, text) in enumerate(blocks(ROOT / "docs" / "python.md")):
        if language == "sh":  # tests/mount runs it
            continue
        assert language == "python"
        script = tmp_path / f"block-{number}.py"
        step = python_step(script, text)
        environment = {**cluster.environment, "GFS_STATE": str(cluster.state)}
        done = python("-W", "ignore", script, env=environment)
        assert done.stdout.splitlines() == step.printed, text
