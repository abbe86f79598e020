"""The contract of authentication, API tokens, administration and service accounts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from checks import (
    anonymous,
    bearer,
    get,
    make_namespace,
    make_token,
    names,
    ok,
    paths,
    put,
    refused,
    unique,
    wait_for,
    with_token,
)
from cloud import PASSWORD, Cloud

DAYS = 24 * 3600
#: Revocation reaches other processes within 5 s; the rest is for a busy machine.
REVOKED_SECONDS = 30.0
#: ``last_used_at`` may lag a minute.
LAST_USED_SECONDS = 90.0

SESSION_FIELDS = {"username": str, "display_name": str, "user_id": str, "is_admin": bool}
TOKEN_FIELDS = {
    "id": str,
    "name": str,
    "scopes": dict,
    "expires_at": int,
    "created_at": int,
    "last_used_at": int,
}


@pytest.fixture(scope="module")
def alice(cloud: Cloud) -> Iterator[tuple[httpx.Client, str]]:
    client, user_id = cloud.make_user(unique("alice"))
    with client:
        yield client, user_id


@pytest.fixture(scope="module")
def bob(cloud: Cloud) -> Iterator[tuple[httpx.Client, str]]:
    client, user_id = cloud.make_user(unique("bob"))
    with client:
        yield client, user_id


@pytest.fixture
def nobody(cloud: Cloud) -> Iterator[httpx.Client]:
    with anonymous(cloud.url) as client:
        yield client


def add_user(cloud: Cloud, password: str = PASSWORD, **more: Any) -> str:
    """A new user's name."""
    username = unique("user")
    ok(cloud.admin.post("/admin/users", json={"username": username, "password": password, **more}))
    return username


def log_in(client: httpx.Client, username: str, password: str = PASSWORD) -> httpx.Response:
    return client.post("/api/login", json={"username": username, "password": password})


def claims_of(token: str) -> dict[str, Any]:
    """What a client reads of a token, without any key."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def assert_fields(value: dict[str, Any], fields: dict[str, type]) -> None:
    """Exactly these fields, of exactly these types (a bool is no int)."""
    assert {name: type(item) for name, item in value.items()} == fields


# --- login -----------------------------------------------------------------------------


def test_login_answers_with_who_it_is_and_a_token(cloud: Cloud, nobody: httpx.Client) -> None:
    username = add_user(cloud, display_name="Eddison E.")
    session = ok(log_in(nobody, username))
    assert_fields(session, {**SESSION_FIELDS, "token": str})
    assert session["username"] == username
    assert session["display_name"] == "Eddison E."
    assert session["is_admin"] is False
    assert re.fullmatch("[0-9A-Za-z]{6}", session["user_id"])


def test_the_admin_is_told_that_he_is_one(cloud: Cloud) -> None:
    assert ok(cloud.admin.get("/api/session"))["is_admin"] is True


def test_the_session_is_a_jwt_that_clients_can_read(cloud: Cloud, nobody: httpx.Client) -> None:
    username = add_user(cloud, display_name="Reader")
    before = int(time.time())
    session = ok(log_in(nobody, username))
    after = int(time.time())
    claims = claims_of(session["token"])
    assert_fields(
        {name: claims[name] for name in ("sub", "user_id", "username", "display_name")},
        dict.fromkeys(("sub", "user_id", "username", "display_name"), str),
    )
    assert claims["user_id"] == session["user_id"]
    assert claims["username"] == username
    assert claims["display_name"] == "Reader"
    assert claims["is_admin"] is False
    assert claims["type"] == "session"
    assert before <= claims["iat"] <= after
    assert claims["exp"] - claims["iat"] == 24 * 3600
    head = jwt.get_unverified_header(session["token"])
    assert head["alg"] == "HS256"
    assert head["kid"]


@pytest.mark.parametrize("form", ["  {}", "{}\t\n", " {} "])
def test_the_username_is_trimmed(cloud: Cloud, nobody: httpx.Client, form: str) -> None:
    username = add_user(cloud)
    assert ok(log_in(nobody, form.format(username)))["username"] == username


def test_the_password_is_not_trimmed(cloud: Cloud, nobody: httpx.Client) -> None:
    plain = add_user(cloud)
    refused(log_in(nobody, plain, f" {PASSWORD}"), 401)
    refused(log_in(nobody, plain, f"{PASSWORD} "), 401)
    spaced = add_user(cloud, password="  in spaces  ")
    ok(log_in(nobody, spaced, "  in spaces  "))
    refused(log_in(nobody, spaced, "in spaces"), 401)


def test_unknown_user_and_wrong_password_look_the_same(cloud: Cloud, nobody: httpx.Client) -> None:
    wrong = log_in(nobody, add_user(cloud), "wrong")
    unknown = log_in(nobody, unique("unknown"), "wrong")
    refused(wrong, 401)
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert set(wrong.headers) == set(unknown.headers)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": "x"}, "username"),
        ({"username": "x"}, "password"),
        ({"username": 7, "password": "x"}, "username"),
        ({"username": "x", "password": ["x"]}, "password"),
        ({"username": None, "password": "x"}, "username"),
        ({"username": "x", "password": {"a": 1}}, "password"),
        ({"username": "", "password": "x"}, "username"),
        ({"username": " \t", "password": "x"}, "username"),
        ({"username": "x" * 65, "password": "x"}, "username"),
        ({"username": "ü" * 33, "password": "x"}, "username"),
        ({"username": "a\x00b", "password": "x"}, "username"),
        ({"username": "a\x7fb", "password": "x"}, "username"),
        ({"username": "a", "password": ""}, "password"),
        ({"username": "a", "password": "ü" * 513}, "password"),
    ],
)
def test_a_login_that_makes_no_sense_names_the_field(
    nobody: httpx.Client, body: dict[str, Any], field: str
) -> None:
    refused(nobody.post("/api/login", json=body), 400, field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"username=a&password=b"])
def test_a_login_that_is_no_json_object_is_refused(nobody: httpx.Client, body: bytes) -> None:
    answer = nobody.post("/api/login", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400)


def test_login_ignores_fields_it_does_not_know(cloud: Cloud, nobody: httpx.Client) -> None:
    body = {"username": add_user(cloud), "password": PASSWORD, "remember": True, "x": {"y": []}}
    ok(nobody.post("/api/login", json=body))


# --- failed logins are limited ---------------------------------------------------------


def test_failed_logins_are_limited_for_a_user_at_an_address(
    make_cloud: Callable[..., Cloud],
) -> None:
    """20 by default: the 21st attempt is not even looked at, there; elsewhere it is."""
    cloud = make_cloud(chunkservers=1)
    del cloud.cluster.environment["GFS_CONTROL_LOGIN_FAILURES"]
    cloud.start()
    username = add_user(cloud)
    with anonymous(cloud.url) as client:
        for _ in range(2):
            ok(log_in(client, username))
        for _ in range(20):
            refused(log_in(client, username, "wrong"), 401)
        for password in ("wrong", PASSWORD):
            limited = log_in(client, username, password)
            refused(limited, 429)
            assert 1 <= int(limited.headers["Retry-After"]) <= 15 * 60
        refused(log_in(client, unique("guessed"), "wrong"), 401)
        ok(log_in(client, add_user(cloud)))
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=cloud.url, transport=transport) as elsewhere:
        refused(log_in(elsewhere, username, "wrong"), 401)
        ok(log_in(elsewhere, username))


def test_the_limit_can_be_switched_off(cloud: Cloud) -> None:
    assert cloud.cluster.environment["GFS_CONTROL_LOGIN_FAILURES"] == "0"
    username = add_user(cloud)
    with anonymous(cloud.url) as client:
        for _ in range(21):  # one more than are allowed by default
            refused(log_in(client, username, "wrong"), 401)
        ok(log_in(client, username))


# --- sessions --------------------------------------------------------------------------


def test_the_session_says_who_it_is(alice: tuple[httpx.Client, str]) -> None:
    client, user_id = alice
    session = ok(client.get("/api/session"))
    assert_fields(session, SESSION_FIELDS)
    assert session["user_id"] == user_id


def test_a_session_needs_credentials(nobody: httpx.Client) -> None:
    refused(nobody.get("/api/session"), 401)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer x", "Bearer a.b.c", "Basic YTpi", "Token {}", "{}"],
)
def test_a_header_that_is_no_bearer_token_is_refused(
    alice: tuple[httpx.Client, str], nobody: httpx.Client, header: str
) -> None:
    value = header.format(bearer(alice[0]))
    refused(nobody.get("/api/session", headers={"Authorization": value}), 401)


def test_the_scheme_is_not_case_sensitive(
    alice: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    """RFC 9110, 11.1."""
    value = f"bearer {bearer(alice[0])}"
    ok(nobody.get("/api/session", headers={"Authorization": value}))


def test_a_token_in_the_query_will_do_for_reads_alone(
    alice: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    token = bearer(alice[0])
    assert ok(nobody.get("/api/session", params={"token": token}))["user_id"] == alice[1]
    refused(nobody.get("/api/session", params={"token": "x"}), 401)
    body = {"name": unique("ns")}
    refused(nobody.post("/storage/namespaces", params={"token": token}, json=body), 401)
    refused(nobody.put("/storage/namespaces/x", params={"token": token}, json={}), 401)
    refused(nobody.delete("/storage/delete", params={"token": token, "name": "x"}), 401)


def test_the_header_wins_over_the_query(
    alice: tuple[httpx.Client, str], bob: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    assert ok(client.get("/api/session", params={"token": bearer(bob[0])}))["user_id"] == user_id
    refused(
        client.get(
            "/api/session",
            params={"token": bearer(client)},
            headers={"Authorization": "Bearer broken"},
        ),
        401,
    )


def test_the_session_route_takes_the_cookie(
    alice: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    cookie = {"Cookie": f"theme=dark; token={bearer(alice[0])}"}
    assert ok(nobody.get("/api/session", headers=cookie))["user_id"] == alice[1]
    refused(nobody.get("/api/session", headers={"Cookie": "token=x"}), 401)
    # Cookies of others on the host do not matter.
    for others in ('a={"x": 1};', "bad[]=1;", "\u00fc=\u00ff;", "=;;a"):
        mixed = {"Cookie": f"{others}; token={bearer(alice[0])}; z".encode("latin-1")}
        assert ok(nobody.get("/api/session", headers=mixed))["user_id"] == alice[1]


def test_no_other_route_takes_the_cookie(
    alice: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    """A browser sends cookies by itself, also for the page of a stranger."""
    cookie = {"Cookie": f"token={bearer(alice[0])}"}
    refused(nobody.get("/api/tokens", headers=cookie), 401)
    refused(nobody.post("/storage/namespaces", headers=cookie, json={"name": unique("ns")}), 401)


def test_logout_is_acknowledged(cloud: Cloud, nobody: httpx.Client) -> None:
    token = ok(log_in(nobody, add_user(cloud)))["token"]
    with with_token(cloud.url, token) as client:
        assert isinstance(ok(client.post("/api/logout")), dict)
        refused(client.get("/api/session"), 401)
        assert isinstance(ok(client.post("/api/logout")), dict)
    assert isinstance(ok(nobody.post("/api/logout")), dict)


def test_an_expired_session_is_refused_and_anonymous_where_that_will_do(
    make_cloud: Callable[..., Cloud],
) -> None:
    # Long enough for a login and a request, on the busiest machine.
    cloud = make_cloud(chunkservers=1, environment={"GFS_CONTROL_SESSION_SECONDS": "8"}).start()

    def fresh() -> httpx.Client:
        return cloud.login("admin")

    make_namespace(fresh(), "public", 2)
    put(fresh(), "default", "for-all", b"public bytes")
    old = fresh()
    assert claims_of(bearer(old))["exp"] - claims_of(bearer(old))["iat"] == 8
    wait_for(lambda: old.get("/api/session").status_code == 401, 30, "end of the session")
    refused(old.get("/api/session"), 401)
    refused(old.get("/api/tokens"), 401)
    refused(old.post("/storage/namespaces", json={"name": "x"}), 401)
    assert "default" in names(old)
    assert "for-all" in paths(old, "default")
    assert get(old, "default", "for-all") == b"public bytes"


@pytest.mark.parametrize("token", ["x", "ecloud_x", "a.b.c", "ecloud_a.b.c", "é", "x" * 5000])
def test_a_broken_token_on_an_open_route_counts_as_anonymous(cloud: Cloud, token: str) -> None:
    put(cloud.admin, "default", name := unique("open"), b"open")
    raw = f"Bearer {token}".encode()
    with httpx.Client(
        base_url=cloud.url, headers={"Authorization": raw}, timeout=30.0, trust_env=False
    ) as client:
        assert "default" in names(client)
        assert get(client, "default", name) == b"open"
        assert client.get(f"/storage/default/{name}").content == b"open"
        refused(client.post("/storage/namespaces", json={"name": unique("ns")}), 401)


# --- API tokens ------------------------------------------------------------------------


def reads(user_id: str) -> dict[str, list[str]]:
    return {f"storage.{user_id}.files": ["read"]}


@pytest.mark.parametrize(
    ("expires_in", "days"), [("30d", 30), ("90d", 90), ("365d", 365), ("never", None), (None, None)]
)
def test_a_token_is_made(
    alice: tuple[httpx.Client, str], expires_in: str | None, days: int | None
) -> None:
    client, user_id = alice
    body: dict[str, Any] = {"name": "  ci  ", "scopes": reads(user_id), "comment": "ignored"}
    if expires_in is not None:
        body["expires_in"] = expires_in
    before = int(time.time())
    made = ok(client.post("/api/tokens", json=body))
    after = int(time.time())
    assert_fields(made, {**TOKEN_FIELDS, "token": str})
    assert made["name"] == "ci"
    assert made["scopes"] == reads(user_id)
    assert before <= made["created_at"] <= after
    assert made["last_used_at"] == 0
    expected = 0 if days is None else made["created_at"] + days * DAYS
    assert made["expires_at"] == expected

    assert made["token"].startswith("ecloud_")
    claims = claims_of(made["token"].removeprefix("ecloud_"))
    assert claims["user_id"] == user_id
    assert claims["token_id"] == made["id"]
    assert claims["type"] == "api_token"
    assert claims["scopes"] == reads(user_id)
    assert isinstance(claims["sub"], str)
    assert claims["iat"] == made["created_at"]
    # A library that verifies ``exp`` would refuse 0, so a token without end has none.
    assert claims.get("exp", 0) == expected


def test_a_made_token_works(cloud: Cloud, alice: tuple[httpx.Client, str]) -> None:
    client, user_id = alice
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
        ({"name": ""}, "name"),
        ({"name": " \t "}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "€" * 22}, "name"),
        ({"name": 5}, "name"),
        ({"name": None}, "name"),
        ({"expires_in": "7d"}, "expires_in"),
        ({"expires_in": 30}, "expires_in"),
        ({"expires_in": None}, "expires_in"),
        ({"expires_in": ""}, "expires_in"),
        ({"scopes": {}}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "storage"}, "scopes"),
        ({"scopes": {"storage.{me}.files": []}}, "scopes"),
        ({"scopes": {"storage.{me}.files": "read"}}, "scopes"),
        ({"scopes": {"storage.{me}.files": [1]}}, "scopes"),
        ({"scopes": {"storage.{me}.files": ["write"]}}, "scopes"),
        ({"scopes": {"storage.{me}.files": ["update"]}}, "scopes"),
        ({"scopes": {"storage.{me}.files": ["read", "nonsense"]}}, "scopes"),
        ({"scopes": {"storage.{me}.folders": ["read"]}}, "scopes"),
        ({"scopes": {"network.{me}": ["read"]}}, "scopes"),
        ({"scopes": {"storage": ["read"]}}, "scopes"),
        ({"scopes": {"": ["read"]}}, "scopes"),
        ({"scopes": {"storage.{other}.files": ["read"]}}, "scopes"),
        ({"scopes": {"storage.{me}.files": ["read"], "compute.{other}": ["read"]}}, "scopes"),
        ({"scopes": {"storage.{me}x.files": ["read"]}}, "scopes"),
        ({"scopes": {"compute.{me}.keys": ["update"]}}, "scopes"),
    ],
    ids=str,
)
def test_a_token_that_must_not_be_is_refused(
    alice: tuple[httpx.Client, str],
    bob: tuple[httpx.Client, str],
    change: dict[str, Any],
    field: str,
) -> None:
    client, user_id = alice
    body: dict[str, Any] = {"name": "t", "scopes": reads(user_id), **change}
    if isinstance(body["scopes"], dict):
        body["scopes"] = {
            scope.replace("{me}", user_id).replace("{other}", bob[1]): actions
            for scope, actions in body["scopes"].items()
        }
    before = ok(client.get("/api/tokens"))
    refused(client.post("/api/tokens", json=body), 400, field)
    assert ok(client.get("/api/tokens")) == before


@pytest.mark.parametrize("missing", ["name", "scopes"])
def test_a_token_needs_name_and_scopes(alice: tuple[httpx.Client, str], missing: str) -> None:
    body: dict[str, Any] = {"name": "t", "scopes": reads(alice[1])}
    del body[missing]
    refused(alice[0].post("/api/tokens", json=body), 400, missing)


@pytest.mark.parametrize("name", ["x", "x" * 64, "€" * 21, "  " + "x" * 64 + "  "])
def test_names_of_tokens_may_be_long(alice: tuple[httpx.Client, str], name: str) -> None:
    made = ok(alice[0].post("/api/tokens", json={"name": name, "scopes": reads(alice[1])}))
    assert made["name"] == name.strip()


def test_tokens_are_listed_newest_first_without_their_secret(cloud: Cloud) -> None:
    client, user_id = cloud.make_user(unique("lister"))
    assert ok(client.get("/api/tokens")) == []
    made = [make_token(client, reads(user_id)) for _ in range(5)]
    listed = ok(client.get("/api/tokens"))
    for entry in listed:
        assert_fields(entry, TOKEN_FIELDS)
    assert listed == [{name: token[name] for name in TOKEN_FIELDS} for token in reversed(made)]


def test_tokens_of_others_are_not_listed(
    alice: tuple[httpx.Client, str], bob: tuple[httpx.Client, str]
) -> None:
    made = make_token(alice[0], reads(alice[1]))
    assert made["id"] not in [entry["id"] for entry in ok(bob[0].get("/api/tokens"))]


def test_the_last_use_is_noted(cloud: Cloud, alice: tuple[httpx.Client, str]) -> None:
    client, user_id = alice
    made = make_token(client, {f"storage.{user_id}": ["read"]})
    with with_token(cloud.url, made["token"]) as user:
        before = int(time.time())
        ok(user.get("/storage/namespaces"))

        def noted() -> int:
            found = {entry["id"]: entry for entry in ok(client.get("/api/tokens"))}
            return int(found[made["id"]]["last_used_at"])

        used = wait_for(noted, LAST_USED_SECONDS, "last_used_at")
        # It may lag a minute, so it may also be coarse by a minute.
        assert before - 60 <= used <= int(time.time())


def test_a_revoked_token_ends_at_once(cloud: Cloud, alice: tuple[httpx.Client, str]) -> None:
    client, user_id = alice
    made = make_token(client, {f"storage.{user_id}": ["read", "create"]})
    with with_token(cloud.url, made["token"]) as user:
        body = {"name": unique("revoked")}
        ok(user.post("/storage/namespaces", json=body))
        assert ok(client.delete(f"/api/tokens/{made['id']}")) == {"status": "ok"}
        refused(user.post("/storage/namespaces", json={"name": unique("revoked")}), 401)
        assert body["name"] not in names(user), "revoked, so anonymous on an open route"
    assert made["id"] not in [entry["id"] for entry in ok(client.get("/api/tokens"))]
    refused(client.delete(f"/api/tokens/{made['id']}"), 404)


def test_a_token_of_another_cannot_be_revoked(
    alice: tuple[httpx.Client, str], bob: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    made = make_token(alice[0], reads(alice[1]))
    refused(bob[0].delete(f"/api/tokens/{made['id']}"), 404)
    refused(nobody.delete(f"/api/tokens/{made['id']}"), 401)
    refused(alice[0].delete("/api/tokens/no-such-token"), 404)
    refused(alice[0].delete(f"/api/tokens/{'x' * 600}"), 404)
    assert made["id"] in [entry["id"] for entry in ok(alice[0].get("/api/tokens"))]


def test_neither_kind_of_token_passes_for_the_other(
    cloud: Cloud, alice: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    space = make_namespace(client, "kinds")
    put(client, space, "a", b"data")
    api = make_token(client, {f"storage.{user_id}": ["read", "create"]})["token"]
    for token in (api.removeprefix("ecloud_"), f"ecloud_{bearer(client)}", f"ecloud_{api}"):
        with with_token(cloud.url, token) as user:
            refused(user.get("/api/session"), 401)
            refused(user.get("/api/tokens"), 401)
            refused(user.get("/storage/files", params={"namespace": space}), 401)
            refused(user.post("/storage/namespaces", json={"name": unique("ns")}), 401)


# --- the check, from service to service --------------------------------------------------


@pytest.fixture(scope="module")
def service_key(cloud: Cloud) -> str:
    """The key that services show one another: a file that only its owner may read."""
    found = [
        path
        for path in Path(cloud.cluster.state, "control").rglob("*")
        if path.is_file() and "service" in path.name
    ]
    assert len(found) == 1, found
    assert found[0].stat().st_mode & 0o777 == 0o600
    return found[0].read_text().strip()


def test_services_can_check_a_token(
    cloud: Cloud, alice: tuple[httpx.Client, str], nobody: httpx.Client, service_key: str
) -> None:
    client, user_id = alice
    made = make_token(client, reads(user_id))
    key = {"X-Service-Key": service_key}
    target = f"/api/tokens/{made['id']}/check"
    assert ok(nobody.get(target, headers=key)) == {"status": "valid"}
    refused(nobody.get("/api/tokens/no-such-token/check", headers=key), 404)
    ok(client.delete(f"/api/tokens/{made['id']}"))
    refused(nobody.get(target, headers=key), 404)


def test_only_services_can_check_a_token(
    cloud: Cloud, alice: tuple[httpx.Client, str], nobody: httpx.Client, service_key: str
) -> None:
    target = f"/api/tokens/{make_token(alice[0], reads(alice[1]))['id']}/check"
    refused(nobody.get(target), (401, 403))
    refused(alice[0].get(target), (401, 403))
    refused(cloud.admin.get(target), (401, 403))
    for wrong in ("", "x", service_key[:-1], service_key + "x", service_key.swapcase()):
        refused(nobody.get(target, headers={"X-Service-Key": wrong}), (401, 403))


def test_secrets_below_the_state_are_for_their_owner_alone(cloud: Cloud) -> None:
    directory = Path(cloud.cluster.state, "control")
    assert directory.stat().st_mode & 0o077 == 0, "others may look into it"


def test_tokens_are_stored_as_hashes_alone(cloud: Cloud, alice: tuple[httpx.Client, str]) -> None:
    username = add_user(cloud, password="a password that is easy to find")
    made = make_token(alice[0], reads(alice[1]))["token"].encode()
    signature = made.rpartition(b".")[2]
    stored = [
        path.read_bytes()
        for path in Path(cloud.cluster.state, "control").rglob("*")
        if path.is_file()
    ]
    assert any(username.encode() in data for data in stored), "records are elsewhere"
    assert not any(made in data or signature in data for data in stored)
    assert not any(b"a password that is easy to find" in data for data in stored)


# --- what scopes cover -------------------------------------------------------------------

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
def spaces(alice: tuple[httpx.Client, str]) -> dict[str, str]:
    client, _ = alice
    short = make_namespace(client, "scopes")
    ok(client.post("/storage/namespaces", json={"name": f"{short}.T", "visibility": 0}))
    return {"S": short, "S.T": f"{short}.T"}


@pytest.mark.parametrize(("grant", "covered"), GRANTS, ids=range(len(GRANTS)))
def test_a_grant_covers_what_is_below_it_and_nothing_else(
    cloud: Cloud,
    alice: tuple[httpx.Client, str],
    spaces: dict[str, str],
    grant: dict[str, list[str]],
    covered: set[str],
) -> None:
    client, user_id = alice
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
            answers[f"overwrite {short}"] = user.post(
                "/storage/upload",
                params={**where, "overwrite": "true"},
                files={"file": (old, b"new")},
            )
            answers[f"delete {short}"] = user.delete(
                "/storage/delete", params={**where, "name": old}
            )
            answers[f"update {short}"] = user.put(
                f"/storage/namespaces/{space}", json={"visibility": 0}
            )
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
def test_deleting_a_namespace_takes_its_own_scope(
    cloud: Cloud, alice: tuple[httpx.Client, str], at_name: bool
) -> None:
    client, user_id = alice
    space, other = make_namespace(client, "scoped.del"), make_namespace(client, "scoped.del")
    scope = f"storage.{user_id}.namespaces" + (f".{space}" if at_name else "")
    with with_token(cloud.url, make_token(client, {scope: ["delete"]})["token"]) as user:
        assert ok(user.delete(f"/storage/namespaces/{space}"))
        if at_name:
            refused(user.delete(f"/storage/namespaces/{other}"), 403)
    left = names(client)
    assert other in left
    assert space not in left


# --- administration ----------------------------------------------------------------------

ADMIN_LISTS = ["/admin/users", "/admin/sessions", "/admin/files", "/admin/namespaces"]


@pytest.mark.parametrize("target", ADMIN_LISTS)
def test_administration_is_for_sessions_of_admins(
    cloud: Cloud, alice: tuple[httpx.Client, str], nobody: httpx.Client, target: str
) -> None:
    assert isinstance(ok(cloud.admin.get(target)), list)
    refused(nobody.get(target), 401)
    refused(alice[0].get(target), 403)
    admin_id = ok(cloud.admin.get("/api/session"))["user_id"]
    token = make_token(cloud.admin, {f"storage.{admin_id}": ["create", "read", "update", "delete"]})
    with with_token(cloud.url, token["token"]) as user:
        refused(user.get(target), 403)


def test_there_is_no_sign_up(nobody: httpx.Client) -> None:
    body = {"username": unique("user"), "password": PASSWORD}
    for target in ("/api/signup", "/api/register", "/api/users"):
        refused(nobody.post(target, json=body), 404)


def test_users_are_made_and_listed(cloud: Cloud) -> None:
    username = unique("made")
    made = ok(
        cloud.admin.post(
            "/admin/users",
            json={"username": username, "password": PASSWORD, "display_name": "Made", "x": 1},
        )
    )
    assert PASSWORD not in str(made)
    listed = [user for user in ok(cloud.admin.get("/admin/users")) if user["username"] == username]
    assert len(listed) == 1
    assert listed[0]["display_name"] == "Made"
    assert listed[0]["is_admin"] is False
    assert "password" not in str(sorted(listed[0])).lower()
    assert "argon2" not in str(listed[0])


def test_a_username_is_taken_once(cloud: Cloud, nobody: httpx.Client) -> None:
    username = add_user(cloud)
    body = {"username": username, "password": "another one"}
    refused(cloud.admin.post("/admin/users", json=body), 409)
    body["username"] = f"  {username} "
    refused(cloud.admin.post("/admin/users", json=body), (400, 409))
    ok(log_in(nobody, username))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": PASSWORD}, "username"),
        ({"username": "someone"}, "password"),
        ({"username": 5, "password": PASSWORD}, "username"),
        ({"username": "someone", "password": 5}, "password"),
        *(
            ({"username": name, "password": PASSWORD}, "username")
            for name in ("", "   ", "a/b", "../a", ".a", "a b", "a\\b", "a:b", "a\u3164")
        ),
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


def test_an_admin_can_make_an_admin(cloud: Cloud, nobody: httpx.Client) -> None:
    username = add_user(cloud, is_admin=True)
    session = ok(log_in(nobody, username))
    assert session["is_admin"] is True
    with with_token(cloud.url, session["token"]) as second:
        ok(second.get("/admin/users"))
        ok(cloud.admin.delete("/admin/users", params={"id": session["user_id"]}))
        refused(second.get("/admin/users"), 401)


def test_sessions_are_listed_for_the_admin(cloud: Cloud) -> None:
    client, user_id = cloud.make_user(unique("watched"))
    listed = ok(cloud.admin.get("/admin/sessions"))
    assert user_id in [session.get("user_id") for session in listed]
    assert bearer(client) not in str(listed)


def test_files_and_namespaces_of_all_are_listed_for_the_admin(
    cloud: Cloud, alice: tuple[httpx.Client, str]
) -> None:
    space = make_namespace(alice[0], "private", 0)
    put(alice[0], space, "folder/secret.txt", b"12345")
    listed = [entry for entry in ok(cloud.admin.get("/admin/namespaces")) if entry["name"] == space]
    assert [(entry["owner_id"], entry["visibility"]) for entry in listed] == [(alice[1], 0)]
    files = [entry for entry in ok(cloud.admin.get("/admin/files")) if entry["namespace"] == space]
    assert [(entry["path"], entry["size"]) for entry in files] == [("folder/secret.txt", 5)]


def test_deleting_a_user_that_is_not_there(cloud: Cloud) -> None:
    refused(cloud.admin.delete("/admin/users", params={"id": "nobody"}), 404)
    refused(cloud.admin.delete("/admin/users"), 400, "id")


def test_what_becomes_of_a_deleted_users_things(
    cloud: Cloud, bob: tuple[httpx.Client, str], nobody: httpx.Client
) -> None:
    username = add_user(cloud)
    session = ok(log_in(nobody, username))
    client = cloud.client(session["token"])
    user_id = session["user_id"]
    private = make_namespace(client, "left", 0)
    public = make_namespace(client, "left", 2)
    put(client, private, "a", b"kept a")
    put(client, public, "b", b"kept b")
    put(client, "default", shared := unique("shared"), b"kept shared")
    api = make_token(client, {f"storage.{user_id}": ["read", "create"]})
    account = ok(
        client.post(
            "/api/service-accounts",
            json={"name": unique("account"), "scopes": {f"storage.{user_id}": ["read"]}},
        )
    )
    account_token = ok(
        client.post(f"/api/service-accounts/{account['id']}/tokens", json={"name": "t"})
    )["token"]

    ok(cloud.admin.delete("/admin/users", params={"id": user_id}))

    refused(client.get("/api/session"), 401)
    refused(client.get("/storage/files", params={"namespace": private}), 401)
    for token in (api["token"], account_token):
        with with_token(cloud.url, token) as user:
            refused(user.get("/storage/files", params={"namespace": private}), 401)
            refused(user.post("/storage/namespaces", json={"name": unique("ns")}), 401)
    refused(log_in(nobody, username), 401)
    assert username not in [user["username"] for user in ok(cloud.admin.get("/admin/users"))]
    assert user_id not in [entry.get("user_id") for entry in ok(cloud.admin.get("/admin/sessions"))]

    rows = {entry["name"]: entry for entry in ok(cloud.admin.get("/admin/namespaces"))}
    for space in (private, public):
        assert rows[space]["owner_id"] is None
        assert rows[space]["visibility"] == 0
        refused(nobody.get("/storage/files", params={"namespace": space}), 401)
        refused(bob[0].get("/storage/files", params={"namespace": space}), 403)
        assert space not in names(bob[0])
    assert get(cloud.admin, private, "a") == b"kept a"
    assert get(cloud.admin, public, "b") == b"kept b"
    assert get(bob[0], "default", shared) == b"kept shared"


def test_a_new_user_of_an_old_name_is_another_user(cloud: Cloud, nobody: httpx.Client) -> None:
    username = add_user(cloud)
    first = ok(log_in(nobody, username))
    space = make_namespace(cloud.client(first["token"]), "old", 0)
    ok(cloud.admin.delete("/admin/users", params={"id": first["user_id"]}))
    ok(cloud.admin.post("/admin/users", json={"username": username, "password": PASSWORD}))
    second = ok(log_in(nobody, username))
    assert second["user_id"] != first["user_id"]
    with with_token(cloud.url, first["token"]) as old:
        refused(old.get("/api/session"), 401)
    with with_token(cloud.url, second["token"]) as new:
        refused(new.get("/storage/files", params={"namespace": space}), 403)


# --- service accounts --------------------------------------------------------------------


def make_account(client: httpx.Client, scopes: dict[str, list[str]]) -> dict[str, Any]:
    body = {"name": unique("account"), "scopes": scopes}
    made: dict[str, Any] = ok(client.post("/api/service-accounts", json=body))
    return made


def test_service_accounts_are_made_listed_and_deleted(
    cloud: Cloud, alice: tuple[httpx.Client, str], bob: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    made = make_account(client, reads(user_id))
    assert made["scopes"] == reads(user_id)
    target = f"/api/service-accounts/{made['id']}"
    listed = ok(client.get("/api/service-accounts"))
    assert [entry["scopes"] for entry in listed if entry["id"] == made["id"]] == [reads(user_id)]
    assert ok(client.get(target))["name"] == made["name"]

    assert made["id"] not in str(ok(bob[0].get("/api/service-accounts")))
    refused(bob[0].get(target), 404)
    refused(bob[0].put(f"{target}/scopes", json={"scopes": reads(bob[1])}), 404)
    refused(bob[0].get(f"{target}/tokens"), 404)
    refused(bob[0].post(f"{target}/tokens", json={"name": "t"}), 404)
    refused(bob[0].delete(target), 404)

    assert ok(client.delete(target)) == {"status": "ok"}
    refused(client.get(target), 404)
    refused(client.delete(target), 404)
    assert made["id"] not in [entry["id"] for entry in ok(client.get("/api/service-accounts"))]


def test_scopes_of_a_service_account_are_checked_as_a_tokens(
    alice: tuple[httpx.Client, str], bob: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    for scopes in ({}, {f"storage.{user_id}": []}, reads(bob[1]), {"storage": ["read"]}, [], "x"):
        body = {"name": "a", "scopes": scopes}
        refused(client.post("/api/service-accounts", json=body), 400, "scopes")
    refused(
        client.post("/api/service-accounts", json={"name": " ", "scopes": reads(user_id)}),
        400,
        "name",
    )
    target = f"/api/service-accounts/{make_account(client, reads(user_id))['id']}"
    refused(client.put(f"{target}/scopes", json={"scopes": reads(bob[1])}), 400, "scopes")
    refused(client.put(f"{target}/scopes", json={}), 400, "scopes")
    assert ok(client.get(target))["scopes"] == reads(user_id)


def test_tokens_of_a_service_account_inherit_its_scopes_as_they_are_now(
    cloud: Cloud, alice: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    space = make_namespace(client, "service")
    put(client, space, "a", b"data")
    account = make_account(client, {f"storage.{user_id}.namespaces": ["read"]})
    target = f"/api/service-accounts/{account['id']}"
    made = ok(client.post(f"{target}/tokens", json={"name": "t", "expires_in": "30d"}))
    assert made["token"].startswith("ecloud_")
    assert made["expires_at"] == made["created_at"] + 30 * DAYS
    listed = ok(client.get(f"{target}/tokens"))
    assert [entry["id"] for entry in listed] == [made["id"]]
    assert "token" not in listed[0]

    with with_token(cloud.url, made["token"]) as user:
        where = {"namespace": space}
        refused(user.get("/storage/files", params=where), 403)
        ok(client.put(f"{target}/scopes", json={"scopes": reads(user_id)}))
        assert paths(user, space) == ["a"]
        ok(client.put(f"{target}/scopes", json={"scopes": {f"compute.{user_id}": ["read"]}}))
        refused(user.get("/storage/files", params=where), 403)
        ok(client.put(f"{target}/scopes", json={"scopes": reads(user_id)}))
        assert paths(user, space) == ["a"]
        ok(client.delete(target))
        refused(user.get("/storage/files", params=where), 401)


def test_a_service_accounts_token_can_be_revoked_alone(
    cloud: Cloud, alice: tuple[httpx.Client, str]
) -> None:
    client, user_id = alice
    space = make_namespace(client, "service")
    target = f"/api/service-accounts/{make_account(client, reads(user_id))['id']}"
    first, second = (
        ok(client.post(f"{target}/tokens", json={"name": name})) for name in ("1", "2")
    )
    ok(client.delete(f"/api/tokens/{first['id']}"))
    with with_token(cloud.url, first["token"]) as user:
        refused(user.get("/storage/files", params={"namespace": space}), 401)
    with with_token(cloud.url, second["token"]) as user:
        assert paths(user, space) == []


# --- restarts ----------------------------------------------------------------------------


def test_a_restart_loses_nothing(make_cloud: Callable[..., Cloud]) -> None:
    cloud = make_cloud(chunkservers=1).start()
    client, user_id = cloud.make_user("survivor")
    space = make_namespace(client, "kept", 1)
    put(client, space, "a/b", b"still here")
    token = make_token(client, {f"storage.{user_id}": ["read"]})
    revoked = make_token(client, {f"storage.{user_id}": ["read"]})
    ok(client.delete(f"/api/tokens/{revoked['id']}"))
    account = make_account(client, reads(user_id))
    before = {
        target: ok(client.get(target))
        for target in ("/api/session", "/api/tokens", "/api/service-accounts")
    }
    etag = client.get(f"/storage/{space}/a/b").headers["ETag"]

    old = cloud.cluster.pid("control")
    os.kill(old, 9)
    cloud.cluster.wait_restarted("control", old)

    with with_token(cloud.url, bearer(client)) as again:
        assert {target: ok(again.get(target)) for target in before} == before
        assert ok(again.get(f"/api/service-accounts/{account['id']}"))["scopes"] == reads(user_id)
        found = again.get(f"/storage/{space}/a/b")
        assert (found.content, found.headers["ETag"]) == (b"still here", etag)
    with with_token(cloud.url, token["token"]) as user:
        assert get(user, space, "a/b") == b"still here"
    with with_token(cloud.url, revoked["token"]) as user:
        refused(user.get("/storage/files", params={"namespace": make_namespace(client, "p")}), 401)


def test_two_workers_agree(make_cloud: Callable[..., Cloud]) -> None:
    """Each request on a connection of its own, so that both workers get some."""
    cloud = make_cloud("--control-workers", "2", chunkservers=1).start()
    client, user_id = cloud.make_user("worker")
    token = make_token(client, {f"storage.{user_id}": ["read", "create"]})
    single = httpx.Limits(max_keepalive_connections=0)

    def fresh(token: str) -> httpx.Client:
        return httpx.Client(
            base_url=cloud.url,
            headers={"Authorization": f"Bearer {token}"},
            limits=single,
            timeout=30.0,
            trust_env=False,
        )

    with fresh(bearer(client)) as session, fresh(token["token"]) as api:
        made = [make_namespace(session, "workers", 0) for _ in range(20)]
        for space in made:
            put(session, space, "f", space.encode())
            assert get(api, space, "f") == space.encode()
            assert set(made) <= set(names(api))
        seen = {
            match
            for _ in range(200)
            for match in re.findall(r'worker="(\d+)"', api.get("/metrics").text)
        }
        assert len(seen) == 2, "all requests went to one worker"

        ok(session.delete(f"/api/tokens/{token['id']}"))
        where = {"namespace": made[0]}

        def all_refuse() -> bool:
            return all(
                api.get("/storage/files", params=where).status_code == 401 for _ in range(12)
            )

        wait_for(all_refuse, REVOKED_SECONDS, "revocation in all processes")
