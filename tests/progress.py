"""A line every few seconds says how far a run of the tests is, instead of a dot for each;
and a test that fails is named at once.

Also where nobody sees a terminal, and with several processes. What is left is estimated by
what each test took in the last run here, which pytest's cache keeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

EVERY_SECONDS = 10.0
#: A test that takes longer is named in the line.
LONG_SECONDS = 30.0
#: Of a test that has not run here before.
UNKNOWN_SECONDS = 0.2
CACHED = "gfs/seconds"


class Progress:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cache: pytest.Cache | None = getattr(config, "cache", None)
        self._known: dict[str, float] = self._cache.get(CACHED, {}) if self._cache else {}
        self._began = time.monotonic()
        self._left: set[str] = set()
        self._total = 0
        self._failed = 0
        #: What runs, and since when; what each has taken so far.
        self._running: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._start([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        self._start(ids)

    def _start(self, ids: Sequence[str]) -> None:
        """With several processes each has collected the same."""
        if ids and not self._total:
            self._began = time.monotonic()
            self._left = set(ids)
            self._total = len(ids)
            self._thread.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.pop(nodeid, None)
        self._left.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed += 1
            self._print(f"{report.when} of {report.nodeid} failed")
        self._taken[report.nodeid] = self._taken.get(report.nodeid, 0.0) + report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport | pytest.CollectReport
    ) -> tuple[str, str, str] | None:
        """No dot for what passed."""
        return ("passed", "", "") if report.when == "call" and report.passed else None

    def pytest_sessionfinish(self) -> None:
        self._over.set()
        if self._cache and self._taken:
            rounded = {name: round(seconds, 2) for name, seconds in self._taken.items()}
            self._cache.set(CACHED, self._known | rounded)

    def _print_lines(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._print(self.line(time.monotonic()))

    def _print(self, line: str) -> None:
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(line)

    def line(self, now: float) -> str:
        # In a thread: what the reports change meanwhile is copied, in one step.
        seconds = now - self._began
        done = self._total - len(self._left)
        words = f"{done} of {self._total} tests, {self._failed} failed, {seconds:.0f} s"
        behind = sum(self._known.get(name, UNKNOWN_SECONDS) for name in self._taken.copy())
        ahead = sum(self._known.get(name, UNKNOWN_SECONDS) for name in self._left.copy())
        if behind:
            words += f", about {seconds * ahead / behind:.0f} s left"
        if running := self._running.copy():
            name, began = min(running.items(), key=lambda each: each[1])
            if now - began > LONG_SECONDS:
                words += f" ({now - began:.0f} s in {name})"
        return words
