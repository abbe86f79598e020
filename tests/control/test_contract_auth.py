"""The contract of authentication, API tokens and administration with real processes: what
``test_auth_login``, ``test_auth_tokens`` and ``test_auth_admin`` do not show in one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from checks import (
    anonymous,
    bearer,
    get,
    make_namespace,
    make_token,
    names,
    ok,
    put,
    refused,
    unique,
    with_token,
)
from cloud import PASSWORD, Cloud
from storage_people import Who


@pytest.fixture(scope="module")
def bob(cloud: Cloud) -> Who:
    return cloud.make_user()


def add_user(cloud: Cloud, password: str) -> str:
    """A new user's name."""
    body = {"username": (username := unique("user")), "password": password}
    ok(cloud.admin.post("/admin/users", json=body))
    return username


SPACED = "  in spaces  "


@pytest.mark.parametrize(
    ("form", "password", "given", "status"),
    [
        *((form, PASSWORD, PASSWORD, 200) for form in ("  {}", "{}\t\n", " {} ")),
        *(("{}", PASSWORD, given, 401) for given in (f" {PASSWORD}", f"{PASSWORD} ")),
        ("{}", SPACED, SPACED, 200),
        ("{}", SPACED, SPACED.strip(), 401),
    ],
)
def test_the_username_is_trimmed_and_the_password_is_not(
    cloud: Cloud, nobody: httpx.Client, form: str, password: str, given: str, status: int
) -> None:
    """Fields that are not known are ignored."""
    username = add_user(cloud, password)
    body = {"username": form.format(username), "password": given, "remember": True, "x": {"y": []}}
    answer = nobody.post("/api/login", json=body)
    if status == 200:
        assert ok(answer)["username"] == username
    else:
        refused(answer, status)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": "x"}, "username"),
        ({"username": "x"}, "password"),
        *(
            ({"username": name, "password": "x"}, "username")
            for name in (7, None, "", " \t", "x" * 65, "ü" * 33, "a\x00b", "a\x7fb")
        ),
        *(
            ({"username": "a", "password": password}, "password")
            for password in (["x"], {"a": 1}, "", "ü" * 513)
        ),
    ],
)
def test_a_login_that_makes_no_sense_names_the_field(
    nobody: httpx.Client, body: dict[str, Any], field: str
) -> None:
    refused(nobody.post("/api/login", json=body), 400, field)


def test_the_limit_can_be_switched_off(cloud: Cloud) -> None:
    assert cloud.cluster.environment["GFS_CONTROL_LOGIN_FAILURES"] == "0"
    body = {"username": add_user(cloud, PASSWORD), "password": PASSWORD}
    with anonymous(cloud.url) as client:
        for _ in range(21):  # one more than are allowed by default
            refused(client.post("/api/login", json={**body, "password": "wrong"}), 401)
        ok(client.post("/api/login", json=body))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        *((each, 401) for each in ("", "Bearer", "Bearer x", "Bearer a.b.c", "Basic YTpi")),
        *((each, 401) for each in ("Token {}", "{}")),
        ("bearer {}", 200),  # RFC 9110, 11.1
    ],
)
def test_a_header_that_is_no_bearer_token_is_refused(
    owner: Who, nobody: httpx.Client, header: str, status: int
) -> None:
    value = header.format(bearer(owner[0]))
    answer = nobody.get("/api/session", headers={"Authorization": value})
    assert ok(answer) if status == 200 else refused(answer, status)


def test_a_token_in_the_query_will_do_for_reads_alone(owner: Who, nobody: httpx.Client) -> None:
    token = bearer(owner[0])
    assert ok(nobody.get("/api/session", params={"token": token}))["user_id"] == owner[1]
    refused(nobody.get("/api/session", params={"token": "x"}), 401)
    body = {"name": unique("ns")}
    refused(nobody.post("/storage/namespaces", params={"token": token}, json=body), 401)
    refused(nobody.put("/storage/namespaces/x", params={"token": token}, json={}), 401)
    refused(nobody.delete("/storage/delete", params={"token": token, "name": "x"}), 401)


def test_the_header_wins_over_the_query(owner: Who, bob: Who) -> None:
    client, user_id = owner
    assert ok(client.get("/api/session", params={"token": bearer(bob[0])}))["user_id"] == user_id
    broken = {"Authorization": "Bearer broken"}
    refused(client.get("/api/session", params={"token": bearer(client)}, headers=broken), 401)


def test_the_session_route_takes_the_cookie(owner: Who, nobody: httpx.Client) -> None:
    cookie = {"Cookie": f"theme=dark; token={bearer(owner[0])}"}
    assert ok(nobody.get("/api/session", headers=cookie))["user_id"] == owner[1]
    refused(nobody.get("/api/session", headers={"Cookie": "token=x"}), 401)
    # Cookies of others on the host do not matter.
    for others in ('a={"x": 1};', "bad[]=1;", "\u00fc=\u00ff;", "=;;a"):
        mixed = {"Cookie": f"{others}; token={bearer(owner[0])}; z".encode("latin-1")}
        assert ok(nobody.get("/api/session", headers=mixed))["user_id"] == owner[1]


def test_no_other_route_takes_the_cookie(owner: Who, nobody: httpx.Client) -> None:
    """A browser sends cookies by itself, also for the page of a stranger."""
    cookie = {"Cookie": f"token={bearer(owner[0])}"}
    refused(nobody.get("/api/tokens", headers=cookie), 401)
    refused(nobody.post("/storage/namespaces", headers=cookie, json={"name": unique("ns")}), 401)


def reads(user_id: str) -> dict[str, list[str]]:
    return {f"storage.{user_id}.files": ["read"]}


@pytest.mark.thin
def test_a_made_token_works(cloud: Cloud, owner: Who) -> None:
    client, user_id = owner
    space = make_namespace(client, "tokens")
    put(client, space, "a", b"data")
    for expires_in in ("never", "30d"):
        body = {"name": "t", "scopes": reads(user_id), "expires_in": expires_in}
        made = ok(client.post("/api/tokens", json=body))
        with with_token(cloud.url, made["token"]) as user:
            assert get(user, space, "a") == b"data"
            assert ok(user.get("/api/session")) == ok(client.get("/api/session"))
        with anonymous(cloud.url) as user:
            target = f"/storage/{space}/a"
            assert user.get(target, params={"token": made["token"]}).content == b"data"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *(({"name": name}, "name") for name in ("", " \t ", "x" * 65, "€" * 22, 5, None, ...)),
        *(({"expires_in": time}, "expires_in") for time in ("7d", 30, None, "")),
        *(({"scopes": scopes}, "scopes") for scopes in ({}, [], "storage", ...)),
        ({"scopes": {"storage.{me}.files": "read"}}, "scopes"),
        ({"scopes": {"storage.{me}.files": [1]}}, "scopes"),
        ({"scopes": {"storage.{other}.files": ["read"]}}, "scopes"),
        *(({"name": name}, "") for name in ("x", "x" * 64, "€" * 21, "  " + "x" * 64 + "  ")),
    ],
    ids=str,
)
def test_a_token_that_must_not_be_is_refused_and_another_made(
    owner: Who, bob: Who, change: dict[str, Any], field: str
) -> None:
    """``...``: it is not there at all."""
    client, user_id = owner
    body: dict[str, Any] = {"name": "t", "scopes": reads(user_id), **change}
    body = {name: value for name, value in body.items() if value is not ...}
    if isinstance(body.get("scopes"), dict):
        body["scopes"] = {
            scope.replace("{me}", user_id).replace("{other}", bob[1]): actions
            for scope, actions in body["scopes"].items()
        }

    def known() -> list[dict[str, Any]]:
        # When each was used last is known to the control plane that it was used at, at first.
        return [{**each, "last_used_at": 0} for each in ok(client.get("/api/tokens"))]

    before = known()
    answer = client.post("/api/tokens", json=body)
    if field:
        refused(answer, 400, field)
        assert known() == before
    else:
        assert ok(answer)["name"] == body["name"].strip()


#: A grant, and what it covers. ``S`` is the storage namespace, ``S.T`` another whose name
#: begins with the first one's and a dot.
GRANTS: list[tuple[dict[str, list[str]], set[str]]] = [
    ({"storage.{me}": ["read"]}, {"list S", "list S.T", "spaces"}),
    ({"storage.{me}": ["create"]}, {"upload S", "upload S.T", "make"}),
    ({"storage.{me}": ["delete"]}, {"delete S", "delete S.T"}),
    ({"storage.{me}": ["update"]}, {"update S", "update S.T"}),
    ({"storage.{me}.files": ["read"]}, {"list S", "list S.T"}),
    ({"storage.{me}.files": ["create"]}, {"upload S", "upload S.T"}),
    ({"storage.{me}.files": ["delete"]}, {"delete S", "delete S.T"}),
    ({"storage.{me}.files": ["create", "delete"]},
     {"upload S", "upload S.T", "delete S", "delete S.T", "overwrite S", "overwrite S.T"}),
    ({"storage.{me}.files.{S}": ["read"]}, {"list S"}),
    ({"storage.{me}.files.{S}": ["create", "delete"]}, {"upload S", "delete S", "overwrite S"}),
    ({"storage.{me}.files.{S}.T": ["read"]}, {"list S.T"}),
    ({"storage.{me}.files.{S}.T": ["create"]}, {"upload S.T"}),
    ({"storage.{me}.namespaces": ["read"]}, {"spaces"}),
    ({"storage.{me}.namespaces": ["create"]}, {"make"}),
    ({"storage.{me}.namespaces": ["update"]}, {"update S", "update S.T"}),
    ({"storage.{me}.namespaces.{S}": ["update"]}, {"update S"}),
    ({"storage.{me}.namespaces.{S}.T": ["update"]}, {"update S.T"}),
    ({"storage.{me}.files.{S}x": ["read", "create", "delete"]}, set()),
    ({"compute.{me}": ["create", "read", "update", "delete", "start", "stop"]}, set()),
    ({"storage.{me}.files.{S}": ["read"], "storage.{me}.files.{S}.T": ["create"]},
     {"list S", "upload S.T"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def spaces(owner: Who) -> dict[str, str]:
    client, _ = owner
    short = make_namespace(client, "scopes")
    ok(client.post("/storage/namespaces", json={"name": f"{short}.T", "visibility": 0}))
    return {"S": short, "S.T": f"{short}.T"}


@pytest.mark.parametrize(("grant", "covered"), GRANTS, ids=range(len(GRANTS)))
def test_a_grant_covers_what_is_below_it_and_nothing_else(
    cloud: Cloud, owner: Who, spaces: dict[str, str], grant: dict[str, list[str]], covered: set[str]
) -> None:
    client, user_id = owner
    scopes = {
        scope.replace("{me}", user_id).replace("{S}", spaces["S"]): actions
        for scope, actions in grant.items()
    }
    with with_token(cloud.url, make_token(client, scopes)["token"]) as user:
        answers = {}
        for short, space in spaces.items():
            old = unique("old")
            put(client, space, old, b"old")
            where = {"namespace": space}
            new = {"file": (unique("new"), b"new")}
            answers[f"list {short}"] = user.get("/storage/files", params=where)
            answers[f"upload {short}"] = user.post("/storage/upload", params=where, files=new)
            query, file = {**where, "overwrite": "true"}, {"file": (old, b"new")}
            answers[f"overwrite {short}"] = user.post("/storage/upload", params=query, files=file)
            query = {**where, "name": old}
            answers[f"delete {short}"] = user.delete("/storage/delete", params=query)
            path = f"/storage/namespaces/{space}"
            answers[f"update {short}"] = user.put(path, json={"visibility": 0})
        answers["make"] = user.post("/storage/namespaces", json={"name": unique("made")})
        # An open route: without the scope it shows what everybody sees, or refuses.
        seen = user.get("/storage/namespaces")
    sees_private = seen.status_code == 200 and spaces["S"] in seen.text
    assert sees_private == ("spaces" in covered)
    for what, answer in answers.items():
        verb, _, short = what.partition(" ")
        if verb == "overwrite" and f"delete {short}" in covered and what not in covered:
            continue  # whether overwriting takes "create" besides "delete" is left open
        if what in covered:
            ok(answer)
        else:
            refused(answer, 403)


@pytest.mark.parametrize("at_name", [False, True])
def test_deleting_a_namespace_takes_its_own_scope(cloud: Cloud, owner: Who, at_name: bool) -> None:
    client, user_id = owner
    space, other = make_namespace(client, "scoped.del"), make_namespace(client, "scoped.del")
    scope = f"storage.{user_id}.namespaces" + (f".{space}" if at_name else "")
    with with_token(cloud.url, make_token(client, {scope: ["delete"]})["token"]) as user:
        assert ok(user.delete(f"/storage/namespaces/{space}"))
        if at_name:
            refused(user.delete(f"/storage/namespaces/{other}"), 403)
    left = names(client)
    assert other in left
    assert space not in left


BAD_USERNAMES = [
    "", "   ", "a/b", "../a", ".a", "a b", "a\\b", "a:b", "a\u3164", "a\x1bb", "a\u200bda",
    "\u202eada", "a\u00a0da", "a\u2028da", "\ue000",
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": PASSWORD}, "username"),
        ({"username": "someone"}, "password"),
        ({"username": 5, "password": PASSWORD}, "username"),
        ({"username": "someone", "password": 5}, "password"),
        *(({"username": name, "password": PASSWORD}, "username") for name in BAD_USERNAMES),
        *(
            ({"username": "ada.lovelace", "password": password}, "password")
            for password in ("", "x", "seven77", "aaaaaaabbc", "Ada.Lovelace")
        ),
        ({"username": "someone", "password": PASSWORD, "is_admin": "yes"}, "is_admin"),
        ({"username": "someone", "password": PASSWORD, "display_name": 5}, "display_name"),
    ],
)
def test_a_user_that_makes_no_sense_is_refused(
    cloud: Cloud, body: dict[str, Any], field: str
) -> None:
    refused(cloud.admin.post("/admin/users", json=body), 400, field)
