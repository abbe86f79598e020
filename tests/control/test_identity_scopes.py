"""Scopes: what a grant covers, never more; what may be granted."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from control.errors import BadRequest
from control.identity.scopes import (
    SCOPE_BYTES_MAX,
    SCOPES_MAX,
    SEED_SCOPES,
    check_grants,
    grants_allow,
    merge,
    split,
)

USER, OTHER = "XyZ123", "abc456"
PAIRS = [(root, resource) for root in SEED_SCOPES for resource in SEED_SCOPES[root]]

#: As storage namespaces are named: dots and all.
names = st.from_regex(r"[A-Za-z0-9._-]{1,16}", fullmatch=True).filter(
    lambda name: name not in (".", "..")
)
pairs = st.sampled_from(PAIRS)


@pytest.mark.parametrize("name", ["\n", "a\x00", "\u00fc", "\u202e", "\ud800"])
def test_a_scope_is_ascii_that_can_be_seen(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_grants(SEED_SCOPES, USER, {f"storage.{USER}.files.{name}": ["read"]})
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable(), "one line"


@st.composite
def wanted(draw: st.DrawFn) -> tuple[str, str, str, str]:
    """root, resource, action, name of what a request asks for."""
    root, resource = draw(pairs)
    action = draw(st.sampled_from(sorted(SEED_SCOPES[root][resource])))
    return root, resource, action, draw(st.just("") | names)


@settings(deadline=None)
@given(wanted())
def test_a_grant_covers_all_that_is_below_it(request: tuple[str, str, str, str]) -> None:
    root, resource, action, name = request
    for scope in (f"{root}.{USER}", f"{root}.{USER}.{resource}"):
        assert grants_allow({scope: [action]}, USER, root, resource, action, name)


@settings(deadline=None)
@given(wanted(), names)
def test_a_grant_covers_nothing_above_it(request: tuple[str, str, str, str], other: str) -> None:
    root, resource, action, name = request
    grants = {f"{root}.{USER}.{resource}.{other}": sorted(SEED_SCOPES[root][resource])}
    allowed = grants_allow(grants, USER, root, resource, action, name)
    assert allowed == (name == other)


@settings(deadline=None)
@given(wanted(), wanted())
def test_a_grant_covers_nothing_beside_it(
    granted: tuple[str, str, str, str], asked: tuple[str, str, str, str]
) -> None:
    root, resource, _, _ = granted
    assume((root, resource) != asked[:2])
    grants = {f"{root}.{USER}.{resource}": sorted(SEED_SCOPES[root][resource])}
    assert not grants_allow(grants, USER, *asked)


@settings(deadline=None)
@given(wanted(), st.sampled_from(["", "resource", "name"]))
def test_what_one_user_grants_is_nothing_to_another(
    request: tuple[str, str, str, str], depth: str
) -> None:
    root, resource, action, name = request
    scope = f"{root}.{OTHER}"
    if depth:
        scope += f".{resource}"
    if depth == "name" and name:
        scope += f".{name}"
    assert not grants_allow({scope: [action]}, USER, *request)


@settings(deadline=None)
@given(wanted())
def test_an_action_grants_itself_and_update_grants_start_and_stop(
    request: tuple[str, str, str, str],
) -> None:
    root, resource, action, name = request
    for given_action in SEED_SCOPES[root][resource]:
        allowed = grants_allow(
            {f"{root}.{USER}.{resource}": [given_action]}, USER, root, resource, action, name
        )
        implied = given_action == "update" and action in ("start", "stop")
        assert allowed == (given_action == action or implied)


@settings(deadline=None)
@given(pairs, names)
def test_a_scope_is_split_three_times_at_most(pair: tuple[str, str], name: str) -> None:
    root, resource = pair
    assert split(f"{root}.{USER}.{resource}.{name}") == (root, USER, resource, name)
    assert split(f"{root}.{USER}.{resource}") == (root, USER, resource, None)
    assert split(f"{root}.{USER}") == (root, USER, None, None)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_what_is_split_can_be_put_together(scope: str) -> None:
    root, owner, resource, name = split(scope)
    parts = [root, owner, *(part for part in (resource, name) if part is not None)]
    joined = ".".join(parts)
    assert joined == scope or (joined == f"{scope}." and "." not in scope)


@settings(deadline=None)
@given(wanted())
def test_what_may_be_granted_is_kept_and_works(request: tuple[str, str, str, str]) -> None:
    root, resource, action, name = request
    scope = f"{root}.{USER}.{resource}" + (f".{name}" if name else "")
    kept = check_grants(SEED_SCOPES, USER, {scope: [action, action]})
    assert kept == {scope: [action]}
    assert grants_allow(kept, USER, root, resource, action, name)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=3)))
def test_check_grants_keeps_or_refuses_and_never_fails(grants: dict[str, list[str]]) -> None:
    kept: dict[str, list[str]] | None = None
    with contextlib.suppress(BadRequest):
        kept = check_grants(SEED_SCOPES, USER, grants)
    if kept is not None:
        assert kept.keys() == grants.keys() != set()
        assert all(split(scope)[1] == USER and actions for scope, actions in kept.items())


@pytest.mark.parametrize(
    "grants",
    [
        {},
        {"storage.abc456.files": ["read"]},
        {"storage.XyZ123.files": []},
        {"storage.XyZ123.files": ["update"]},
        {"storage.XyZ123.files": ["write"]},
        {"storage.XyZ123.files": ["read", "nonsense"]},
        {"storage.XyZ123.files": ["read"], "compute.abc456": ["read"]},
        {"storage.XyZ123x.files": ["read"]},
        {"storage.XyZ123.folders": ["read"]},
        {"compute.XyZ123.keys": ["update"]},
        {"": ["read"]},
        {"storage.XyZ123.files.": ["read"]},
        {"storage.XyZ123.": ["read"]},
        {"storage.XyZ123": ["start"]},
        {"storage": ["read"]},
        {"network.XyZ123": ["read"]},
        {f"storage.XyZ123.files.{'n' * 300}": ["read"]},
        {f"storage.XyZ123.files.n{number}": ["read"] for number in range(65)},
        {f"storage.XyZ123.files.{number:0200}": ["read"] for number in range(40)},
    ],
)
def test_what_may_not_be_granted_is_refused(grants: dict[str, list[str]]) -> None:
    with pytest.raises(BadRequest, match=r"^scopes"):
        check_grants(SEED_SCOPES, USER, grants)


def test_as_many_scopes_as_there_may_be_are_granted() -> None:
    grants = {f"storage.{USER}.files.{number}": ["read"] for number in range(SCOPES_MAX)}
    assert len(check_grants(SEED_SCOPES, USER, grants)) == SCOPES_MAX
    grants[f"storage.{USER}.files.last"] = ["read"]
    with pytest.raises(BadRequest, match=f"at most {SCOPES_MAX}"):
        check_grants(SEED_SCOPES, USER, grants)
    longest = f"storage.{USER}.files.".ljust(SCOPE_BYTES_MAX, "x")
    assert longest in check_grants(SEED_SCOPES, USER, {longest: ["read"]})


def test_tables_of_modules_are_merged() -> None:
    merged = merge([SEED_SCOPES, {"storage": {"files": frozenset({"share"})}, "mail": {}}])
    assert merged["storage"]["files"] == {"create", "read", "delete", "share"}
    assert merged["storage"]["namespaces"] == SEED_SCOPES["storage"]["namespaces"]
    assert merged["mail"] == {}
