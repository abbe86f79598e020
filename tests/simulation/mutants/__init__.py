"""Deliberate bugs, each a patch in this folder, that the simulation must catch.

What a simulation would find is not known from its finding nothing. Each patch
makes one mistake that a change of the code might make. It is applied to a copy of
the source tree, and seeds are run there until one fails; a mutant that lives
through a thousand of them shows a hole in the workload or in what is checked.

Caught is one by the word of a checker, a :class:`~..record.Violation` or a test's
assertion, or because a seed has no end; not by an error of the patch itself, and not
where the seed fails in the unchanged tree as well.

The text above a patch's first ``---`` says what the mistake is; a line ``Run:``
in it names another command of Python's than ``-m tests.simulation``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
SEEDS = 1000
#: All of a mutant's seeds.
PATIENCE_SECONDS = 3600
#: How a run that failed may have failed: see ``..run`` (which cannot be imported here, since
#: it makes everything small).
CATCHING = ("a promise is broken", "no end")
#: Not what is compiled: that is good for all files but those that a patch makes newer.
_SKIPPED = shutil.ignore_patterns(".*", "mutants", "test_mutants.py")


class NotJudged(Exception):
    """Nothing can be said of a mutant, and why."""


@dataclass(frozen=True)
class Mutant:
    name: str
    text: str

    @property
    def mistake(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def command(self) -> list[str]:
        found = re.search(r"^Run: (.*)$", self.text, re.MULTILINE)
        return shlex.split(found[1]) if found else []

    def apply(self, tree: Path) -> None:
        """Change the source in ``tree``. Raises NotJudged if the patch does not fit."""
        done = subprocess.run(
            ["git", "apply", "-C1", "-"],
            cwd=tree,
            # Else it looks for the repository that the tree is in, and its index.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)},
            input=self.text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotJudged(f"{self.name}.patch does not fit the source any more: {done.stderr}")


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    #: The seed that failed; None: it lives.
    seed: int | None
    how: str
    seconds: float


def mutants() -> list[Mutant]:
    return [Mutant(path.stem, path.read_text()) for path in sorted(FOLDER.glob("*.patch"))]


def copy_source(tree: Path) -> None:
    """What the simulation consists of, to be changed."""
    shutil.copytree(ROOT / "gfs", tree / "gfs", ignore=_SKIPPED)
    shutil.copytree(ROOT / "tests" / "simulation", tree / "tests" / "simulation", ignore=_SKIPPED)
    shutil.copy(ROOT / "tests" / "share.py", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)


def environment(tree: Path) -> dict[str, str]:
    """That of a command which runs what is in ``tree``."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([f"{tree}", f"{tree / 'tests'}"])}


def judge(mutant: Mutant, tree: Path, seeds: int, jobs: int) -> Verdict:
    """Run seeds in ``tree`` until one fails, and that one in an unchanged tree beside it.
    Raises NotJudged."""
    changed, unchanged = tree / "changed", tree / "unchanged"
    copy_source(changed)
    copy_source(unchanged)
    mutant.apply(changed)
    command = ["-m", *(mutant.command or ["tests.simulation", "--seeds", f"{seeds}"])]
    if command[1] == "tests.simulation":
        command += ["--jobs", f"{jobs}"]
    began = time.monotonic()
    code, out = _run(command, changed)
    seconds = time.monotonic() - began
    if not code:
        return Verdict(mutant, None, "LIVES", seconds)
    failure = find_failure(out)
    if failure is None:
        raise NotJudged(f"no checker objected, but the run failed:\n{out}")
    code, _ = _run(failure.replay or command, unchanged, {"GFS_SEEDS": f"{failure.seed}"})
    if code:
        raise NotJudged(f"seed {failure.seed} fails in the unchanged tree as well")
    return Verdict(mutant, failure.seed, failure.symptom, seconds)


def _run(command: list[str], tree: Path, more: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a command of Python's."""
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tree,
            env=environment(tree) | (more or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotJudged(f"{shlex.join(command)} has no end") from None
    return done.returncode, done.stdout


@dataclass(frozen=True)
class FoundFailure:
    seed: int
    symptom: str
    #: The arguments that replay it; none: those of the run, with the seed in the environment.
    replay: list[str]


def find_failure(out: str) -> FoundFailure | None:
    """The first failure in what a run printed, if that is one that a checker found."""
    told = re.search(r"seed (\d+) FAILED: (.*) =====", out)
    if told is not None:
        if told[2] not in CATCHING:
            return None
        replay = re.search(r"^replay: (?:\S+=\S+ )*python (.*)$", out, re.MULTILINE)
        return FoundFailure(int(told[1]), symptom(out), shlex.split(replay[1]))
    seed = re.search(r"(?:GFS_SEEDS=|simulated with seed )(\d+)", out)
    # pytest, which says in the end of each failure what it was, and of a group what is in it.
    if seed is None or not re.search(r": AssertionError$|^[ |]+AssertionError\b", out, re.M):
        return None
    return FoundFailure(int(seed[1]), symptom(out), [])


def symptom(out: str) -> str:
    """The line of a failed run that says what was wrong."""
    lines = [line.removeprefix("E ").strip(" |") for line in out.splitlines()]
    told = [
        line
        for line in lines
        if re.match(r"([\w.]*(Violation|LoopBlocked)|AssertionError)\b|no end", line)
    ]
    line = told[0] if told else "it failed"
    return line.removeprefix("tests.simulation.record.Violation: ")
