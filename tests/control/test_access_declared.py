"""Every route says who may use it, in words the application knows.

The walk is over all installed modules, so a route that is added without a thought
about access fails here. What anybody may use without a credential is a list in this
file: adding to it is a decision somebody has to look at.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.api import Call, Route
from control.identity.access import (
    ADMIN,
    ANYBODY,
    LOGGED_IN,
    PUBLIC,
    SERVICE,
    SESSION,
    Need,
    admins,
    scoped,
)
from control.identity.scopes import ScopeTable
from control.installed import discover
from control.testing import make_app

#: Reviewed: these answer the same to everybody, or are how one gets a credential.
REVIEWED_AS_PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/docs/{file}"),
    ("GET", "/console/{file}"),
    ("POST", "/api/login"),  # gives the credential
    ("POST", "/api/logout"),  # ends nothing but the session that is presented
    ("GET", "/storage/status"),  # two counts
    ("GET", "/share/{id}"),  # its secret is the credential
}
#: Reviewed: anonymous requests come in, and what they are about decides.
REVIEWED_AS_OPEN_METHODS = {"GET"}

KINDS = {"public", "anybody", "logged_in", "session", "admin", "service", "scoped"}


def problems(route: Route, scopes: ScopeTable) -> list[str]:
    """What is wrong with how ``route`` declares its access; empty if nothing is."""
    need = route.need
    if not isinstance(need, Need) or need.kind not in KINDS:
        return [f"declares no need but {need!r}"]
    found = []
    if need.kind in ("public", "anybody") and (route.method, route.path) not in REVIEWED_AS_PUBLIC:
        found.append("is public, and nobody has reviewed that")
    if need.is_open and route.method not in REVIEWED_AS_OPEN_METHODS:
        found.append("changes something and lets anonymous requests in")
    if need.kind == "scoped" or need.root:
        found += scope_problems(need, scopes)
    asks = need.kind == "scoped" or (need.kind == "admin" and need.root)
    if not asks and (need.root or need.is_open or need.parameter):
        found.append("names parts of a scope and does not ask for it")
    if need.parameter and need.parameter not in parameters(route):
        found.append(f"takes the scope's last part from {need.parameter!r}, which it does not have")
    if not inspect.iscoroutinefunction(route.handler):
        found.append("has a handler that is not async")
    return found


def scope_problems(need: Need, scopes: ScopeTable) -> list[str]:
    if need.root not in scopes:
        return [f"asks for a scope of {need.root!r}, which no module defines"]
    if need.resource not in scopes[need.root]:
        return [f"asks for {need.root}.{need.resource}, which no module defines"]
    if need.action not in scopes[need.root][need.resource]:
        return [f"asks for {need.action!r} on {need.root}.{need.resource}, which is no action"]
    return []


def parameters(route: Route) -> set[str]:
    """The names of what the path and the query give."""
    names = set(re.findall(r"\{(\w+)", route.path))
    if route.query is not None:
        names |= {field.encode_name for field in msgspec.structs.fields(route.query)}
    return names


def test_every_route_declares_who_may_use_it(tmp_path: Path) -> None:
    app = make_app(tmp_path, *discover().values())
    found = [
        f"{module}: {route.method} {route.path} {problem}"
        for module, route in app.table
        for problem in problems(route, app.control.scopes)
    ]
    assert found == []
    served = {"auth", "cluster", "compute", "console", "health", "s3", "storage", "system"}
    assert {module for module, _ in app.table} == served


def test_what_is_reviewed_still_exists(tmp_path: Path) -> None:
    """An entry for a route that is gone would let another in under its name."""
    app = make_app(tmp_path, *discover().values())
    assert {(route.method, route.path) for _, route in app.table} >= REVIEWED_AS_PUBLIC


def test_a_route_cannot_leave_its_need_out() -> None:
    assert fields_without_default() >= {"method", "path", "handler", "need"}
    with pytest.raises(TypeError, match="need"):
        Route("GET", "/x", handler, summary="Forgets its need")  # type: ignore[call-arg]


def fields_without_default() -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(Route)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


SCOPES: ScopeTable = {"shop": {"goods": frozenset({"read", "buy"})}}


class Which(msgspec.Struct):
    shelf: str = ""


async def handler(call: Call) -> None:
    """Never called."""


def not_async(call: Call) -> Any:
    """Never called."""


def route(need: Any, method: str = "GET", path: str = "/shop/{item}", **more: Any) -> Route:
    return Route(method, path, more.pop("handler", handler), need, "A route", **more)


@pytest.mark.parametrize(
    "good",
    [
        route(LOGGED_IN),
        route(SESSION),
        route(ADMIN),
        route(SERVICE),
        route(PUBLIC, path="/healthz"),
        route(admins("shop", "goods", "buy"), "POST"),
        route(scoped("shop", "goods", "read")),
        route(scoped("shop", "goods", "read", parameter="item", is_open=True)),
        route(scoped("shop", "goods", "buy", parameter="shelf"), "POST", query=Which),
    ],
)
def test_a_good_route_passes(good: Route) -> None:
    assert problems(good, SCOPES) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (route(None), "declares no need"),
        (route("session"), "declares no need"),
        (route(Need("nobody")), "declares no need"),
        (route(PUBLIC), "nobody has reviewed"),
        (route(ANYBODY), "nobody has reviewed"),
        (route(PUBLIC, "DELETE", "/healthz"), "nobody has reviewed"),
        (route(scoped("market", "goods", "read")), "no module defines"),
        (route(scoped("shop", "people", "read")), "no module defines"),
        (route(admins("shop", "people", "read")), "no module defines"),
        (route(scoped("shop", "goods", "steal")), "no action"),
        (route(scoped("shop", "goods", "read", parameter="shelf")), "does not have"),
        (route(scoped("shop", "goods", "buy", is_open=True), "POST"), "lets anonymous"),
        (route(Need("session", is_open=True)), "does not ask for it"),
        (route(SESSION, handler=not_async), "not async"),
    ],
)
def test_a_bad_route_is_reported(bad: Route, words: str) -> None:
    (problem,) = problems(bad, SCOPES)
    assert words in problem
