"""The mistakes of ``known.toml`` still fit the source, and what is drawn can be run.
(``make mutants-code`` runs the tests with them.)"""

from __future__ import annotations

import ast

import pytest

from . import ROOMS, ROOT, Known, drawn, known


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


def test_every_room_and_its_tests_are_there() -> None:
    for room, groups in ROOMS.items():
        assert (ROOT / room).is_dir()
        assert all(list((ROOT / "tests").glob(path)) for group in groups for path in group)
