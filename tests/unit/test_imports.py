"""Imports of gfs and control go one way: between modules too, for types alone too.

The contracts in pyproject.toml say which room is above which (``lint-imports``); they pass
over imports for types. A reader walks those as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    found = {}
    for package in ("gfs", "control"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """What of ``names`` a module's import statements name, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield node.module


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules each of which reaches each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            members = frozenset(stack[at:])
            del stack[at:]
            if len(members) > 1 or name in graph[name]:
                found.add(members)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_one_another() -> None:
    paths = modules()
    names = set(paths)
    found = circles(
        {
            name: set(imported(ast.parse(path.read_text(encoding="utf-8")), names))
            for name, path in paths.items()
        }
    )
    assert not found, f"circles of imports: {[sorted(each) for each in found]}"


@pytest.mark.parametrize(
    ("arrows", "expected"),
    [
        ({"a": "b", "b": ""}, []),
        ({"a": "b", "b": "a"}, ["ab"]),
        ({"a": "a"}, ["a"]),
        ({"a": "b", "b": "c", "c": "ad", "d": ""}, ["abc"]),
        ({"a": "b", "b": "a", "c": "ad", "d": "c"}, ["ab", "cd"]),
    ],
)
def test_circles_are_found(arrows: dict[str, str], expected: list[str]) -> None:
    graph = {name: set(others) for name, others in arrows.items()}
    assert circles(graph) == {frozenset(each) for each in expected}
