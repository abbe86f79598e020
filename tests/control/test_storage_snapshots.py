"""Snapshots, links, and where the chunks of a file are, over REST."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from checks import get, make_namespace, ok, paths, put, refused, wait_for
from cloud import Cloud
from limits import HANG_SECONDS
from msgspec.structs import replace
from s3_client import client_of, new_key
from storage_people import ACTIONS, Who, at, post, rows, used

from control.errors import NoSuchThing, TooManyRequests
from control.records import Records
from control.storage.inspection import CHECKS_MAX, InspectionRoutes
from control.storage.links import ShareRoutes, _digest
from control.storage.rows import STORAGE, Share, Space, disown, shares, spaces


@pytest.fixture
def client(owner: Who) -> httpx.Client:
    return owner[0]


@pytest.fixture
def space(owner: Who) -> str:
    made = make_namespace(owner[0], "snap")
    for path in ("a/1", "a/b/2", "c"):
        put(owner[0], made, path, path.encode())
    return made


def make(client: httpx.Client, space: str, **body: str) -> dict[str, Any]:
    return post(client, space, "snapshots", **body)


def snapshots(client: httpx.Client, space: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ok(client.get(at(space, "snapshots")))["snapshots"]
    return found


@pytest.mark.thin
def test_a_snapshot_stays_as_it_was(space: str, client: httpx.Client) -> None:
    before = used(client)
    made = make(client, space, name="<b>before</b> the move")
    assert (made["name"], made["folder"], made["files"], made["size"]) == (
        "<b>before</b> the move", "", 3, 9,
    )  # fmt: skip
    assert used(client) == (before[0] + 3, before[1] + 9)
    put(client, space, "c", b"changed", overwrite="true")
    ok(client.delete(at(space, "folder"), params={"path": "a"}))
    assert snapshots(client, space) == [made]
    one = f"snapshots/{made['id']}"
    page = ok(client.get(at(space, f"{one}/entries"), params={"folder": "a"}))
    assert [(e["kind"], e["path"]) for e in page["entries"]] == [("file", "a/1"), ("folder", "a/b")]
    assert client.get(at(space, f"{one}/files/c")).content == b"c"
    part = client.get(at(space, f"{one}/files/a/b/2"), headers={"Range": "bytes=2-3"})
    assert (part.status_code, part.content) == (206, b"b/")
    refused(client.get(at(space, f"{one}/files/nothing")), 404)
    assert paths(client, space) == ["c"]


def test_what_is_restored_is_a_copy(space: str, client: httpx.Client) -> None:
    one = at(space, f"snapshots/{make(client, space)['id']}/restore")
    put(client, space, "c", b"changed", overwrite="true")
    ok(client.delete(at(space, "folder"), params={"path": "a"}))
    refused(client.post(one, json={}), 400, "target")
    refused(client.post(one, json={"path": "c"}), 409, "c exists")
    refused(client.post(one, json={"path": "nothing"}), 404)
    refused(client.post(one, json={"path": "../../other"}), 400)
    ok(client.post(one, json={"path": "c", "overwrite": True}))
    ok(client.post(one, json={"path": "a"}))
    found = ok(client.post(one, json={"target": "all/of it"}))
    assert (found["kind"], found["files"]) == ("folder", 3)
    assert get(client, space, "c") == get(client, space, "all/of it/c") == b"c"
    assert paths(client, space) == [
        "a/1", "a/b/2", "all/of it/a/1", "all/of it/a/b/2", "all/of it/c", "c",
    ]  # fmt: skip


def test_a_snapshot_of_a_folder(space: str, client: httpx.Client) -> None:
    made = make(client, space, folder="/a/b/")
    assert (made["folder"], made["files"]) == ("a/b", 1)
    ok(client.delete(at(space, "folder"), params={"path": "a"}))
    ok(client.post(at(space, f"snapshots/{made['id']}/restore"), json={}))
    assert paths(client, space) == ["a/b/2", "c"]
    refused(client.post(at(space, "snapshots"), json={"folder": "nothing"}), 404)
    refused(client.post(at(space, "snapshots"), json={"folder": "c"}), 400)
    refused(client.post(at(space, "snapshots"), json={"folder": ".s3-versions"}), 400)
    refused(client.post(at(space, "snapshots"), json={"name": "é" * 101}), 400)


def test_a_deleted_snapshot_frees_its_quota(cloud: Cloud, space: str, client: httpx.Client) -> None:
    before = used(client)
    made = [make(client, space, name=str(n)) for n in range(3)]
    assert [each["name"] for each in snapshots(client, space)] == ["2", "1", "0"]
    assert used(client) == (before[0] + 9, before[1] + 27)
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()
    listed = ok(client.get("/storage/namespaces"))
    assert [each["count"] for each in listed if each["name"] == space] == [3]
    for each in made:
        ok(client.delete(at(space, f"snapshots/{each['id']}")))
    refused(client.delete(at(space, f"snapshots/{made[0]['id']}")), 404)
    refused(client.get(at(space, f"snapshots/{made[0]['id']}/entries")), 404)
    assert used(client) == before
    assert snapshots(client, space) == []


def test_snapshots_go_with_their_namespace(space: str, client: httpx.Client) -> None:
    before = used(client)
    make(client, space)
    ok(client.delete(f"/storage/namespaces/{space}"))
    assert used(client) == (before[0] - 3, before[1] - 9)
    ok(client.post("/storage/namespaces", json={"name": space}))
    assert snapshots(client, space) == []


def test_a_bucket_with_snapshots_is_not_empty(cloud: Cloud) -> None:
    client, user_id = cloud.make_user()
    s3 = client_of(cloud, new_key(client, user_id, ACTIONS))
    space = make_namespace(client, "bucket")
    made = make(client, space)
    assert s3.call("DELETE", space).status_code == 409
    ok(client.delete(at(space, f"snapshots/{made['id']}")))
    assert s3.call("DELETE", space).status_code == 204
    s3.close()


@pytest.mark.thin
def test_a_snapshot_that_the_quota_has_no_room_for(cloud: Cloud) -> None:
    client, user_id = cloud.make_user()
    space = make_namespace(client, "full")
    ok(cloud.admin.put("/admin/quotas", params={"id": user_id}, json={"bytes": 100}))
    put(client, space, "big", b"x" * 60)
    refused(client.post(at(space, "snapshots"), json={}), 507)
    assert used(client) == (1, 60)
    assert snapshots(client, space) == []


def share(client: httpx.Client, space: str, path: str, **more: Any) -> dict[str, Any]:
    return post(client, space, "shares", path=path, **more)


def test_all_who_have_a_link_see_the_file(cloud: Cloud, owner: Who, space: str) -> None:
    client, nobody = owner[0], cloud.client()
    put(client, space, "page.html", b"<script>alert(1)</script>")
    made = share(client, space, "page.html", expires_in=3600)
    assert abs(made["expires_at"] - time.time() - 3600) < HANG_SECONDS
    shown = nobody.get(made["url"])
    assert (shown.status_code, shown.content) == (200, b"<script>alert(1)</script>")
    assert shown.headers["Content-Security-Policy"].startswith("sandbox;")
    assert shown.headers["X-Content-Type-Options"] == "nosniff"
    put(client, space, "page.html", b"now", overwrite="true")
    assert nobody.get(made["url"], headers={"Range": "bytes=1-"}).content == b"ow"
    saved = share(client, space, "page.html", inline=False)
    assert "attachment" in nobody.get(saved["url"]).headers["Content-Disposition"]
    listed = ok(client.get(at(space, "shares")))["shares"]
    assert sorted(each["id"] for each in listed) == sorted([made["id"], saved["id"]])
    assert "url" not in listed[0]
    ok(client.delete(at(space, f"shares/{made['id']}")))
    refused(client.delete(at(space, f"shares/{made['id']}")), 404)
    refused(nobody.get(made["url"]), 404)
    assert nobody.get(saved["url"]).status_code == 200


def test_links_that_show_nothing(cloud: Cloud, owner: Who, other: Who, space: str) -> None:
    client, nobody = owner[0], cloud.client()
    url = share(client, space, "c")["url"]
    id_, _, key = url.partition("?key=")
    for wrong in (id_, f"{id_}?key=", f"{id_}?key={key[:-1]}", f"{id_}0?key={key}", "/share/%00"):
        refused(nobody.get(wrong), 404)
        refused(client.get(wrong), 404)
    theirs = at(make_namespace(other[0], "other"), f"shares/{id_.rpartition('/')[2]}")
    refused(other[0].delete(theirs), 404)
    refused(client.post(at(space, "shares"), json={"path": "a"}), 404, "folder")
    refused(client.post(at(space, "shares"), json={"path": "nothing"}), 404)
    for seconds in (0, 59, 10**9):
        body = {"path": "c", "expires_in": seconds}
        refused(client.post(at(space, "shares"), json=body), 400, "expires_in")
    assert nobody.get(url).content == b"c"
    ok(client.delete("/storage/delete", params={"namespace": space, "name": "c"}))
    refused(nobody.get(url), 404)
    ok(client.delete(f"/storage/namespaces/{space}"))
    ok(client.post("/storage/namespaces", json={"name": space}))
    put(client, space, "c", b"another")
    refused(nobody.get(url), 404)


def test_links_end_with_their_user(cloud: Cloud) -> None:
    client, user_id = cloud.make_user()
    space = make_namespace(client, "left")
    put(client, space, "f", b"1")
    url = share(client, space, "f")["url"]
    ok(cloud.admin.delete("/admin/users", params={"id": user_id}))
    refused(cloud.client().get(url), 404)


async def test_an_expired_link(tmp_path: Path) -> None:
    records = Records.open(tmp_path, [STORAGE], sync=False)
    row = Share("1", _digest("key"), "s", "space", "f", "ada", 0, int(time.time()) + 600, True)
    old = replace(row, id="2", expires_at=int(time.time()) - 1)
    others = replace(row, id="3", user_id="bob")
    await records.write(lambda txn: [shares.put(txn, each) for each in (row, old, others)])
    found: Any = SimpleNamespace(records=records)
    one: Any = SimpleNamespace(get=lambda name: Space(name, "s", "ada", 0, False, 0))
    routes = ShareRoutes(found, found, one, found)
    assert routes._find("1", "key")[0] == row
    for id_, key in (("2", "key"), ("3", "key"), ("1", "KEY"), ("1", ""), ("4", "key")):
        with pytest.raises(NoSuchThing, match="no such link"):
            routes._find(id_, key)
    records.close()


async def test_a_deleted_users_links_go_with_the_user(tmp_path: Path) -> None:
    records = Records.open(tmp_path, [STORAGE], sync=False)
    mine = Share("1", b"", "s", "space", "f", "ada", 0, 1, True)

    def change(txn: Any) -> list[str]:
        spaces.put(txn, Space("space", "s", "ada", 2, False, 0))
        shares.put(txn, mine)
        shares.put(txn, Share("2", b"", "s", "space", "f", "bob", 0, 1, True))
        disown(txn, "ada")
        return [row.id for row in shares.scan(txn)]

    assert await records.write(change) == ["2"]
    records.close()


def test_where_a_file_is_and_whether_it_is_good(
    cloud: Cloud, space: str, client: httpx.Client
) -> None:
    put(client, space, "big", b"x" * 200_000)

    def whole() -> dict[str, Any] | None:
        found: dict[str, Any] = ok(client.get(at(space, "locate"), params={"path": "big"}))
        states = [each["state"] for each in found["chunks"][0]["replicas"]]
        return found if states == ["live"] * 3 else None

    found = wait_for(whole, "three replicas")
    assert found is not None
    assert (found["path"], found["size"], found["goal"]) == ("big", 200_000, 3)
    (chunk,) = found["chunks"]
    assert (chunk["index"], chunk["size"], chunk["leased"]) == (0, 200_000, False)
    assert re.fullmatch("[0-9a-f]+", chunk["handle"])
    replicas = chunk["replicas"]
    assert len({each["server"] for each in replicas}) == 3
    assert {each["address"] for each in replicas} == {None}
    checked = ok(client.post(at(space, "check"), json={"path": "big"}))
    assert (checked["chunks"], checked["replicas"], checked["problems"]) == (1, 3, [])
    query = {"namespace": space, "path": "big"}
    seen = ok(cloud.admin.get("/admin/files/locate", params=query))
    assert all(each["address"] for each in seen["chunks"][0]["replicas"])
    assert ok(cloud.admin.post("/admin/files/check", json=query))["problems"] == []
    for path, status in (("a", 404), ("nothing", 404), ("../x", 400), (".s3-versions/x", 400)):
        refused(client.get(at(space, "locate"), params={"path": path}), status)
        refused(client.post(at(space, "check"), json={"path": path}), status)


def test_a_damaged_replica_is_found(cloud: Cloud, space: str, client: httpx.Client) -> None:
    data = random.Random(18).randbytes(256 * 1024)
    put(client, space, "bad", data)
    damage(cloud, data[:4096])
    (problem, *_) = ok(client.post(at(space, "check"), json={"path": "bad"}))["problems"]
    assert problem["kind"] in ("corrupt", "below_goal")
    assert get(client, space, "bad") == data


def damage(cloud: Cloud, content: bytes) -> None:
    """Change a byte of one replica with this content on its disk."""
    for path in sorted(cloud.cluster.state.glob("chunkserver-*/**/*")):
        if not path.is_file() or (start := path.read_bytes().find(content)) < 0:
            continue
        with path.open("r+b") as file:
            file.seek(start + 100)
            file.write(b"!")
        return
    raise AssertionError("no replica was found on any disk")


def test_checks_take_turns() -> None:
    none: Any = None
    routes = InspectionRoutes(none, none, none)
    with contextlib.ExitStack() as stack:
        for number in range(CHECKS_MAX):
            stack.enter_context(routes._turn(f"{number}"))
            with pytest.raises(TooManyRequests, match="of yours"), routes._turn(f"{number}"):
                pass
        with pytest.raises(TooManyRequests, match="4 files"), routes._turn("another"):
            pass
    with routes._turn("another"):
        pass


#: What each is answered about a private storage namespace, and about ``default``.
ACCESS = """
                                              owner  other  admin  nobody  token  reader  stranger
private list,entries,file,shares,locate,check   200    403    403     401    200     200       403
private make,restore,delete,share,revoke        200    403    403     401    200     403       403
private any-locate,any-check                    403    403    200     401    403     403       403
default list,make,share,locate,check            403    403    200     401    403     403       403
"""


@pytest.mark.parametrize(("what", "cells"), rows(ACCESS).values(), ids=rows(ACCESS))
def test_who_may_what(
    cloud: Cloud, people: dict[str, httpx.Client], what: list[str], cells: dict[str, int]
) -> None:
    kind, asked = what
    owner = people["owner"]
    space = "default" if kind == "default" else make_namespace(owner, "access")
    put(owner, space, "file", b"1", overwrite="true")
    keeper = cloud.admin if kind == "default" else owner
    for who, status in cells.items():
        id_ = make(keeper, space)["id"]
        link = share(keeper, space, "file")["id"]
        answer = ask(people[who], space, asked, id_, link)
        assert answer.status_code == status, f"{who}: {answer.text}"
        if answer.status_code != 200:
            refused(answer, status)
        if (asked, status) != ("delete", 200):
            ok(keeper.delete(at(space, f"snapshots/{id_}")))
    for each in snapshots(keeper, space):
        ok(keeper.delete(at(space, f"snapshots/{each['id']}")))


def ask(client: httpx.Client, space: str, what: str, snapshot: str, link: str) -> httpx.Response:
    one, file = at(space, f"snapshots/{snapshot}"), {"path": "file"}
    anywhere = {"namespace": space, **file}
    return {
        "list": lambda: client.get(at(space, "snapshots")),
        "make": lambda: client.post(at(space, "snapshots"), json={}),
        "entries": lambda: client.get(f"{one}/entries"),
        "file": lambda: client.get(f"{one}/files/file"),
        "restore": lambda: client.post(f"{one}/restore", json={**file, "overwrite": True}),
        "delete": lambda: client.delete(one),
        "shares": lambda: client.get(at(space, "shares")),
        "share": lambda: client.post(at(space, "shares"), json=file),
        "revoke": lambda: client.delete(at(space, f"shares/{link}")),
        "locate": lambda: client.get(at(space, "locate"), params=file),
        "check": lambda: client.post(at(space, "check"), json=file),
        "any-locate": lambda: client.get("/admin/files/locate", params=anywhere),
        "any-check": lambda: client.post("/admin/files/check", json=anywhere),
    }[what]()
