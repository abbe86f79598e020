"""Tickets for the addresses of files, over REST."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from checks import make_namespace, make_token, ok, put, refused, unique, with_token
from cloud import PASSWORD, Cloud

DATA = random.Random(1).randbytes(200_000)


@pytest.fixture(scope="module")
def owner(cloud: Cloud) -> httpx.Client:
    return cloud.make_user()[0]


@pytest.fixture(scope="module")
def space(owner: httpx.Client) -> str:
    made = make_namespace(owner, "tickets")
    for path in ("a/film ä.mp4", "other"):
        put(owner, made, path, DATA)
    return made


def make(client: httpx.Client, space: str, path: str, **more: Any) -> str:
    made = ok(client.post(f"/storage/namespaces/{space}/tickets", json={"path": path, **more}))
    return str(made["ticket"])


def addresses(space: str, path: str) -> list[tuple[str, dict[str, str]]]:
    return [
        (f"/storage/{space}/{path}", {}),
        (f"/storage/download/{space}/{path}", {}),
        ("/storage/download", {"namespace": space, "name": path}),
    ]


def test_a_ticket_opens_every_address_of_its_file(
    cloud: Cloud, owner: httpx.Client, space: str
) -> None:
    path = "a/film ä.mp4"
    ticket = {"ticket": make(owner, space, path)}
    with cloud.client() as anybody:
        for target, query in addresses(space, path):
            refused(anybody.get(target, params=query), 401)
            answer = anybody.get(target, params={**query, **ticket})
            assert answer.content == DATA
            assert answer.headers["Cache-Control"] == "private, no-cache"
            seek = {"Range": "bytes=100000-100009"}
            part = anybody.get(target, params={**query, **ticket}, headers=seek)
            assert (part.status_code, part.content) == (206, DATA[100000:100010])
            head = anybody.head(target, params={**query, **ticket})
            assert head.headers["Content-Length"] == str(len(DATA))


def test_a_ticket_is_for_nothing_else(cloud: Cloud, owner: httpx.Client, space: str) -> None:
    text = make(owner, space, "other")
    another = make_namespace(owner, "another")
    put(owner, another, "other", b"1")
    with cloud.client() as anybody:
        said = set()
        for target, query in [*addresses(space, "a/film ä.mp4"), *addresses(another, "other")]:
            said.add(refused(anybody.get(target, params={**query, "ticket": text}), 401))
        for wrong in ("", "x", text[:-2], "a.b.c", text.replace(".", ".A", 1)):
            query = {"ticket": wrong}
            said.add(refused(anybody.get(f"/storage/{space}/other", params=query), 401))
        assert len(said) == 1, "one clear error, whatever is wrong"
        query = {"ticket": text}
        file = f"/storage/{space}/other"
        refused(anybody.put(file, params={**query, "overwrite": "true"}, content=b"2"), 401)
        refused(anybody.delete(file, params=query), 401)
        refused(anybody.get("/storage/files", params={**query, "namespace": space}), 401)
        refused(anybody.get("/api/session", params=query), 401)
        refused(anybody.get("/api/session", params={"token": text}), 401)
        refused(anybody.get(file, params={"token": text}), 401)
    with with_token(cloud.url, text) as client:
        refused(client.get(file), 401)


def test_a_wrong_ticket_is_refused_where_none_is_needed(cloud: Cloud, owner: httpx.Client) -> None:
    """So that nobody thinks that it was good."""
    put(owner, "default", path := unique("public"), b"1")
    with cloud.client() as anybody:
        assert anybody.get(f"/storage/default/{path}").content == b"1"
        refused(anybody.get(f"/storage/default/{path}", params={"ticket": "x"}), 401, "ticket")


def test_what_there_is_no_ticket_for(cloud: Cloud, owner: httpx.Client, space: str) -> None:
    tickets = f"/storage/namespaces/{space}/tickets"
    for path, status in (("a", 404), ("none", 404), ("../x", 400), (".s3-versions/x", 400)):
        refused(owner.post(tickets, json={"path": path}), status)
    for more in ({"snapshot": "../"}, {"expires_in": 59}, {"expires_in": 43201}):
        refused(owner.post(tickets, json={"path": "other", **more}), 400, *more)
    refused(owner.post(tickets, json={"path": "other", "snapshot": "0" * 16}), 404)
    refused(cloud.make_user()[0].post(tickets, json={"path": "other"}), 403)


def test_a_ticket_for_a_file_of_a_snapshot(cloud: Cloud, owner: httpx.Client, space: str) -> None:
    base = f"/storage/namespaces/{space}/snapshots"
    one, two = (ok(owner.post(base, json={}))["id"] for _ in "12")
    query = {"ticket": make(owner, space, "other", snapshot=one)}
    with cloud.client() as anybody:
        assert anybody.get(f"{base}/{one}/files/other", params=query).content == DATA
        refused(anybody.get(f"{base}/{two}/files/other", params=query), 401)
        refused(anybody.get(f"/storage/{space}/other", params=query), 401)
        refused(anybody.get(f"{base}/{one}/entries", params=query), 401)
        present = {"ticket": make(owner, space, "other")}
        refused(anybody.get(f"{base}/{one}/files/other", params=present), 401)
    reader, _ = cloud.make_user()
    ok(owner.put(f"/storage/namespaces/{space}", json={"visibility": 2}))
    make(reader, space, "other")
    body = {"path": "other", "snapshot": one}
    refused(reader.post(f"/storage/namespaces/{space}/tickets", json=body), 403)
    ok(owner.put(f"/storage/namespaces/{space}", json={"visibility": 0}))


End = Callable[[Cloud, httpx.Client, str], object]
ENDS: dict[str, End] = {
    "logout": lambda cloud, client, user_id: client.post("/api/logout"),
    "user": lambda cloud, client, user_id: cloud.admin.delete(f"/admin/users?id={user_id}"),
    "password": lambda cloud, client, user_id: cloud.admin.put(
        f"/admin/users?id={user_id}", json={"password": PASSWORD + "!"}
    ),
}


@pytest.mark.parametrize(
    "how", [pytest.param("logout", marks=pytest.mark.thin), "user", "password", "token"]
)
def test_a_ticket_ends_with_what_made_it(cloud: Cloud, how: str) -> None:
    client, user_id = cloud.make_user()
    space = make_namespace(client, "ends")
    put(client, space, "f", b"1")
    if how == "token":
        made = make_token(client, {f"storage.{user_id}.files.{space}": ["read"]})
        with with_token(cloud.url, made["token"]) as by_token:
            query = {"ticket": make(by_token, space, "f")}
    else:
        query = {"ticket": make(client, space, "f")}
    with cloud.client() as anybody:
        assert anybody.get(f"/storage/{space}/f", params=query).content == b"1"
        if how == "token":
            ok(client.delete(f"/api/tokens/{made['id']}"))
        else:
            ok(ENDS[how](cloud, client, user_id))
            refused(client.get("/api/session"), 401)
        refused(anybody.get(f"/storage/{space}/f", params=query), 401, "ticket")
