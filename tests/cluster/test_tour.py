"""The tour of README.md and docs/tour.md, command by command, on a real cluster. See :mod:`readme`.

The user of the tour is one whose home directory is empty and who has just said
``make up``, so the cluster is found as everybody finds it: where ``gfs up`` keeps it by
default.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, environment
from limits import HANG_SECONDS
from readme import README, ROOT, TOUR, blocks, follow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Of somebody who has just said ``make up``."""
    home = tmp_path / "home"
    cluster = Cluster(tmp_path, control=True)
    cluster.state = home / ".local" / "state" / "gfs"
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def test_the_tour_shows_what_happens(cluster: Cluster) -> None:
    home = cluster.state.parents[2]
    follow((README, TOUR), home, cluster.ready["control"]["storage"])
    # It is typed in the clone, and leaves nothing there.
    ours = (".", "tmp.", "README-", "tour-", "complaints.txt")
    assert not [path for path in home.iterdir() if not path.name.startswith(ours)]


def test_the_tour_shows_every_command_for_files() -> None:
    tour = "".join(text for page in (README, TOUR) for _, text in blocks(page))
    for command in (
        *("put", "get", "cat", "ls", "stat", "mkdir", "rm", "mv", "du"),
        *("status", "fsck", "locate"),
    ):
        assert re.search(rf"\bgfs {command}\b", tour), f"gfs {command} is not in the tour"


def test_make_up_starts_what_the_tour_runs_on() -> None:
    # Not with the flags of a `make test` that runs us.
    variables = {
        n: v for n, v in environment().items() if n not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")
    }
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old=install", "up"],
        capture_output=True,
        cwd=ROOT,
        env=variables,
        timeout=HANG_SECONDS,
        check=True,
    )
    # Before it, whether the console is built is looked at.
    assert done.stdout.decode().strip().splitlines()[-1] == ".venv/bin/gfs up"
