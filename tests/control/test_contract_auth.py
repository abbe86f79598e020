"""The contract of authentication, API tokens and administration with real processes: what
``test_auth_login``, ``test_auth_tokens`` and ``test_auth_admin`` do not show in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import pytest
from checks import (
    PLAIN,
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
from limits import HANG_SECONDS
from signals import send


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


# --- login -----------------------------------------------------------------------------


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


def test_login_ignores_fields_it_does_not_know(cloud: Cloud, nobody: httpx.Client) -> None:
    body = {"username": add_user(cloud), "password": PASSWORD, "remember": True, "x": {"y": []}}
    ok(nobody.post("/api/login", json=body))


def test_the_limit_can_be_switched_off(cloud: Cloud) -> None:
    assert cloud.cluster.environment["GFS_CONTROL_LOGIN_FAILURES"] == "0"
    username = add_user(cloud)
    with anonymous(cloud.url) as client:
        for _ in range(21):  # one more than are allowed by default
            refused(log_in(client, username, "wrong"), 401)
        ok(log_in(client, username))


# --- sessions --------------------------------------------------------------------------


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


def test_an_expired_session_is_refused_and_anonymous_where_that_will_do(
    make_cloud: Callable[..., Cloud],
) -> None:
    cloud = make_cloud(chunkservers=1).start()
    make_namespace(cloud.admin, "public", 2)
    put(cloud.admin, "default", "for-all", b"public bytes")
    cloud.stop()
    cloud.cluster.environment["GFS_CONTROL_SESSION_SECONDS"] = "1"
    old = cloud.start().login("admin")
    assert claims_of(bearer(old))["exp"] - claims_of(bearer(old))["iat"] == 1
    wait_for(lambda: old.get("/api/session").status_code == 401, "end of the session")
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
        base_url=cloud.url, headers={"Authorization": raw}, timeout=HANG_SECONDS, **PLAIN
    ) as client:
        assert "default" in names(client)
        assert get(client, "default", name) == b"open"
        assert client.get(f"/storage/default/{name}").content == b"open"
        refused(client.post("/storage/namespaces", json={"name": unique("ns")}), 401)


# --- API tokens ------------------------------------------------------------------------


def reads(user_id: str) -> dict[str, list[str]]:
    return {f"storage.{user_id}.files": ["read"]}


@pytest.mark.thin
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
        ({"scopes": {"storage.{me}.files": "read"}}, "scopes"),
        ({"scopes": {"storage.{me}.files": [1]}}, "scopes"),
        ({"scopes": {"storage.{other}.files": ["read"]}}, "scopes"),
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

    def known() -> list[dict[str, Any]]:
        # When each was used last is known to the control plane that it was used at, at first.
        return [{**each, "last_used_at": 0} for each in ok(client.get("/api/tokens"))]

    before = known()
    refused(client.post("/api/tokens", json=body), 400, field)
    assert known() == before


@pytest.mark.parametrize("missing", ["name", "scopes"])
def test_a_token_needs_name_and_scopes(alice: tuple[httpx.Client, str], missing: str) -> None:
    body: dict[str, Any] = {"name": "t", "scopes": reads(alice[1])}
    del body[missing]
    refused(alice[0].post("/api/tokens", json=body), 400, missing)


@pytest.mark.parametrize("name", ["x", "x" * 64, "€" * 21, "  " + "x" * 64 + "  "])
def test_names_of_tokens_may_be_long(alice: tuple[httpx.Client, str], name: str) -> None:
    made = ok(alice[0].post("/api/tokens", json={"name": name, "scopes": reads(alice[1])}))
    assert made["name"] == name.strip()


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

#: Those of auth are in test_access_table.
ADMIN_LISTS = ["/admin/files", "/admin/namespaces"]


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


def test_files_and_namespaces_of_all_are_listed_for_the_admin(
    cloud: Cloud, alice: tuple[httpx.Client, str]
) -> None:
    space = make_namespace(alice[0], "private", 0)
    put(alice[0], space, "folder/secret.txt", b"12345")
    listed = [entry for entry in ok(cloud.admin.get("/admin/namespaces")) if entry["name"] == space]
    assert [(entry["owner_id"], entry["visibility"]) for entry in listed] == [(alice[1], 0)]
    files = [entry for entry in ok(cloud.admin.get("/admin/files")) if entry["namespace"] == space]
    assert [(entry["path"], entry["size"]) for entry in files] == [("folder/secret.txt", 5)]


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


# --- restarts ----------------------------------------------------------------------------


def test_a_restart_loses_nothing(make_cloud: Callable[..., Cloud]) -> None:
    cloud = make_cloud(chunkservers=1).start()
    client, user_id = cloud.make_user("survivor")
    space = make_namespace(client, "kept", 1)
    put(client, space, "a/b", b"still here")
    token = make_token(client, {f"storage.{user_id}": ["read"]})
    revoked = make_token(client, {f"storage.{user_id}": ["read"]})
    ok(client.delete(f"/api/tokens/{revoked['id']}"))
    body = {"name": "account", "scopes": reads(user_id)}
    account = ok(client.post("/api/service-accounts", json=body))
    before = {
        target: ok(client.get(target))
        for target in ("/api/session", "/api/tokens", "/api/service-accounts")
    }
    etag = client.get(f"/storage/{space}/a/b").headers["ETag"]

    old = cloud.cluster.pid("control")
    send(old, 9)
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
            timeout=HANG_SECONDS,
            **PLAIN,
        )

    with fresh(bearer(client)) as session, fresh(token["token"]) as api:
        made = [make_namespace(session, "workers", 0) for _ in range(20)]
        for space in made:
            put(session, space, "f", space.encode())
            assert get(api, space, "f") == space.encode()
            assert set(made) <= set(names(api))

        def both_counted() -> bool:
            return len(set(re.findall(r'worker="(\d+)"', api.get("/metrics").text))) == 2

        wait_for(both_counted, "requests to both workers")

        ok(session.delete(f"/api/tokens/{token['id']}"))
        where = {"namespace": made[0]}

        def all_refuse() -> bool:
            return all(
                api.get("/storage/files", params=where).status_code == 401 for _ in range(12)
            )

        wait_for(all_refuse, "revocation in all processes")
