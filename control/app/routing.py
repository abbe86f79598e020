"""The routes that are served: found by method and path, and checked when they are added.

A route that cannot work is an error at the start, in one line that names its module's
package, instead of a later error in a request of a user.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import cast

import msgspec
from quart.wrappers import Request
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, Map, PathConverter, Rule, UnicodeConverter

from control.api import Content, Module, Need, Route, ScopeTable
from control.installed import OURS, blamed, package_of
from control.paths import ANY_SEGMENT, KINDS, PARAMETER
from gfs.errors import StartupError
from gfs.packages import clash

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: Text and parameters between slashes.
_PATH = re.compile(r"(?:/(?:[^/{}<>?#%\s]|\{\w+(?::\w+)?\})*)+")


class Routes:
    """The routes of a process.

    Args:
        modules: the modules that are served.
        scopes: the scopes of all installed modules.

    Attributes:
        table: every route, with the name of its module.
        kinds: the regular expression of each kind of path parameter.
    """

    def __init__(self, modules: Sequence[Module], scopes: ScopeTable) -> None:
        self.table: list[tuple[str, Route]] = []
        self.kinds = dict(KINDS)
        for module in modules:
            self.kinds.update(module.parameter_kinds)
        self._owners = {module.name: type(module) for module in modules}
        self._scopes = scopes
        self._shapes: dict[tuple[str, str], str] = {}
        self._map = Map(strict_slashes=False, merge_slashes=False)
        self._map.converters = {
            "default": UnicodeConverter,
            **{kind: _converter(pattern) for kind, pattern in self.kinds.items()},
            "path": PathConverter,
        }
        self._router = self._map.bind("")

    def add(self, module: str, route: Route) -> None:
        """Add a route. Raises StartupError if it cannot work or exists already."""
        owner = self._owners.get(module, OURS)
        if not isinstance(route, Route):
            raise StartupError(f"{package_of(owner)}: routes() returns {route!r}: no Route")
        called = f"the route {route.method} {route.path}"
        with blamed(owner, called):
            if complaint := self._complaint(route):
                raise StartupError(f"{package_of(owner)}: {called}: {complaint}")
        shape = route.method, self._shape(route.path)
        if (other := self._shapes.get(shape)) is not None:
            raise clash(called, package_of(self._owners.get(other, OURS)), package_of(owner))
        self._shapes[shape] = module
        rule = PARAMETER.sub(lambda found: f"<{found[2] or 'default'}:{found[1]}>", route.path)
        self._map.add(Rule(rule, methods=[route.method], endpoint=str(len(self.table))))
        self.table.append((module, route))

    def find(self, request: Request) -> tuple[Route | None, dict[str, str]]:
        """The route and its parameters; None for OPTIONS. Raises HTTPException."""
        method = request.method
        if method == "OPTIONS":
            return None, {}
        endpoint, params = self._router.match(_path_of(request), method=method)
        return self.table[int(endpoint)][1], cast(dict[str, str], params)

    def name(self, route: Route | None) -> str:
        """The name of a request for ``route`` in logs."""
        for module, each in self.table:
            if each is route:
                return f"{each.method} {each.path} of the module {module!r}"
        return "a request"

    def methods(self, request: Request) -> list[str]:
        """The methods of its path. Raises HTTPException if there is no such path."""
        path = _path_of(request)
        methods = self._router.allowed_methods(path)
        if not methods:
            self._router.match(path, method="GET")
        return sorted({*methods, "OPTIONS"})

    def _shape(self, path: str) -> str:
        """``path`` without the parts that do not distinguish routes: names of parameters and of
        their kinds, and a slash at the end."""

        def pattern(found: re.Match[str]) -> str:
            return "{" + (self.kinds[found[2]] if found[2] else ANY_SEGMENT) + "}"

        return PARAMETER.sub(pattern, path).rstrip("/")

    def _complaint(self, route: Route) -> str:
        """What is wrong with ``route`` itself; "" if nothing is."""
        if route.method not in METHODS:
            return (
                f"the method must be one of {', '.join(METHODS)}; HEAD comes with GET, and "
                "OPTIONS with every path"
            )
        if not _PATH.fullmatch(route.path):
            return "a path begins with / and has parameters as {name} or {name:kind}"
        parameters = [found[1] for found in PARAMETER.finditer(route.path)]
        for found in PARAMETER.finditer(route.path):
            if found[2] and found[2] not in self.kinds:
                return f"there is no kind {found[2]!r} of path parameters: {', '.join(self.kinds)}"
            if parameters.count(found[1]) > 1:
                return f"the parameter {found[1]!r} is there twice"
        if not isinstance(route.need, Need):
            return "need must be PUBLIC, LOGGED_IN, scoped(…) or another Need"
        return self._wrong_scope(route, parameters) or self._wrong_types(route)

    def _wrong_scope(self, route: Route, parameters: Sequence[str]) -> str:
        need = route.need
        if not need.root:
            return ""
        if need.action not in self._scopes.get(need.root, {}).get(need.resource, ()):
            return (
                f"no token can have the scope {need.scope!r} of its need: declare it in the "
                "module's scopes"
            )
        names = {*parameters, *(route.query.__struct_fields__ if route.query else ())}
        if need.parameter and need.parameter not in names:
            return f"{need.parameter!r} of its need is no parameter of the path or the query"
        return ""

    def _wrong_types(self, route: Route) -> str:
        body = route.body
        has_body = isinstance(body, type) and issubclass(body, msgspec.Struct)
        if not (body is None or has_body or isinstance(body, Content)):
            return "body must be a Struct or a Content"
        try:
            inspect.signature(route.handler).bind(*[None] * (1 + has_body))
        except TypeError:
            return f"the handler must take {'(call, body)' if has_body else '(call) alone'}"
        for kind in (body, route.query, route.answer):
            if kind is not None and not isinstance(kind, Content):
                msgspec.json.schema(kind)  # raises TypeError for types that it does not know
        return ""


def _path_of(request: Request) -> str:
    """The path as it was sent. Raises NotFound for one that begins with two slashes: Werkzeug
    would take them for one, so that a rule of a proxy about ``/metrics`` could be evaded."""
    path: str = request.scope["path"]
    if path.startswith("//"):
        raise NotFound
    return path


def _converter(pattern: str) -> type[BaseConverter]:
    """The converter of parameters that match ``pattern`` and stay text."""
    return type("Kind", (BaseConverter,), {"regex": pattern})
