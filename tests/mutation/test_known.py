"""The mistakes of ``known.toml`` still fit the source, and what is drawn can be run.
(``make mutants-code`` runs the tests with them.)"""

from __future__ import annotations

import ast

import pytest

from . import ROOMS, ROOT, Known, drawn, known
from .covering import batches


@pytest.mark.parametrize("each", known(), ids=lambda each: each.mistake)
def test_every_mistake_fits(each: Known) -> None:
    mutation = each.mutation()
    assert mutation.source != (ROOT / mutation.path).read_text()
    for test in each.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / "tests" / path).read_text()


def test_what_is_drawn_is_the_same_each_time_and_python() -> None:
    found = drawn("gfs/cli", 20, seed=1)
    assert found == drawn("gfs/cli", 20, seed=1)
    assert len({(each.path, each.line) for each in found}) == 20
    for each in found:
        compile(each.source, each.path, "exec")
        before = (ROOT / each.path).read_text()
        assert ast.dump(ast.parse(each.source)) != ast.dump(ast.parse(before))


def test_every_room_is_there() -> None:
    assert all((ROOT / room).is_dir() for room in ROOMS)


def test_some_tests_of_each_file_run_before_more_of_one() -> None:
    seconds = {"a::1": 1.0, "a::2": 2.0, "b::1": 5.0, "b::2": 6.0, "c::1": 250.0, "d::1": 50.0}
    found = [tests for tests, _ in batches(set(seconds) - {"d::1"}, {"d::1"}, seconds)]
    assert found == [["a::1", "b::1"], ["c::1", "a::2", "b::2"]]  # d::1 would be too much
    assert batches({"c::1"}, set(), {"c::1": 1000.0})[0][0] == ["c::1"]
    assert batches(set(), set(), seconds) == []


def test_a_statement_of_several_lines_is_run_where_it_begins() -> None:
    for each in drawn("gfs/client", 40, seed=1):
        assert each.line in each.lines
        source = (ROOT / each.path).read_text().splitlines()
        assert source[each.lines[0] - 1].strip()
