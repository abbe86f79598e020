"""The contract of authentication, API tokens and administration with real processes: what
``test_auth_login``, ``test_auth_tokens`` and ``test_auth_admin`` do not show in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
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
    put,
    refused,
    unique,
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


# --- login -----------------------------------------------------------------------------


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
    username = add_user(cloud, password=password)
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


def test_the_limit_can_be_switched_off(cloud: Cloud) -> None:
    assert cloud.cluster.environment["GFS_CONTROL_LOGIN_FAILURES"] == "0"
    username = add_user(cloud)
    with anonymous(cloud.url) as client:
        for _ in range(21):  # one more than are allowed by default
            refused(log_in(client, username, "wrong"), 401)
        ok(log_in(client, username))


# --- sessions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        *((each, 401) for each in ("", "Bearer", "Bearer x", "Bearer a.b.c", "Basic YTpi")),
        *((each, 401) for each in ("Token {}", "{}")),
        ("bearer {}", 200),  # RFC 9110, 11.1
    ],
)
def test_a_header_that_is_no_bearer_token_is_refused(
    alice: tuple[httpx.Client, str], nobody: httpx.Client, header: str, status: int
) -> None:
    value = header.format(bearer(alice[0]))
    answer = nobody.get("/api/session", headers={"Authorization": value})
    assert ok(answer) if status == 200 else refused(answer, status)


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
