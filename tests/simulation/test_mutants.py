"""The deliberate bugs of :mod:`.mutants` still fit the source; and one of them, as a
sample, is caught (``make mutants`` does that with all of them)."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

from . import mutants as package
from .mutants import Mutant, NotJudged, copy_source, environment, judge, mutants

MUTANTS_MIN = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("source")
    copy_source(tree)
    return tree


def test_there_are_enough() -> None:
    assert len(mutants()) >= MUTANTS_MIN


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_every_patch_fits(mutant: Mutant, source: Path, tmp_path: Path) -> None:
    paths = [line[6:] for line in mutant.text.splitlines() if line.startswith("+++ b/")]
    assert paths
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((source / path).read_bytes())
    mutant.apply(tmp_path)
    for path in paths:
        changed = (tmp_path / path).read_text()
        assert changed != (source / path).read_text()
        compile(changed, path, "exec")


@pytest.mark.costly
def test_what_mutants_run_is_complete(source: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/simulation"]
    done = subprocess.run(
        command, cwd=source, env=environment(source), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def named(name: str) -> Mutant:
    (mutant,) = (each for each in mutants() if each.name == name)
    return mutant


def changed(source: Path, path: str, old: str, new: str) -> Mutant:
    """A mutant with ``new`` in the place of ``old``."""
    before = (source / path).read_text()
    assert before.count(old) == 1
    lines = [text.splitlines(keepends=True) for text in (before, before.replace(old, new))]
    return Mutant("made here", "".join(difflib.unified_diff(*lines, f"a/{path}", f"b/{path}")))


@pytest.mark.costly
def test_a_mutant_is_caught(tmp_path: Path) -> None:
    verdict = judge(named("keep-the-digest"), tmp_path, seeds=100, jobs=1)
    assert verdict.seed is not None
    assert "its digest" in verdict.how


def test_an_error_of_the_patch_itself_catches_nothing(source: Path, tmp_path: Path) -> None:
    path, old = "gfs/master/metadata/committer.py", "stored = txn.get(answer_key("
    mutant = changed(source, path, old, old.replace("get", "gett"))
    with pytest.raises(NotJudged, match="no checker objected"):
        judge(mutant, tmp_path, seeds=20, jobs=1)


@pytest.mark.costly
def test_nothing_is_caught_by_a_seed_that_fails_without_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    copy_source(broken)
    named("keep-the-digest").apply(broken)
    harmless = changed(source, "gfs/blocks.py", "from __future__", "# Harmless.\nfrom __future__")
    monkeypatch.setattr(package, "ROOT", broken)
    with pytest.raises(NotJudged, match="fails in the unchanged tree"):
        judge(harmless, tmp_path, seeds=100, jobs=1)


@pytest.mark.costly
def test_a_seed_without_end_catches_a_mutant(source: Path, tmp_path: Path) -> None:
    """Where it does not hang without the mutant: that has been tried."""
    path, old = "gfs/client/append.py", "                self._batch = self._take_batch()\n"
    mutant = changed(source, path, old, f"{old}                while True:\n{' ' * 20}pass\n")
    run = "tests.simulation --seeds 9 --calls make_log,append --hours 0.01 --patience 5"
    mutant = Mutant(mutant.name, f"It goes on for ever.\nRun: {run}\n\n{mutant.text}")
    verdict = judge(mutant, tmp_path, seeds=9, jobs=1)
    assert verdict.seed is not None
    assert verdict.how.startswith("no end after 5 s")
