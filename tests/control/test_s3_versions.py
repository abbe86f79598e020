"""Versions of objects over S3, and what REST shows of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from checks import get, ok, paths, put, refused, unique, wait_for
from cloud import Cloud
from s3_client import (
    XMLNS,
    S3Client,
    begin,
    client_of,
    complete,
    done,
    failed,
    new_key,
    put_part,
    rule,
    switch,
    tagging,
    xml,
)
from storage_people import Who, used

MIB = 1024 * 1024
#: (key, id, is a marker, is the latest).
Listed = list[tuple[str, str, bool, bool]]


@pytest.fixture
def bucket(s3: S3Client) -> Iterator[str]:
    name = unique("bucket")
    s3.put(name)
    switch(s3, name)
    yield name
    for key, version, _, _ in listed(s3, name):
        done(s3.call("DELETE", f"{name}/{key}", {"versionId": version}))
    done(s3.call("DELETE", name))


def store(s3: S3Client, path: str, data: bytes, **headers: str) -> str:
    return str(s3.put(path, data, **headers).headers.get("x-amz-version-id", "null"))


def listed(s3: S3Client, bucket: str, **options: str) -> Listed:
    """All versions, page by page."""
    query = {"versions": "", **{name.replace("_", "-"): value for name, value in options.items()}}
    found: Listed = []
    while True:
        root = xml(done(s3.call("GET", bucket, query)))
        for each in root:
            name = each.tag.removeprefix(XMLNS)
            if name in ("Version", "DeleteMarker"):
                texts = [str(each.findtext(XMLNS + child)) for child in ("Key", "VersionId")]
                is_latest = each.findtext(f"{XMLNS}IsLatest") == "true"
                found.append((texts[0], texts[1], name == "DeleteMarker", is_latest))
        if root.findtext(f"{XMLNS}IsTruncated") != "true":
            return found
        query["key-marker"] = str(root.findtext(f"{XMLNS}NextKeyMarker"))
        query["version-id-marker"] = str(root.findtext(f"{XMLNS}NextVersionIdMarker"))


def test_what_is_replaced_and_deleted_is_kept(s3: S3Client, bucket: str, owner: Who) -> None:
    path = f"{bucket}/a/b"
    ids = [store(s3, path, str(number).encode()) for number in range(3)]
    assert len(set(ids)) == 3
    answer = s3.get(path)
    assert (answer.content, answer.headers["x-amz-version-id"]) == (b"2", ids[2])
    for number, version in enumerate(ids):
        for method in ("GET", "HEAD"):
            answer = done(s3.call(method, path, {"versionId": version}))
            assert answer.headers["x-amz-version-id"] == version
            assert answer.content == (str(number).encode() if method == "GET" else b"")
    assert paths(owner[0], bucket) == ["a/b"]
    assert s3.keys(bucket) == ["a/b"]

    gone = done(s3.call("DELETE", path))
    marker = gone.headers["x-amz-version-id"]
    assert gone.headers["x-amz-delete-marker"] == "true"
    answer = s3.call("GET", path)
    failed(answer, "NoSuchKey")
    assert answer.headers["x-amz-delete-marker"] == "true"
    answer = s3.call("GET", path, {"versionId": marker})
    failed(answer, "MethodNotAllowed")
    assert (paths(owner[0], bucket), s3.keys(bucket)) == ([], [])
    expected = [("a/b", marker, True, True), *(("a/b", v, False, False) for v in ids[::-1])]
    assert listed(s3, bucket) == expected
    for limit in ("1", "2", "3"):
        assert listed(s3, bucket, max_keys=limit) == expected

    # Without the marker it is back, and without its latest version the one before.
    gone = done(s3.call("DELETE", path, {"versionId": marker}))
    assert gone.headers["x-amz-delete-marker"] == "true"
    assert s3.get(path).content == b"2"
    done(s3.call("DELETE", path, {"versionId": ids[1]}))
    assert s3.get(path).content == b"2"
    done(s3.call("DELETE", path, {"versionId": ids[2]}))
    assert get(owner[0], bucket, "a/b") == b"0"
    assert listed(s3, bucket) == [("a/b", ids[0], False, True)]
    failed(s3.call("GET", path, {"versionId": ids[2]}), "NoSuchVersion")
    failed(s3.call("DELETE", bucket), "BucketNotEmpty")
    done(s3.call("DELETE", path, {"versionId": ids[0]}))
    assert listed(s3, bucket) == []


def test_rest_replaces_and_deletes_versions_as_well(s3: S3Client, bucket: str, owner: Who) -> None:
    user = owner[0]
    before = used(user)
    put(user, bucket, "f", b"one")
    put(user, bucket, "f", b"two", overwrite="true")
    where = {"namespace": bucket, "name": "f"}
    gone = user.delete("/storage/delete", params=where)
    assert ok(gone)
    assert (gone.headers["X-Kept"], gone.headers.get("X-Kept-Until")) == ("true", None)
    assert user.get(f"/storage/{bucket}/f").status_code == 404
    now = listed(s3, bucket)
    assert [(marker, latest) for _, _, marker, latest in now] == [
        (True, True), (False, False), (False, False),
    ]  # fmt: skip
    bodies = [s3.call("GET", f"{bucket}/f", {"versionId": each[1]}).content for each in now[1:]]
    assert bodies == [b"two", b"one"]
    assert used(user) == (before[0] + 3, before[1] + 6)
    listing = ok(user.get("/storage/files", params={"namespace": bucket, "prefix": ".s3"}))
    assert listing == []
    name = f".s3-versions/=f!{now[1][1]}"
    assert user.get(f"/storage/{bucket}/{name}").status_code == 404
    assert user.delete(f"/storage/{bucket}/{name}").status_code == 404
    assert user.put(f"/storage/{bucket}/{name}", content=b"x").status_code == 400


def test_null_versions_and_suspension(s3: S3Client) -> None:
    bucket = unique("bucket")
    s3.put(bucket)
    path = f"{bucket}/f"
    assert "x-amz-version-id" not in s3.put(path, b"before").headers
    assert listed(s3, bucket) == [("f", "null", False, True)]
    failed(s3.call("GET", path, {"versionId": "0" * 16}), "NoSuchVersion")
    assert s3.call("GET", path, {"versionId": "null"}).content == b"before"
    switch(s3, bucket)
    first = store(s3, path, b"first")
    assert s3.call("GET", path, {"versionId": "null"}).content == b"before"
    switch(s3, bucket, "Suspended")
    status = xml(s3.call("GET", bucket, {"versioning": ""})).findtext(f"{XMLNS}Status")
    assert status == "Suspended"
    for data in (b"again", b"and again"):
        assert store(s3, path, data) == "null"
        assert listed(s3, bucket) == [("f", "null", False, True), ("f", first, False, False)]
        assert s3.get(path).content == data
    gone = done(s3.call("DELETE", path))
    assert gone.headers["x-amz-version-id"] == "null"
    assert listed(s3, bucket) == [("f", "null", True, True), ("f", first, False, False)]
    assert store(s3, path, b"new") == "null"
    switch(s3, bucket)
    second = store(s3, path, b"second")
    versions = [("f", second, False, True), ("f", "null", False, False), ("f", first, False, False)]
    assert listed(s3, bucket) == versions
    assert listed(s3, bucket, max_keys="1") == versions
    for version, data in ((second, b"second"), ("null", b"new"), (first, b"first")):
        assert s3.call("GET", path, {"versionId": version}).content == data
        done(s3.call("DELETE", path, {"versionId": version}))
    assert listed(s3, bucket) == []
    done(s3.call("DELETE", bucket))


def test_keys_of_all_kinds_and_lists_in_their_order(s3: S3Client, bucket: str) -> None:
    keys = ["a", "a!", "a!b", "a//b", "a b/", "b/c", "b/d", ".s3-versions/x", "é" * 100, "z" * 60]
    made = {}
    for key in keys:
        made[key] = [store(s3, f"{bucket}/{key}", b"1"), store(s3, f"{bucket}/{key}", b"2")]
    expected = [
        (key, made[key][1 - age], False, age == 0) for key in sorted(keys) for age in (0, 1)
    ]
    assert listed(s3, bucket) == expected
    assert listed(s3, bucket, max_keys="3") == expected
    assert listed(s3, bucket, prefix="a") == [each for each in expected if each[0][0] == "a"]
    root = xml(s3.call("GET", bucket, {"versions": "", "delimiter": "/", "prefix": "b"}))
    assert [each.text for each in root.iter(f"{XMLNS}Prefix")] == ["b", "b/"]
    after = {"versions": "", "key-marker": "b/c", "version-id-marker": made["b/c"][1]}
    root = xml(s3.call("GET", bucket, after))
    assert root.find(f"{XMLNS}Version").findtext(f"{XMLNS}VersionId") == made["b/c"][0]
    assert s3.keys(bucket) == sorted(keys)


def test_copies_uploads_tags_and_many_deletions(s3: S3Client, bucket: str) -> None:
    path, data = f"{bucket}/f", os.urandom(2 * MIB)
    first = store(s3, path, data, x_amz_tagging="a=b")
    second = store(s3, path, b"second")
    source = {"x-amz-copy-source": f"{path}?versionId={first}"}
    for target in ("copy", "copy", "f"):  # the last one brings it back
        answer = done(s3.call("PUT", f"{bucket}/{target}", headers=source))
        assert answer.headers["x-amz-copy-source-version-id"] == first
        assert s3.get(f"{bucket}/{target}").content == data
        now = s3.get(f"{bucket}/{target}").headers["x-amz-version-id"]
        assert now == answer.headers["x-amz-version-id"]
    assert s3.call("GET", path, {"versionId": second}).content == b"second"
    failed(s3.call("PUT", f"{bucket}/x", headers={
        "x-amz-copy-source": f"{path}?versionId={'0' * 16}"}), "NoSuchVersion")  # fmt: skip
    tags = done(s3.call("GET", path, {"tagging": "", "versionId": first})).text
    assert "<Key>a</Key>" in tags
    done(s3.call("DELETE", path, {"tagging": "", "versionId": first}))
    assert "<Key>" not in s3.call("GET", path, {"tagging": "", "versionId": first}).text
    upload = begin(s3, path)
    parts = [(1, put_part(s3, path, upload, 1, b"parts"))]
    answer = done(complete(s3, path, upload, parts))
    third = answer.headers["x-amz-version-id"]
    assert s3.call("GET", path, {"versionId": third}).content == b"parts"

    wanted = [("f", third), ("f", ""), ("none", ""), ("f", "0" * 16), ("f", "x")]
    body = "".join(
        f"<Object><Key>{key}</Key>{f'<VersionId>{v}</VersionId>' if v else ''}</Object>"
        for key, v in wanted
    )
    root = xml(done(s3.call("POST", bucket, {"delete": ""}, f"<Delete>{body}</Delete>".encode())))
    markers = [each.text for each in root.iter(f"{XMLNS}DeleteMarkerVersionId")]
    assert len(markers) == 2
    assert [each.text for each in root.iter(f"{XMLNS}Code")] == ["InvalidArgument"]
    there = listed(s3, bucket)
    assert {each[1] for each in there if each[2] and each[3]} == set(markers)
    assert third not in [each[1] for each in there]
    conditions = {"if-match": '"other"'}
    for query in ({"versionId": second}, {}):  # the latest is a marker
        failed(s3.call("DELETE", path, query, headers=conditions), "PreconditionFailed")
    done(s3.call("DELETE", path, headers={"if-match": "*"}))
    done(s3.call("DELETE", f"{bucket}/never", headers=conditions))


def test_conditions_are_about_the_latest_version_wherever_it_is(
    cloud: Cloud, s3: S3Client, bucket: str
) -> None:
    path = f"{bucket}/f"
    store(s3, path, b"first")
    etag = s3.get(path).headers["etag"]
    listing = cloud.cluster.gfs("ls", "/storage").stdout.decode()
    [directory] = re.findall(rf"{bucket}\.[0-9a-f]+", listing)

    def empty() -> None:
        """The file at the path goes, as a client of the file system may delete it."""
        store(s3, path, b"goes")
        cloud.cluster.gfs("rm", f"/storage/{directory}/f")

    empty()
    answer = s3.call("PUT", path, body=b"x", headers={"if-none-match": "*"})
    failed(answer, "PreconditionFailed")
    assert s3.get(path).content == b"first"
    empty()
    failed(s3.call("PUT", path, body=b"x", headers={"if-match": '"1"'}), "PreconditionFailed")
    empty()
    store(s3, path, b"second", if_match=etag)
    assert s3.get(path).content == b"second"
    done(s3.call("DELETE", path))  # a marker is none
    failed(s3.call("PUT", path, body=b"x", headers={"if-match": etag}), "NoSuchKey")
    store(s3, path, b"third", if_none_match="*")


def post(user: httpx.Client, bucket: str, what: str, **body: object) -> httpx.Response:
    return user.post(f"/storage/namespaces/{bucket}/{what}", json=body)


def contents(s3: S3Client, bucket: str, key: str) -> list[bytes | None]:
    """Of all versions, the newest first; None: a delete marker."""
    return [
        None if is_marker else s3.call("GET", f"{bucket}/{key}", {"versionId": version}).content
        for name, version, is_marker, _ in listed(s3, bucket)
        if name == key
    ]


@pytest.mark.parametrize("size", [3, MIB])
def test_what_rest_copies_moves_and_restores_are_versions(
    s3: S3Client, bucket: str, owner: Who, cloud: Cloud, size: int
) -> None:
    user = owner[0]
    one, two, three = (text * size for text in (b"1", b"2", b"3"))
    put(user, bucket, "f", one)
    put(user, bucket, "f", two, overwrite="true")
    ok(post(user, bucket, "copy", source="f", target="d/g"))
    assert contents(s3, bucket, "d/g") == [two]
    refused(post(user, bucket, "copy", source="f", target="d/g"), 409, "d/g exists")
    put(user, bucket, "d/g", one, overwrite="true")
    ok(post(user, bucket, "copy", source="f", target="d/g", overwrite=True))
    assert contents(s3, bucket, "d/g") == [two, one, two]
    moved = ok(post(user, bucket, "move", source="f", target="h"))
    assert (moved["path"], moved["size"]) == ("h", size)
    assert contents(s3, bucket, "h") == [two]
    assert contents(s3, bucket, "f") == [None, two, one]
    ok(post(user, bucket, "move", source="h", target="d/g", overwrite=True))
    assert contents(s3, bucket, "d/g") == [two, two, one, two]
    made = ok(post(user, bucket, "snapshots", name="before"))
    put(user, bucket, "d/g", three, overwrite="true")
    restored = f"snapshots/{made['id']}/restore"
    refused(post(user, bucket, restored, path="d/g"), 409)
    ok(post(user, bucket, restored, path="d/g", overwrite=True))
    assert get(user, bucket, "d/g") == two
    assert contents(s3, bucket, "d/g") == [two, three, two, two, one, two]
    ok(user.delete(f"/storage/namespaces/{bucket}/snapshots/{made['id']}"))
    for what, body in (
        ("copy", {"source": "d", "target": "e"}),
        ("move", {"source": "d", "target": "e"}),
    ):
        refused(post(user, bucket, what, **body), 409, "one by one")
    folder = user.delete(f"/storage/namespaces/{bucket}/folder", params={"path": "d"})
    refused(folder, 409, "one by one")
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()


def test_undeleting_over_rest_removes_delete_markers(s3: S3Client, bucket: str, owner: Who) -> None:
    user = owner[0]
    refused(post(user, bucket, "undelete", path="f"), 404)
    put(user, bucket, "f", b"one")
    put(user, bucket, "f", b"two", overwrite="true")
    refused(post(user, bucket, "undelete", path="f"), 409, "f exists")
    before = listed(s3, bucket)
    for _ in range(2):
        done(s3.call("DELETE", f"{bucket}/f"))
    assert contents(s3, bucket, "f") == [None, None, b"two", b"one"]
    back = ok(post(user, bucket, "undelete", path="f"))
    assert (back["path"], back["kind"], back["size"]) == ("f", "file", 3)
    assert get(user, bucket, "f") == b"two"
    assert listed(s3, bucket) == before


def test_what_was_in_the_trash_before_there_were_versions_hides_none(
    s3: S3Client, bucket: str, owner: Who, cloud: Cloud
) -> None:
    user, space = owner[0], unique("later")
    s3.put(space)
    for name in ("f", "d/f"):
        put(user, space, name, b"old")
        ok(user.delete(f"/storage/{space}/{name}"))
    switch(s3, space)
    put(user, space, "f", b"new")
    [found] = [
        each["id"]
        for each in ok(user.get(f"/storage/namespaces/{space}/trash"))["entries"]
        if each["path"] == "f"
    ]
    refused(post(user, space, "undelete", path="f", id=found), 409, "another target")
    ok(user.delete(f"/storage/{space}/f"))
    refused(post(user, space, "undelete", path="f", id=found), 409, "another target")
    ok(post(user, space, "undelete", path="f", id=found, target="g"))
    ok(post(user, space, "undelete", path="d/f"))
    assert [get(user, space, name) for name in ("g", "d/f")] == [b"old", b"old"]
    assert contents(s3, space, "f") == [None, b"new"]


def test_copies_where_versions_are_suspended(
    s3: S3Client, bucket: str, owner: Who, cloud: Cloud
) -> None:
    user = owner[0]
    put(user, bucket, "source", b"copied")
    put(user, bucket, "f", b"one")
    switch(s3, bucket, "Suspended")
    for _ in range(2):  # the second one replaces the version null
        ok(post(user, bucket, "copy", source="source", target="f", overwrite=True))
        found = [(version, latest) for key, version, _, latest in listed(s3, bucket) if key == "f"]
        assert [version == "null" for version, _ in found] == [True, False]
        assert contents(s3, bucket, "f") == [b"copied", b"one"]
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()


def test_what_is_deleted_where_versions_are_suspended_goes_to_the_trash(
    s3: S3Client, bucket: str, owner: Who, cloud: Cloud
) -> None:
    user = owner[0]
    switch(s3, bucket, "Suspended")
    put(user, bucket, "f", b"one")
    gone = user.delete("/storage/delete", params={"namespace": bucket, "name": "f"})
    assert ok(gone)
    assert gone.headers["X-Kept"] == "true"
    assert int(gone.headers["X-Kept-Until"]) > 0
    assert contents(s3, bucket, "f") == [None]
    ok(post(user, bucket, "undelete", path="f"))
    assert get(user, bucket, "f") == b"one"
    assert contents(s3, bucket, "f") == [b"one"]
    put(user, bucket, "f", b"two", overwrite="true")
    assert contents(s3, bucket, "f") == [b"two"]
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()


def test_of_writes_at_once_each_is_kept(cloud: Cloud, owner: Who) -> None:
    key = new_key(*owner)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(cloud, key)) for _ in range(4)]
        s3 = clients[0]
        bucket = unique("bucket")
        s3.put(bucket)
        switch(s3, bucket)
        with ThreadPoolExecutor(4) as pool:
            made = [
                pool.submit(store, clients[n % 4], f"{bucket}/f", str(n).encode())
                for n in range(12)
            ]
            ids = {n: each.result() for n, each in enumerate(made)}
            gone = [pool.submit(client.call, "DELETE", f"{bucket}/f") for client in clients]
            markers = [done(each.result()).headers["x-amz-version-id"] for each in gone]
        assert {each[1] for each in listed(s3, bucket)} == {*ids.values(), *markers}
        for number, version in ids.items():
            body = s3.call("GET", f"{bucket}/f", {"versionId": version}).content
            assert body == str(number).encode()
        files, _ = used(owner[0])
        with ThreadPoolExecutor(4) as pool:
            every = [*ids.values(), *markers]
            list(pool.map(lambda n: done(clients[n % 4].call(
                "DELETE", f"{bucket}/f", {"versionId": every[n]})), range(len(every))))  # fmt: skip
        assert listed(s3, bucket) == []
        assert used(owner[0])[0] == files - 16
        done(s3.call("DELETE", bucket))


@pytest.mark.parametrize(
    ("method", "query", "body", "code"),
    [
        *(
            ("GET", {"versionId": odd}, b"", "InvalidArgument")
            for odd in ("x", "../../etc", "0" * 17, "F" * 16)
        ),
        *(("GET", {"versionId": none}, b"", "NoSuchVersion") for none in ("f" * 16, "null")),
        ("HEAD", {"versionId": "0" * 16}, b"", ""),
        ("DELETE", {"versionId": "\n"}, b"", "InvalidArgument"),
        ("DELETE", {"versionId": "0" * 16}, b"", ""),
        ("PUT", {"versionId": "0" * 16}, b"x", "InvalidArgument"),
        ("POST", {"uploads": "", "versionId": "null"}, b"", "InvalidArgument"),
    ],
)
def test_odd_ids(
    s3: S3Client, bucket: str, method: str, query: dict[str, str], body: bytes, code: str
) -> None:
    version = store(s3, f"{bucket}/f", b"x")
    answer = s3.call(method, f"{bucket}/f", query, body)
    if code:
        failed(answer, code)
    else:
        assert answer.status_code in (204, 404)
    assert listed(s3, bucket) == [("f", version, False, True)]


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("", "MalformedXML"),
        ("<Status>On</Status>", "MalformedXML"),
        ("<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>", "NotImplemented"),
    ],
)
def test_what_is_no_state_of_versions(s3: S3Client, bucket: str, inside: str, code: str) -> None:
    body = f"<VersioningConfiguration>{inside}</VersioningConfiguration>".encode()
    failed(s3.call("PUT", bucket, {"versioning": ""}, body), code)
    failed(s3.call("PUT", "default", {"versioning": ""}, body), "AccessDenied")
    for options in ({"version-id-marker": "x", "key-marker": "a"}, {"version-id-marker": "null"}):
        failed(s3.call("GET", bucket, {"versions": "", **options}), "InvalidArgument")


def test_rules_end_old_versions_and_markers_that_are_alone(
    make_cloud: Callable[..., Cloud],
) -> None:
    cloud = make_cloud(chunkservers=1, environment={"GFS_S3_LIFECYCLE_DAY_SECONDS": "1"}).start()
    user = cloud.make_user()
    key = new_key(*user)
    with client_of(cloud, key) as s3:
        s3.put("bucket")
        switch(s3, "bucket")
        for name in ("old/f", "old/gone", "some/f", "none/f"):
            for number in range(4):
                store(s3, f"bucket/{name}", str(number).encode())
        for name in ("old/gone", "old/alone"):
            done(s3.call("DELETE", f"bucket/{name}"))
        days = "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>{}"
        days += "</NoncurrentVersionExpiration>"
        newer = days.format("<NewerNoncurrentVersions>2</NewerNoncurrentVersions>")
        marker = "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>"
        rules = rule("old/", f"{days.format('')}<Expiration>{marker}</Expiration>")
        body = f"<LifecycleConfiguration>{rules}{rule('some/', newer)}</LifecycleConfiguration>"
        for wrong in (body.replace(">1<", ">0<"), body.replace("NoncurrentDays", "Days")):
            refused = s3.call("PUT", "bucket", {"lifecycle": ""}, wrong.encode())
            assert refused.status_code == 400
        done(s3.call("PUT", "bucket", {"lifecycle": ""}, body.encode()))

        def names() -> list[str]:
            return [each[0] for each in listed(s3, "bucket")]

        expected = ["none/f"] * 4 + ["old/f"] + ["some/f"] * 3
        wait_for(lambda: names() == expected, "end of the old versions")
        for name in ("none/f", "old/f", "some/f"):
            assert s3.get(f"bucket/{name}").content == b"3"


def test_a_version_is_read_and_tagged_while_it_is_replaced(cloud: Cloud, owner: Who) -> None:
    """Who asks for a version gets that one, and what is said of it stays with it."""
    key = new_key(*owner)
    is_over = threading.Event()
    kept: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        s3, reader, tagger = (stack.enter_context(client_of(cloud, key)) for _ in range(3))
        path = f"{unique('bucket')}/f"
        s3.put(path.partition("/")[0])
        switch(s3, path.partition("/")[0])
        latest = [store(s3, path, b"0")]
        contents = {latest[0]: b"0"}

        def read() -> None:
            while not is_over.is_set():
                version = latest[-1]
                answer = done(reader.call("GET", path, {"versionId": version}))
                assert answer.headers["x-amz-version-id"] == version
                assert answer.content == contents[version]

        def tag() -> None:
            for number in itertools.count():
                if is_over.is_set():
                    return
                version, text = latest[-1], str(number)
                query = {"tagging": "", "versionId": version}
                done(tagger.call("PUT", path, query, tagging("n", text)))
                kept[version] = text

        with ThreadPoolExecutor(2) as pool:
            at_work = [pool.submit(each) for each in (read, tag)]
            try:
                for number in range(1, 60):
                    version = store(s3, path, str(number).encode())
                    contents[version] = str(number).encode()
                    latest.append(version)
            finally:
                is_over.set()
            for each in at_work:
                each.result()
        for version, text in kept.items():
            answer = s3.call("GET", path, {"tagging": "", "versionId": version}).text
            assert f"<Value>{text}</Value>" in answer


def test_versions_take_the_room_that_they_have_and_no_more(cloud: Cloud, s3: S3Client) -> None:
    """Although the one at the path is copied before it is replaced or deleted."""
    user = cloud.make_user()
    key = new_key(*user)
    quota = {"bytes": 10_000, "files": 100}
    ok(cloud.admin.put("/admin/quotas", params={"id": user[1]}, json=quota))
    with client_of(cloud, key) as client:
        bucket = unique("bucket")
        client.put(bucket)
        switch(client, bucket)
        path = f"{bucket}/f"
        store(client, path, b"x" * 7000)
        refused = client.call("PUT", path, body=b"x" * 4000)  # there is no room beside
        assert refused.status_code == 507 or "QuotaExceeded" in refused.text
        store(client, path, b"x" * 2000)
        assert used(user[0]) == (2, 9000)
        done(client.call("DELETE", path))
        assert [each[2] for each in listed(client, bucket)] == [True, False, False]
        assert used(user[0]) == (3, 9000)
        switch(client, bucket, "Suspended")
        store(client, path, b"x" * 1000)
        store(client, path, b"y" * 1000)  # the version null is replaced, with its room
        refused = client.call("PUT", path, body=b"x" * 1001)
        assert refused.status_code >= 300
        assert client.get(path).content == b"y" * 1000


def test_completions_at_once_in_several_processes_make_one_version(
    make_cloud: Callable[..., Cloud],
) -> None:
    """And each is answered the same. One that comes late does not replace what was stored since."""
    cloud = make_cloud(chunkservers=1, environment={"GFS_CONTROL_WORKERS": "3"}).start()
    key = new_key(*cloud.make_user())
    pieces = [b"x" * (6 * MIB), b"end"]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        # Each has a connection of its own, and so perhaps another process.
        clients = [stack.enter_context(client_of(cloud, key)) for _ in range(8)]
        first = clients[0]
        for name, is_on in (("versions", True), ("plain", False)):
            first.put(name)
            if is_on:
                switch(first, name)
            for number in range(4):
                path = f"{name}/{number}"
                upload = begin(first, path)
                parts = [(n, put_part(first, path, upload, n, d)) for n, d in enumerate(pieces, 1)]
                asked = [pool.submit(complete, each, path, upload, parts) for each in clients]
                answers = [done(each.result()) for each in asked]
                ids = {answer.headers.get("x-amz-version-id") for answer in answers}
                assert len(ids) == 1, ids
                assert len({answer.content for answer in answers}) == 1
                found = [
                    version for key, version, _, _ in listed(first, name) if key == f"{number}"
                ]
                assert found == ([*ids] if is_on else ["null"])
                store(first, path, b"newer")
                for each in clients[:4]:
                    failed(complete(each, path, upload, parts), "NoSuchUpload")
                assert first.get(path).content == b"newer"


def test_a_completion_that_was_killed_after_it_published_makes_no_second_version(
    cloud: Cloud, owner: Who, s3: S3Client, bucket: str
) -> None:
    path = f"{bucket}/f"
    upload = begin(s3, path)
    part = (1, put_part(s3, path, upload, 1, b"x" * MIB))
    found = [each["path"] for each in cloud.cluster.json("ls", "/storage")]
    directory = next(each for each in found if each.startswith(f"/storage/{bucket}."))
    folder = f"{directory}/.s3-uploads/{upload}"
    cloud.cluster.gfs("snapshot", folder, f"{folder}.copy")
    first = done(complete(s3, path, upload, [part]))
    cloud.cluster.gfs("mv", f"{folder}.copy", folder)  # as if the process had not removed it
    again = done(complete(s3, path, upload, [part]))
    assert again.content == first.content
    assert again.headers["x-amz-version-id"] == first.headers["x-amz-version-id"]
    assert len(listed(s3, bucket)) == 1
    failed(s3.call("GET", path, {"uploadId": upload}), "NoSuchUpload")
