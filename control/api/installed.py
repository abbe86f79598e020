"""The modules that are installed, and whether they can be served together.

Two packages may take the same name for a module, a scope, a schema of rows, a kind of path
parameter or a route, or a table of settings that is another's. Whichever came second would
silently replace or extend the first: so it is an error at the start that names both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points

from werkzeug.routing import Map

from control.api.module import Module
from control.identity.rows import IDENTITY
from control.quota import QUOTA
from gfs.config import ROLES
from gfs.errors import StartupError

GROUP = "gfs.control.modules"
#: Tables of settings that are no module's.
SETTINGS_GROUP = "gfs.settings"
OURS = "the control plane itself"
#: The module of the routes of health, metrics and documentation.
SYSTEM = "system"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def discover() -> dict[str, type[Module]]:
    """Every installed module by its name.

    Raises StartupError for one that cannot be loaded, and for two of one name.
    """
    points: dict[str, EntryPoint] = {}
    found: dict[str, type[Module]] = {}
    for point in entry_points(group=GROUP):
        other = points.setdefault(point.name, point)
        if other is not point:
            raise clash(f"a module {point.name!r}", _describe(other), _describe(point))
        try:
            kind = point.load()
        except Exception as error:
            raise StartupError(
                f"control-plane module {point.name!r} ({point.value}) cannot be loaded: {error}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Module)) or kind.name != point.name:
            raise StartupError(f"{point.value} is not a control-plane module named {point.name!r}")
        found[point.name] = kind
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
    """Raises StartupError if two of ``modules`` define one thing, or one what is ours.

    Routes are compared where they are added: a process serves some modules alone.
    """
    tables = [*ROLES, "control", *(point.name for point in entry_points(group=SETTINGS_GROUP))]
    taken: dict[tuple[str, object], str] = {
        ("the module", SYSTEM): OURS,
        **{("the rows", schema.name): OURS for schema in (IDENTITY, QUOTA)},
        **{("the settings table", table): OURS for table in tables},
        **{("the kind of path parameter", kind): OURS for kind in Map.default_converters},
    }
    for kind in modules:
        if not _NAME.fullmatch(kind.name):
            raise StartupError(
                f"{package_of(kind)}: {kind.name!r} cannot be a module's name: use at most 32 of "
                "a-z, 0-9 and _, a letter first"
            )
        for thing in _things(kind):
            if thing in taken:
                what, name = thing
                raise clash(f"{what} {name!r}", taken[thing], package_of(kind))
        taken |= dict.fromkeys(_things(kind), package_of(kind))


def _things(kind: type[Module]) -> Iterator[tuple[str, str]]:
    """All that ``kind`` defines and that nobody else may."""
    yield "the module", kind.name
    yield "the settings table", kind.name
    yield from (("the scope", root) for root in kind.scopes)
    yield from (("the rows", schema.name) for schema in kind.schemas)
    yield from (("the kind of path parameter", each) for each in kind.converters)


def package_of(kind: type[Module]) -> str:
    """The package that ``kind`` was installed with, for people; else where it is defined."""
    value = f"{kind.__module__}:{kind.__qualname__}"
    for point in entry_points(group=GROUP):
        if point.name == kind.name and point.value.partition(":")[2] == kind.__qualname__:
            return _describe(point)
    return value


def _describe(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version} ({point.value})" if point.dist else point.value


def clash(what: str, *packages: str) -> StartupError:
    """The error that ``packages`` both define ``what``."""
    both = " and ".join(packages)
    return StartupError(f"{what} is defined by {both}: uninstall one of them, or rename it there")
