"""What hostile and broken clients of S3 send: an error of S3 each, and nothing stays of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checks import ok, paths, unique, wait_for
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
    put_below,
    put_part,
    xml,
)
from storage_people import Who, used

MIB = 1024 * 1024
Frames = list[bytes]


@pytest.fixture(scope="module")
def account(cloud: Cloud) -> Who:
    return cloud.make_user()


@pytest.fixture(scope="module")
def rogue(cloud: Cloud, account: Who) -> Iterator[S3Client]:
    with client_of(cloud, new_key(*account)) as made:
        yield made


@pytest.fixture
def place(rogue: S3Client, account: Who) -> Iterator[str]:
    """A bucket in which nothing may stay."""
    name = unique("bucket")
    rogue.put(name)
    yield name
    assert rogue.keys(name) == []
    assert paths(account[0], name) == []
    assert used(account[0]) == (0, 0)
    done(rogue.call("DELETE", name))


PIECES = [b"a" * 9000, b"b" * 9000, b"c"]


def changed(at: int, old: bytes, new: bytes) -> Callable[[Frames], Frames]:
    return lambda frames: [*frames[:at], frames[at].replace(old, new, 1), *frames[at + 1 :]]


#: tests/unit/test_s3_signature.py has more of them.
CHUNKS: dict[str, tuple[Callable[[Frames], Frames], str]] = {
    "other data": (changed(1, b"bbb", b"bab"), "SignatureDoesNotMatch"),
    "the first twice": (lambda f: [f[0], *f], "SignatureDoesNotMatch"),
    "nothing": (lambda f: [], "IncompleteBody"),
    "cut": (lambda f: [b"".join(f)[:-3]], "IncompleteBody"),
    "two ends": (lambda f: [*f, f[-1]], "IncompleteBody"),
    "a size of thirteen digits": (changed(2, b"1;", b"1000000000001;"), "IncompleteBody"),
    "a negative size": (changed(2, b"1;", b"-1;"), "IncompleteBody"),
    "lines without CR": (lambda f: [b"".join(f).replace(b"\r\n", b"\n")], "IncompleteBody"),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks(rogue: S3Client, place: str, case: str) -> None:
    change, code = CHUNKS[case]
    failed(rogue.put_chunks(f"{place}/f", PIECES, change), code)


def test_right_chunks_are_stored(rogue: S3Client, place: str) -> None:
    """As a measure of the others."""
    done(rogue.put_chunks(f"{place}/f", PIECES))
    assert rogue.get(f"{place}/f").content == b"".join(PIECES)
    done(rogue.call("DELETE", f"{place}/f"))


def test_chunks_of_another_request(rogue: S3Client, place: str) -> None:
    kept: list[Frames] = []
    failed(rogue.put_chunks(f"{place}/f", PIECES, lambda f: kept.append(f) or []), "IncompleteBody")
    answer = rogue.put_chunks(f"{place}/g", PIECES, lambda _: kept[0])
    failed(answer, "SignatureDoesNotMatch")
    failed(rogue.put_chunks(f"{place}/f", PIECES, age=1000), "RequestTimeTooSkewed")
    for length in (0, 1, 18_000, 18_002, 10**15):
        answer = rogue.put_chunks(f"{place}/f", PIECES, length=length)
        failed(answer, "EntityTooLarge" if length == 10**15 else "IncompleteBody")


def test_a_client_that_stops_in_the_middle(cloud: Cloud, rogue: S3Client, place: str) -> None:
    path = f"{place}/f"
    upload = begin(rogue, path)
    query = {"uploadId": upload, "partNumber": "1"}
    control = Path(f"/proc/{cloud.cluster.pid('control')}/fd")
    before = len(list(control.iterdir()))
    for target in ({}, query):
        for sent in (0, 1, 100_000):
            with Connection(rogue.url) as connection:
                connection.send(rogue.head("PUT", path, target, MIB) + b"x" * sent)

    def is_over() -> bool:
        return len(list(control.iterdir())) <= before

    wait_for(is_over, "end of the broken uploads")
    assert list(xml(done(rogue.call("GET", path, {"uploadId": upload}))).iter(f"{XMLNS}Part")) == []
    done(rogue.call("DELETE", path, {"uploadId": upload}))


DEEP = b"<Delete>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</Delete>"
BOMB = b"""<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;">]><Tag>&b;</Tag>"""
FILE = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Tagging>&a;</Tagging>'


@pytest.mark.parametrize("root", ["Delete", "CompleteMultipartUpload", "Tagging"])
def test_documents(rogue: S3Client, place: str, root: str) -> None:
    path = f"{place}/f"
    upload = begin(rogue, path)
    where = {
        "Delete": ("POST", place, {"delete": ""}),
        "CompleteMultipartUpload": ("POST", path, {"uploadId": upload}),
        "Tagging": ("PUT", path, {"tagging": ""}),
    }
    empty = f"<{root}/>".encode()
    for body in (BOMB, FILE, DEEP, b"", b"\0", empty[:-1], b"<Other/>", empty * 2,
                 empty.decode().encode("utf-16"), b" " * 3 * MIB):  # fmt: skip
        failed(rogue.call(*where[root], body), "MalformedXML")
    done(rogue.call("DELETE", path, {"uploadId": upload}))


def test_parts_with_holes(rogue: S3Client, place: str) -> None:
    path = f"{place}/f"
    upload = begin(rogue, path)
    first, last = os.urandom(5 * MIB), b"x"
    parts = [(1, put_part(rogue, path, upload, 1, first)),
             (10_000, put_part(rogue, path, upload, 10_000, last))]  # fmt: skip
    etag = parts[0][1]
    for listed, code in (
        ([(n, etag) for n in range(1, 10_001)], "InvalidPart"),
        ([(n, etag) for n in range(1, 10_002)], "InvalidArgument"),
        ([(1, etag)] * 10_001, "MalformedXML"),
        ([(0, etag), *parts], "InvalidArgument"),
        ([*parts, parts[1]], "InvalidPartOrder"),
        ([(1, ""), parts[1]], "InvalidPart"),
        ([(1, "*"), parts[1]], "InvalidPart"),
        ([(1, etag[:-2]), parts[1]], "InvalidPart"),
    ):
        failed(complete(rogue, path, upload, listed), code)
    done(complete(rogue, path, upload, parts))
    assert rogue.get(path).content == first + last
    done(rogue.call("DELETE", path))


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("x-amz-copy-source", "", "InvalidArgument"),
        ("x-amz-copy-source", "/", "InvalidArgument"),
        ("x-amz-copy-source", "%ff/%ff", "NoSuchBucket"),
        ("x-amz-copy-source", "a/b?versionId=1", "InvalidArgument"),
        ("x-amz-meta-x", "y" * 2000, "MetadataTooLarge"),
        ("x-amz-decoded-content-length", "-1", "InvalidArgument"),
        ("x-amz-checksum-algorithm", "MD5", "InvalidRequest"),
        ("x-amz-tagging", "a=b&a=c", "InvalidTag"),
        ("x-amz-tagging", "a=" + "b" * 300, "InvalidTag"),
        ("if-match", '"x"', "NoSuchKey"),
    ],
)
def test_headers(rogue: S3Client, place: str, header: str, value: str, code: str) -> None:
    payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER" if "decoded" in header else ""
    answer = rogue.call("PUT", f"{place}/f", body=b"x", headers={header: value}, payload=payload)
    failed(answer, code)


@pytest.mark.parametrize(
    "key",
    [
        *("\udcff", "a\udcc0\udc80b", "\udced\udca0\udc80", "\udcf4\udc90\udc80\udc80", "a\udce2"),
        *("\udc80", "\udcfe\udcfe"),
    ],
)
def test_a_key_that_is_no_utf_8_is_refused(rogue: S3Client, place: str, key: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        answer = rogue.call(method, f"{place}/{key}")
        assert answer.status_code == 400
        failed(answer, "InvalidURI")
    failed(rogue.call("GET", key), "InvalidURI")


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (b"GET /%ff HTTP/1.1", "InvalidURI"),
        (b"GET /b?prefix=%ff HTTP/1.1", "InvalidURI"),
        (b"GET /b/%zz HTTP/1.1", "InvalidURI"),
        (b"GET /b/\xff HTTP/1.1", "BadRequest"),
        (b"GET /a b HTTP/1.1", "BadRequest"),
        (b"get /b HTTP/1.1", "NotImplemented"),
        (b"GET /b HTTP/1.1\r\nX: " + b"x" * 100_000, "RequestHeaderSectionTooLarge"),
    ],
)
def test_what_is_no_request_has_an_error_of_s3(
    rogue: S3Client, request_line: bytes, code: str
) -> None:
    head = request_line + b"\r\nHost: s3\r\nConnection: close\r\n\r\n"
    with Connection(rogue.url) as connection:
        connection.send(head)
        answer = connection.answer()
    assert answer.header("content-type") == "application/xml"
    assert f"<Code>{code}</Code>".encode() in answer.body


def test_nobody_puts_a_file_among_the_parts_of_an_upload(
    cloud: Cloud, rogue: S3Client, account: Who
) -> None:
    """The ids of uploads in the bucket that all users share are in its list over REST."""
    key = unique("key")
    upload = begin(rogue, f"default/{key}")
    other, _ = cloud.make_user()
    for path in (f".s3-uploads/{upload}/00001", f".s3-uploads/{'c' * 32}/upload", ".s3-uploads/x"):
        folder, _, name = path.rpartition("/")
        for answer in (
            other.put(f"/storage/default/{path}", content=b"x"),
            other.post("/storage/upload", params={"name": path}, content=b"x"),
            other.post("/storage/upload", params={"path": folder}, files={"file": (name, b"x")}),
        ):
            assert (answer.status_code, "uploads over S3" in answer.text) == (400, True)
    parts = [(1, put_part(rogue, f"default/{key}", upload, 1, b"x"))]
    done(complete(rogue, f"default/{key}", upload, parts))
    done(rogue.call("DELETE", f"default/{key}"))


def test_files_among_the_uploads_that_are_none(
    cloud: Cloud, rogue: S3Client, account: Who, place: str
) -> None:
    """One who uses the file system without the control plane may put them there."""
    upload = begin(rogue, f"{place}/f")
    query = {"uploadId": "a" * 32}
    for data in (b"\xff", b"x" * 1025):
        put_below(cloud, place, f".s3-uploads/{'a' * 32}/upload", data)
        listed = xml(done(rogue.call("GET", place, {"uploads": ""})))
        assert [each.text for each in listed.iter(f"{XMLNS}UploadId")] == [upload]
        failed(rogue.call("GET", f"{place}/{'x' * 1025}", query), "NoSuchUpload")
    put_below(cloud, place, f".s3-uploads/{'b' * 32}/upload/f", b"x")
    failed(rogue.call("GET", f"{place}/f", {"uploadId": "b" * 32}), "NoSuchUpload")
    put_below(cloud, place, ".s3-uploads/-mine/f", b"x")
    failed(rogue.call("DELETE", place), "BucketNotEmpty")
    listed = xml(done(rogue.call("GET", place, {"uploads": ""})))
    assert [each.text for each in listed.iter(f"{XMLNS}UploadId")] == [upload]
    done(rogue.call("DELETE", f"{place}/f", {"uploadId": upload}))
    for name in ("a" * 32 + "/upload", "b" * 32 + "/upload/f"):
        ok(account[0].delete(f"/storage/{place}/.s3-uploads/{name}"))
    assert paths(account[0], place) == [".s3-uploads/-mine/f"]
    where = {"namespace": place, "name": ".s3-uploads/-mine/f"}
    ok(account[0].delete("/storage/delete", params=where))
