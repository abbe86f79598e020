"""The modules that are installed, and whether they can be served together.

Two packages may take the same name for a module, a scope, a schema of rows, a kind of path
parameter, a route or settings. The second would silently replace or extend the first, so
this is an error at the start that names both. An invalid declaration is an error at the
start, too, so that a module's author notices it before the first request.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from msgspec.structs import fields

from control.api import Module, QuotaUsage, Schema, Settings, StartupError
from control.api.internals import SYSTEM
from control.identity.rows import IDENTITY
from control.paths import KINDS
from control.quota.limits import QUOTA, Limits
from gfs.config import ROLES, TEST_PREFIX, VARIABLES
from gfs.errors import GfsError
from gfs.packages import clash, describe

GROUP = "gfs.control.modules"
#: The entry points of tables of settings that belong to no module.
SETTINGS_GROUP = "gfs.settings"
OURS = "the control plane itself"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
#: In a scope, whose parts are separated by dots.
_PART = re.compile(r"[A-Za-z0-9_-]+")


def discover() -> dict[str, type[Module]]:
    """Every installed module by its name.

    Raises StartupError for one that cannot be loaded, and for two that clash.
    """
    points: dict[str, EntryPoint] = {}
    found: dict[str, type[Module]] = {}
    for point in entry_points(group=GROUP):
        other = points.setdefault(point.name, point)
        if other is not point:
            raise clash(f"the module {point.name!r}", describe(other), describe(point))
        with blamed(describe(point), "it cannot be loaded"):
            kind = point.load()
        if not (isinstance(kind, type) and issubclass(kind, Module)) or kind.name != point.name:
            raise StartupError(
                f"{describe(point)} is not a subclass of control.api.Module with the name "
                f"{point.name!r}, as its entry point says"
            )
        found[point.name] = kind
    check_clashes([*found.values()])
    return found


def choose(names: Iterable[str], installed: dict[str, type[Module]]) -> list[type[Module]]:
    """The modules of these names; all that are installed if there are none."""
    wanted = list(dict.fromkeys(names)) or sorted(installed)
    for name in wanted:
        if name not in installed:
            known = ", ".join(sorted(installed)) or "none"
            raise StartupError(f"no control-plane module {name!r} is installed, only: {known}")
    return [installed[name] for name in wanted]


def check_clashes(modules: Sequence[type[Module]]) -> None:
    """Raises StartupError if two of ``modules`` define the same name, or one defines a name of
    ours, or if a declaration is invalid.

    Routes are checked where they are added: a process serves some modules alone.
    """
    taken: dict[tuple[str, object], str | type[Module]] = {
        ("the module", SYSTEM): OURS,
        **{("the schema", schema.name): OURS for schema in (IDENTITY, QUOTA)},
        **{("the kind of path parameter", kind): OURS for kind in KINDS},
        **{("the quota usage of", name): OURS for name in ("bytes", "files")},
    }
    settings: dict[str, str | type[Module]] = dict.fromkeys((*ROLES, "control"), OURS)
    for point in entry_points(group=SETTINGS_GROUP):
        _take_settings(settings, point.name, describe(point))
    for kind in modules:
        if complaint := _complaint(kind):
            raise StartupError(f"{package_of(kind)}: {complaint}")
        for what, thing, name in _things(kind):
            if (owner := taken.get((what, thing))) is not None:
                raise clash(f"{what} {name!r}", package_of(owner), package_of(kind))
            taken[what, thing] = kind
        _take_settings(settings, kind.name, kind)


def _complaint(kind: type[Module]) -> str:
    """What is wrong with the declaration of ``kind`` itself; "" if nothing is."""
    if not (isinstance(kind.name, str) and _NAME.fullmatch(kind.name)):
        return (
            f"{kind.name!r} cannot be a module's name: use at most 32 of a-z, 0-9 and _, "
            "a letter first"
        )
    if not isinstance(kind.scopes, Mapping):
        return "scopes must be a ScopeTable: {root: {resource: frozenset of actions}}"
    for part in (*kind.scopes, *(each for table in kind.scopes.values() for each in table)):
        if not _PART.fullmatch(part):
            return f"the scope {part!r} must be made of letters, digits, - and _ alone"
    if not _is_all(kind.schemas, Schema):
        return "schemas must be a list or tuple of Schema"
    if not (isinstance(kind.settings_kind, type) and issubclass(kind.settings_kind, Settings)):
        return "settings_kind must be a subclass of Settings"
    if not isinstance(kind.parameter_kinds, Mapping):
        return "parameter_kinds must be a mapping of names to regular expressions"
    for name, pattern in kind.parameter_kinds.items():
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            return f"the kind of path parameter {name!r} is not a regular expression: {error}"
        if groups:
            return f"the kind of path parameter {name!r} has a group: write (?:…)"
    limits = {field.name for field in fields(Limits)}
    if kind.usage is not None and not (
        isinstance(kind.usage, QuotaUsage) and limits.issuperset(kind.usage.names)
    ):
        return f"usage must be a QuotaUsage of some of {', '.join(sorted(limits))}"
    return ""


def _is_all(things: object, kind: type) -> bool:
    return isinstance(things, Sequence) and all(isinstance(each, kind) for each in things)


def _things(kind: type[Module]) -> Iterator[tuple[str, object, str]]:
    """The names that ``kind`` defines and no other module may: what, which, and its text."""
    yield "the module", kind.name, kind.name
    yield from (("the scope", root, root) for root in kind.scopes)
    for schema in kind.schemas:
        yield "the schema", schema.name, schema.name
        yield from (("the table", table, table.name) for table in schema.tables)
    yield from (("the kind of path parameter", each, each) for each in kind.parameter_kinds)
    if kind.usage is not None:
        yield from (("the quota usage of", each, each) for each in kind.usage.names)


def _take_settings(
    taken: dict[str, str | type[Module]], table: str, owner: str | type[Module]
) -> None:
    """Add ``table`` to the tables of settings that are ``taken``.

    Raises StartupError if another has it, or if the variables of one begin like those of
    another, since each refuses unknown variables that begin like its own.
    """
    prefix = f"GFS_{table}_".upper()
    for variable in (*VARIABLES, TEST_PREFIX):
        if variable.startswith(prefix):
            raise clash(f"the environment variable {variable}", OURS, package_of(owner))
    for other, its_owner in taken.items():
        shorter, longer = sorted((prefix, f"GFS_{other}_".upper()), key=len)
        if longer.startswith(shorter):
            what = f"the environment variable {longer}*"
            raise clash(what, package_of(its_owner), package_of(owner))
    taken[table] = owner


def package_of(owner: str | type[Module]) -> str:
    """The package that a module was installed with, for messages; or else the place where it
    is defined. The name of a package is returned unchanged."""
    if isinstance(owner, str):
        return owner
    value = f"{owner.__module__}:{owner.__qualname__}"
    for point in entry_points(group=GROUP):
        if point.name == owner.name and point.value.partition(":")[2] == owner.__qualname__:
            return describe(point)
    return value


@contextmanager
def blamed(owner: str | type[Module], what: str) -> Iterator[None]:
    """Translate an error in the block, which ``owner``, a package or a module, has caused, to
    a StartupError that says ``what`` went wrong, and where. A GfsError stays as it is."""
    try:
        yield
    except GfsError:
        raise
    except (Exception, SystemExit) as error:
        raise StartupError(f"{package_of(owner)}: {what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """A mistake in a module in one line, with its place; GFS_DEBUG=1 shows the rest."""
    place = ""
    if frames := traceback.extract_tb(error.__traceback__):
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
