"""In which tier a test is, and what is remembered of those that failed.

``make test`` runs what decides the same each time: pure functions, models, the simulation in
virtual time; and of the tests with *real* processes the *thin* ones, one of each kind. ``.ci/run``
adds the *smoke* tests, one of each outside part, and ``make test-all`` runs all that is left.

A test is real by its mark, by its folder, or by a fixture that starts processes. One that starts
some and is none of these fails: it would decide by the machine and not by the code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import forks
import pytest
from needs import FOLDERS

REAL_FOLDERS = {"cluster"}
REAL_FIXTURES = {
    *("cloud", "cluster", "computing", "installed", "make_cloud", "make_cluster", "make_server"),
    "postgresql",
}
#: Where the controlling process leaves what failed, and where it finds what failed before
#: (tests/runner.py).
FAILED, FAILED_BEFORE = "GFS_TEST_FAILED", "GFS_TEST_FAILED_BEFORE"
FLAKY_MAX = 3


def mark(item: pytest.Item) -> None:
    """Add the marks that follow from where a test lies and what it uses."""
    folder = item.path.parent.name
    if folder in FOLDERS:
        item.add_marker("extra")
    fixtures = REAL_FIXTURES.intersection(getattr(item, "fixturenames", ()))
    if item.get_closest_marker("extra"):
        # What is imported from another file is thin there.
        item.own_markers = [each for each in item.own_markers if each.name != "thin"]
    if folder in REAL_FOLDERS or fixtures or item.get_closest_marker("extra"):
        item.add_marker("real")


def enter(item: pytest.Item) -> None:
    is_real = item.get_closest_marker("real") is not None
    forks.refused = "" if is_real else f"{item.nodeid} starts processes: @pytest.mark.real"


class Failures:
    """Of a run, by the process that reports: which tests failed, whether each was a real one, and
    its first error; and, in a second try, which of those that had failed did not again."""

    def __init__(self) -> None:
        self.failed: dict[str, dict[str, Any]] = {}
        before = os.environ.get(FAILED_BEFORE)
        self._before: dict[str, dict[str, Any]] = (
            json.loads(Path(before).read_bytes()) if before else {}
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed[report.nodeid] = {
                "real": "real" in report.keywords,
                "error": _first_line(report),
            }

    def flaky(self) -> dict[str, str]:
        return {
            name: str(facts["error"])
            for name, facts in self._before.items()
            if name not in self.failed
        }

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name, error in self.flaky().items():
            terminalreporter.write_line(f"FLAKY {name}: {error}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if path := os.environ.get(FAILED):
            Path(path).write_text(json.dumps(self.failed))
        if len(self.flaky()) > FLAKY_MAX:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return next(iter(text.splitlines()), "")[:300]
