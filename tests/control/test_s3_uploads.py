"""Multipart uploads: how they end, and what they leave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from checks import paths, unique, wait_for
from cloud import Cloud
from raw import Connection
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
    xml,
)
from storage_people import Who, used

MIB = 1024 * 1024


@pytest.fixture
def account(cloud: Cloud) -> Who:
    """A user who has nothing yet."""
    return cloud.make_user()


@pytest.fixture
def mine(cloud: Cloud, account: Who) -> Iterator[S3Client]:
    with client_of(cloud, new_key(*account)) as made:
        yield made


@pytest.fixture
def place(mine: S3Client) -> str:
    name = unique("bucket")
    mine.put(name)
    return name


def etag_of(*parts: bytes) -> str:
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts))
    return f'"{digest.hexdigest()}-{len(parts)}"'


def test_two_completions_at_once_make_one_object(mine: S3Client, account: Who, place: str) -> None:
    first, last = os.urandom(6 * MIB), b"the end"
    for number in range(5):
        path = f"{place}/{number}"
        upload = begin(mine, path)
        parts = [(n, put_part(mine, path, upload, n, d)) for n, d in ((1, first), (2, last))]
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(complete, mine, path, upload, parts) for _ in range(3)]
        for answer in answers:
            assert xml(done(answer.result())).findtext(f"{XMLNS}ETag") == etag_of(first, last)
        assert mine.get(path).content == first + last
    assert paths(account[0], place) == [str(number) for number in range(5)]
    assert used(account[0]) == (5, 5 * (len(first) + len(last)))


def test_a_completion_whose_answer_was_lost_can_be_repeated(mine: S3Client, place: str) -> None:
    path = f"{place}/f"
    upload = begin(mine, path)
    etag = put_part(mine, path, upload, 1, b"x")
    for _ in range(2):
        root = xml(done(complete(mine, path, upload, [(1, etag)])))
        assert root.findtext(f"{XMLNS}ETag") == etag_of(b"x")
    mine.put(path, b"another")
    failed(complete(mine, path, upload, [(1, etag)]), "NoSuchUpload")


@pytest.mark.parametrize("upload", ["", "x", "-1", "z" * 32, "f" * 40, "0" * 32])
def test_no_upload_is_completed_whose_id_is_none(
    mine: S3Client, place: str, cloud: Cloud, upload: str
) -> None:
    path, parts = f"{place}/f", [(1, "0" * 32)]
    failed(complete(mine, path, upload, parts), "NoSuchUpload")
    with client_of(cloud, new_key(*cloud.make_user())) as other:
        failed(complete(other, path, upload, parts), "AccessDenied")


def test_an_upload_that_is_aborted_counts_no_longer(
    mine: S3Client, account: Who, place: str, cloud: Cloud
) -> None:
    path = f"{place}/f"
    upload = begin(mine, path)
    for number in range(1, 4):
        put_part(mine, path, upload, number, b"x" * 1000)
    put_part(mine, path, upload, 2, b"y" * 500)
    assert used(account[0])[1] >= 2500
    done(mine.call("DELETE", path, {"uploadId": upload}))
    assert used(account[0]) == (0, 0)
    query = {"uploadId": upload, "partNumber": "1"}
    for method, named in (("PUT", query), ("DELETE", {"uploadId": upload}),
                          ("GET", {"uploadId": upload})):  # fmt: skip
        failed(mine.call(method, path, named), "NoSuchUpload")
    done(mine.call("DELETE", place))
    # Nothing is in the trash: nobody undeletes a part.
    trash = str(cloud.cluster.json("ls", "--trash", "/storage"))
    assert re.search(rf"{place}\.[0-9a-f]+/\.s3-uploads", trash) is None


def test_a_part_that_ends_after_its_upload_is_none(
    mine: S3Client, account: Who, place: str
) -> None:
    path = f"{place}/f"
    upload = begin(mine, path)

    def body() -> Iterator[bytes]:
        yield b"x" * 1000
        done(mine.call("DELETE", path, {"uploadId": upload}))
        yield b"x" * 1000

    query = {"uploadId": upload, "partNumber": "1"}
    failed(mine.send_slowly(path, body(), 2000, query), "NoSuchUpload")
    assert used(account[0]) == (0, 0)
    assert paths(account[0], place) == []


def test_uploads_are_listed_page_by_page(mine: S3Client, account: Who, place: str) -> None:
    keys = ["a", "b/1", "b/1", "b/2", "b/2/x", "c", "c", "c", "über/x y"]
    begun = sorted((key, begin(mine, f"{place}/{key}")) for key in keys)

    def listed(**options: str) -> list[tuple[str, str]]:
        query = {"uploads": "", **{n.replace("_", "-"): v for n, v in options.items()}}
        found: list[tuple[str, str]] = []
        while True:
            root = xml(done(mine.call("GET", place, query)))
            page = [
                (str(e.findtext(f"{XMLNS}Key")), str(e.findtext(f"{XMLNS}UploadId")))
                for e in root.iter(f"{XMLNS}Upload")
            ]
            page += [
                (str(e.findtext(f"{XMLNS}Prefix")), "") for e in root.iter(f"{XMLNS}CommonPrefixes")
            ]
            found += page
            assert len(page) <= int(options.get("max_uploads", "1000"))
            if root.findtext(f"{XMLNS}IsTruncated") != "true":
                return found
            query["key-marker"] = root.findtext(f"{XMLNS}NextKeyMarker")
            query["upload-id-marker"] = root.findtext(f"{XMLNS}NextUploadIdMarker")

    assert listed() == begun
    for size in ("1", "2", "3"):
        assert listed(max_uploads=size) == begun
        assert listed(max_uploads=size, prefix="b/2") == [u for u in begun if "b/2" in u[0]]
        found = listed(max_uploads=size, delimiter="/")
        assert sorted({key for key, _ in found}) == ["a", "b/", "c", "über/"]
        assert len(found) == 6
    assert listed(key_marker="b/1") == begun[3:]
    assert listed(max_uploads="0") == []
    root = xml(mine.call("GET", place, {"uploads": "", "encoding-type": "url", "prefix": "ü"}))
    assert [e.text for e in root.iter(f"{XMLNS}Key")] == ["%C3%BCber/x%20y"]
    for name in ("Initiator", "Owner"):
        [who] = root.iter(XMLNS + name)
        assert who.findtext(f"{XMLNS}ID") == account[1]


def test_parts_are_listed_page_by_page(mine: S3Client, place: str) -> None:
    path = f"{place}/f"
    upload = begin(mine, path)
    for number in (1, 2, 10, 999, 10_000):
        put_part(mine, path, upload, number, b"x")
    found, marker = [], "0"
    while True:
        query = {"uploadId": upload, "max-parts": "2", "part-number-marker": marker}
        root = xml(mine.call("GET", path, query))
        found += [e.text for e in root.iter(f"{XMLNS}PartNumber")]
        marker = str(root.findtext(f"{XMLNS}NextPartNumberMarker"))
        if root.findtext(f"{XMLNS}IsTruncated") != "true":
            break
    assert found == ["1", "2", "10", "999", "10000"]


def test_in_default_an_upload_is_its_users(cloud: Cloud, mine: S3Client) -> None:
    path = f"default/{unique('f')}"
    upload = begin(mine, path)
    etag = put_part(mine, path, upload, 1, b"x")
    with client_of(cloud, new_key(*cloud.make_user())) as other:
        for method in ("GET", "DELETE"):
            failed(other.call(method, path, {"uploadId": upload}), "AccessDenied")
        failed(complete(other, path, upload, [(1, etag)]), "AccessDenied")
    done(mine.call("DELETE", path, {"uploadId": upload}))


def test_old_uploads_are_aborted(make_cloud: Callable[..., Cloud]) -> None:
    cloud = make_cloud(chunkservers=1, environment={"GFS_STORAGE_UPLOAD_SECONDS": "15"}).start()
    user, user_id = cloud.make_user()
    with client_of(cloud, new_key(user, user_id)) as s3:
        s3.put("bucket")
        path = "bucket/f"
        upload = begin(s3, path)
        put_part(s3, path, upload, 1, b"x" * 1000)
        s3.put("bucket/stays", b"y")
        wait_for(lambda: used(user) == (1, 1), "expiry of the upload")
        failed(s3.call("GET", path, {"uploadId": upload}), "NoSuchUpload")
        assert paths(user, "bucket") == ["stays"]


def test_a_control_plane_killed_while_it_completes(make_cloud: Callable[..., Cloud]) -> None:
    """It leaves the object or the upload, and what it leaves counts as what it is."""
    cloud = make_cloud().start()
    user, user_id = cloud.make_user()
    key = new_key(user, user_id)
    parts = [os.urandom(8 * MIB) for _ in range(6)]
    s3 = client_of(cloud, key)
    s3.put("bucket")
    for pause in (0.0, 0.1, 0.3, 0.6):
        path = f"bucket/{pause}"
        upload = begin(s3, path)
        tags = [(n, put_part(s3, path, upload, n, data)) for n, data in enumerate(parts, 1)]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(complete, s3, path, upload, tags)
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                answer.result(pause)
            old = cloud.cluster.kill("control")
            with contextlib.suppress(httpx.HTTPError):
                answer.result()
        cloud.cluster.wait_restarted("control", old)
        s3.close()
        s3 = client_of(cloud, key)
        wait_for(partial(_serves, s3), "the control plane")
        is_there = s3.call("HEAD", path).status_code == 200
        if not is_there:
            listed = xml(done(s3.call("GET", path, {"uploadId": upload})))
            assert len(list(listed.iter(f"{XMLNS}Part"))) == len(parts)
        done(complete(s3, path, upload, tags))
        assert s3.get(path).content == b"".join(parts)
        left = xml(done(s3.call("GET", "bucket", {"uploads": ""})))
        if list(left.iter(f"{XMLNS}Upload")):
            done(s3.call("DELETE", path, {"uploadId": upload}))
    s3.close()
    total = 4 * sum(map(len, parts))
    wait_for(lambda: used(user)[1] == total, "recount")


def _serves(s3: S3Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return s3.call("GET", "").status_code == 200
    return False


def test_a_bucket_is_not_deleted_with_an_upload_that_succeeds(
    cloud: Cloud, mine: S3Client, account: Who
) -> None:
    clients = [client_of(cloud, new_key(*account)) for _ in range(4)]
    outcomes = set()
    for _ in range(15):
        name = unique("bucket")
        mine.put(name)
        with ThreadPoolExecutor(5) as pool:
            puts = [
                pool.submit(client.call, "PUT", f"{name}/a/{n}", None, b"x")
                for n, client in enumerate(clients)
            ]
            deleted = pool.submit(mine.call, "DELETE", name).result()
            stored = [n for n, put in enumerate(puts) if put.result().status_code == 200]
        for put in puts:
            if put.result().status_code != 200:
                assert xml(put.result()).findtext("Code") in ("NoSuchBucket", "ServiceUnavailable")
        if deleted.status_code != 204:
            failed(deleted, "BucketNotEmpty")
            assert mine.keys(name) == [f"a/{n}" for n in stored]
        else:
            assert stored == []
            failed(mine.call("GET", name), "NoSuchBucket")
        outcomes.add(deleted.status_code)
    for client in clients:
        client.close()


def test_no_prefix_lists_what_is_no_object(mine: S3Client, place: str) -> None:
    upload = begin(mine, f"{place}/f")
    put_part(mine, f"{place}/f", upload, 1, b"x")
    for key in ("a//b", ".s3-uploads/x", ".s3-keys/y"):
        mine.put(f"{place}/{key}", b"x")
    for prefix, expected in (
        (".s3-uploads", [".s3-uploads/x"]),
        (".s3-uploads/", [".s3-uploads/x"]),
        (f".s3-uploads/{upload}", []),
        (f".s3-uploads/{upload}/", []),
        (".s3-keys/", [".s3-keys/y"]),
        (".s3-keys/=", []),
    ):
        assert mine.keys(place, prefix=prefix) == expected
        assert mine.keys(place, prefix=prefix, max_keys="1") == expected


def test_what_is_begun_has_room_for_its_etag_and_checksum(mine: S3Client, place: str) -> None:
    """An upload with too much metadata is refused before its parts are sent."""
    path = f"{place}/f"
    for size in range(880, 700, -5):
        headers = {"x-amz-meta-a": "x" * size, "x-amz-checksum-algorithm": "SHA256"}
        begun = mine.call("POST", path, {"uploads": ""}, headers=headers)
        if begun.status_code == 200:
            break
        failed(begun, "MetadataTooLarge")
    upload = str(xml(done(begun)).findtext(f"{XMLNS}UploadId"))
    query = {"uploadId": upload, "partNumber": "1"}
    sum_of = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"x").digest()).decode()}
    etag = done(mine.call("PUT", path, query, b"x", headers=sum_of)).headers["etag"]
    done(complete(mine, path, upload, [(1, etag)]))
    assert mine.get(path).headers["x-amz-meta-a"] == "x" * size
    done(mine.call("DELETE", path))
    too_long = {"x-amz-meta-a": "x" * 860}
    head = mine.head("PUT", path, {}, MIB, too_long)  # and nothing of the body
    with Connection(mine.url) as connection:
        connection.send(head)
        assert b"MetadataTooLarge" in connection.socket.recv(65536)
