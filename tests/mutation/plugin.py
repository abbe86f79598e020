"""For pytest in a tree: says which test runs (covering.py), or judges mutations.

Most of what a few tests cost is a new process with all its imports. So one has collected every
test that is needed, and for each mutation a process is forked of it, which puts the changed
functions in the place of what is imported. What tests start finds the change on the disk.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest

#: Names a folder: a process that measures finds the names of the tests that run there.
RUNNING = "MUTATION_RUNNING"
#: Names a file with the mutations, and the descriptor of where the answers go.
WORK, ANSWERS = "MUTATION_WORK", "MUTATION_ANSWERS"
NO_END, PASSED = "no end", "passed"
#: For one test without a mutation.
CHECK_SECONDS = 300.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if RUNNING not in os.environ:
        return (yield)
    counting = coverage.Coverage.current()
    if counting is not None:
        counting.switch_context(item.nodeid)
    kept = Path(os.environ[RUNNING])
    (kept / f"{os.getpid()}.test").write_text(item.nodeid)
    began = time.monotonic()
    try:
        return (yield)
    finally:
        with (kept / f"{os.getpid()}.seconds").open("a") as file:
            file.write(f"{time.monotonic() - began:.3f} {item.nodeid}\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    if WORK not in os.environ:
        return None
    judge = _Judge(session)
    with os.fdopen(int(os.environ[ANSWERS]), "w") as answers:
        for mutation in json.loads(Path(os.environ[WORK]).read_text()):
            by, ran = judge.noticed(mutation)
            answers.write(json.dumps([mutation["number"], by, ran]) + "\n")
            answers.flush()
    return True


class _Judge:
    def __init__(self, session: pytest.Session) -> None:
        self._root = session.config.rootpath
        self._items: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            # What is named without its parameters, or its test, is meant with all of them.
            test = item.nodeid
            for name in {test, test.partition("[")[0], test.partition("::")[0]}:
                self._items.setdefault(name, []).append(item)
        #: Tests that failed with a mutation, and pass or fail without any.
        self._sound: set[str] = set()
        self._broken: set[str] = set()
        self._writes = 0
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        gc.unfreeze()  # what the end of collecting has frozen is not among the objects
        for each in gc.get_objects():
            if isinstance(each, FunctionType):
                self._functions.setdefault(_place(each.__code__), []).append(each)
        gc.freeze()  # or every process would look at all that, and copy it

    def noticed(self, mutation: dict[str, Any]) -> tuple[str | None, int]:
        """The test that fails with it, and not without; and how many were run."""
        ran = 0
        for names, seconds in mutation["batches"]:
            while True:
                found = (item for name in names for item in self._items.get(name, []))
                items = [item for item in found if item.nodeid not in self._broken]
                by = self._run_changed(items, mutation, seconds) if items else None
                if by in self._items and by not in self._sound:
                    if self._run(self._items[by], None, CHECK_SECONDS) is not None:
                        self._broken.add(by)
                        continue
                    self._sound.add(by)
                break
            ran += len(items)
            if by is not None:
                return by, ran
        return None, ran

    def _run_changed(
        self, items: Sequence[pytest.Item], mutation: dict[str, Any], seconds: float
    ) -> str | None:
        path = self._root / mutation["path"]
        before = path.read_text()
        self._write(path, mutation["source"])
        try:
            return self._run(items, (path, before, mutation["source"]), seconds)
        finally:
            self._write(path, before)

    def _write(self, path: Path, source: str) -> None:
        """With a time of its own, by which Python knows that it must compile it again."""
        path.write_text(source)
        self._writes += 1
        os.utime(path, (self._writes, self._writes))

    def _run(
        self, items: Sequence[pytest.Item], change: tuple[Path, str, str] | None, seconds: float
    ) -> str | None:
        """In a process of its own: the first that fails, or ``no end``."""
        answer, theirs = os.pipe()
        process = os.fork()
        if not process:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            try:
                if change is not None:
                    self._change_functions(*change)
                by = _first_that_fails(items)
            except BaseException as error:
                by = f"{type(error).__name__} instead of tests"
            os.write(theirs, (by or PASSED).encode())
            os._exit(0)
        os.close(theirs)
        try:
            readable, _, _ = select.select([answer], [], [], seconds)
            by = os.read(answer, 10_000).decode() or "its process died" if readable else NO_END
            return None if by == PASSED else by
        finally:
            os.close(answer)
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)

    def _change_functions(self, path: Path, before: str, after: str) -> None:
        found = _codes(compile(after, path, "exec", dont_inherit=True))
        codes = {_place(code): code for code in found}
        functions = zip(_outermost(ast.parse(before)), _outermost(ast.parse(after)), strict=True)
        for old, new in functions:
            if ast.dump(old) != ast.dump(new):
                for each in self._functions.get((str(path), *_begins(old)), []):
                    each.__code__ = codes[str(path), *_begins(new)]


def _first_that_fails(items: Sequence[pytest.Item]) -> str | None:
    failed: list[str] = []

    class Watch:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid)

    items[0].config.pluginmanager.register(Watch())
    for item, after in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        if failed:
            return failed[0]
    return None


def _outermost(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
        else:
            yield from _outermost(child)


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_name, code.co_firstlineno


def _begins(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, int]:
    """As its code has it."""
    return function.name, min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


if __name__ == "__main__":
    sys.exit("pytest -p tests.mutation.plugin")
