"""Which tests run which lines and branches of the product: ``make coverage``.

Every Python process of a run counts (coverage.py), those that tests start included, unless it is
killed. What is counted goes to the test that runs meanwhile, or the one that started the process.
``python -m tests.mutation.covering tests/unit/test_packs.py`` measures these files again, and
keeps what is known of all others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import coverage

from . import PLUGIN, ROOT, Batches, Tree

PRODUCT = ["gfs", "control"]
FOLDERS = ["tests/unit", "tests/simulation", "tests/cluster", "tests/control"]
#: Here it is kept: a database of coverage.py, and how long each test took.
KEPT = ROOT / ".measured"
#: A process that measures finds the names of the tests that run here, by the process.
RUNNING = "MUTATION_RUNNING"
#: Follows a test's name for a process that it started.
CHILD = "|child"


def measure(tests: list[str], processes: int) -> int:
    """Runs the tests in a copy of the tree. Returns pytest's exit code."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gfs-coverage-") as place:
        tree = Tree(Path(place))
        counted = Path(place, "counted")
        counted.mkdir()
        _count_in_every_process(tree, counted)
        spread = ["-n", f"{processes}", "--dist", "loadfile", "--no-loadscope-reorder"]
        run = [tree.python, "-m", "pytest", *PLUGIN, *spread]
        known = {**os.environ, "GFS_TEST_SHARE": "10", RUNNING: f"{counted}"}
        some = ["-m", "not extra"] if tests == FOLDERS else []  # what is named is meant
        code = subprocess.run([*run, *some, *tests], cwd=tree.place, env=known)
        _keep(counted, tree.place, replaced=None if tests == FOLDERS else tests)
    return code.returncode


def _count_in_every_process(tree: Tree, counted: Path) -> None:
    """Whatever environment and folder it is started with."""
    site = tree.site
    shutil.copy(Path(__file__).with_name("counting.py"), site / "gfs_counting.py")
    start = f"import gfs_counting; gfs_counting.start({str(counted)!r}, {str(tree.place)!r})"
    # They are read in the order of their names: after tree.pth, which leads to coverage.py.
    (site / "tree_counting.pth").write_text(f"{start}\n")


def _keep(counted: Path, tree: Path, replaced: list[str] | None) -> None:
    """``replaced``: of these tests alone; None: of all."""
    seconds: dict[str, float] = {}
    for file in counted.glob("*.seconds"):
        for line in file.read_text().splitlines():
            took, _, test = line.partition(" ")
            seconds[test] = round(float(took), 2)
    known = KEPT / "seconds.json"
    if replaced is not None and known.exists():
        seconds = json.loads(known.read_text()) | seconds
    known.write_text(json.dumps(seconds, indent=0, sort_keys=True))
    if replaced is None:
        (KEPT / "coverage").unlink(missing_ok=True)
    measured = _kept_coverage()
    measured.set_option("paths", {"tree": [f"{ROOT}/", f"{tree}/"]})
    if (KEPT / "coverage").exists():
        measured.load()
    measured.combine([str(file) for file in counted.glob("coverage.*")])
    measured.save()


def _kept_coverage() -> coverage.Coverage:
    sources = [str(ROOT / package) for package in PRODUCT]
    return coverage.Coverage(KEPT / "coverage", branch=True, source=sources, config_file=False)


def report() -> None:
    """Lines and branches by package, and of all."""
    measured = _kept_coverage()
    measured.load()
    out = KEPT / "report.json"
    measured.json_report(outfile=str(out))
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for path, found in json.loads(out.read_text())["files"].items():
        parts = Path(path).parts
        package = "/".join(parts[parts.index("gfs" if "gfs" in parts[:-1] else "control") :][:2])
        each = found["summary"]
        names = ["covered_lines", "num_statements", "covered_branches", "num_branches"]
        for room in (package if not package.endswith(".py") else parts[0], "all"):
            totals[room] = [x + each[name] for x, name in zip(totals[room], names, strict=True)]
    for room, (lines, of_lines, branches, of_branches) in sorted(totals.items()):
        share = f"{lines / of_lines:6.1%} of {of_lines:5} lines"
        print(
            f"{room:24} {share}, {branches / max(of_branches, 1):6.1%} of {of_branches:5} branches"
        )


class Covering:
    """What was kept, for the choice of tests."""

    def __init__(self) -> None:
        if not (KEPT / "coverage").exists():
            raise FileNotFoundError("no coverage was measured here: run  make coverage")
        self._data = coverage.CoverageData(str(KEPT / "coverage"))
        self._data.read()
        self._measured = (KEPT / "coverage").stat().st_mtime
        self.seconds: dict[str, float] = json.loads((KEPT / "seconds.json").read_text())
        self._of_file: dict[str, list[str]] = defaultdict(list)
        for test in self.seconds:
            self._of_file[test.partition("::")[0]].append(test)

    @cache  # noqa: B019 - there is one of it
    def _contexts(self, path: str) -> dict[int, list[str]]:
        return self._data.contexts_by_lineno(str(ROOT / path))

    def tests(self, path: str, lines: Iterable[int]) -> tuple[set[str], set[str]]:
        """Those that run one of the lines themselves, or in a process that they start; and those
        that a process may serve which one of their file started. A file that was changed
        meanwhile is taken as a whole."""
        by_line = self._contexts(path)
        if (ROOT / path).stat().st_mtime > self._measured:
            lines = list(by_line)
        contexts = {context for line in lines for context in by_line.get(line, [])}
        near = {context.removesuffix(CHILD) for context in contexts} & set(self.seconds)
        files = {each.partition("::")[0] for each in contexts if each.endswith(CHILD)}
        far = {test for file in files for test in self._of_file[file]} - near
        return near, far


#: What the first tests of a mutation may take, and all of them.
FIRST_SECONDS = 10.0
ALL_SECONDS = 300.0


def batches(near: set[str], far: set[str], seconds: dict[str, float]) -> Batches:
    """The tests in the order in which they are worth it, and a limit for each batch: one of each
    file, then another of each, quick ones first."""
    quick: dict[str, list[str]] = defaultdict(list)
    for test in sorted(near, key=lambda test: seconds[test]) + sorted(far):
        quick[test.partition("::")[0]].append(test)
    order = [(place, test) for tests in quick.values() for place, test in enumerate(tests)]
    order.sort(key=lambda each: (each[1] in far, each[0], seconds[each[1]]))
    first: list[str] = []
    others: list[str] = []
    total = 0.0
    for _, test in order:
        total += seconds[test]
        if total <= FIRST_SECONDS:
            first.append(test)
        elif total <= ALL_SECONDS or not first + others:
            others.append(test)
        else:
            total -= seconds[test]
    found = []
    for tests in filter(None, (first, others)):
        # By file, because of what the tests of one share.
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        tests.sort(key=lambda test: files.index(test.partition("::")[0]))
        found.append((tests, 60 + 6 * sum(seconds[test] for test in tests)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.covering", description=__doc__)
    parser.add_argument("tests", nargs="*", metavar="FILE", help="only these test files")
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    options = parser.parse_args()
    code = measure(options.tests or FOLDERS, options.processes)
    report()
    return code


if __name__ == "__main__":
    sys.exit(main())
