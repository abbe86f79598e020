"""Small mistakes in the code, each of which the tests beside it must notice.

Line coverage says which lines the tests run, not whether they look at what these do.
So lines are changed, one at a time, in a copy of the tree: a comparison flipped, a
condition negated, a number off by one, a statement left out, another value returned.
The room's tests, quick ones first, run there until one fails. A mutation that they all
pass (a survivor) is a mistake that a change could make and nobody would notice, or
one that makes no difference.

The places are drawn by a seed, of those where :func:`_mistakes` finds one. Besides these there is a
table of mistakes made by hand, ``known.toml``, each with the tests that notice it.

mutmut and cosmic-ray do the like. mutmut 3 switches mutations on by the environment in a
process that has imported everything, which processes that tests start do not
inherit here (:func:`tests.cluster.harness.environment`); cosmic-ray runs one command for
all mutations, so that every survivor costs the whole suite. A table of rooms and
two hundred lines cost less than either's exceptions.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: By package, so that files may move in it: groups of test files (globs below tests/). One
#: group after the other is run, the quick ones first.
ROOMS: dict[str, list[list[str]]] = {
    "gfs/client": [
        ["unit/test_patience.py", "simulation/test_data_path.py", "simulation/test_append.py"],
        ["simulation/test_[d-z]*.py"],
        ["cluster/test_client.py", "cluster/test_partial.py"],
    ],
    "gfs/cli": [
        ["unit/test_cli_*.py"],
        ["cluster/test_tour.py", "cluster/test_up_commands.py", "cluster/test_operator.py"],
        ["cluster/test_partial.py", "cluster/test_drain.py", "cluster/test_disks.py"],
        ["cluster/test_snapshot.py"],
    ],
    "gfs/chunkserver": [
        ["unit/test_c*file.py", "unit/test_chunkserver.py", "unit/test_journal.py"],
        ["unit/test_store_races.py", "unit/test_marks.py", "unit/test_scrub_pace.py"],
        ["simulation/test_[a-l]*.py", "simulation/test_[n-z]*.py", "simulation/test_ma*.py"],
        ["cluster/test_disks.py", "cluster/test_durability.py"],
    ],
    "gfs/master": [
        ["unit/test_master_*.py", "unit/test_namespace.py"],
        ["simulation/test_[a-l]*.py", "simulation/test_[n-z]*.py", "simulation/test_ma*.py"],
        ["cluster/test_shadow.py", "cluster/test_operator.py"],
    ],
    "control/identity": [
        ["control/test_identity_*.py", "control/test_access_table.py"],
        ["control/test_auth_*.py", "control/test_revoked.py", "control/test_compute_access.py"],
        ["control/test_contract_auth.py", "control/test_contract_common.py"],
    ],
    "control/storage": [
        ["control/test_storage_*.py", "control/test_quota_*.py"],
        ["control/test_contract_storage.py", "control/test_quotas.py"],
        ["control/test_deaths.py"],
    ],
    "control/compute": [
        ["control/test_compute_[a-f]*.py", "control/test_compute_[m-p]*.py"],
        ["control/test_compute_*.py"],
        # These are skipped where no containers and no Kubernetes are.
        ["podman/test_podman_*.py", "kubernetes/test_backend_*.py"],
    ],
}
NO_END = "no end"
NO_TESTS = 5  # pytest's exit code
_PAIRS = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
]
_FLIPPED = dict(_PAIRS) | {other: one for one, other in _PAIRS}
_SAYS_ONLY = {"log", "logger", "invariant", "warnings"}
_SKIPPED = shutil.ignore_patterns("__pycache__", ".*", "out", "*.egg-info", "build")


@dataclass(frozen=True)
class Mutation:
    path: str
    line: int
    old: str
    new: str
    source: str  # the whole file, changed

    def __str__(self) -> str:
        lines = [f"- {line}" for line in self.old.splitlines()]
        lines += [f"+ {line}" for line in self.new.splitlines()]
        return "\n    ".join([f"{self.path}:{self.line}", *lines])


@dataclass(frozen=True)
class Known:
    """A mistake made by hand: in one file of ``package`` ``old`` is found, once."""

    mistake: str
    package: str
    old: str
    new: str
    tests: list[str]

    def mutation(self) -> Mutation:
        """Raises ValueError if the source is not as it was."""
        found = [(path, path.read_text()) for path in sorted((ROOT / self.package).rglob("*.py"))]
        fits = [(path, text) for path, text in found if self.old in text]
        if len(fits) != 1 or fits[0][1].count(self.old) != 1:
            raise ValueError(f"{self.mistake}: found {len(fits)} times in {self.package}")
        ((path, text),) = fits
        line = text[: text.index(self.old)].count("\n") + 1
        new = text.replace(self.old, self.new)
        compile(new, path, "exec")
        return Mutation(str(path.relative_to(ROOT)), line, self.old, self.new, new)


def known() -> list[Known]:
    table = tomllib.loads(Path(__file__).with_name("known.toml").read_text())
    return [Known(**entry) for entry in table["mutation"]]


def drawn(package: str, count: int, seed: int) -> list[Mutation]:
    """Some of the small mistakes that can be made in the files of ``package``, no line twice."""
    by_line: dict[tuple[str, int], list[tuple[ast.expr | ast.stmt, str]]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for node, new in _mistakes(ast.parse(path.read_text())):
            by_line.setdefault((str(path.relative_to(ROOT)), node.lineno), []).append((node, new))
    rng = random.Random(f"{seed} {package}")
    lines = rng.sample(sorted(by_line), min(count, len(by_line)))
    return [_spliced(path, *rng.choice(by_line[path, line])) for path, line in lines]


def _spliced(path: str, node: ast.expr | ast.stmt, new: str) -> Mutation:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = (ROOT / path).read_bytes().splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1
    head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    changed = head + new.encode() + tail
    whole = b"".join([*lines[:first], changed, *lines[last + 1 :]]).decode()
    old = b"".join(lines[first : last + 1]).decode()
    return Mutation(path, node.lineno, old, changed.decode(), whole)


def _mistakes(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """What may be put in the place of which node. Only what is done in functions counts:
    other constants are mostly sizes and seconds, which no test should hold on to. What only
    says something (logs, error texts, annotations) is left alone too."""
    if isinstance(node, (ast.JoinedStr, ast.arguments, ast.Assert)) or _is_said(node):
        return
    if inside:
        yield from _of_node(node)
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "returns", "annotation"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _mistakes(child, inside)


def _is_said(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring, or the ... of a protocol
    text = ast.unparse(node) if isinstance(node, ast.Expr) else ""
    return text.partition("(")[0].partition(".")[0] in _SAYS_ONLY


def _of_node(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            flipped = ast.Compare(left, [_FLIPPED[type(op)]()], [right])
            yield node, f"({ast.unparse(flipped)})"
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, f"({ast.unparse(ast.BoolOp(other, values))})"
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(test, ast.Compare):
                yield test, f"(not ({ast.unparse(test)}))"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value)):
            yield node, f"{value + 1}"
        case ast.Return(value=ast.expr() as value):
            if not isinstance(value, ast.Constant):
                yield node, "return None"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"


class Tree:
    """A copy of the project, to be changed, with a Python that imports it from there (and
    so do the processes that its tests start, whatever environment they get)."""

    def __init__(self, place: Path) -> None:
        self.place = place / "tree"
        shutil.copytree(ROOT, self.place, ignore=_SKIPPED, symlinks=True)
        venv.create(place / "venv", symlinks=True)
        site = sysconfig.get_path("purelib", vars={"base": str(place / "venv")})
        others = sysconfig.get_path("purelib")
        Path(site, "tree.pth").write_text(f"{self.place}\n{others}\n")
        self.python = place / "venv" / "bin" / "python"
        #: Tests that fail here without any mistake: they say nothing.
        self.broken: list[str] = []

    def caught_by(self, mutation: Mutation, groups: list[list[str]], limit: float) -> str | None:
        """The test that fails with it, and not without, or ``no end`` after ``limit`` seconds
        of a group; None: none does."""
        for group in groups:
            while True:
                test = self._changed(mutation, group, limit)
                if test is None:
                    break
                if test == NO_END or self._run([test], limit) is None:
                    return test
                self.broken.append(test)
        return None

    def _changed(self, mutation: Mutation, group: list[str], limit: float) -> str | None:
        path = self.place / mutation.path
        before = path.read_text()
        path.write_text(mutation.source)
        try:
            tests = [test for each in group for test in self._found(each)]
            module = mutation.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            # Those first that import what is changed.
            return self._run(sorted(tests, key=lambda test: not self._names(test, module)), limit)
        finally:
            path.write_text(before)

    def _found(self, name: str) -> list[str]:
        path, _, test = name.partition("::")
        found = sorted((self.place / "tests").glob(path))
        if not found:
            raise RuntimeError(f"no file of tests is called {path}")
        files = [str(file.relative_to(self.place)) for file in found]
        return [f"{file}::{test}" if test else file for file in files]

    def _names(self, test: str, module: str) -> bool:
        text = (self.place / test.partition("::")[0]).read_text()
        package, _, name = module.rpartition(".")
        return module in text or f"from {package} import {name}\n" in text

    def _run(self, tests: list[str], limit: float) -> str | None:
        """The first of the tests that fails, or ``no end``."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-rfE", *tests]
        options += [f"--deselect={test}" for test in self.broken]
        child = subprocess.Popen(
            [self.python, "-m", "pytest", *options],
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return NO_END
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if child.returncode in (0, NO_TESTS):
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", out, re.MULTILINE)
        if failed is None:
            raise RuntimeError(f"pytest ended with {child.returncode}:\n{out}")
        return failed[1]
