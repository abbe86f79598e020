"""Imports of gfs and control go one way, and into a room only through its door; those for
types alone too.

The contracts in pyproject.toml say which room is above which (``lint-imports``); they pass
over imports for types. A reader walks those as well.

A *room* is a package below ``gfs`` or ``control``. Its *door* is the ``__all__`` of its
``__init__``: names, and modules whose own names are open to all. A room within a room is
entered through the outer one's door by those outside of that. Tests may look into a room.

A class that has grown large is several: :func:`test_no_class_is_large`. A table is written in the
room that declares its rows: :func:`test_a_room_writes_its_own_tables_alone`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import operator
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from control.identity import rows as identity_rows
from control.identity import users as people
from control.records import Table
from control.storage import rows

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


def test_no_modules_import_one_another() -> None:
    """A CycleError names those that do."""
    paths = modules()
    names = set(paths)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    TopologicalSorter({name: imported(tree, names) for name, tree in trees.items()}).prepare()


class Door(NamedTuple):
    """Of a room: the names it binds, and the modules it lists."""

    names: frozenset[str]
    modules: frozenset[str]


def door(tree: ast.Module) -> Door:
    listed: list[str] = []
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            bound.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    assert listed == sorted(listed, key=_constants_first), "__all__ is sorted"
    return Door(frozenset(listed) & bound, frozenset(listed) - bound)


def _constants_first(name: str) -> tuple[int, str]:
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


def past_doors(
    importer: str, tree: ast.AST, rooms: Mapping[str, Door], names: set[str]
) -> Iterator[str]:
    """What ``importer`` imports out of rooms that it is not in, and that no door offers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            asked = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in asked:
            place = f"{module}.{name}" if f"{module}.{name}" in names else module
            around = [
                room
                for room in rooms
                if f"{place}.".startswith(f"{room}.") and not f"{importer}.".startswith(f"{room}.")
            ]
            if not around:
                continue
            room = min(around, key=len)
            inside = place.removeprefix(room).strip(".").split(".")
            offered = (
                inside == [""]
                if isinstance(node, ast.Import)
                else name in rooms[room].names and module == room
            )
            if not offered and (len(inside) > 1 or inside[0] not in rooms[room].modules):
                yield f"{importer}: {module} {name}".strip()


def test_rooms_are_entered_through_their_doors() -> None:
    paths = modules()
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    rooms = {
        name: door(tree)
        for name, tree in trees.items()
        if paths[name].name == "__init__.py" and "." in name and name != "gfs.testing"
    }
    for name, (offered, listed) in rooms.items():
        assert offered or listed, f"{name} has no door: say in its __all__ what others may use"
        missing = {each for each in listed if f"{name}.{each}" not in paths}
        assert not missing, f"{name} lists {missing}, which it has not"
        twice = {each for each in offered if f"{name}.{each}" in paths}
        assert not twice, f"{name}: {twice} are modules and something else"
    found = [
        past for name, tree in trees.items() for past in past_doors(name, tree, rooms, {*paths})
    ]
    assert not found, "imports past a door:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("importer", "line", "is_past"),
    [
        ("gfs.a.x", "from gfs.room import name", False),
        ("gfs.a.x", "from gfs.room import listed", False),
        ("gfs.a.x", "from gfs.room.listed import anything", False),
        ("gfs.a.x", "import gfs.room", False),
        ("gfs.room.y", "from gfs.room.hidden import anything", False),
        ("gfs.room.inner.y", "from gfs.room.hidden import anything", False),
        ("gfs.room.y", "from gfs.room.inner import deep", False),
        ("gfs.a.x", "from gfs.room import unlisted", True),
        ("gfs.a.x", "from gfs.room import hidden", True),
        ("gfs.a.x", "from gfs.room.hidden import anything", True),
        ("gfs.a.x", "import gfs.room.hidden", True),
        ("gfs.a.x", "from gfs.room.inner import deep", True),
        ("gfs.room.y", "from gfs.room.inner.z import anything", True),
    ],
)
def test_what_goes_past_a_door(importer: str, line: str, is_past: bool) -> None:
    rooms = {
        "gfs.room": door(ast.parse("from gfs.room.z import name\n__all__ = ['listed', 'name']")),
        "gfs.room.inner": door(ast.parse("from z import deep\n__all__ = ['deep']")),
    }
    names = {
        *("gfs.room", "gfs.room.listed", "gfs.room.hidden", "gfs.room.inner", "gfs.room.inner.z")
    }
    assert bool(list(past_doors(importer, ast.parse(line), rooms, names))) == is_past


WRITES = {"copy_index", "copy_row", "delete", "insert", "put", "reindex"}


def written_elsewhere(tree: ast.AST, module: ModuleType) -> Iterator[str]:
    """Where a module names the method that writes a table of another room, or writes in a
    transaction what no name of its own tells to be a table."""
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in WRITES:
            continue
        place = f"{module.__name__}:{node.lineno} {ast.unparse(node)}"
        try:
            found = operator.attrgetter(ast.unparse(node.value))(module)
        except AttributeError:
            named = [node.value, *(calls[node].args if node in calls else [])]
            if "txn" in map(ast.unparse, named):
                yield place
        else:
            if isinstance(found, Table) and room_of(found.row.__module__) != room_of(
                module.__name__
            ):
                yield place


def room_of(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_a_room_writes_its_own_tables_alone() -> None:
    """Others call a function of the owner, which knows what else must change with a row."""
    found = [
        each
        for name, path in modules().items()
        # Those two are below the tables, and write keys and bytes.
        if room_of(name) not in {"control.records", "control.volatile"} and "control." in name
        for each in written_elsewhere(
            ast.parse(path.read_text(encoding="utf-8")), importlib.import_module(name)
        )
    ]
    assert not found, "tables of other rooms:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "is_elsewhere"),
    [
        ("spaces.put(txn, space)", False),
        ("partial(rows.spaces.put, row=space)", False),
        ("people.delete(txn, user_id, [])", False),
        ("await fs.delete(path)", False),
        ("users.get(txn, user_id)", False),
        ("users.delete(txn, user_id)", True),
        ("partial(users.put, row=user)", True),
        ("identity_rows.users.insert(txn, user)", True),
        ("self.table.put(txn, row)", True),
        ("txn.put(users, key, data)", True),
    ],
)
def test_what_writes_a_table_of_another_room(line: str, is_elsewhere: bool) -> None:
    here = ModuleType("control.storage.here")
    here.__dict__.update(rows=rows, spaces=rows.spaces, people=people)
    here.__dict__.update(identity_rows=identity_rows, users=identity_rows.users)
    assert bool(list(written_elsewhere(ast.parse(line), here))) == is_elsewhere


METHODS_MAX, ATTRIBUTES_MAX = 30, 20
#: The classes that are larger yet, with their methods and attributes: a number here only goes
#: down.
LARGER = {
    # Records of fields, with a few methods that check them.
    "gfs.config.MasterSettings": (2, 29),
    "control.settings.ControlSettings": (6, 30),
    "control.compute.settings.ComputeSettings": (2, 21),
    "control.compute.rows.Container": (3, 22),
}


def size(found: ast.ClassDef) -> tuple[int, int]:
    """How many methods it has, and attributes, wherever it sets them."""
    methods = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in found.body)
    names = {node.target.id for node in found.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    for node in ast.walk(found):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return methods, len(names)


def test_no_class_is_large() -> None:
    """A record of fields, which has no methods, may have any number of them."""
    found = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                methods, attributes = size(node)
                if methods > METHODS_MAX or (methods and attributes > ATTRIBUTES_MAX):
                    found[f"{name}.{node.name}"] = methods, attributes
    assert found == LARGER, "cut a class along what it does"


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: path.stem)
def test_measurements_import_names_that_exist(path: Path) -> None:
    """Nobody but their users runs them, and mypy does not read them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(("gfs.", "control.")):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(inner), inner
