"""Small mistakes in the code, each of which the tests beside it must notice.

Line coverage says which lines the tests run, not whether they look at what these do.
So lines are changed, one at a time, in a copy of the tree: a comparison flipped, a
condition negated, a number off by one, a statement left out, another value returned.
The tests that run the line (covering.py), quick ones first and some of each file before more
of one, run there until one fails. A mutation that they all pass (a survivor) is a mistake that a
change could make and nobody would notice, or one that makes no difference.

The places are drawn by a seed, of those where :func:`_mistakes` finds one. Besides these there is a
table of mistakes made by hand, ``known.toml``, each with the tests that notice it.

mutmut and cosmic-ray do the like. mutmut 3 switches mutations on by the environment in a
process that has imported everything, which processes that tests start do not
inherit here (:func:`tests.cluster.harness.environment`); cosmic-ray runs one command for
all mutations, so that every survivor costs the whole suite. Two hundred lines cost less than
either's exceptions.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: By package, so that files may move in it.
ROOMS = [
    "gfs/client",
    "gfs/cli",
    "gfs/chunkserver",
    "gfs/master",
    "control/identity",
    "control/storage",
    "control/compute",
]
NO_TESTS = 5  # pytest's exit code
PLUGIN = ["-p", "tests.mutation.plugin"]
#: As :mod:`tests.mutation.plugin` has them, which imports pytest.
WORK, ANSWERS = "MUTATION_WORK", "MUTATION_ANSWERS"
#: Tests, and the seconds after which they have hung.
Batches = list[tuple[list[str], float]]
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
    lines: range  # a test that runs none of these cannot notice it

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
        lines = range(line, line + self.old.count("\n") + 1)
        return Mutation(str(path.relative_to(ROOT)), line, self.old, self.new, new, lines)


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
    statements = (
        each for each in ast.walk(ast.parse(b"".join(lines))) if isinstance(each, ast.stmt)
    )
    begins = max(each.lineno for each in statements if each.lineno <= node.lineno)
    ran = range(begins, node.end_lineno + 1)
    return Mutation(path, node.lineno, old, changed.decode(), whole, ran)


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
        self.site = Path(site)
        command = self.python.with_name("gfs")
        command.write_text(f"#!{self.python}\nfrom gfs.cli import main\n\nmain()\n")
        command.chmod(0o755)

    def judge(
        self,
        work: Sequence[tuple[Mutation, Batches]],
        judged: Callable[[int, str | None, int], None],
    ) -> None:
        """Calls ``judged`` with the number of each mutation, the test that fails with it and not
        without, ``no end``, or None, and how many tests were run."""
        entries = [
            {"number": number, "path": each.path, "source": each.source, "batches": batches}
            for number, (each, batches) in enumerate(work)
        ]
        (self.place / ".work").write_text(json.dumps(entries))
        names = (test for _, batches in work for tests, _ in batches for test in tests)
        files = dict.fromkeys(test.partition("::")[0] for test in names)
        answers, theirs = os.pipe()
        known = {"GFS_TEST_SHARE": "10", WORK: str(self.place / ".work"), ANSWERS: str(theirs)}
        child = subprocess.Popen(
            [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN, *files],
            cwd=self.place,
            env={**os.environ, **known},
            stdin=subprocess.DEVNULL,
            stdout=(log := open(self.place / ".log", "w")),  # noqa: SIM115
            stderr=subprocess.STDOUT,
            pass_fds=[theirs],
        )
        os.close(theirs)
        with open(answers) as lines, log, child:
            try:
                for line in lines:
                    judged(*json.loads(line))
            except BaseException:
                child.terminate()
                raise
        if child.returncode not in (0, NO_TESTS):
            raise RuntimeError((self.place / ".log").read_text())
