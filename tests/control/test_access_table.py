"""Who gets what: every storage route, for everybody, in every kind of storage namespace;
then every route of ``auth``.

The tables below are the contract. The columns of the first are who asks:

owner      the session of whoever owns the storage namespace. In ``default``, of whoever
           uploaded the file; in a ``left`` one there is no owner, so there is no column.
other      the session of another user
admin      a session of the administrator
nobody     no credentials
token      the owner's API token that has every ``storage`` scope of his
narrow     the owner's API token that has no ``storage`` scope
stranger   the other user's API token that has every ``storage`` scope of his
adm-token  the administrator's API token that has every ``storage`` scope of his

A row is of routes in a kind of storage namespace: ``private`` (0), ``visible`` (1),
``public`` (2), ``default``, and ``left``: its owner was deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from checks import anonymous, get, make_token, ok, put, refused, unique, with_token
from cloud import PASSWORD, Cloud

from control.installed import discover
from control.testing import make_app

Do = Callable[[httpx.Client, str, str], httpx.Response]
ACTIONS = ["create", "read", "update", "delete"]
COLUMNS = ["owner", "other", "admin", "nobody", "token", "narrow", "stranger", "adm-token"]

READS = "list,download,direct,attachment,head"
WRITES = "upload,put,overwrite,delete,remove,change,drop"
#: ``-``: there is nobody to ask.
TABLE = """
                                owner  other  admin  nobody  token  narrow  stranger  adm-token

private READS,ticket,WRITES       200    403    403     401    200     403       403        403
visible READS                     200    200    200     200    200     200       200        200
visible ticket                    200    200    200     401    200     403       200        200
visible WRITES                    200    403    403     401    200     403       403        403
public  READS                     200    200    200     200    200     200       200        200
public  ticket                    200    200    200     401    200     403       200        200
public  WRITES                    200    403    403     401    200     403       403        403
default READS                     200    200    200     200    200     200       200        200
default ticket,upload,put         200    200    200     401    200     403       200        200
default overwrite,delete,remove   200    403    200     401    200     403       403        403
default change,drop               403    403    403     401    403     403       403        403
left    READS,ticket,WRITES         -    403    200     401      -       -       403        403
"""

#: Who is shown the storage namespace in the list of all.
LISTED = """
          owner  other  admin  nobody  token  stranger
private     yes     no     no      no    yes        no
visible     yes     no     no      no    yes        no
public      yes    yes    yes     yes    yes       yes
default     yes    yes    yes     yes    yes       yes
"""

VISIBILITIES = {"private": 0, "visible": 1, "public": 2}

ROUTES: dict[str, Do] = {
    "list": lambda c, space, path: c.get("/storage/files", params={"namespace": space}),
    "download": lambda c, space, path: c.get(
        "/storage/download", params={"namespace": space, "name": path}
    ),
    "direct": lambda c, space, path: c.get(f"/storage/{space}/{path}"),
    "attachment": lambda c, space, path: c.get(f"/storage/download/{space}/{path}"),
    "head": lambda c, space, path: c.head(f"/storage/{space}/{path}"),
    "ticket": lambda c, space, path: c.post(
        f"/storage/namespaces/{space}/tickets", json={"path": path}
    ),
    "upload": lambda c, space, path: c.post(
        "/storage/upload", params={"namespace": space}, files={"file": (unique("new"), b"new")}
    ),
    "put": lambda c, space, path: c.put(f"/storage/{space}/{unique('new')}", content=b"new"),
    "overwrite": lambda c, space, path: c.post(
        "/storage/upload",
        params={"namespace": space, "overwrite": "true"},
        files={"file": (path, b"overwritten")},
    ),
    "delete": lambda c, space, path: c.delete(
        "/storage/delete", params={"namespace": space, "name": path}
    ),
    "remove": lambda c, space, path: c.delete(f"/storage/{space}/{path}"),
    "change": lambda c, space, path: c.put(f"/storage/namespaces/{space}", json={"visibility": 0}),
    "drop": lambda c, space, path: c.delete(f"/storage/namespaces/{space}"),
}


class Everybody:
    """All who ask, and how what they ask for is made."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.owner, owner_id = cloud.make_user()
        self.other, other_id = cloud.make_user()
        all_of_it = make_token(self.owner, {f"storage.{owner_id}": ACTIONS})
        none_of_it = make_token(self.owner, {f"compute.{owner_id}": ACTIONS})
        admin_id = ok(cloud.admin.get("/api/session"))["user_id"]
        admins = make_token(cloud.admin, {f"storage.{admin_id}": ACTIONS})
        strangers = make_token(self.other, {f"storage.{other_id}": ACTIONS})
        self.clients = {
            "owner": self.owner,
            "other": self.other,
            "admin": cloud.admin,
            "nobody": anonymous(cloud.url),
            "token": with_token(cloud.url, all_of_it["token"]),
            "narrow": with_token(cloud.url, none_of_it["token"]),
            "stranger": with_token(cloud.url, strangers["token"]),
            "adm-token": with_token(cloud.url, admins["token"]),
        }

    def make(self, kind: str) -> tuple[str, str]:
        """A storage namespace of this kind, and a file in it."""
        path = unique("file")
        if kind == "default":
            put(self.owner, "default", path, b"old")
            return "default", path
        owner, owner_id = self.cloud.make_user() if kind == "left" else (self.owner, "")
        space = unique(kind)
        body = {"name": space, "visibility": VISIBILITIES.get(kind, 2)}
        ok(owner.post("/storage/namespaces", json=body))
        put(owner, space, path, b"old")
        if kind == "left":
            ok(self.cloud.admin.delete("/admin/users", params={"id": owner_id}))
        return space, path

    def reader(self, kind: str) -> httpx.Client:
        """Somebody who may read there whatever happens."""
        return self.cloud.admin if kind == "left" else self.owner


@pytest.fixture(scope="module")
def everybody(cloud: Cloud) -> Iterator[Everybody]:
    made = Everybody(cloud)
    yield made
    for who in ("nobody", "token", "narrow", "stranger", "adm-token"):  # the others are the cloud's
        made.clients[who].close()


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip()][1:]


def rows_of_routes() -> list[list[str]]:
    named = TABLE.replace("READS", READS).replace("WRITES", WRITES)
    return [
        [kind, route, *cells] for kind, routes, *cells in rows(named) for route in routes.split(",")
    ]


def test_the_table_is_whole() -> None:
    kinds = [*VISIBILITIES, "default", "left"]
    assert TABLE.split("\n")[1].split() == COLUMNS
    found = [row[:2] for row in rows_of_routes()]
    assert found == [[kind, route] for kind in kinds for route in ROUTES]


@pytest.mark.parametrize("row", rows_of_routes(), ids=lambda row: "-".join(row[:2]))
def test_who_gets_what(everybody: Everybody, row: list[str]) -> None:
    kind, route, *cells = row
    space, path = everybody.make(kind)
    for who, cell in zip(COLUMNS, cells, strict=True):
        if cell == "-":
            continue
        answer = ROUTES[route](everybody.clients[who], space, path)
        assert answer.status_code == int(cell), f"{who}: {answer.status_code} {answer.text[:200]}"
        if answer.status_code == 200:
            check_effect(everybody, kind, route, space, path, answer)
            if route in ("overwrite", "delete", "remove", "change", "drop"):
                space, path = everybody.make(kind)  # the next one finds it as it was
        else:
            if route != "head":
                refused(answer, int(cell))
            assert get(everybody.reader(kind), space, path) == b"old", f"{who} changed it"


def check_effect(
    everybody: Everybody, kind: str, route: str, space: str, path: str, answer: httpx.Response
) -> None:
    """What is answered with 200 was done."""
    reader = everybody.reader(kind)
    if route == "list":
        assert path in [item["path"] for item in answer.json()]
    elif route in ("download", "direct", "attachment"):
        assert answer.content == b"old"
    elif route == "head":
        assert answer.headers["Content-Length"] == "3"
    elif route == "ticket":
        query = {"ticket": ok(answer)["ticket"]}
        with everybody.cloud.client() as client:
            assert client.get(f"/storage/{space}/{path}", params=query).content == b"old"
    elif route == "overwrite":
        assert get(reader, space, path) == b"overwritten"
    elif route in ("upload", "put"):
        assert ok(answer)["status"] == "ok"
    else:
        gone = reader.get("/storage/download", params={"namespace": space, "name": path})
        assert gone.status_code == (200 if route == "change" else 404)


@pytest.mark.parametrize("row", rows(LISTED), ids=lambda row: row[0])
def test_who_is_shown_what(everybody: Everybody, row: list[str]) -> None:
    kind, *cells = row
    space, _ = everybody.make(kind)
    for who, cell in zip(LISTED.split("\n")[1].split(), cells, strict=True):
        listed: list[dict[str, Any]] = ok(everybody.clients[who].get("/storage/namespaces"))
        shown = space in [item["name"] for item in listed]
        assert shown == (cell == "yes"), who


def test_what_was_left_is_shown_to_no_stranger(everybody: Everybody) -> None:
    space, _ = everybody.make("left")
    for who in ("other", "nobody", "stranger", "owner"):
        listed = ok(everybody.clients[who].get("/storage/namespaces"))
        assert space not in [item["name"] for item in listed], who


def test_a_narrow_token_is_shown_nothing_private(everybody: Everybody) -> None:
    """It may list what everybody sees, or nothing at all."""
    space, _ = everybody.make("private")
    answer = everybody.clients["narrow"].get("/storage/namespaces")
    if answer.status_code != 200:
        refused(answer, 403)
    assert space not in answer.text


def test_what_everybody_may_make(everybody: Everybody) -> None:
    expected = {"owner": 200, "other": 200, "admin": 200, "nobody": 401, "token": 200,
                "narrow": 403, "stranger": 200}  # fmt: skip
    for who, status in expected.items():
        answer = everybody.clients[who].post("/storage/namespaces", json={"name": unique("made")})
        assert answer.status_code == status, who


#: ``owner`` is who has what the path names, ``admin`` an administrator, and ``token`` and
#: ``adm-token`` are their API tokens, with every scope there is. ``404``: it is not said
#: that others have it.
AUTH_TABLE = """
                                         owner  other  admin  nobody  token  adm-token
POST   /api/login                          200    200    200     200    200        200
GET    /api/session                        200    200    200     401    200        200
POST   /api/logout                         200    200    200     200    200        200
PUT    /api/password                       200    200    200     401    403        403
POST   /api/tokens                         200    200    200     401    403        403
GET    /api/tokens                         200    200    200     401    403        403
DELETE /api/tokens/{id}                    200    404    404     401    403        403
GET    /api/tokens/{id}/check              401    401    401     401    401        401
POST   /api/service-accounts               200    200    200     401    403        403
GET    /api/service-accounts               200    200    200     401    403        403
GET    /api/service-accounts/{id}          200    404    404     401    403        403
DELETE /api/service-accounts/{id}          200    404    404     401    403        403
PUT    /api/service-accounts/{id}/scopes   200    404    404     401    403        403
POST   /api/service-accounts/{id}/tokens   200    404    404     401    403        403
GET    /api/service-accounts/{id}/tokens   200    404    404     401    403        403
GET    /admin/users                        403    403    200     401    403        403
POST   /admin/users                        403    403    200     401    403        403
PUT    /admin/users                        403    403    200     401    403        403
DELETE /admin/users                        403    403    200     401    403        403
GET    /admin/sessions                     403    403    200     401    403        403
DELETE /admin/sessions                     403    403    200     401    403        403
GET    /api/quota                          200    200    200     401    200        200
GET    /admin/quotas                       403    403    200     401    403        403
PUT    /admin/quotas                       403    403    200     401    403        403
GET    /admin/files                        403    403    200     401    403        403
GET    /admin/namespaces                   403    403    200     401    403        403
"""


class Person:
    """Somebody with a session of his own, and an API token that may all he may."""

    def __init__(self, cloud: Cloud, *, is_admin: bool = False) -> None:
        self.cloud = cloud
        self.name = unique("person")
        body = {"username": self.name, "password": PASSWORD, "is_admin": is_admin}
        self.id = ok(cloud.admin.post("/admin/users", json=body))["user_id"]
        self.session = cloud.login(self.name)
        self.scopes = {f"{root}.{self.id}": ["read", "create"] for root in ("storage", "compute")}
        self.token = make_token(self.session, self.scopes)["token"]


class Asking:
    """Who asks in the second table, and what for."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.owner, self.other = Person(cloud), Person(cloud)
        self.admin = Person(cloud, is_admin=True)

    def client(self, who: str) -> tuple[httpx.Client, Person]:
        """The credential, and the person whose it is (the owner if nobody's)."""
        if who == "nobody":
            return self.cloud.client(), self.owner
        person = {"other": self.other, "admin": self.admin, "adm-token": self.admin}.get(
            who, self.owner
        )
        is_token = who.endswith("token")
        return (self.cloud.client(person.token) if is_token else person.session), person

    def target(self, path: str) -> dict[str, str]:
        """Something of the owner's that can be done away with, for the path and the query."""
        owner = self.owner
        if path.startswith("/api/tokens/"):
            return {"id": str(make_token(owner.session, owner.scopes)["id"])}
        if path.startswith("/api/service-accounts/"):
            body = {"name": "account", "scopes": owner.scopes}
            return {"id": str(ok(owner.session.post("/api/service-accounts", json=body))["id"])}
        if path == "/admin/users":
            body = {"username": unique("made"), "password": PASSWORD}
            return {"id": str(ok(self.cloud.admin.post(path, json=body))["user_id"])}
        if path == "/admin/quotas":
            return {"id": owner.id}
        if path == "/admin/sessions":
            token = self.cloud.token(owner.name)
            return {"id": jwt.decode(token, options={"verify_signature": False})["jti"]}
        return {}

    def body(self, method: str, path: str, person: Person) -> dict[str, Any] | None:
        """What the route takes, such that only the credential is in the way."""
        scopes = self.owner.scopes if "{id}" in path else person.scopes
        bodies: dict[str, dict[str, Any]] = {
            "POST /api/login": {"username": person.name, "password": PASSWORD},
            "PUT /api/password": {"old": PASSWORD, "new": PASSWORD + "!"},
            "POST /api/tokens": {"name": "token", "scopes": scopes},
            "POST /api/service-accounts": {"name": "account", "scopes": scopes},
            "PUT /api/service-accounts/{id}/scopes": {"scopes": scopes},
            "POST /api/service-accounts/{id}/tokens": {"name": "token"},
            "PUT /admin/quotas": {},
            "PUT /admin/users": {"display_name": "Another"},
            "POST /admin/users": {"username": unique("made"), "password": PASSWORD},
        }
        return bodies.get(f"{method} {path}")


@pytest.fixture(scope="module")
def asking(cloud: Cloud) -> Asking:
    return Asking(cloud)


def test_every_route_of_auth_is_in_the_table(tmp_path: Path) -> None:
    app = make_app(tmp_path, *discover().values())
    lists = ("/admin/files", "/admin/namespaces")
    routes = {
        (route.method, route.path)
        for module, route in app.table
        if module == "auth" or route.path in lists
    }
    assert routes == {(row[0], row[1]) for row in rows(AUTH_TABLE)}


@pytest.mark.parametrize("row", rows(AUTH_TABLE), ids=lambda row: "-".join(row[:2]))
def test_who_gets_what_of_auth(asking: Asking, row: list[str]) -> None:
    method, path, *cells = row
    for who, cell in zip(AUTH_TABLE.split("\n")[1].split(), cells, strict=True):
        target = asking.target(path)
        client, person = asking.client(who)
        query = target if path.startswith("/admin/") else None
        body = asking.body(method, path, person)
        answer = client.request(method, path.format(**target), params=query, json=body)
        assert answer.status_code == int(cell), f"{who}: {answer.status_code} {answer.text[:200]}"
        if answer.status_code != 200:
            refused(answer, int(cell))
        elif path == "/api/password":
            back = {"old": PASSWORD + "!", "new": PASSWORD}
            ok(client.put(path, json=back))
        elif path == "/api/logout" and client is person.session:
            refused(client.get("/api/session"), 401)
            person.session = asking.cloud.login(person.name)
