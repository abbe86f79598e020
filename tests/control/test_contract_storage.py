"""The contract of storage namespaces and files."""

from __future__ import annotations

import email
import email.policy
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

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
    paths,
    put,
    refused,
    unique,
    with_token,
)
from cloud import Cloud
from limits import HANG_SECONDS
from raw import FORM_END, FORM_TYPE, Answer, Closed, Connection, form_part, head
from storage_people import Who

from control.storage.transfer.disposition import content_disposition

MIB = 1024 * 1024
DATA = bytes(range(256)) * 40
FILE_FIELDS = {
    "name": str,
    "path": str,
    "namespace": str,
    "size": int,
    "created_at": int,
    "modified_at": int,
}


@pytest.fixture(scope="module")
def user(owner: Who) -> httpx.Client:
    return owner[0]


@pytest.fixture(scope="module")
def bob(cloud: Cloud) -> httpx.Client:
    return cloud.make_user()[0]


@pytest.fixture(scope="module")
def space(user: httpx.Client) -> str:
    """A private storage namespace that tests share, each with names of its own."""
    return make_namespace(user, "files")


@pytest.fixture
def fresh(user: httpx.Client) -> str:
    return make_namespace(user, "fresh")


@pytest.fixture(scope="module")
def stored(user: httpx.Client, space: str) -> str:
    """The path of a file that holds DATA; its name is hard to write into a header."""
    put(user, space, path := 'a/größe "€";.bin', DATA)
    return path


def url_of(space: str, path: str) -> str:
    return f"/storage/{space}/{quote(path)}"


def entry(client: httpx.Client, space: str, path: str) -> dict[str, Any]:
    """The one entry of the listing whose path is this."""
    listed = ok(client.get("/storage/files", params={"namespace": space}))
    found: list[dict[str, Any]] = [item for item in listed if item["path"] == path]
    assert len(found) == 1, (path, listed)
    return found[0]


def test_a_namespace_is_made_listed_and_deleted(owner: Who) -> None:
    client, user_id = owner
    name = unique("made")
    expected = {"name": name, "count": 0, "hidden": False, "visibility": 0, "owner_id": user_id}
    assert ok(client.post("/storage/namespaces", json={"name": name, "extra": [1]})) == expected
    put(client, name, "a", b"1")
    put(client, name, "b/c", b"2")
    listed = [item for item in ok(client.get("/storage/namespaces")) if item["name"] == name]
    assert listed == [{**expected, "count": 2}]
    ok(client.delete(f"/storage/namespaces/{name}"))
    assert name not in names(client)
    refused(client.get("/storage/files", params={"namespace": name}), 404)
    refused(client.delete(f"/storage/namespaces/{name}"), 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *(({"name": name}, "name") for name in (5, None)),
        *(({"name": "x", "visibility": v}, "visibility") for v in ("0", 1.5, True, -1, 3, 10**30)),
        ({"name": "x", "hidden": "no"}, "hidden"),
        ({}, "name"),
    ],
)
def test_a_namespace_that_makes_no_sense_names_the_field(
    user: httpx.Client, body: dict[str, Any], field: str
) -> None:
    if body.get("name") == "x":
        body = {**body, "name": unique("nonsense")}
    refused(user.post("/storage/namespaces", json=body), 400, field)
    assert body.get("name") not in names(user)


@pytest.mark.parametrize("visibility", [0, 1, 2])
def test_a_name_is_taken_even_when_its_taker_is_invisible(
    user: httpx.Client, bob: httpx.Client, nobody: httpx.Client, visibility: int
) -> None:
    name = make_namespace(user, "taken", visibility)
    refused(bob.post("/storage/namespaces", json={"name": name}), 409)
    refused(user.post("/storage/namespaces", json={"name": name}), 409)
    refused(nobody.post("/storage/namespaces", json={"name": name}), 401)


def test_hidden_is_a_flag_of_its_own(user: httpx.Client) -> None:
    for visibility in (0, 1, 2):
        name = unique("hidden")
        body = {"name": name, "hidden": True, "visibility": visibility}
        made = ok(user.post("/storage/namespaces", json=body))
        assert (made["hidden"], made["visibility"]) == (True, visibility)
        changed = ok(user.put(f"/storage/namespaces/{name}", json={"visibility": 0}))
        assert (changed["hidden"], changed["visibility"]) == (True, 0)


def test_the_visibility_is_changed(owner: Who, nobody: httpx.Client) -> None:
    client, user_id = owner
    name = make_namespace(client, "changed", 0)
    put(client, name, "a", b"x")
    target = f"/storage/namespaces/{name}"
    where = {"namespace": name}
    for visibility, status in ((2, 200), (0, 401), (1, 200), (0, 401)):
        changed = ok(client.put(target, json={"visibility": visibility, "other": None}))
        shown = {"name": name, "count": 1, "hidden": False, "owner_id": user_id}
        assert changed == {**shown, "visibility": visibility}
        assert nobody.get("/storage/files", params=where).status_code == status
        assert (name in names(nobody)) == (visibility == 2)
    for wrong in ({"visibility": 3}, {"visibility": "1"}, {"visibility": None}):
        refused(client.put(target, json=wrong), 400, "visibility")
    refused(client.put(target), 400)
    refused(client.put(f"/storage/namespaces/{unique('no')}", json={"visibility": 2}), 404)


def test_deleting_a_namespace_deletes_its_files(user: httpx.Client, cloud: Cloud) -> None:
    name = make_namespace(user, "deleted")
    for path in ("a", "b/c", "b/d/e"):
        put(user, name, path, b"old")
    listed = cloud.cluster.gfs("ls", "-R", "/").stdout.decode()
    assert re.search(rf"{name}[^/\n]*/b/d/e$", listed, re.M), listed
    assert ok(user.delete(f"/storage/namespaces/{name}"))["status"] == "ok"
    ok(user.post("/storage/namespaces", json={"name": name}))
    assert paths(user, name) == []
    refused(user.get(url_of(name, "a")), 404)
    listed = cloud.cluster.gfs("ls", "-R", "/").stdout.decode()
    assert name in listed
    assert not re.search(rf"{name}[^/\n]*/.", listed), listed


def test_default_is_there_from_the_start(
    cloud: Cloud, user: httpx.Client, nobody: httpx.Client
) -> None:
    listed = ok(nobody.get("/storage/namespaces"))
    (found,) = [item for item in listed if item["name"] == "default"]
    assert found.pop("count") >= 0
    assert found == {"name": "default", "hidden": False, "visibility": 2, "owner_id": None}
    for client in (user, cloud.admin):  # who may change it: test_access_table
        refused(client.post("/storage/namespaces", json={"name": "default"}), 409)


def test_default_is_meant_when_none_is_named(user: httpx.Client, nobody: httpx.Client) -> None:
    done = {"status": "ok", "name": (name := unique("default"))}
    assert ok(user.post("/storage/upload", files={"file": (name, b"x")})) == done
    assert name in [item["path"] for item in ok(nobody.get("/storage/files"))]
    assert nobody.get("/storage/download", params={"name": name}).content == b"x"
    assert ok(user.delete("/storage/delete", params={"name": name})) == done


def test_a_listing_has_the_fields_of_the_reference(user: httpx.Client, fresh: str) -> None:
    before = int(time.time())
    put(user, fresh, "report.pdf", b"x" * 1000)
    put(user, fresh, "a/b/ü.txt", b"")
    listed = ok(user.get("/storage/files", params={"namespace": fresh}))
    after = int(time.time())
    for item in listed:
        assert {name: type(value) for name, value in item.items()} == FILE_FIELDS
        assert before <= item["created_at"] <= item["modified_at"] <= after
    assert [(item["name"], item["path"], item["namespace"], item["size"]) for item in listed] == [
        ("ü.txt", "a/b/ü.txt", fresh, 0),
        ("report.pdf", "report.pdf", fresh, 1000),
    ]


def test_an_unknown_namespace_is_404(user: httpx.Client, nobody: httpx.Client) -> None:
    for client in (user, nobody):
        where = {"namespace": unique("unknown")}
        refused(client.get("/storage/files", params=where), 404)
        refused(client.get("/storage/download", params={**where, "name": "x"}), 404)
        refused(client.get(f"/storage/{where['namespace']}/x"), 404)


PATHS = ["B", "a!", "a-b/c", "a/b/c", "a/c", "a0", "b", "z/z/z/z", "ä", "€"]


@pytest.fixture(scope="module")
def sorted_space(user: httpx.Client) -> str:
    space = make_namespace(user, "sorted")
    for path in random.Random(1).sample(PATHS, len(PATHS)):
        put(user, space, path, b"")
    return space


@pytest.mark.parametrize(
    "query",
    [{}, {"prefix": "a/"}, {"limit": "4"}, {"prefix": "a", "after": "a!", "limit": "2"}],
    ids=str,
)
def test_a_listing_is_sorted_and_can_be_cut(
    user: httpx.Client, sorted_space: str, query: dict[str, str]
) -> None:
    answer = ok(user.get("/storage/files", params={"namespace": sorted_space, **query}))
    prefix, after = query.get("prefix", ""), query.get("after", "")
    expected = [path for path in PATHS if path.startswith(prefix) and path > after]
    assert [item["path"] for item in answer] == expected[: int(query.get("limit", 1000))]


def test_a_listing_can_be_walked_in_pages(user: httpx.Client, sorted_space: str) -> None:
    found: list[str] = []
    for _ in range(4):
        query = {"namespace": sorted_space, "limit": "3", "after": found[-1] if found else ""}
        found += [item["path"] for item in ok(user.get("/storage/files", params=query))]
    assert found == PATHS


@pytest.mark.parametrize("limit", ["-1", "x", "1.5", ""])
def test_a_limit_must_be_a_number(user: httpx.Client, space: str, limit: str) -> None:
    refused(user.get("/storage/files", params={"namespace": space, "limit": limit}), 400, "limit")


FORMS = ["form", "chunked form", "form in a folder", "raw", "chunked", "put", "post", "chunked put"]


def send(
    client: httpx.Client, space: str, form: str, path: str, data: bytes, **headers: str
) -> httpx.Response:
    """An upload of each form that there is; chunked ones are of unknown length."""
    folder, _, name = path.rpartition("/")
    content: Any = iter([data[:7], data[7:]]) if "chunked" in form else data
    if "form" in form:
        query = {"namespace": space, **({"path": folder} if folder else {})}
        whole = form_part("file", data, f"ignored/{name}") + FORM_END
        content = iter([whole[:50], whole[50:]]) if "chunked" in form else whole
        headers["Content-Type"] = FORM_TYPE
        return client.post("/storage/upload", params=query, content=content, headers=headers)
    if form in ("raw", "chunked"):
        query = {"namespace": space, "name": path}
        return client.post("/storage/upload", params=query, content=content, headers=headers)
    method = "POST" if form == "post" else "PUT"
    return client.request(method, url_of(space, path), content=content, headers=headers)


@pytest.mark.parametrize("form", [*FORMS[:-1], pytest.param(FORMS[-1], marks=pytest.mark.thin)])
def test_uploads_come_back_whole(user: httpx.Client, fresh: str, form: str) -> None:
    for size in (0, 1, 65535, 65536, 65537, 5 * MIB + 3):
        data = random.Random(size).randbytes(size)
        folder = "a/b/" if form != "form" else ""
        path = f"{folder}größe {size} €.bin"
        made = ok(send(user, fresh, form, path, data, **{"X-File-Size": str(size)}))
        assert made == {"status": "ok", "name": path.removeprefix(folder)}
        item = entry(user, fresh, path)
        assert (item["name"], item["size"]) == (made["name"], size)
        found = user.get(url_of(fresh, path))
        assert (found.status_code, found.headers["Content-Length"]) == (200, str(size))
        assert found.content == data == get(user, fresh, path)
        assert found.headers["ETag"]


def upload(client: httpx.Client, space: str, body: bytes, **query: str) -> httpx.Response:
    """A form that is made by hand."""
    return client.post(
        "/storage/upload",
        params={"namespace": space, **query},
        content=body,
        headers={"Content-Type": FORM_TYPE},
    )


@pytest.mark.parametrize(
    ("folder", "filename"),
    [
        *(("", name) for name in ("", "a/..", "ü" * 128, "a\0b", "tab\t")),
        *((folder, "c.txt") for folder in ("a/..", "a//b", "/../x")),
    ],
)
def test_names_that_a_file_may_not_have(
    user: httpx.Client, fresh: str, folder: str, filename: str
) -> None:
    body = form_part("file", DATA, filename) + FORM_END
    refused(upload(user, fresh, body, path=folder), 400)
    # Nor has a form that ends too early left anything.
    refused(upload(user, fresh, (form_part("file", DATA, "cut") + FORM_END)[:5000]), 400)
    assert paths(user, fresh) == []


@pytest.mark.parametrize("overwrite", [None, "false", "", "1", "True", "TRUE", "yes", "true "])
def test_only_exactly_true_overwrites(
    user: httpx.Client, space: str, overwrite: str | None
) -> None:
    put(user, space, name := unique("kept"), b"old")
    query = {} if overwrite is None else {"overwrite": overwrite}
    body = form_part("file", b"new", name) + FORM_END
    refused(upload(user, space, body, **query), 409)
    query = {"namespace": space, "name": name, **query}
    refused(user.post("/storage/upload", params=query, content=b"new"), 409)
    assert get(user, space, name) == b"old"


@pytest.mark.parametrize("is_there", [True, False])
def test_overwriting(user: httpx.Client, space: str, is_there: bool) -> None:
    name, tags = unique("over"), [""]
    if is_there:
        put(user, space, name, b"old" * 1000)
        tags = [user.get(url_of(space, name)).headers["ETag"]]
    body = form_part("file", b"new", name) + FORM_END
    assert ok(upload(user, space, body, overwrite="true"))["status"] == "ok"
    after = user.get(url_of(space, name))
    assert after.content == b"new"
    assert after.headers["ETag"] not in tags
    item = entry(user, space, name)
    assert item["size"] == 3
    assert item["created_at"] <= item["modified_at"]


def test_a_file_is_no_folder(user: httpx.Client, fresh: str) -> None:
    put(user, fresh, "a", b"file")
    put(user, fresh, "b/c", b"file")
    refused(user.put(url_of(fresh, "a/b"), content=b"x"), (400, 409))
    refused(user.put(url_of(fresh, "b"), content=b"x"), (400, 409))
    query = {"namespace": fresh, "name": "b", "overwrite": "true"}
    refused(user.post("/storage/upload", params=query, content=b"x"), (400, 409))
    assert paths(user, fresh) == ["a", "b/c"]
    refused(user.get(url_of(fresh, "b")), 404)
    refused(user.delete(url_of(fresh, "b")), 404)


@pytest.mark.parametrize("how", ["overwritten", "deleted"])
def test_a_reader_in_the_middle_gets_the_old_file_whole(
    cloud: Cloud, user: httpx.Client, fresh: str, how: str
) -> None:
    """He is in the first of four chunks when it happens, and asks for the rest later."""
    old = random.Random(7).randbytes(MIB)
    pieces = 200
    ok(user.put(url_of(fresh, "f"), content=iter([old] * pieces), timeout=HANG_SECONDS))
    with Connection(cloud.url, receive_bytes=64 * 1024) as connection:
        connection.request("GET", url_of(fresh, "f"), {"Authorization": f"Bearer {bearer(user)}"})
        assert connection.answer_head().status == 200
        assert connection.read(MIB) == old
        if how == "overwritten":
            put(user, fresh, "f", b"new", overwrite="true")
        else:
            ok(user.delete(url_of(fresh, "f")))
        for number in range(1, pieces):
            try:
                data = connection.read(MIB)
            except Closed:
                # Of a deleted file nothing is promised but that it is never padded.
                assert how == "deleted", f"cut off at MiB {number}"
                return
            assert data == old, f"MiB {number}"


def test_of_two_uploads_at_once_one_wins(user: httpx.Client, cloud: Cloud, fresh: str) -> None:
    def race(number: int) -> int:
        with with_token(cloud.url, bearer(user)) as client:
            return client.put(url_of(fresh, "race"), content=bytes([number]) * MIB).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(race, range(4))) == [200, 409, 409, 409]
    data = get(user, fresh, "race")
    assert len(data) == MIB
    assert len(set(data)) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["9999", "10241", "0", "1", "99999999999"])
def test_a_wrong_file_size_stores_nothing(
    user: httpx.Client, fresh: str, form: str, size: str
) -> None:
    assert len(DATA) == 10240
    refused(send(user, fresh, form, "sized", DATA, **{"X-File-Size": size}), 400)
    assert paths(user, fresh) == []


@pytest.mark.parametrize("size", ["-1", "x", "1.5", "1e3", "", "0x10", "1" * 30])
def test_a_file_size_must_be_a_number(user: httpx.Client, fresh: str, size: str) -> None:
    refused(send(user, fresh, "put", "sized", DATA, **{"X-File-Size": size}), 400)
    assert paths(user, fresh) == []


@pytest.mark.parametrize("method", ["form", "put"])
def test_a_connection_cut_short_leaves_nothing(
    cloud: Cloud, user: httpx.Client, fresh: str, method: str
) -> None:
    """And does not disturb the old version of what it was to overwrite."""
    put(user, fresh, "f", b"old")
    headers = {"Authorization": f"Bearer {bearer(user)}", "Content-Length": "9000000"}
    target, body = f"/storage/{fresh}/f?overwrite=true", b"n" * 3 * MIB
    if method == "form":
        target = f"/storage/upload?namespace={fresh}&overwrite=true"
        headers["Content-Type"], body = FORM_TYPE, form_part("file", body, "f")
    with Connection(cloud.url) as connection:
        connection.send(head("POST", target, connection.host, headers) + body)
    assert get(user, fresh, "f") == b"old"
    assert entry(user, fresh, "f")["size"] == 3
    assert paths(user, fresh) == ["f"]
    put(user, fresh, "f", b"newer", overwrite="true")
    assert get(user, fresh, "f") == b"newer"


def expecting(cloud: Cloud, token: str | None, method: str, target: str, **more: str) -> Connection:
    """A connection on which a head with ``Expect: 100-continue`` was sent, and no body."""
    connection = Connection(cloud.url)
    headers = {"Expect": "100-continue", "Content-Length": str(len(DATA)), **more}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.send(head(method, target, connection.host, headers))
    return connection


REFUSALS = [
    # who, target, status: each breaks all that is checked later, too
    (None, "/storage/upload?namespace=no.such&name=..", 401),
    ("broken", "/storage/upload?namespace=no.such&name=..", 401),
    ("unscoped", "/storage/upload?namespace=no.such&name=..", 403),
    ("owner", "/storage/upload?namespace=no.such&name=..", 400),
    ("owner", "/storage/upload?namespace=..&name=x", (400, 404)),
    ("owner", "/storage/upload?namespace=no.such&name=x", 404),
    ("other", "/storage/upload?namespace={space}&name={taken}", 403),
    ("owner", "/storage/upload?namespace={space}&name={taken}", 409),
    (None, "/storage/{space}/{taken}", 401),
    ("unscoped", "/storage/{space}/{taken}", 403),
    ("owner", "/storage/no.such/x", 404),
    ("other", "/storage/{space}/{taken}", 403),
]


@pytest.mark.parametrize(("who", "target", "status"), REFUSALS)
def test_a_refused_upload_is_not_asked_to_continue(
    cloud: Cloud,
    owner: Who,
    bob: httpx.Client,
    space: str,
    who: str | None,
    target: str,
    status: int,
) -> None:
    client, user_id = owner
    put(client, space, taken := unique("taken"), b"old")
    scopes = {f"storage.{user_id}.files": ["read", "delete"], f"compute.{user_id}": ["create"]}
    token = {
        None: None,
        "broken": "a.b.c",
        "unscoped": make_token(client, scopes)["token"],
        "owner": bearer(client),
        "other": bearer(bob),
    }[who]
    target = target.format(space=space, taken=taken)
    with expecting(cloud, token, "POST", target) as connection:
        answer = connection.answer()
    assert answer.interim == []
    refused(answer, status)
    assert get(client, space, taken) == b"old"


@pytest.mark.parametrize("form", ["put", "form"])
def test_an_accepted_upload_is_asked_to_continue_once(
    cloud: Cloud, user: httpx.Client, space: str, form: str
) -> None:
    name, body, more = unique("continued"), DATA, {}
    method, target = "PUT", f"/storage/{space}/{name}"
    if form == "form":
        method, target = "POST", f"/storage/upload?namespace={space}"
        body = form_part("file", DATA, name) + FORM_END
        more = {"Content-Type": FORM_TYPE, "Content-Length": str(len(body))}
    with expecting(cloud, bearer(user), method, target, **more) as connection:
        assert connection.next_head().status == 100
        connection.send(body)
        answer = connection.answer()
        assert answer.interim == []
        ok(answer)
    assert get(user, space, name) == DATA


def test_an_unknown_expectation_is_refused(cloud: Cloud, user: httpx.Client, space: str) -> None:
    """RFC 9110, 10.1.1: 417, or it is not honoured; never stored half."""
    with Connection(cloud.url) as connection:
        headers = {"Authorization": f"Bearer {bearer(user)}", "Expect": "miracles"}
        answer = connection.exchange("PUT", f"/storage/{space}/{unique('e')}", headers, DATA)
    if answer.status == 200:
        ok(answer)
    else:
        refused(answer, 417)


def test_a_download_is_an_attachment(
    user: httpx.Client, nobody: httpx.Client, space: str, stored: str
) -> None:
    query = {"namespace": space, "name": stored}
    for answer in (
        user.get("/storage/download", params=query),
        user.get(f"/storage/download/{space}/{quote(stored)}"),
        nobody.get("/storage/download", params={**query, "token": bearer(user)}),
    ):
        assert answer.status_code == 200
        assert answer.content == DATA
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert re.fullmatch('".+"', answer.headers["ETag"]), "a strong one"
        named = content_disposition("attachment", stored.removeprefix("a/"))
        assert answer.headers["Content-Disposition"] == named
        modified = parsedate_to_datetime(answer.headers["Last-Modified"])
        assert int(modified.timestamp()) == entry(user, space, stored)["modified_at"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.pdf", "application/pdf"),
        ("a.png", "image/png"),
        ("A.PNG", "image/png"),
        ("a.jpg", "image/jpeg"),
        ("a.svg", "image/svg+xml"),
        ("a.mp4", "video/mp4"),
        ("a.unheard-of", "application/octet-stream"),
        ("noextension", "application/octet-stream"),
    ],
)
def test_inline_serving_sets_the_type(user: httpx.Client, space: str, name: str, kind: str) -> None:
    ok(user.put(url_of(space, f"types/{name}"), content=b"<script>alert(1)</script>"))
    found = user.get(url_of(space, f"types/{name}"))
    assert found.content == b"<script>alert(1)</script>"
    assert found.headers["Content-Type"].startswith(kind)
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    policy = [part.strip() for part in found.headers["Content-Security-Policy"].split(";")]
    # Browsers do not start their viewer of PDF in a sandbox; no script runs there either.
    assert "sandbox" in policy or kind == "application/pdf"
    assert "default-src 'none'" in policy
    assert not any("script" in part for part in policy)
    if "Content-Disposition" in found.headers:
        assert found.headers["Content-Disposition"] == content_disposition("inline", name)


def test_head_is_get_without_the_body(user: httpx.Client, space: str, stored: str) -> None:
    query = {"namespace": space, "name": stored}
    for target, parameters in (
        ("/storage/download", query),
        (f"/storage/download/{space}/{quote(stored)}", {}),
        (url_of(space, stored), {}),
    ):
        whole = user.get(target, params=parameters)
        only = user.head(target, params=parameters)
        assert only.status_code == 200
        assert only.content == b""
        same = {"content-length", "etag", "last-modified", "content-type", "accept-ranges"}
        assert all(only.headers[name] == whole.headers[name] for name in same)


def test_a_missing_file_is_404(user: httpx.Client, space: str) -> None:
    name = unique("missing")
    refused(user.get("/storage/download", params={"namespace": space, "name": name}), 404)
    refused(user.get(f"/storage/download/{space}/{name}"), 404)
    refused(user.get(url_of(space, name)), 404)
    refused(user.get(url_of(space, f"{name}/deeper")), 404)
    refused(user.delete("/storage/delete", params={"namespace": space, "name": name}), 404)
    refused(user.delete(url_of(space, name)), 404)


def test_a_download_needs_a_name(user: httpx.Client, space: str) -> None:
    refused(user.get("/storage/download", params={"namespace": space}), 400, "name")
    refused(user.delete("/storage/delete", params={"namespace": space}), 400, "name")
    refused(user.get("/storage/download", params={"namespace": space, "name": ""}), 400, "name")


def test_equal_content_has_an_equal_etag(user: httpx.Client, fresh: str) -> None:
    """However it was uploaded, and only then."""
    data = random.Random(5).randbytes(300_000)
    put(user, fresh, "a", data)
    ok(user.put(url_of(fresh, "b"), content=iter([data[:7], data[7:100_000], data[100_000:]])))
    put(user, fresh, "c", data[:-1])
    put(user, fresh, "d", data[:-1] + b"\0")
    put(user, fresh, "e", data + b"\0")
    put(user, fresh, "f", b"")
    put(user, fresh, "g", b"\0")
    tags = {name: user.head(url_of(fresh, name)).headers["ETag"] for name in "abcdefg"}
    assert tags["a"] == tags["b"]
    assert len(set(tags.values())) == 6


def test_conditions_decide_what_is_sent(user: httpx.Client, space: str, stored: str) -> None:
    """``test_storage_ranges`` has them all."""
    first = user.head(url_of(space, stored)).headers
    tag, modified = first["ETag"], first["Last-Modified"]
    part = {"Range": "bytes=0-9"}
    for headers, status, content in (
        ({"If-None-Match": f'"other", {tag}'}, 304, b""),
        ({"If-None-Match": '"other"', "If-Modified-Since": modified}, 200, DATA),
        ({"If-Modified-Since": modified}, 304, b""),
        ({**part, "If-Range": tag}, 206, DATA[:10]),
        ({**part, "If-Range": '"other"'}, 200, DATA),
    ):
        # RFC 9110, 14.2: ranges are for GET.
        for method in ("GET",) if "Range" in headers else ("GET", "HEAD"):
            found = user.request(method, url_of(space, stored), headers=headers)
            assert found.status_code == status, headers
            assert found.headers["ETag"] == tag
            assert found.content == (content if method == "GET" else b"")


END = len(DATA)


def test_one_range_one_beyond_the_end_and_what_is_none(
    user: httpx.Client, space: str, stored: str
) -> None:
    """RFC 9110, 14.2: the latter is ignored, as very many are. ``test_storage_ranges`` has all."""
    for target in (url_of(space, stored), f"/storage/download/{space}/{quote(stored)}"):
        found = user.get(target, headers={"Range": f"bytes=5-{END + 1000}"})
        assert (found.status_code, found.content) == (206, DATA[5:])
        assert found.headers["Content-Range"] == f"bytes 5-{END - 1}/{END}"
        assert found.headers["Content-Length"] == str(END - 5)
        assert found.headers["ETag"] == user.head(target).headers["ETag"]
        # Ranges are for GET; many servers serve HEAD alike.
        only = user.head(target, headers={"Range": "bytes=0-99"})
        assert (only.status_code in (200, 206), only.content) == (True, b"")
    found = user.get(url_of(space, stored), headers={"Range": f"bytes={END}-"})
    refused(found, 416)
    assert found.headers["Content-Range"] == f"bytes */{END}"
    for value in ("bytes=9-5", "lines=0-5", "bytes=" + ",".join(["0-"] * 1000)):
        found = user.get(url_of(space, stored), headers={"Range": value})
        assert (found.status_code, found.content) == (200, DATA), value


def test_several_ranges(user: httpx.Client, space: str, stored: str) -> None:
    value, expected = "bytes=500-599 , 0-9,  1000-", [(500, 599), (0, 9), (1000, END - 1)]
    found = user.get(url_of(space, stored), headers={"Range": value})
    assert found.status_code == 206
    kind = found.headers["Content-Type"]
    assert kind.startswith("multipart/byteranges; boundary=")
    assert "Content-Range" not in found.headers
    message = email.message_from_bytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + found.content, policy=email.policy.HTTP
    )
    parts = list(message.iter_parts())  # type: ignore[attr-defined]
    assert [part["Content-Range"] for part in parts] == [
        f"bytes {first}-{last}/{END}" for first, last in expected
    ]
    assert int(found.headers["Content-Length"]) == len(found.content)
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    pieces = found.content.split(b"--" + boundary)[1:-1]
    assert [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces] == [
        DATA[first : last + 1] for first, last in expected
    ]


def test_a_range_across_chunks_and_blocks(user: httpx.Client, space: str) -> None:
    """Chunks are 64 MiB, blocks 64 KiB."""
    size = 65 * MIB + 12345
    data = (random.Random(64).randbytes(MIB) * 66)[:size]
    ok(user.put(url_of(space, "chunks"), content=data, timeout=HANG_SECONDS))
    edge = 64 * MIB
    for first, last in ((edge - 1, edge), (edge - 70000, edge + 70000), (size - 5, size - 1)):
        found = user.get(url_of(space, "chunks"), headers={"Range": f"bytes={first}-{last}"})
        assert found.content == data[first : last + 1], (first, last)
    assert user.get(url_of(space, "chunks")).content == data


def test_deleting_a_file(user: httpx.Client, fresh: str) -> None:
    for path in ("a", "b/c", "b/d"):
        put(user, fresh, path, b"x")
    gone = user.delete("/storage/delete", params={"namespace": fresh, "name": "a"})
    assert ok(gone) == {"status": "ok", "name": "a"}
    assert ok(user.delete(url_of(fresh, "b/c")))["status"] == "ok"
    assert paths(user, fresh) == ["b/d"]
    refused(user.delete(url_of(fresh, "b/c")), 404)
    refused(user.get(url_of(fresh, "a")), 404)
    put(user, fresh, "a", b"again")
    assert get(user, fresh, "a") == b"again"


def test_the_last_file_of_a_folder_makes_room_for_a_file(user: httpx.Client, fresh: str) -> None:
    """Folders are only slashes in names: an empty one is none."""
    put(user, fresh, "a/b", b"x")
    ok(user.delete(url_of(fresh, "a/b")))
    put(user, fresh, "a", b"now a file")
    assert paths(user, fresh) == ["a"]


class Listener:
    """A client of the event stream, as a browser's ``EventSource``."""

    def __init__(self, url: str, transfer: str, token: str, in_query: bool = False) -> None:
        query = {"id": transfer, **({"token": token} if in_query else {})}
        self._client = anonymous(url) if in_query else with_token(url, token)
        asked = self._client.build_request("GET", "/sse/progress", params=query)
        self.answer = self._client.send(asked, stream=True)
        self._lines = self.answer.iter_lines()

    def close(self) -> None:
        self.answer.close()
        self._client.close()

    def wait_for_comment(self) -> None:
        assert (line := next(self._lines)).startswith(":"), line

    def event(self) -> dict[str, Any] | None:
        """The next one; None at the end of the stream."""
        for line in self._lines:
            if line.startswith("data:"):
                found: dict[str, Any] = json.loads(line.removeprefix("data:"))
                return found
            assert line == "" or line.startswith((":", "event:", "id:", "retry:")), line
        return None

    def rest(self) -> list[dict[str, Any]]:
        found = list(iter(self.event, None))
        self.close()
        return found


def check_events(events: list[dict[str, Any]], transfer: str, direction: str, total: int) -> None:
    for event in events:
        assert (event["id"], event["direction"]) == (transfer, direction)
        assert (type(event["bytes"]), type(event["done"])) == (int, bool)
        assert 0 <= event["bytes"] <= total
    assert [event["bytes"] for event in events] == sorted(event["bytes"] for event in events)
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert "error" not in events[-1], events[-1]
    assert events[-1]["bytes"] == total
    assert events[-1]["total"] == total


def slow_upload(cloud: Cloud, token: str, target: str, total: int, **headers: str) -> Connection:
    """An upload that goes on only when the test sends some of it."""
    connection = Connection(cloud.url)
    lengths = {"Content-Length": str(total), "X-File-Size": str(total)}
    told = {"Authorization": f"Bearer {token}", **lengths, **headers}
    connection.send(head("PUT", target, connection.host, told))
    return connection


class UnderWay:
    """An upload of two MiB of which the first has come, and its listener, who has heard of it."""

    def __init__(self, cloud: Cloud, user: httpx.Client, space: str, query: str = "") -> None:
        self.id, self.name = unique("t"), unique("under-way")
        target = f"{url_of(space, self.name)}?id={self.id}{query}"
        self.upload = slow_upload(cloud, bearer(user), target, 2 * MIB)
        self.upload.send(b"s" * MIB)
        self.listener = Listener(cloud.url, self.id, bearer(user))
        self.listener.wait_for_comment()
        self.heard = self.listener.event()
        assert self.heard is not None, "it is under way"

    def end(self) -> Answer:
        self.upload.send(b"s" * MIB)
        return self.upload.answer()


@pytest.mark.parametrize(
    ("in_query", "by_header", "api"),
    [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1)],
    ids=["session", "id in a header", "token in the query", "both", "API token"],
)
def test_progress_of_an_upload(
    cloud: Cloud, owner: Who, space: str, in_query: bool, by_header: bool, api: bool
) -> None:
    client, user_id = owner
    token = bearer(client)
    if api:
        token = make_token(client, {f"storage.{user_id}.files": ["create", "read"]})["token"]
    transfer, name, total = unique("t"), unique("progress"), 4 * MIB
    listener = Listener(cloud.url, transfer, token, in_query)
    assert listener.answer.status_code == 200
    assert listener.answer.headers["Content-Type"].partition(";")[0] == "text/event-stream"
    listener.wait_for_comment()
    target = url_of(space, name) + ("" if by_header else f"?id={transfer}")
    more = {"X-Transfer-Id": transfer} if by_header else {}
    slow = slow_upload(cloud, token, target, total, **more)
    events = []
    for _ in range(4):
        slow.send(b"s" * MIB)
        # Some event comes while bytes move, whatever the pace.
        event = listener.event()
        assert event is not None
        events.append(event)
        if event["done"]:
            break
    ok(slow.answer())
    check_events(events + listener.rest(), transfer, "upload", total)
    assert any(not event["done"] for event in events), "only the end was reported"


def test_progress_of_an_upload_that_fails(cloud: Cloud, user: httpx.Client, space: str) -> None:
    under_way = UnderWay(cloud, user, space)
    under_way.upload.close()
    last = under_way.listener.rest()[-1]
    assert last["done"] is True
    assert last["error"]


def test_only_who_started_a_transfer_may_listen(
    cloud: Cloud, user: httpx.Client, bob: httpx.Client, nobody: httpx.Client, space: str
) -> None:
    under_way = UnderWay(cloud, user, space)
    for client, status in ((bob, 403), (cloud.admin, 403), (nobody, 401)):
        refused(client.get("/sse/progress", params={"id": under_way.id}), status)
    ok(under_way.end())
    check_events(under_way.listener.rest()[-1:], under_way.id, "upload", 2 * MIB)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_namespace_that_is_deleted_under_an_upload(
    cloud: Cloud, user: httpx.Client, fresh: str, again: bool
) -> None:
    """Nothing of the upload appears, not even in a namespace of the same name."""
    under_way = UnderWay(cloud, user, fresh)
    ok(user.delete(f"/storage/namespaces/{fresh}"))
    if again:
        ok(user.post("/storage/namespaces", json={"name": fresh}))
    refused(under_way.end(), (404, 409))
    if again:
        assert paths(user, fresh) == []
    else:
        refused(user.get("/storage/files", params={"namespace": fresh}), 404)
    assert "error" in under_way.listener.rest()[-1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_appears_under_an_upload(
    cloud: Cloud, user: httpx.Client, fresh: str, overwrite: bool
) -> None:
    """Who must not overwrite does not, however late it turns out."""
    under_way = UnderWay(cloud, user, fresh, "&overwrite=true" if overwrite else "")
    put(user, fresh, under_way.name, b"first")
    answer = under_way.end()
    if overwrite:
        ok(answer)
        assert get(user, fresh, under_way.name) == b"s" * 2 * MIB
    else:
        refused(answer, 409)
        assert get(user, fresh, under_way.name) == b"first"


def test_progress_of_a_download(cloud: Cloud, user: httpx.Client, space: str) -> None:
    transfer, total = unique("t"), 24 * MIB
    ok(user.put(url_of(space, name := unique("progress")), content=b"x" * total))
    listener = Listener(cloud.url, transfer, bearer(user))
    listener.wait_for_comment()
    with Connection(cloud.url, receive_bytes=64 * 1024) as connection:
        connection.request(
            "GET",
            f"{url_of(space, name)}?id={transfer}",
            {"Authorization": f"Bearer {bearer(user)}"},
        )
        assert connection.answer_head().status == 200
        connection.read(2 * MIB)
        first = listener.event()
        assert first is not None
        assert not first["done"]
        connection.read(total - 2 * MIB)
    check_events([first, *listener.rest()], transfer, "download", total)


def test_a_late_listener_gets_the_present_state(
    cloud: Cloud, user: httpx.Client, space: str
) -> None:
    under_way = UnderWay(cloud, user, space)
    early = under_way.listener
    while (event := under_way.heard) and event["bytes"] < MIB:  # all of it has arrived
        under_way.heard = early.event()
    late = Listener(cloud.url, under_way.id, bearer(user))
    late.wait_for_comment()
    state = late.event()
    assert state is not None
    assert (state["bytes"], state["total"], state["done"]) == (MIB, 2 * MIB, False)
    ok(under_way.end())
    for listener in (early, late):
        check_events(listener.rest()[-1:], under_way.id, "upload", 2 * MIB)
    after = Listener(cloud.url, under_way.id, bearer(user))
    check_events(after.rest(), under_way.id, "upload", 2 * MIB)


def test_a_transfer_has_a_name_that_a_listener_can_give(user: httpx.Client, space: str) -> None:
    refused(user.get("/sse/progress"), 400, "id")
    for bad in ("two words", "x" * 129):
        refused(user.get("/sse/progress", params={"id": bad}), 400, "id")
        refused(
            user.post(url_of(space, unique("named")), params={"id": bad}, content=b""), 400, "id"
        )


@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
@pytest.mark.parametrize("announced", [True, False])
def test_the_end_is_reported_whatever_it_is(
    cloud: Cloud, user: httpx.Client, space: str, size: int, announced: bool
) -> None:
    transfer, name = unique("t"), unique("end")
    for status in (200, 409):  # the second time the file is there
        listener = Listener(cloud.url, f"{transfer}-{status}", bearer(user))
        listener.wait_for_comment()
        answer = user.post(
            "/storage/upload",
            params={"namespace": space, "id": f"{transfer}-{status}"},
            files={"file": (name, bytes(size))},
            headers={"X-File-Size": str(size)} if announced else {},
        )
        assert answer.status_code == status
        events = listener.rest()
        assert events[-1]["done"]
        assert ("error" in events[-1]) == (status != 200)
        if status == 200 and announced:
            check_events(events, f"{transfer}-{status}", "upload", size)


def test_a_strangers_listening_is_neither_reported_nor_waited_for(
    cloud: Cloud, user: httpx.Client, space: str
) -> None:
    """Nor does he who listens first take over the transfer."""
    transfer = unique("t")
    bob, _ = cloud.make_user()
    stranger, listener = (Listener(cloud.url, transfer, bearer(each)) for each in (bob, user))
    for each in (stranger, listener):
        each.wait_for_comment()
    ok(user.put(url_of(space, unique("held")), params={"id": transfer}, content=DATA))
    check_events(listener.rest(), transfer, "upload", len(DATA))
    assert stranger.rest() == []
