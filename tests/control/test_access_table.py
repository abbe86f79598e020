"""Who gets what: every storage route, for everybody, in every kind of storage namespace.

The table below is the contract. Its columns are who asks:

owner      the session of whoever owns the storage namespace. In ``default``, of whoever
           uploaded the file; in a ``left`` one there is no owner, so there is no column.
other      the session of another user
admin      a session of the administrator
nobody     no credentials
token      the owner's API token that has every ``storage`` scope of his
narrow     the owner's API token that has no ``storage`` scope
stranger   the other user's API token that has every ``storage`` scope of his

A row is a route in a kind of storage namespace: ``private`` (0), ``visible`` (1),
``public`` (2), ``default``, and ``left``: its owner was deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from checks import anonymous, get, make_token, ok, put, refused, unique, with_token
from cloud import Cloud

Do = Callable[[httpx.Client, str, str], httpx.Response]
ACTIONS = ["create", "read", "update", "delete"]
COLUMNS = ["owner", "other", "admin", "nobody", "token", "narrow", "stranger"]

#: ``-``: there is nobody to ask.
TABLE = """
                    owner  other  admin  nobody  token  narrow  stranger

private list          200    403    403     401    200     403       403
private download      200    403    403     401    200     403       403
private direct        200    403    403     401    200     403       403
private attachment    200    403    403     401    200     403       403
private head          200    403    403     401    200     403       403
private upload        200    403    403     401    200     403       403
private put           200    403    403     401    200     403       403
private overwrite     200    403    403     401    200     403       403
private delete        200    403    403     401    200     403       403
private remove        200    403    403     401    200     403       403
private change        200    403    403     401    200     403       403
private drop          200    403    403     401    200     403       403

visible list          200    200    200     200    200     200       200
visible download      200    200    200     200    200     200       200
visible direct        200    200    200     200    200     200       200
visible attachment    200    200    200     200    200     200       200
visible head          200    200    200     200    200     200       200
visible upload        200    403    403     401    200     403       403
visible put           200    403    403     401    200     403       403
visible overwrite     200    403    403     401    200     403       403
visible delete        200    403    403     401    200     403       403
visible remove        200    403    403     401    200     403       403
visible change        200    403    403     401    200     403       403
visible drop          200    403    403     401    200     403       403

public list           200    200    200     200    200     200       200
public download       200    200    200     200    200     200       200
public direct         200    200    200     200    200     200       200
public attachment     200    200    200     200    200     200       200
public head           200    200    200     200    200     200       200
public upload         200    403    403     401    200     403       403
public put            200    403    403     401    200     403       403
public overwrite      200    403    403     401    200     403       403
public delete         200    403    403     401    200     403       403
public remove         200    403    403     401    200     403       403
public change         200    403    403     401    200     403       403
public drop           200    403    403     401    200     403       403

default list          200    200    200     200    200     200       200
default download      200    200    200     200    200     200       200
default direct        200    200    200     200    200     200       200
default attachment    200    200    200     200    200     200       200
default head          200    200    200     200    200     200       200
default upload        200    200    200     401    200     403       200
default put           200    200    200     401    200     403       200
default overwrite     200    403    200     401    200     403       403
default delete        200    403    200     401    200     403       403
default remove        200    403    200     401    200     403       403
default change        403    403    403     401    403     403       403
default drop          403    403    403     401    403     403       403

left list               -    403    200     401      -       -       403
left download           -    403    200     401      -       -       403
left direct             -    403    200     401      -       -       403
left attachment         -    403    200     401      -       -       403
left head               -    403    200     401      -       -       403
left upload             -    403    200     401      -       -       403
left put                -    403    200     401      -       -       403
left overwrite          -    403    200     401      -       -       403
left delete             -    403    200     401      -       -       403
left remove             -    403    200     401      -       -       403
left change             -    403    200     401      -       -       403
left drop               -    403    200     401      -       -       403
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
        strangers = make_token(self.other, {f"storage.{other_id}": ACTIONS})
        self.clients = {
            "owner": self.owner,
            "other": self.other,
            "admin": cloud.admin,
            "nobody": anonymous(cloud.url),
            "token": with_token(cloud.url, all_of_it["token"]),
            "narrow": with_token(cloud.url, none_of_it["token"]),
            "stranger": with_token(cloud.url, strangers["token"]),
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
    for who in ("nobody", "token", "narrow", "stranger"):  # the others are the cloud's
        made.clients[who].close()


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip()][1:]


def test_the_table_is_whole() -> None:
    kinds = [*VISIBILITIES, "default", "left"]
    assert TABLE.split("\n")[1].split() == COLUMNS
    assert [row[:2] for row in rows(TABLE)] == [[kind, route] for kind in kinds for route in ROUTES]


@pytest.mark.parametrize("row", rows(TABLE), ids=lambda row: "-".join(row[:2]))
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
