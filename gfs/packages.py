"""What other packages add by entry points: what to call it for people, and clashes of names.

Two packages may take the same name for a thing. Whichever came second would silently replace
or extend the first: so it is an error that names both.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint

from gfs.errors import StartupError


def describe(point: EntryPoint) -> str:
    """The package that ``point`` is of, and what it names there."""
    return f"{point.dist.name} {point.dist.version} ({point.value})" if point.dist else point.value


def clash(what: str, one: str, other: str) -> StartupError:
    """The error that the packages ``one`` and ``other`` both define ``what``, a singular."""
    if one == other:
        return StartupError(f"{what} is defined twice by {one}: rename one of the two")
    return StartupError(
        f"{what} is defined by {one} and by {other}: uninstall one of them, or rename it there"
    )
