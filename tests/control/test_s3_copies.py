"""Copies over S3: the servers share the bytes, and everything else is as for a new object."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from checks import PLAIN, get, make_namespace, ok, paths, unique
from cloud import Cloud
from limits import HANG_SECONDS
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

from control.s3.checksums import ALGORITHMS

pytestmark = pytest.mark.real

MIB = 1024 * 1024
DATA = os.urandom(3 * MIB)
ETAG = f'"{hashlib.md5(DATA).hexdigest()}"'


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud whose chunkservers count."""
    with Cloud(tmp_path_factory.mktemp("metered"), "--metrics") as made:
        yield made.start()


@pytest.fixture(scope="module")
def writer(metered: Cloud) -> Who:
    return metered.make_user()


@pytest.fixture(scope="module")
def here(metered: Cloud, writer: Who) -> Iterator[S3Client]:
    key = new_key(*writer, ["create", "read", "delete"])
    with client_of(metered, key) as made:
        yield made


@pytest.fixture
def place(here: S3Client) -> str:
    name = unique("bucket")
    here.put(name)
    return name


@contextlib.contextmanager
def no_bytes_written(cloud: Cloud, but: int = 0) -> Iterator[None]:
    """``but``: those of a new file, which has three replicas."""

    def written() -> float:
        servers = cloud.cluster.ready["chunkservers"]
        texts = [httpx.get(server["metrics"], **PLAIN).text for server in servers]
        counted = re.findall(r'^gfs_chunkserver_bytes_total{direction="written"} (\S+)$',
                             "\n".join(texts), re.MULTILINE)  # fmt: skip
        assert len(counted) == len(servers)
        return sum(map(float, counted))

    before = written()
    yield
    assert written() == before + 3 * but


def copy(s3: S3Client, source: str, target: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return s3.call("PUT", target, headers={"x-amz-copy-source": f"/{source}", **named})


def test_no_byte_moves(metered: Cloud, here: S3Client, writer: Who, place: str) -> None:
    user, _ = writer
    done(here.call("PUT", f"{place}/a/one", body=DATA, headers={
        "x-amz-meta-colour": "blue", "x-amz-tagging": "k=v", "content-type": "a/b",
        "x-amz-checksum-algorithm": "CRC32",
    }))  # fmt: skip
    other = unique("bucket")
    here.put(other)
    before = used(user)
    with no_bytes_written(metered):
        answer = done(copy(here, f"{place}/a/one", f"{place}/b/c/two"))
        assert xml(answer).findtext(f"{XMLNS}ETag") == ETAG
        done(copy(here, f"{place}/a/one", f"{other}/three", x_amz_metadata_directive="REPLACE",
                  x_amz_meta_size="large", x_amz_tagging="n=1",
                  x_amz_tagging_directive="REPLACE"))  # fmt: skip
        done(copy(here, f"{other}/three", f"{other}/three", x_amz_meta_size="small",
                  x_amz_metadata_directive="REPLACE"))  # fmt: skip
    files, length = used(user)
    assert (files - before[0], length - before[1]) == (2, 2 * len(DATA))
    two = here.get(f"{place}/b/c/two", x_amz_checksum_mode="ENABLED")
    one = here.get(f"{place}/a/one", x_amz_checksum_mode="ENABLED")
    assert two.content == DATA
    for name in ("etag", "content-type", "x-amz-meta-colour", "x-amz-tagging-count",
                 "x-amz-checksum-crc32"):  # fmt: skip
        assert two.headers[name] == one.headers[name], name
    three = here.get(f"{other}/three")
    assert (three.content, three.headers["etag"]) == (DATA, ETAG)
    assert three.headers["x-amz-meta-size"] == "small"
    assert "x-amz-meta-colour" not in three.headers
    tags = xml(here.call("GET", f"{other}/three", {"tagging": ""}))
    assert [each.text for each in tags.iter(f"{XMLNS}Key")] == ["n"]
    # The source goes, the copy stays.
    done(here.call("DELETE", f"{place}/a/one"))
    assert get(user, place, "b/c/two") == DATA
    assert paths(user, place) == ["b/c/two"]


def test_a_copy_is_as_new_as_it_is(here: S3Client, place: str) -> None:
    here.put(f"{place}/old", DATA)
    before = here.get(f"{place}/old").headers["last-modified"]
    time.sleep(1.1)  # what is compared are seconds
    done(copy(here, f"{place}/old", f"{place}/new"))
    assert here.get(f"{place}/new").headers["last-modified"] != before
    done(copy(here, f"{place}/old", f"{place}/old", x_amz_metadata_directive="REPLACE"))
    assert here.get(f"{place}/old").headers["last-modified"] != before


def test_an_object_that_is_there_is_replaced(
    metered: Cloud, here: S3Client, writer: Who, place: str
) -> None:
    before = used(writer[0])
    here.put(f"{place}/source", DATA)
    here.put(f"{place}/target", b"x")
    with no_bytes_written(metered):
        done(copy(here, f"{place}/source", f"{place}/target"))
    assert here.get(f"{place}/target").content == DATA
    files, length = used(writer[0])
    assert (files - before[0], length - before[1]) == (2, 2 * len(DATA))
    failed(copy(here, f"{place}/source", f"{place}/target/below"), "InvalidRequest")
    failed(copy(here, f"{place}/gone", f"{place}/x"), "NoSuchKey")
    failed(copy(here, f"{place}/source", f"{unique('gone')}/x"), "NoSuchBucket")


def test_conditions_of_copies(here: S3Client, place: str) -> None:
    here.put(f"{place}/source", DATA)
    target = f"{place}/target"
    failed(copy(here, f"{place}/source", target, if_match=ETAG), "NoSuchKey")
    done(copy(here, f"{place}/source", target, if_none_match="*"))
    failed(copy(here, f"{place}/source", target, if_none_match="*"), "PreconditionFailed")
    done(copy(here, f"{place}/source", target, if_match=ETAG))
    itself = {"x_amz_metadata_directive": "REPLACE"}
    failed(copy(here, target, target, if_match='"x"', **itself), "PreconditionFailed")
    done(copy(here, target, target, if_match=ETAG, **itself))
    bare = ETAG.strip('"')
    for name, value in (("if_match", '"x"'), ("if_none_match", ETAG), ("if_none_match", bare)):
        header = {f"x_amz_copy_source_{name}": value}
        failed(copy(here, f"{place}/source", f"{place}/x", **header), "PreconditionFailed")
    done(copy(here, f"{place}/source", f"{place}/y", x_amz_copy_source_if_match=bare))
    for name in ("metadata", "tagging"):
        header = {f"x_amz_{name}_directive": "KEEP"}
        failed(copy(here, f"{place}/source", f"{place}/x", **header), "InvalidArgument")
    failed(here.call("GET", f"{place}/x"), "NoSuchKey")
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda _: copy(here, f"{place}/source", f"{place}/race", if_none_match="*"), range(4)
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 3


def test_a_copy_that_the_quota_has_no_room_for(metered: Cloud) -> None:
    user, user_id = metered.make_user()
    limits = {"bytes": 5 * MIB}
    ok(metered.admin.put("/admin/quotas", params={"id": user_id}, json=limits))
    key = new_key(user, user_id, ["create", "read"])
    with client_of(metered, key) as s3:
        bucket = unique("bucket")
        s3.put(bucket)
        s3.put(f"{bucket}/a", DATA)
        failed(copy(s3, f"{bucket}/a", f"{bucket}/b"), "QuotaExceeded")
        assert s3.keys(bucket) == ["a"]
        assert used(user) == (1, len(DATA))
        # Who may not delete may not replace metadata, either.
        answer = copy(s3, f"{bucket}/a", f"{bucket}/a", x_amz_metadata_directive="REPLACE")
        failed(answer, "AccessDenied")


def test_a_whole_object_is_a_part_and_a_single_part_an_object(
    metered: Cloud, here: S3Client, place: str
) -> None:
    here.put(f"{place}/source", DATA)
    path = f"{place}/joined"
    upload = begin(here, path, x_amz_meta_a="b")
    query = {"uploadId": upload, "partNumber": "5"}
    source = {"x-amz-copy-source": f"{place}/source"}
    with no_bytes_written(metered):
        part = done(here.call("PUT", path, query, headers=source))
        etag = str(xml(part).findtext(f"{XMLNS}ETag"))
        assert etag == ETAG
        done(complete(here, path, upload, [(5, etag)]))
    answer = here.get(path)
    assert (answer.content, answer.headers["x-amz-meta-a"]) == (DATA, "b")
    joined = hashlib.md5(hashlib.md5(DATA).digest()).hexdigest()
    assert answer.headers["etag"] == f'"{joined}-1"'
    # A range of it is copied.
    upload = begin(here, path)
    ranged = {**source, "x-amz-copy-source-range": "bytes=10-99"}
    query = {"uploadId": upload, "partNumber": "1"}
    part = done(here.call("PUT", path, query, headers=ranged))
    etag = f'"{hashlib.md5(DATA[10:100]).hexdigest()}"'
    assert xml(part).findtext(f"{XMLNS}ETag") == etag
    done(complete(here, path, upload, [(1, etag)]))
    assert here.get(path).content == DATA[10:100]


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_parts_of_whole_chunks_are_joined(
    metered: Cloud, here: S3Client, writer: Who, place: str, algorithm: str
) -> None:
    path = f"{place}/joined"
    here.put(path, b"replaced")
    before = used(writer[0])
    kind = {"x_amz_checksum_algorithm": algorithm, "x_amz_checksum_type": "FULL_OBJECT"}
    upload = begin(here, path, **kind)
    parts = [DATA[:MIB] * 64, DATA]
    etags = [(at, put_part(here, path, upload, at, data)) for at, data in enumerate(parts, 1)]
    with no_bytes_written(metered):
        done(complete(here, path, upload, etags))
    whole = b"".join(parts)
    answer = here.get(path, x_amz_checksum_mode="ENABLED")
    assert answer.content == whole
    total = ALGORITHMS[algorithm.lower()][0]()
    total.update(whole)
    assert answer.headers[f"x-amz-checksum-{algorithm.lower()}"] == text(total.digest())
    files, length = used(writer[0])
    assert (files - before[0], length - before[1]) == (0, len(whole) - len(b"replaced"))
    part = here.call("GET", path, {"partNumber": "2"})
    assert (part.status_code, part.content) == (206, DATA)


def test_parts_over_rest_are_joined(metered: Cloud, writer: Who) -> None:
    user, _ = writer
    space = make_namespace(user, "parts")
    parts = [DATA[:MIB] * 64, DATA]
    size = sum(map(len, parts))
    uploads = f"/storage/namespaces/{space}/uploads"
    upload = ok(user.post(uploads, json={"path": "f", "size": size}))["id"]
    for offset, data in zip((0, len(parts[0])), parts, strict=True):
        with no_bytes_written(metered, but=len(data)):
            answer = user.put(f"{uploads}/{upload}", params={"offset": offset}, content=data)
            assert ok(answer)["complete"] == (data is DATA)
    assert get(user, space, "f") == b"".join(parts)


def test_what_was_known_of_bytes_that_were_written_in_place_is_not_said(
    metered: Cloud, here: S3Client, place: str
) -> None:
    path = f"{place}/f"
    upload = begin(here, path, x_amz_checksum_algorithm="CRC32")
    data = b"old bytes"
    query = {"uploadId": upload, "partNumber": "1"}
    headers = {"x-amz-checksum-crc32": text(zlib.crc32(data).to_bytes(4, "big"))}
    etag = done(here.call("PUT", path, query, data, headers)).headers["etag"]
    done(complete(here, path, upload, [(1, etag)]))
    asked = {"x-amz-checksum-mode": "ENABLED"}
    before = done(here.call("GET", path, headers=asked)).headers
    assert "x-amz-checksum-crc32" in before
    found = metered.cluster.gfs("ls", "/storage").stdout.decode()
    [full] = re.findall(rf"{place}\.[0-9a-f]+", found)
    for content in (b"new bytes", b"NEW BYTES"):
        write_in_place(metered, f"/storage/{full}/f", content)
        answer = done(here.call("GET", path, {"partNumber": "1"}, headers=asked))
        assert answer.content == content
        assert not [name for name in answer.headers if name.startswith("x-amz-checksum")]
        assert answer.headers["etag"] != before["etag"]
        assert here.get(path, if_none_match=answer.headers["etag"]).content == content
        part = here.get(path, range="bytes=0-2", if_range=answer.headers["etag"])
        assert (part.status_code, part.content) == (200, content)
        assert here.get(path, range="bytes=0-2").content == content[:3]


def write_in_place(cloud: Cloud, path: str, data: bytes) -> None:
    program = (
        "import sys\n"
        "from gfs.client import sync\n"
        "with sync.connect() as fs, fs.open(sys.argv[1], 'r+b') as file:\n"
        "    file.write(sys.argv[2].encode())\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, path, data.decode()],
        env={**cloud.cluster.environment, "GFS_STATE": str(cloud.cluster.state)},
        check=True,
        timeout=HANG_SECONDS,
    )


def test_a_copy_cannot_have_another_list_than_its_bucket(here: S3Client, place: str) -> None:
    here.put(f"{place}/f", DATA)
    for target in ("f", "g"):  # of itself, and one that shares the bytes
        answer = copy(here, f"{place}/f", f"{place}/{target}", x_amz_acl="public-read",
                      x_amz_metadata_directive="REPLACE")  # fmt: skip
        failed(answer, "NotImplemented")
    done(copy(here, f"{place}/f", f"{place}/g", x_amz_acl="private"))


def test_a_copy_has_the_checksum_that_is_asked_for(here: S3Client, place: str) -> None:
    for name, data in (("short", b"data"), ("long", DATA)):
        sums = {
            "crc32": zlib.crc32(data).to_bytes(4, "big"),
            "sha256": hashlib.sha256(data).digest(),
            "sha1": hashlib.sha1(data).digest(),
        }
        here.put(f"{place}/{name}", data, x_amz_checksum_crc32=text(sums["crc32"]))
        for algorithm, value in sums.items():
            for target in (f"{name}.copy", name):  # to itself, too
                headers = {
                    "x-amz-copy-source": f"{place}/{name}",
                    "x-amz-checksum-algorithm": algorithm.upper(),
                    "x-amz-metadata-directive": "REPLACE",
                }
                answer = xml(done(here.call("PUT", f"{place}/{target}", headers=headers)))
                assert answer.findtext(f"{XMLNS}Checksum{algorithm.upper()}") == text(value)
                there = here.call(
                    "HEAD", f"{place}/{target}", headers={"x-amz-checksum-mode": "ENABLED"}
                )
                assert there.headers[f"x-amz-checksum-{algorithm}"] == text(value)
        assert here.get(f"{place}/{name}.copy").content == data
    headers["x-amz-checksum-algorithm"] = "MD5"
    failed(here.call("PUT", f"{place}/x", headers=headers), "InvalidRequest")


def test_the_parts_of_an_upload_have_the_checksum_that_it_began_with(
    metered: Cloud, here: S3Client, place: str
) -> None:
    here.put(f"{place}/source", DATA)
    path = f"{place}/joined"
    data = os.urandom(5 * MIB)
    pieces = [data, DATA + data[: 2 * MIB], DATA]  # the last one is the whole source
    here.put(f"{place}/long", data + pieces[1])
    upload = begin(here, path, x_amz_checksum_algorithm="SHA256")
    sums = [hashlib.sha256(piece).digest() for piece in pieces]
    query = {"uploadId": upload, "partNumber": "1"}
    crc = {"x-amz-checksum-crc32": text(zlib.crc32(data).to_bytes(4, "big"))}
    failed(here.call("PUT", path, query, data, crc), "InvalidRequest")
    part = done(here.call("PUT", path, query, data))  # without one of the client's choice
    assert part.headers["x-amz-checksum-sha256"] == text(sums[0])
    etags = [part.headers["etag"]]
    ranged = f"bytes={len(data)}-{len(data) + len(pieces[1]) - 1}"
    for number, headers in (
        (2, {"x-amz-copy-source": f"{place}/long", "x-amz-copy-source-range": ranged}),
        (3, {"x-amz-copy-source": f"{place}/source"}),
    ):
        query = {"uploadId": upload, "partNumber": str(number)}
        with no_bytes_written(metered) if number == 3 else contextlib.nullcontext():
            root = xml(done(here.call("PUT", path, query, headers=headers)))
        assert root.findtext(f"{XMLNS}ChecksumSHA256") == text(sums[number - 1])
        etags.append(str(root.findtext(f"{XMLNS}ETag")))
    listed = xml(done(here.call("GET", path, {"uploadId": upload})))
    assert [e.text for e in listed.iter(f"{XMLNS}ChecksumSHA256")] == [text(s) for s in sums]
    for name, value in (("Algorithm", "SHA256"), ("Type", "COMPOSITE")):
        assert listed.findtext(f"{XMLNS}Checksum{name}") == value
    done(complete(here, path, upload, list(enumerate(etags, 1))))
    answer = here.get(path, x_amz_checksum_mode="ENABLED")
    assert answer.content == b"".join(pieces)
    total = text(hashlib.sha256(b"".join(sums)).digest())
    assert answer.headers["x-amz-checksum-sha256"] == f"{total}-3"


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()
