"""What the tests themselves rest on: shares, places, the line that says how far they are, and
the runner. And what is in none of them, since it decides by the machine."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from neighbours import place
from progress import LONG_SECONDS, Progress
from share import share, turn


@pytest.mark.parametrize(
    ("percent", "count", "part"), [("25", 200, 50), ("25", 2, 1), ("25", 5, 2), ("100", 7, 7)]
)
def test_a_share_is_rounded_up(
    monkeypatch: pytest.MonkeyPatch, percent: str, count: int, part: int
) -> None:
    monkeypatch.setenv("GFS_TEST_SHARE", percent)
    assert share(count) == part


@pytest.mark.parametrize("count", [1, 2, 5, 8, 200])
@pytest.mark.parametrize("turns", [4, 10])
def test_in_so_many_turns_of_a_part_all_seeds_have_been_run(
    monkeypatch: pytest.MonkeyPatch, turns: int, count: int
) -> None:
    monkeypatch.setenv("GFS_TEST_SHARE", str(100 // turns))
    ran: set[int] = set()
    for number in range(1000, 1000 + turns):
        monkeypatch.setenv("GFS_TEST_TURN", str(number))
        seeds = turn(count)
        assert 0 < len(seeds) <= share(count)
        ran |= set(seeds)
    assert ran == set(range(count))


def test_no_two_processes_of_a_run_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "a run")
    places = set()
    for worker in range(8):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        places.add(place(250))
    assert len(places) == 8


def test_the_line_says_what_is_done_and_what_is_left(pytestconfig: pytest.Config) -> None:
    made = Progress(pytestconfig)
    made._known = {"a": 10.0, "b": 30.0}
    made._total, made._left, made._taken = 2, {"a", "b"}, {"a": 5.0}
    made.pytest_runtest_logstart("a")
    made.pytest_runtest_logfinish("a")
    made.pytest_runtest_logstart("b")
    made._running["b"] = made._began + 20 - LONG_SECONDS - 1
    line = made.line(made._began + 20)
    assert line == "1 of 2 tests, 0 failed, 20 s, about 60 s left (31 s in b)"


TESTS = Path(__file__).parents[1]
#: What tests/conftest.py does with its tests, for some that are elsewhere.
CONFTEST = """
import tiers

def pytest_configure(config):
    config.addinivalue_line("markers", "real")
    config.pluginmanager.register(tiers.Failures())
"""
SECOND_TIME = """
import pathlib, signal, subprocess, pytest

def passes_the_second_time(name):
    seen = pathlib.Path(name)
    if not seen.exists():
        seen.touch()
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        raise AssertionError("the first time")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
"""


def run_tests(directory: Path, text: str) -> tuple[int, str]:
    """The exit status and the output of a run under ``nohup``."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(SECOND_TIME + text)
    # This test may be in a second try itself.
    inherited = {name: value for name, value in os.environ.items() if "GFS_TEST" not in name}
    done = subprocess.run(
        [sys.executable, TESTS / "runner.py", "test_it.py"],
        cwd=directory,
        env={
            **inherited,
            "PYTHONPATH": f"{TESTS}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-p xdist.plugin",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.real
@pytest.mark.thin
@pytest.mark.parametrize(
    ("mark", "times", "code", "flaky"),
    [("real", 1, 0, 1), ("real", 4, 1, 4), ("skipif(False, reason='')", 1, 1, 0)],
    ids=["real", "too many", "deterministic"],
)
def test_what_is_real_alone_has_a_second_try(
    tmp_path: Path, mark: str, times: int, code: int, flaky: int
) -> None:
    text = (
        f"@pytest.mark.{mark}\n@pytest.mark.parametrize('number', range({times}))\n"
        "def test_it(number):\n    passes_the_second_time(f'seen{number}')\n"
    )
    ended, out = run_tests(tmp_path, text)
    assert ended == code, out
    lines = [f"FLAKY test_it.py::test_it[{n}]: AssertionError: the first time" for n in range(4)]
    assert [line for line in out.splitlines() if line.startswith("FLAKY")] == lines[:flaky]
    kept = tmp_path / "build" / "flaky"
    assert len(kept.read_text().splitlines() if flaky else []) == flaky
    left = re.findall(r"^left by a test, and killed: (\d+) sleep 600", out, re.M)
    assert len(left) == times
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


VIRTUAL = {"MockClock", "Universe", "autojump_clock", "in_virtual_time", "run_simulated"}
LIMITS = {"communicate", "fail_after", "settimeout", "wait"}
LISTENERS = {"bind", "create_server", "listen", "serve", "HTTPServer", "ThreadingHTTPServer"}
CPU = {"getrusage", "process_time", "process_time_ns", "thread_time", "thread_time_ns"}


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0


def names(node: ast.AST) -> set[str]:
    kinds = ("arg", "attr", "id")
    return {getattr(each, kind, None) or "" for each in ast.walk(node) for kind in kinds}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", "") or getattr(node.func, "id", ""), node


def literal_limits(tree: ast.AST) -> Iterator[ast.AST]:
    """tests/limits.py has the one limit of what takes real time."""
    virtual = {
        node
        for function in functions(tree)
        if VIRTUAL & names(function)
        for node in ast.walk(function)
    }
    for name, call in calls(tree):
        limits = [each.value for each in call.keywords if each.arg == "timeout"]
        limits += call.args[:1] if name in LIMITS else []
        if call not in virtual and any(map(is_number, limits)):
            yield call


def cpu_time(tree: ast.AST) -> Iterator[ast.AST]:
    """In the function of an assertion. Work can be counted, and figures are for bench/."""
    for function in functions(tree):
        nodes = list(ast.walk(function))
        if any(isinstance(node, ast.Assert) for node in nodes):
            yield from (n for n in nodes if {getattr(n, "attr", ""), getattr(n, "id", "")} & CPU)


def shared_teardown(tree: ast.AST) -> Iterator[ast.AST]:
    """An assertion after the yield of a fixture that several tests share: one of them, which is
    innocent, would be blamed."""
    for function in functions(tree):
        if any("scope=" in ast.unparse(each) for each in function.decorator_list):
            nodes = list(ast.walk(function))
            first = min((n.lineno for n in nodes if isinstance(n, ast.Yield)), default=10**9)
            yield from (n for n in nodes if isinstance(n, ast.Assert) and n.lineno > first)


def bare_kills(tree: ast.AST) -> Iterator[ast.AST]:
    """tests/signals.py sends none to whole groups."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("kill", "killpg"):
            yield from [node] if getattr(node.value, "id", "") == "os" else []


def fixed_ports(tree: ast.AST) -> Iterator[ast.AST]:
    """Another run on this machine may have it."""
    for name, call in calls(tree):
        for node in ast.walk(call) if name in LISTENERS else ():
            is_pair = isinstance(node, ast.Tuple) and len(node.elts) == 2
            text = str(node.value) if isinstance(node, ast.Constant) else ""
            if (is_pair and is_number(node.elts[1])) or re.fullmatch(r"[\d.:\[\]]*:[1-9]\d*", text):
                yield node


#: Where each may be, and how often: what is left goes, and nothing is added.
ALLOWED: dict[Callable[[ast.AST], Iterator[ast.AST]], dict[str, int]] = {
    literal_limits: {
        "control/test_compute_machine.py": 1,
        "control/test_several_planes_deaths.py": 1,
    },
    cpu_time: {},
    shared_teardown: {},
    bare_kills: {"deploy/test_systemd.py": 1, "kubernetes/kubelet_exec.py": 1},
    fixed_ports: {},
}
#: Those that start the processes themselves, or stop a whole run.
KILLERS = ("forks.py", "lifeline.py", "mutation/", "runner.py", "signals.py")
EXCEPTED = {literal_limits: ("simulation/",), bare_kills: KILLERS}
#: Text without which there is none: to parse all files would take half a minute.
SIGNS = {
    literal_limits: rf"(timeout|\b({'|'.join(LIMITS)}))\s*[=(]\s*\d",
    cpu_time: "|".join(CPU),
    shared_teardown: r"\bscope=(?s:.)*\byield\b",
    bare_kills: r"\bos\.kill",
    fixed_ports: rf"\b({'|'.join(LISTENERS)})\([^)]*[:,]\s*[1-9]",
}


@pytest.mark.parametrize("look", ALLOWED, ids=lambda look: look.__name__)
def test_nothing_decides_by_the_machine(look: Callable[[ast.AST], Iterator[ast.AST]]) -> None:
    found: Counter[str] = Counter()
    said = [look.__doc__ or ""]
    for path in sorted(TESTS.rglob("*.py")):
        name, text = path.relative_to(TESTS).as_posix(), path.read_text()
        if name.startswith(EXCEPTED.get(look, ("no such place",))):
            continue
        for node in look(ast.parse(text)) if re.search(SIGNS[look], text) else ():
            found[name] += 1
            said.append(f"tests/{name}:{node.lineno}: {ast.unparse(node)[:80]}")  # type: ignore[attr-defined]
    assert found == ALLOWED[look], "\n".join(said)


@pytest.mark.parametrize(
    ("look", "text", "count"),
    [
        (literal_limits, "def f():\n  with trio.fail_after(5): run(x, timeout=2.0)", 2),
        (cpu_time, "def f():\n  began = time.process_time()\n  assert began < 5", 1),
        (shared_teardown, "@fixture(scope='module')\ndef f():\n  assert 1\n  yield\n  assert 2", 1),
        (bare_kills, "os.kill(pid, 9), os.killpg(pid, 9), signals.send(pid, 9)", 2),
        (fixed_ports, "s.bind(('', 80)), listen('127.0.0.1:80'), listen('[::1]:80')", 3),
    ],
)
def test_what_decides_by_the_machine_is_found(
    look: Callable[[ast.AST], Iterator[ast.AST]], text: str, count: int
) -> None:
    assert len(list(look(ast.parse(text)))) == count
    assert re.search(SIGNS[look], text)
