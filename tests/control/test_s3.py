"""S3 beside the REST API: the same files, users and rules through another door."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

import httpx
import pytest
from checks import PLAIN, get, make_namespace, ok, paths, put, refused, unique
from cloud import Cloud
from limits import HANG_SECONDS
from s3_client import (
    XMLNS,
    S3Client,
    begin,
    client_of,
    complete,
    deletion,
    done,
    failed,
    make_ada,
    new_key,
    put_part,
    tagging,
    xml,
)
from storage_people import Who

from control.api import Control, ControlSettings
from control.cli.access_keys import make_key
from control.errors import BadRequest
from control.identity.rows import tokens
from control.records import Txn
from control.records.errors import RecordsAway
from control.s3 import S3
from control.s3.checksums import ALGORITHMS
from control.s3.keys import access_keys
from control.storage import Storage
from control.testing import CheapAuth, make_app, served

MIB = 1024 * 1024


@pytest.mark.thin
def test_the_same_files_through_both_doors(s3: S3Client, owner: Who, bucket: str) -> None:
    user, _ = owner
    s3.put(f"{bucket}/a/by s3.txt", b"one", content_type="text/x-mine", x_amz_meta_colour="blue")
    put(user, bucket, "a/by-rest.txt", b"two")
    assert paths(user, bucket) == ["a/by s3.txt", "a/by-rest.txt"]
    assert s3.keys(bucket) == ["a/by s3.txt", "a/by-rest.txt"]
    assert get(user, bucket, "a/by s3.txt") == b"one"
    answer = s3.get(f"{bucket}/a/by-rest.txt")
    assert (answer.content, answer.headers["content-type"]) == (b"two", "text/plain")
    answer = s3.get(f"{bucket}/a/by s3.txt")
    assert answer.headers["etag"] == f'"{hashlib.md5(b"one").hexdigest()}"'
    assert answer.headers["content-type"] == "text/x-mine"
    assert answer.headers["x-amz-meta-colour"] == "blue"
    rest = make_namespace(user, "by-rest")
    names = [each.text for each in xml(s3.call("GET", "")).iter(f"{XMLNS}Name")]
    assert {bucket, rest} <= set(names)


def test_a_key_lives_as_a_token_does(cloud: Cloud) -> None:
    user, user_id = cloud.make_user()
    key = new_key(user, user_id, ["read"], "reader")
    listed = ok(user.get("/api/s3-keys"))
    assert [(each["name"], each["access_key_id"]) for each in listed] == [
        ("reader", key["access_key_id"])
    ]
    assert "secret" not in json.dumps(listed)
    assert key["endpoint"] in cloud.s3_urls
    assert key["secret_access_key"].isalnum(), "a command would take a hyphen for an option"
    assert ok(user.get("/api/tokens")) == [], "it is no token that works without a signature"
    refused(user.delete(f"/api/tokens/{key['id']}"), 404)
    with client_of(cloud, key) as s3:
        done(s3.call("GET", ""))
        failed(s3.call("PUT", unique("bucket")), "AccessDenied")
        wrong = dict(key, secret_access_key="x" * 40)
        with client_of(cloud, wrong) as other:
            failed(other.call("GET", ""), "SignatureDoesNotMatch")
        stranger, _ = cloud.make_user()
        refused(stranger.delete(f"/api/s3-keys/{key['id']}"), 404)
        ok(user.delete(f"/api/s3-keys/{key['id']}"))
        failed(s3.call("GET", ""), "InvalidAccessKeyId")
    assert ok(user.get("/api/s3-keys")) == []
    for path in (cloud.cluster.state / "control").rglob("*"):
        if path.is_file():
            assert key["secret_access_key"].encode() not in path.read_bytes(), path
    if "GFS_CONTROL_RECORDS" not in cloud.cluster.environment:
        path = cloud.cluster.state / "control" / "keys" / "s3.key"
        assert path.stat().st_mode & 0o777 == 0o600


async def test_keys_whose_tokens_have_ended_leave_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.s3.keys.KEYS_MAX", 2)
    control = Control(ControlSettings(sync=False), tmp_path, [Storage, S3])
    with control.opened():
        make_ada(control)
    made = [await make_key(control, "ada", "laptop") for _ in range(2)]
    with pytest.raises(BadRequest, match="you have 2 access keys"):
        await make_key(control, "ada", "laptop")

    def sweep(txn: Txn) -> None:
        for each in made:
            tokens.delete(txn, each.id)

    with control.opened():
        control.records.write_at_start(sweep)
    last = await make_key(control, "ada", "laptop")
    with control.opened(), control.records.read() as txn:
        assert [row.access_key_id for row in access_keys.scan(txn)] == [last.access_key_id]


@pytest.mark.costly
async def test_records_that_are_away_are_reported_as_s3_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, CheapAuth, Storage, S3)

    async def away() -> None:
        raise RecordsAway("PostgreSQL does not answer")

    async with served(app) as http:
        app.control.ports[http.base_url.port or 0] = "s3"
        monkeypatch.setattr(app.control, "fresh", away)
        answer = await http.get("/bucket/key")
    failed(answer, "ServiceUnavailable")
    assert answer.status_code == 503
    assert answer.headers["x-amz-request-id"]
    assert answer.headers["retry-after"] == "5"


def test_a_key_is_made_on_the_machine(cloud: Cloud) -> None:
    user, _ = cloud.make_user(name := unique("mallory"))
    state = f"--state={cloud.cluster.state}"
    made = cloud.cluster.gfs("control", "s3-key", name, state)
    lines = dict(line.split(": ") for line in made.stdout.decode().splitlines())
    key = {"access_key_id": lines["access key"], "secret_access_key": lines["secret key"]}
    with client_of(cloud, key) as s3:
        bucket = unique("bucket")
        s3.put(bucket)
        s3.put(f"{bucket}/f", b"x")
        ok(user.delete(f"/api/s3-keys/{lines['id']}"))
        failed(s3.call("GET", f"{bucket}/f"), "InvalidAccessKeyId")
    done = cloud.cluster.gfs("control", "s3-key", "nobody", state, code=2)
    assert "there is no user 'nobody'" in done.stderr.decode()


def test_strangers_are_kept_out(cloud: Cloud, s3: S3Client, owner: Who, bucket: str) -> None:
    s3.put(f"{bucket}/secret", b"mine")
    with client_of(cloud, new_key(*cloud.make_user())) as stranger, client_of(cloud) as nobody:
        for client in (stranger, nobody):
            for method, path, query in (
                ("GET", f"{bucket}/secret", {}),
                ("GET", bucket, {"list-type": "2"}),
                ("PUT", f"{bucket}/new", {}),
                ("DELETE", f"{bucket}/secret", {}),
                ("POST", f"{bucket}/new", {"uploads": ""}),
                ("DELETE", bucket, {}),
            ):
                failed(client.call(method, path, query), "AccessDenied")
            assert client.call("HEAD", f"{bucket}/secret").status_code == 403
        failed(stranger.call("PUT", f"{unique('b')}/x", body=b"x"), "NoSuchBucket")
        own = unique("bucket")
        stranger.put(own)
        source = {"x-amz-copy-source": f"/{bucket}/secret"}
        failed(stranger.call("PUT", f"{own}/copied", headers=source), "AccessDenied")
        failed(stranger.call("PUT", bucket), "BucketAlreadyExists")
        ok(owner[0].put(f"/storage/namespaces/{bucket}", json={"visibility": 2}))
        assert nobody.get(f"{bucket}/secret").content == b"mine"
        assert nobody.keys(bucket) == ["secret"]
        failed(nobody.call("PUT", f"{bucket}/secret", body=b"x"), "AccessDenied")
    assert s3.get(f"{bucket}/secret").content == b"mine"


def test_listings_go_page_by_page(s3: S3Client, bucket: str) -> None:
    keys = ["a", "a.txt", "dir/", "dir/1", "dir/2/x", "dir/2/y", "dir-1", "z é&+", "über"]
    for key in keys:
        s3.put(f"{bucket}/{key}", b"" if key.endswith("/") else b"x")
    assert s3.keys(bucket, max_keys="2") == sorted(keys)
    # Version 1, as old clients page: after the last key or prefix.
    marker, found = "", []
    while True:
        query = {"marker": marker, "max-keys": "1", "delimiter": "/", "encoding-type": "url"}
        root = xml(done(s3.call("GET", bucket, query)))
        found += [each.text for each in root.iter(f"{XMLNS}Key")]
        found += [str(e.findtext(f"{XMLNS}Prefix")) for e in root.iter(f"{XMLNS}CommonPrefixes")]
        if root.findtext(f"{XMLNS}IsTruncated") != "true":
            break
        marker = httpx.URL("?x=" + str(root.findtext(f"{XMLNS}NextMarker"))).params["x"]
    assert found == ["a", "a.txt", "dir-1", "dir/", "z%20%C3%A9%26%2B", "%C3%BCber"]
    failed(s3.call("GET", bucket, {"list-type": "2", "continuation-token": "é"}), "InvalidArgument")


def test_conditions_decide_reads_and_writes(s3: S3Client, bucket: str) -> None:
    path = f"{bucket}/f"
    failed(s3.call("PUT", path, body=b"x", headers={"if-match": '"1"'}), "NoSuchKey")
    s3.put(path, b"one", if_none_match="*")
    failed(s3.call("PUT", path, body=b"two", headers={"if-none-match": "*"}), "PreconditionFailed")
    etag = s3.get(path).headers["etag"]
    failed(s3.call("PUT", path, body=b"two", headers={"if-match": '"1"'}), "PreconditionFailed")
    s3.put(path, b"two", if_match=etag)
    failed(s3.call("PUT", path, body=b"3", headers={"if-match": etag}), "PreconditionFailed")
    now = s3.get(path)
    assert now.content == b"two"
    assert s3.call("GET", path, headers={"if-none-match": now.headers["etag"]}).status_code == 304
    failed(s3.call("GET", path, headers={"if-match": etag}), "PreconditionFailed")
    with ThreadPoolExecutor(4) as pool:  # a lock, as delta-rs takes one
        lock = f"{bucket}/lock"
        answers = pool.map(
            lambda n: s3.call("PUT", lock, body=bytes([n]), headers={"if-none-match": "*"}),
            range(8),
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("bytes=5-100", 206, b"56789"),
        ("bytes=10-", 416, None),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges(s3: S3Client, bucket: str, header: str, status: int, content: bytes | None) -> None:
    s3.put(f"{bucket}/f", b"0123456789")
    answer = s3.call("GET", f"{bucket}/f", headers={"range": header})
    assert answer.status_code == status
    if content is None:
        failed(answer, "InvalidRange")
    else:
        assert answer.content == content


def test_copies_and_tags(s3: S3Client, bucket: str) -> None:
    s3.put(f"{bucket}/ä 1", b"x" * 100_000, x_amz_meta_a="b", x_amz_tagging="k=v&k2=")
    s3.call("PUT", f"{bucket}/copy", headers={"x-amz-copy-source": f"/{bucket}/%C3%A4%201"})
    copied = s3.get(f"{bucket}/copy")
    assert (len(copied.content), copied.headers["x-amz-meta-a"]) == (100_000, "b")
    assert copied.headers["etag"] == s3.get(f"{bucket}/ä 1").headers["etag"]
    tags = xml(s3.call("GET", f"{bucket}/copy", {"tagging": ""}))
    assert [each.text for each in tags.iter(f"{XMLNS}Key")] == ["k", "k2"]
    done(s3.call("PUT", f"{bucket}/copy", {"tagging": ""}, tagging("n", "1")))
    assert s3.get(f"{bucket}/copy").headers["x-amz-tagging-count"] == "1"
    done(s3.call("DELETE", f"{bucket}/copy", {"tagging": ""}))
    assert "x-amz-tagging-count" not in s3.get(f"{bucket}/copy").headers
    itself = {"x-amz-copy-source": f"/{bucket}/copy"}
    failed(s3.call("PUT", f"{bucket}/copy", headers=itself), "InvalidRequest")
    replaced = {**itself, "x-amz-metadata-directive": "REPLACE", "x-amz-meta-n": "1"}
    done(s3.call("PUT", f"{bucket}/copy", headers=replaced))
    answer = s3.get(f"{bucket}/copy")
    assert answer.headers["x-amz-meta-n"] == "1"
    assert "x-amz-meta-a" not in answer.headers


def test_tags_and_metadata_that_are_put_at_once_are_both_kept(
    cloud: Cloud, owner: Who, bucket: str
) -> None:
    key, path = new_key(*owner), f"{bucket}/f"
    with (
        client_of(cloud, key) as one,
        client_of(cloud, key) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        one.put(path, b"x")
        for number in range(40):
            tagged = pool.submit(one.call, "PUT", path, {"tagging": ""}, tagging("n", f"{number}"))
            headers = {
                "x-amz-copy-source": f"/{path}",
                "x-amz-metadata-directive": "REPLACE",
                "x-amz-meta-n": f"{number}",
            }
            copied = pool.submit(other.call, "PUT", path, headers=headers)
            done(tagged.result())
            done(copied.result())
            assert one.get(path).headers["x-amz-meta-n"] == f"{number}"
            tags = xml(one.call("GET", path, {"tagging": ""}))
            assert [each.text for each in tags.iter(f"{XMLNS}Value")] == [f"{number}"]


@pytest.mark.thin
def test_multipart_uploads(s3: S3Client, owner: Who, bucket: str) -> None:
    path = f"{bucket}/big/one"
    upload = begin(s3, path, content_type="a/b")
    first, last = os.urandom(5 * MIB), os.urandom(1000)
    etags = {}
    for number, data in ((7, last), (3, b"wrong"), (3, first)):
        etags[number] = put_part(s3, path, upload, number, data)
    assert s3.keys(bucket) == [], "an upload under way is no object"
    listed = xml(s3.call("GET", path, {"uploadId": upload}))
    assert [e.text for e in listed.iter(f"{XMLNS}PartNumber")] == ["3", "7"]
    uploads = xml(s3.call("GET", bucket, {"uploads": ""}))
    assert [e.text for e in uploads.iter(f"{XMLNS}Key")] == ["big/one"]
    for parts, code in (
        ([(7, etags[7]), (3, etags[3])], "InvalidPartOrder"),
        ([(3, etags[7])], "InvalidPart"),
        ([(3, etags[3]), (4, etags[3])], "InvalidPart"),
        ([], "MalformedXML"),
    ):
        failed(complete(s3, path, upload, parts), code)
    failed(complete(s3, f"{bucket}/other", upload, [(3, etags[3])]), "NoSuchUpload")
    root = xml(done(complete(s3, path, upload, [(3, etags[3]), (7, etags[7])])))
    digests = hashlib.md5(first).digest() + hashlib.md5(last).digest()
    assert root.findtext(f"{XMLNS}ETag") == f'"{hashlib.md5(digests).hexdigest()}-2"'
    answer = s3.get(path)
    assert answer.content == first + last
    assert answer.headers["content-type"] == "a/b"
    failed(complete(s3, path, upload, [(3, etags[3])]), "NoSuchUpload")
    assert paths(owner[0], bucket) == ["big/one"], "the parts are gone"


def test_a_request_takes_as_long_as_it_likes(s3: S3Client, bucket: str) -> None:
    """Meanwhile its key is looked at again and again, and is still valid."""

    def body() -> Iterator[bytes]:
        for _ in range(60):
            time.sleep(0.1)  # a slow client
            yield b"x"

    done(s3.send_slowly(f"{bucket}/f", body(), 60))
    assert s3.get(f"{bucket}/f").content == b"x" * 60


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("sha256", "COMPOSITE"), ("crc32", "COMPOSITE"), ("crc32", "FULL_OBJECT"),
     ("crc64nvme", "FULL_OBJECT")],
)  # fmt: skip
def test_the_parts_of_an_object_and_their_checksums(
    s3: S3Client, bucket: str, algorithm: str, kind: str
) -> None:
    def of(data: bytes) -> bytes:
        total = ALGORITHMS[algorithm][0]()
        total.update(data)
        return total.digest()

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    path, header = f"{bucket}/f", f"x-amz-checksum-{algorithm}"
    chosen = {"x-amz-checksum-algorithm": algorithm.upper(), "x-amz-checksum-type": kind}
    begun = done(s3.call("POST", path, {"uploads": ""}, headers=chosen))
    assert begun.headers["x-amz-checksum-type"] == kind
    upload = str(xml(begun).findtext(f"{XMLNS}UploadId"))
    pieces = [os.urandom(5 * MIB), os.urandom(1000)]
    tags = [
        done(s3.call("PUT", path, {"uploadId": upload, "partNumber": str(number)}, piece,
                     {header: text(of(piece))})).headers["etag"]
        for number, piece in enumerate(pieces, 1)
    ]  # fmt: skip
    name = f"Checksum{algorithm.upper()}"
    whole = text(of(b"".join(pieces)))
    if kind == "COMPOSITE":
        whole = text(of(b"".join(map(of, pieces)))) + "-2"

    def complete_with(first: bytes, expected: str) -> httpx.Response:
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag>"
            f"<{name}>{text(of(piece))}</{name}></Part>"
            for number, tag, piece in zip((1, 2), tags, (first, pieces[1]), strict=True)
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        return s3.call("POST", path, {"uploadId": upload}, body, {header: expected})

    failed(complete_with(b"other", whole), "InvalidPart")
    failed(complete_with(pieces[0], whole[1:]), "BadDigest")
    for _ in range(2):  # the second time it is completed already
        root = xml(done(complete_with(pieces[0], whole)))
        assert root.findtext(f"{XMLNS}{name}") == whole
        assert root.findtext(f"{XMLNS}ChecksumType") == kind
    assert s3.get(path, x_amz_checksum_mode="ENABLED").headers[header] == whole
    for number, piece in enumerate(pieces, 1):
        query = {"partNumber": str(number)}
        mode = {"x-amz-checksum-mode": "ENABLED"}
        part = s3.call("GET", path, query, headers=mode)
        assert (part.status_code, part.content) == (206, piece)
        assert part.headers["x-amz-mp-parts-count"] == "2"
        assert part.headers[header] == text(of(piece))
        head = s3.call("HEAD", path, query)
        assert head.headers["content-length"] == str(len(piece))
    failed(s3.call("GET", path, {"partNumber": "3"}), "InvalidPart")
    names = {"x-amz-object-attributes": "ObjectParts", "x-amz-part-number-marker": "1"}
    root = xml(done(s3.call("GET", path, {"attributes": ""}, headers=names)))
    assert [e.text for e in root.iter(f"{XMLNS}Size")] == ["1000"]
    assert [e.text for e in root.iter(f"{XMLNS}{name}")] == [text(of(pieces[1]))]


def test_an_object_of_one_part(s3: S3Client, bucket: str) -> None:
    s3.put(f"{bucket}/f", b"x")
    assert s3.call("GET", f"{bucket}/f", {"partNumber": "1"}).content == b"x"
    failed(s3.call("GET", f"{bucket}/f", {"partNumber": "2"}), "InvalidPart")
    wrong = {"x-amz-checksum-algorithm": "SHA256", "x-amz-checksum-type": "FULL_OBJECT"}
    failed(s3.call("POST", f"{bucket}/f", {"uploads": ""}, headers=wrong), "InvalidRequest")


def test_an_upload_ends_with_its_key(cloud: Cloud) -> None:
    """It would go on for as long as it likes: the key is looked at again and again."""
    user, user_id = cloud.make_user()
    key = new_key(user, user_id, ["create", "read", "delete"])
    with client_of(cloud, key) as s3:
        bucket = unique("bucket")
        s3.put(bucket)
        revoked = threading.Event()

        def body() -> Iterator[bytes]:
            yield b"x" * MIB
            ok(user.delete(f"/api/s3-keys/{key['id']}"))
            revoked.set()
            for _ in range(3000):
                time.sleep(0.1)  # a slow client
                yield b"x"

        size = MIB + 3000
        with pytest.raises((httpx.HTTPError, AssertionError)):
            done(s3.send_slowly(f"{bucket}/f", body(), size))
        assert revoked.is_set()
    assert paths(user, bucket) == []


def test_small_parts_and_given_up_uploads(s3: S3Client, owner: Who, bucket: str) -> None:
    path = f"{bucket}/f"
    upload = begin(s3, path)
    parts = [(n, put_part(s3, path, upload, n, b"x")) for n in (1, 2)]
    failed(complete(s3, path, upload, parts), "EntityTooSmall")
    for number in ("0", "10001", "x", ""):
        query = {"uploadId": upload, "partNumber": number}
        failed(s3.call("PUT", path, query, b"x"), "InvalidArgument")
    done(s3.call("DELETE", path, {"uploadId": upload}))
    failed(s3.call("PUT", path, {"uploadId": upload, "partNumber": "1"}, b"x"), "NoSuchUpload")
    assert paths(owner[0], bucket) == []
    done(s3.call("DELETE", bucket))


def test_many_are_deleted_in_one_call(s3: S3Client, bucket: str) -> None:
    for key in ("a", "b/c", "d"):
        s3.put(f"{bucket}/{key}", b"x")
    keys = ["a", "b/c", "not there", "/" * 1000]
    root = xml(done(s3.call("POST", bucket, {"delete": ""}, deletion(*keys))))
    assert [e.findtext(f"{XMLNS}Key") for e in root.iter(f"{XMLNS}Deleted")] == keys[:3]
    assert [e.findtext(f"{XMLNS}Code") for e in root.iter(f"{XMLNS}Error")] == ["KeyTooLongError"]
    assert s3.keys(bucket) == ["d"]


def test_a_deletion_beside_an_upload_is_carried_out(s3: S3Client, bucket: str) -> None:
    """Clients take a 409 of it for good."""
    stop = threading.Event()

    def store() -> None:
        while not stop.is_set():
            s3.put(f"{bucket}/a", b"x")

    with ThreadPoolExecutor(8) as pool:
        storing = [pool.submit(store) for _ in range(3)]
        try:
            for _ in range(100):
                done(s3.call("DELETE", f"{bucket}/a"))
        finally:
            stop.set()
        for each in storing:
            each.result()
    done(s3.call("DELETE", f"{bucket}/a"))
    assert s3.keys(bucket) == []


def test_keys_that_cannot_be_paths_are_stored_as_well(
    s3: S3Client, owner: Who, bucket: str
) -> None:
    odd = ["/a", "a/", "a//b", "a/../b", "a/./b", "..", "\x01", "a\\b", "x" * 256, "y/" * 70, "\0",
           ".s3-uploads/x", ".s3-keys/x", "a/\n", "ü/", "~\x7f", "\ufffd", "a\rb"]  # fmt: skip
    plain = ["a/b", "a/b.txt", "b", "ü/x", ".s3", "a!"]
    for number, key in enumerate(odd + plain):
        s3.put(f"{bucket}/{key}", str(number).encode())
    for number, key in enumerate(odd + plain):
        assert s3.get(f"{bucket}/{key}").content == str(number).encode()
    every = sorted(odd + plain, key=str.encode)
    for size in ("1", "3", "1000"):
        assert listed(s3, bucket, size) == every
        for prefix, delimiter in (("", "/"), ("a/", "/"), ("a", "b"), ("\x01", ""), ("a//", "/")):
            keys = [key for key in every if key.startswith(prefix)]
            assert listed(s3, bucket, size, prefix, delimiter) == rolled_up(keys, prefix, delimiter)
    assert listed(s3, bucket, "1000", start_after="a//b") == every[every.index("a//b") + 1 :]
    assert ".s3-keys/=a%2F%2Fb" in paths(owner[0], bucket)
    done(s3.call("PUT", f"{bucket}/b", headers={"x-amz-copy-source": f"/{bucket}/a//b"}))
    assert s3.get(f"{bucket}/b").content == b"2"
    for key in odd + plain:
        done(s3.call("DELETE", f"{bucket}/{key}"))
    assert paths(owner[0], bucket) == []
    failed(s3.call("PUT", f"{bucket}/{'/' * 1000}"), "KeyTooLongError")
    done(s3.call("DELETE", bucket))


def test_the_ends_of_lines_and_spaces_of_names_come_back(s3: S3Client, bucket: str) -> None:
    """Readers of XML take a carriage return for a line feed, and may drop spaces."""
    key, tag = "a\r\nb\rc", " v\r "
    s3.put(f"{bucket}/{key}", b"x")
    assert s3.keys(bucket) == [key]
    begin(s3, f"{bucket}/{key}")
    uploads = xml(s3.call("GET", bucket, {"uploads": ""}))
    assert [each.text for each in uploads.iter(f"{XMLNS}Key")] == [key]
    body = tagging(" k", tag.replace("\r", "&#13;"))
    for path in (bucket, f"{bucket}/{key}"):
        done(s3.call("PUT", path, {"tagging": ""}, body))
        root = xml(s3.call("GET", path, {"tagging": ""}))
        assert [(e.findtext(f"{XMLNS}Key"), e.findtext(f"{XMLNS}Value")) for e in
                root.iter(f"{XMLNS}Tag")] == [(" k", tag)]  # fmt: skip
    found = xml(s3.call("POST", bucket, {"delete": ""}, deletion(key.replace("\r", "&#13;"))))
    assert [each.text for each in found.iter(f"{XMLNS}Key")] == [key]
    assert s3.keys(bucket) == []


@pytest.mark.parametrize("version", ["1", "2"])
def test_pages_go_on_while_keys_come_and_go(s3: S3Client, bucket: str, version: str) -> None:
    """Also if the last key of a page is deleted before the next is asked for."""
    keys = [f"stays/{number}" for number in range(6)]
    for key in keys:
        s3.put(f"{bucket}/{key}", b"x")
    after = ("marker", "NextMarker") if version == "1" else (
        "continuation-token", "NextContinuationToken"
    )  # fmt: skip
    query, found = {"list-type": version, "max-keys": "1"}, []
    while True:
        root = xml(done(s3.call("GET", bucket, query)))
        (key,) = [str(each.text) for each in root.iter(f"{XMLNS}Key")]
        found.append(key)
        if root.findtext(f"{XMLNS}IsTruncated") != "true":
            break
        query[after[0]] = str(root.findtext(XMLNS + after[1]))
        done(s3.call("DELETE", f"{bucket}/{key}"))
        s3.put(f"{bucket}/before-{len(found)}", b"x")
        if not key.endswith("/below"):  # sorts between this key and the next
            s3.put(f"{bucket}/{key}/below", b"x")
    stays = [key for key in found if not key.endswith("/below")]
    assert stays == keys
    assert len(set(found)) == len(found)


def listed(
    s3: S3Client, bucket: str, size: str, prefix: str = "", delimiter: str = "",
    start_after: str = "",
) -> list[str]:  # fmt: skip
    """Keys and common prefixes, page by page, sorted."""
    found = s3.keys(bucket, max_keys=size, prefix=prefix, delimiter=delimiter,
                    start_after=start_after, encoding_type="url")  # fmt: skip
    return sorted((unquote(key) for key in found), key=str.encode)


def rolled_up(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    """What a list of these keys has."""
    found = set()
    for key in keys:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        found.add(key if cut < 0 else key[: cut + len(delimiter)])
    return sorted(found, key=str.encode)


#: What is not offered, as the page about S3 has it: a request, and its answer.
NOT_OFFERED = re.findall(
    r"^\| .*\| `(\w+) (\w+)(/KEY)?(?:\?([\w-]+))?`(?: with `([\w-]+): (.+?)`)? \| (.+) \|$",
    (Path(__file__).parents[2] / "docs" / "s3.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize("row", NOT_OFFERED, ids=lambda row: "-".join(filter(None, row[:5])))
def test_what_is_not_offered_says_so(s3: S3Client, bucket: str, row: tuple[str, ...]) -> None:
    method, where, key, query, header, value, answer = row
    s3.put(f"{bucket}/f", b"as it was")
    path = (bucket if where == "BUCKET" else unique("other")) + ("/f" if key else "")
    said = s3.call(
        method, path, {query: ""} if query else {}, b"", {header: value} if header else {}
    )
    if answer.startswith("`"):
        failed(said, answer.strip("`"))
    else:
        [root] = re.findall("^200, an empty `(.+)`$", answer)
        found = xml(done(said))
        assert (found.tag, len(found)) == (f"{XMLNS}{root}", 0)
    assert s3.get(f"{bucket}/f").content == b"as it was"
    assert s3.call("HEAD", path).status_code == (200 if where == "BUCKET" else 404)


def test_the_page_says_what_is_not_offered() -> None:
    assert len(NOT_OFFERED) > 35


def test_hostile_requests_get_an_error_and_store_nothing(s3: S3Client, bucket: str) -> None:
    path = f"{bucket}/f"
    failed(s3.call("POST", bucket, {"delete": ""}, b"<Delete/>"), "MalformedXML")
    for query in ({"max-keys": "x"}, {"max-keys": "-1"}, {"encoding-type": "x"}):
        failed(s3.call("GET", bucket, query), "InvalidArgument")
    for method in ("PUT", "DELETE"):  # a part, whose upload was forgotten
        failed(s3.call(method, path, {"partNumber": "1"}, b"x"), "InvalidArgument")
    failed(s3.call("GET", f"{bucket}/\x01\x0b", {"tagging": ""}), "NoSuchKey")
    failed(s3.call("PUT", path, body=b"x", payload="0" * 64), "XAmzContentSHA256Mismatch")
    failed(s3.call("PUT", path, body=b"x", age=1000), "RequestTimeTooSkewed")
    added = {"x-amz-meta-x": "1"}
    failed(s3.call("PUT", path, body=b"x", unsigned=added), "AccessDenied")
    chunks = {"x-amz-decoded-content-length": "1"}
    for kind in ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        answer = s3.call("PUT", path, body=b"no chunks", headers=chunks, payload=kind)
        failed(answer, "IncompleteBody")
    assert s3.keys(bucket) == []


def test_headers_in_a_presigned_url_are_those_of_the_request(s3: S3Client, bucket: str) -> None:
    """Libraries for JavaScript put all that begin with x-amz- there; a checksum there is that of
    an empty body, which S3 ignores."""
    path = f"{bucket}/f"

    def send(method: str, path: str, **query: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in query.items()}
        url = s3.url + s3.presigned(method, path, named)
        return httpx.request(method, url, content=b"data", timeout=HANG_SECONDS, **PLAIN)

    more = {"x_amz_meta_a": "b c", "x_amz_tagging": "k=v", "x_amz_acl": "private"}
    checksum = {"x_amz_checksum_crc32": "AAAAAA==", "x_amz_sdk_checksum_algorithm": "CRC32"}
    done(send("PUT", path, **more, **checksum, x_id="PutObject"))
    stored = s3.get(path)
    assert (stored.content, stored.headers["x-amz-meta-a"]) == (b"data", "b c")
    assert stored.headers["x-amz-tagging-count"] == "1"
    for name in ("x_amz_server_side_encryption", "x_amz_object_lock_mode", "x_amz_grant_read"):
        failed(send("PUT", path, **{name: "AES256"}), "NotImplemented")
    failed(send("PUT", path, x_amz_acl="public-read"), "NotImplemented")
    failed(send("PUT", path, x_amz_storage_class="GLACIER"), "InvalidStorageClass")
    done(send("PUT", f"{bucket}/g", x_amz_copy_source=path))
    assert s3.get(f"{bucket}/g").content == b"data"
    failed(send("PUT", path, x_amz_security_token="of a session"), "InvalidToken")


def test_a_presigned_url_ends(s3: S3Client, bucket: str) -> None:
    s3.put(f"{bucket}/f", b"data")
    for age, status in ((0, 200), (3600, 403)):
        url = s3.url + s3.presigned("GET", f"{bucket}/f", {}, age=age)
        answer = httpx.get(url, timeout=HANG_SECONDS, **PLAIN)
        assert answer.status_code == status
    assert "the URL has expired" in failed(answer, "AccessDenied")


def presigned_2(
    key: dict[str, str], method: str, path: str, query: dict[str, str], *, seconds: float = 60.0,
    signed: str = "", kind: str = "",
) -> str:  # fmt: skip
    """The query of a URL by version 2, whose text is put together by hand. ``path`` begins with
    the bucket; ``signed``: the parameters as they are signed; ``kind``: of the content."""
    expires = str(int(time.time() + seconds))
    amz = "".join(f"{n}:{v}\n" for n, v in sorted(query.items()) if n.startswith("x-amz-"))
    text = f"{method}\n\n{kind}\n{expires}\n{amz}/{path}{signed}"
    digest = hmac.digest(key["secret_access_key"].encode(), text.encode(), "sha1")
    own = {
        "AWSAccessKeyId": key["access_key_id"],
        "Expires": expires,
        "Signature": base64.b64encode(digest).decode(),
    }
    return "?" + urlencode({**query, **own}, quote_via=quote)


def test_urls_by_version_2_do_what_was_signed(cloud: Cloud) -> None:
    user, user_id = cloud.make_user()
    key, bucket = new_key(user, user_id), unique("bucket")

    def send(method: str, path: str, query: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = httpx.Request(method, cloud.s3_url + path + query, content=b"data", headers=named)
        with httpx.Client(timeout=HANG_SECONDS, **PLAIN) as client:
            return client.send(sent)

    with client_of(cloud, key) as s3:
        done(s3.call("PUT", bucket))
        for name in ("a%20%C3%A9%2B%26/x", "/a//b", "plain"):
            path = f"{bucket}/{name}"
            more = {"x-amz-meta-k": "v w", "content-type": "a/b"}
            url = presigned_2(key, "PUT", path, more, kind="a/b")
            done(send("PUT", f"/{path}", url))
            get = presigned_2(key, "GET", path, {})
            got = done(send("GET", f"/{path}", get))
            assert got.content == b"data"
            assert (got.headers["content-type"], got.headers["x-amz-meta-k"]) == ("a/b", "v w")
            host = f"{bucket}.s3.example.org"
            assert done(send("GET", f"/{name}", get, host=host)).content == b"data"
            assert done(send("GET", f"/{path}", get, range="bytes=1-2")).content == b"at"
            failed(send("GET", f"/{path}x", get), "SignatureDoesNotMatch")
            failed(send("PUT", f"/{path}", get), "SignatureDoesNotMatch")
            assert send("HEAD", f"/{path}", get).status_code == 403
            assert send("HEAD", f"/{path}", presigned_2(key, "HEAD", path, {})).is_success
        assert sorted(s3.keys(bucket)) == ["/a//b", "a é+&/x", "plain"]

        kind = {"response-content-type": "c/d e"}
        url = presigned_2(key, "GET", path, kind, signed="?response-content-type=c/d e")
        assert done(send("GET", f"/{path}", url)).headers["content-type"] == "c/d e"
        failed(send("GET", f"/{path}", get + "&response-expires=x"), "SignatureDoesNotMatch")
        failed(send("GET", f"/{path}", get + "&versionId=null"), "SignatureDoesNotMatch")
        for added in ("X-Amz-Meta-A=b", "attributes", "prefix=x"):
            failed(send("GET", f"/{path}", f"{get}&{added}"), "AccessDenied")
        put = presigned_2(key, "PUT", path, {})
        for unsigned in ({"x_amz_meta_a": "b"}, {"x_amz_acl": "private"}, {"content_type": "x/y"}):
            failed(send("PUT", f"/{path}", put, **unsigned), "SignatureDoesNotMatch")
        source = {"x_amz_copy_source": f"/{bucket}/plain"}
        failed(send("PUT", f"/{path}", put, **source), "SignatureDoesNotMatch")
        token = {"x-amz-security-token": "of a session"}
        failed(send("PUT", f"/{path}", presigned_2(key, "PUT", path, token)), "InvalidToken")
        failed(send("DELETE", f"/{path}", presigned_2(key, "DELETE", path, {})), "InvalidRequest")
        for seconds, word in ((-2, "expired"), (8 * 24 * 3600, "at most")):
            url = presigned_2(key, "GET", path, {}, seconds=seconds)
            assert word in failed(send("GET", f"/{path}", url), "AccessDenied")
        wrong = dict(key, secret_access_key="x" * 40)
        url = presigned_2(wrong, "GET", path, {})
        failed(send("GET", f"/{path}", url), "SignatureDoesNotMatch")
        failed(send("GET", f"/{path}", get, authorization="AWS4-HMAC-SHA256 x"), "InvalidArgument")
    # Another's key is good for what its owner may do, and a revoked one for nothing.
    other, other_id = cloud.make_user()
    others = presigned_2(new_key(other, other_id), "GET", path, {})
    failed(send("GET", f"/{path}", others), "AccessDenied")
    assert done(send("GET", f"/{path}", get))
    assert user.delete(f"/api/s3-keys/{key['id']}").is_success
    failed(send("GET", f"/{path}", get), "InvalidAccessKeyId")


@pytest.mark.costly
async def test_urls_by_version_2_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"access_key_id": "GFSKEY", "secret_access_key": "secret"}
    url = "/bucket/key" + presigned_2(key, "GET", "bucket/key", {})
    for setting, code in (("true", "InvalidAccessKeyId"), ("false", "InvalidRequest")):
        monkeypatch.setenv("GFS_S3_PRESIGNED_VERSION_2", setting)
        app = make_app(tmp_path / setting, CheapAuth, Storage, S3)
        async with served(app) as http:
            app.control.ports[http.base_url.port or 0] = "s3"
            answer = await http.get(url)
        failed(answer, code)


def test_parameters_for_logs_are_ignored(s3: S3Client, bucket: str) -> None:
    """S3 ignores those that begin with x-, if the request is signed in its headers."""
    path = f"{bucket}/f"
    query = {"x-user": "ada", "x-amz-meta-a": "b", "x-amz-acl": "public-read", "x-id": "PutObject"}
    done(s3.call("PUT", path, query, b"data"))
    stored = done(s3.call("GET", path, query))
    assert (stored.content, stored.headers.get("x-amz-meta-a")) == (b"data", None)
    done(s3.call("DELETE", path, query))
    failed(s3.call("PUT", path, {"user": "ada"}, b"data"), "NotImplemented")


@pytest.mark.parametrize("condition", [{}, {"if-none-match": "*"}])
@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_an_object_is_no_folder_of_others(
    s3: S3Client, bucket: str, condition: dict[str, str], first: str, second: str
) -> None:
    """It is no failed condition: who asks with one would wait for ever for the other object."""
    s3.put(f"{bucket}/{first}", b"first")
    answer = s3.call("PUT", f"{bucket}/{second}", body=b"x", headers=condition)
    failed(answer, "InvalidRequest")
    upload = begin(s3, f"{bucket}/{second}")
    parts = [(1, put_part(s3, f"{bucket}/{second}", upload, 1, b"part"))]
    failed(complete(s3, f"{bucket}/{second}", upload, parts), "InvalidRequest")
    failed(s3.call("GET", f"{bucket}/{second}"), "NoSuchKey")
    done(s3.call("DELETE", f"{bucket}/{second}"))
    assert s3.get(f"{bucket}/{first}").content == b"first"
    assert s3.keys(bucket) == [first]
    done(s3.call("DELETE", f"{bucket}/{first}"))
    s3.put(f"{bucket}/{second}", b"second")
