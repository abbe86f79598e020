"""Signatures of S3: the examples that Amazon publishes, and requests that were changed."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import threading
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from limits import HANG_SECONDS

from control.api import RecordsFailed
from control.http.texts import RequestHeaders
from control.s3.checksums import AHEAD_BYTES_MAX, BATCH_BYTES, BATCHING_MAX, Sums
from control.s3.errors import S3Error
from control.s3.payload import Payload
from control.s3.service import Service
from control.s3.signature import Key, Signed, check_time, find, parse_query, verify
from gfs.blocks import KIB, MIB

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SCOPE = "20130524/us-east-1/s3/aws4_request"
CREDENTIAL = f"AKIAIOSFODNN7EXAMPLE/{SCOPE}"
DATE = "20130524T000000Z"
AT = 1369353600.0
HOST = ("host", "examplebucket.s3.amazonaws.com")
EMPTY = hashlib.sha256(b"").hexdigest()

#: Method, path, query, headers, payload's hash, signature: "Examples: Signature Calculations".
EXAMPLES = [
    (
        "GET",
        b"/test.txt",
        b"",
        [HOST, ("range", "bytes=0-9")],
        EMPTY,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    (
        "PUT",
        b"/test%24file.text",
        b"",
        [("date", "Fri, 24 May 2013 00:00:00 GMT"), HOST,
         ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    (
        "GET",
        b"/",
        b"lifecycle",
        [HOST],
        EMPTY,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    (
        "GET",
        b"/",
        b"max-keys=2&prefix=J",
        [HOST],
        EMPTY,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
]  # fmt: skip


def signed_request(
    headers: Sequence[tuple[str, str]], payload: str, signature: str
) -> tuple[list[tuple[str, str]], Signed]:
    everything = sorted([*headers, ("x-amz-content-sha256", payload), ("x-amz-date", DATE)])
    names = ";".join(name for name, _ in everything)
    text = f"AWS4-HMAC-SHA256 Credential={CREDENTIAL},SignedHeaders={names},Signature={signature}"
    found = find({**dict(everything), "authorization": text}, {})
    return everything, found


@pytest.mark.parametrize(("method", "path", "query", "headers", "payload", "signature"), EXAMPLES)
def test_the_published_examples_are_verified(
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[str, str]],
    payload: str,
    signature: str,
) -> None:
    everything, signed = signed_request(headers, payload, signature)
    pairs = parse_query(query)
    check_time(signed, AT + 600)
    verify(Key(SECRET, SCOPE), signed, method, path, pairs, everything)
    for changed in (
        ("DELETE", path, pairs, everything),
        (method, path + b"x", pairs, everything),
        (method, path, [*pairs, ("acl", "")], everything),
        (method, path, pairs, [(n, v + "1" if n == "host" else v) for n, v in everything]),
        (method, path, pairs, [*everything, ("x-amz-acl", "public-read")]),
    ):
        with pytest.raises(S3Error):
            verify(Key(SECRET, SCOPE), signed, *changed)
    with pytest.raises(S3Error):
        verify(Key(SECRET + "x", SCOPE), signed, method, path, pairs, everything)


def presigned(date: str = DATE, expires: str = "86400") -> dict[str, str]:
    return {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": CREDENTIAL,
        "X-Amz-Date": date,
        "X-Amz-Expires": expires,
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    }


def test_the_published_presigned_url_is_verified_until_it_expires() -> None:
    query = presigned()
    signed = find({}, query)
    verify(Key(SECRET, SCOPE), signed, "GET", b"/test.txt", list(query.items()), [HOST])
    check_time(signed, AT + 86400)
    for at in (AT + 86401, AT - 901):
        with pytest.raises(S3Error) as failed:
            check_time(signed, at)
        assert failed.value.code == "AccessDenied"


@pytest.mark.parametrize("seconds", [-901, 901])
def test_a_clock_that_is_off_is_refused(seconds: int) -> None:
    _, signed = signed_request([HOST], EMPTY, "0" * 64)
    with pytest.raises(S3Error) as failed:
        check_time(signed, AT + seconds)
    assert failed.value.code == "RequestTimeTooSkewed"


@pytest.mark.parametrize(
    ("headers", "query", "code"),
    [
        ({"authorization": "AWS AKIA:sig"}, {}, "InvalidRequest"),
        ({"authorization": "AWS4-HMAC-SHA256 x"}, {}, "InvalidRequest"),
        ({"authorization": "AWS4-HMAC-SHA256 x", "x-amz-content-sha256": EMPTY}, {},
         "AuthorizationHeaderMalformed"),
        ({}, presigned(expires="604801"), "AccessDenied"),
        ({}, presigned(expires="0"), "AccessDenied"),
        ({}, presigned(expires="x"), "AuthorizationQueryParametersError"),
        ({}, {**presigned(), "X-Amz-SignedHeaders": "x"}, "AuthorizationQueryParametersError"),
        ({}, {**presigned(), "X-Amz-Algorithm": "none"}, "AuthorizationQueryParametersError"),
        ({"authorization": "AWS4-HMAC-SHA256 x"}, presigned(), "InvalidArgument"),
        ({}, {"AWSAccessKeyId": "x", "Signature": "y"}, "InvalidRequest"),
    ],
)  # fmt: skip
def test_what_is_no_signature_of_ours_is_refused(
    headers: dict[str, str], query: dict[str, str], code: str
) -> None:
    with pytest.raises(S3Error) as failed:
        find(headers, query)
    assert failed.value.code == code


SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
FIRST = "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"
SECOND = "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"
LAST = "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"
#: The published body of 65 KiB in three chunks.
CHUNKED = b"".join(
    [
        f"10000;chunk-signature={FIRST}\r\n".encode(), b"a" * 65536, b"\r\n",
        f"400;chunk-signature={SECOND}\r\n".encode(), b"a" * 1024, b"\r\n",
        f"0;chunk-signature={LAST}\r\n\r\n".encode(),
    ]
)  # fmt: skip


def chunked(trailer: bool = False, length: int = 66560) -> tuple[dict[str, str], Signed]:
    kind = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + "-TRAILER" * trailer
    headers = {"x-amz-decoded-content-length": str(length)}
    return headers, Signed("AKIAIOSFODNN7EXAMPLE", SCOPE, DATE, ("host",), SEED, kind)


class Body:
    """As that of a request: no generator, which somebody would have to close."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def read(
    pieces: Sequence[bytes], headers: dict[str, str], signed: Signed | None
) -> tuple[bytes, Payload]:
    payload = Payload(Body(pieces), headers, signed, Key(SECRET, SCOPE) if signed else None)
    return b"".join([bytes(piece) async for piece in payload]), payload


@pytest.mark.parametrize("step", [1, 7, 1000, 65537, 1 << 20])
async def test_the_published_chunks_are_verified_however_they_arrive(step: int) -> None:
    pieces = [CHUNKED[at : at + step] for at in range(0, len(CHUNKED), step)]
    found, payload = await read(pieces, *chunked())
    assert found == b"a" * 66560
    assert payload.md5 == hashlib.md5(b"a" * 66560).digest()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (CHUNKED.replace(b"aaaa", b"aaab", 1), "SignatureDoesNotMatch"),
        (CHUNKED.replace(FIRST.encode(), SECOND.encode()), "SignatureDoesNotMatch"),
        (CHUNKED.replace(LAST.encode(), FIRST.encode()), "SignatureDoesNotMatch"),
        (CHUNKED[: -len(f"0;chunk-signature={LAST}\r\n\r\n")], "IncompleteBody"),
        (CHUNKED[:-2], "IncompleteBody"),
        (CHUNKED + b"x", "IncompleteBody"),
        (CHUNKED.replace(b"10000;", b"10001;", 1), "IncompleteBody"),
        (CHUNKED.replace(b";chunk-signature=" + FIRST.encode(), b""), "IncompleteBody"),
        (b"zz" * 600, "IncompleteBody"),
        (b"f" * 4000, "IncompleteBody"),
    ],
)
async def test_a_chunked_body_that_was_changed_is_refused(wrong: bytes, code: str) -> None:
    with pytest.raises(S3Error) as failed:
        await read([wrong], *chunked())
    assert failed.value.code == code


FIVE = {"content-length": "5"}
TRAILED = {
    "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "x-amz-decoded-content-length": "5",
    "x-amz-trailer": "x-amz-checksum-crc32",
}


def trailed(line: str) -> bytes:
    return f"5\r\nhello\r\n0\r\n{line}\r\n".encode()


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({}, b"hello", "MissingContentLength"),
        ({"content-length": "x"}, b"hello", "InvalidArgument"),
        ({"content-length": "6"}, b"hello", "IncompleteBody"),
        (FIVE | {"content-md5": "XUFAKrxLKna5cZ2REBfFkg=="}, b"hello", ""),
        (FIVE | {"content-md5": "XUFAKrxLKna5cZ2REBfFkQ=="}, b"hello", "BadDigest"),
        (FIVE | {"content-md5": "x"}, b"hello", "InvalidDigest"),
        (FIVE | {"x-amz-content-sha256": EMPTY}, b"hello", "XAmzContentSHA256Mismatch"),
        (FIVE | {"x-amz-content-sha256": "what"}, b"hello", "InvalidArgument"),
        (FIVE | {"x-amz-checksum-crc32": "NhCmhg=="}, b"hello", ""),
        (FIVE | {"x-amz-checksum-md5": "NhCmhg=="}, b"hello", "InvalidRequest"),
        (FIVE | {"x-amz-checksum-crc32c": "mnG7TA=="}, b"hello", ""),
        (FIVE | {"x-amz-checksum-sha1": "qvTGHdzF6KLavt4PO0gs2a6pQ00="}, b"hello", ""),
        (FIVE | {"x-amz-checksum-sha1": "qvTGHdzF6KLavt4PO0gs2a6pQ0w="}, b"hello", "BadDigest"),
        (FIVE | {"x-amz-trailer": "x-amz-checksum-crc32"}, b"hello", "InvalidRequest"),
        (TRAILED, trailed("x-amz-checksum-crc32:NhCmhg==\r\n"), ""),
        (TRAILED, trailed("x-amz-checksum-crc32:NhCmhQ==\r\n"), "BadDigest"),
        (TRAILED, trailed("x-amz-checksum-crc32:x\r\n"), "BadDigest"),
        (TRAILED, trailed(""), "IncompleteBody"),
        (TRAILED | {"x-amz-decoded-content-length": "6"},
         trailed("x-amz-checksum-crc32:NhCmhg==\r\n"), "IncompleteBody"),
        (TRAILED, trailed("nothing\r\n"), "IncompleteBody"),
    ],
)  # fmt: skip
async def test_sums_in_headers_and_trailers_are_verified(
    headers: dict[str, str], body: bytes, code: str
) -> None:
    pieces = [body[:2], body[2:]]
    if not code:
        assert (await read(pieces, headers, None))[0] == b"hello"
        return
    with pytest.raises(S3Error) as failed:
        await read(pieces, headers, None)
    assert failed.value.code == code


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
async def test_no_body_of_a_stranger_is_more_than_an_error(body: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    with pytest.raises(S3Error):
        await read(pieces, *chunked())


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, 600 * KIB, 2000 * KIB + 7, 5 * MIB])
async def test_sums_are_those_of_all_bytes_whoever_computes_them(size: int) -> None:
    data = random.Random(size).randbytes(size)
    sums = Sums(signed=True, checksum="crc32")
    for at, step in zip(range(0, size, 100_000), itertools.cycle((100_000, 1000))):
        await sums.update(data[at : at + step])
        await sums.update(data[at + step : at + 100_000])
    await sums.finish()
    assert sums.md5.digest() == hashlib.md5(data).digest()
    assert sums.sha256.digest() == hashlib.sha256(data).digest()
    assert sums.checksum.digest() == zlib.crc32(data).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("others", "most"),
    [
        (0, 1 + BATCH_BYTES // (100 * KIB) + 2 * BATCH_BYTES // (100 * KIB)),
        (BATCHING_MAX, 1 + AHEAD_BYTES_MAX // (100 * KIB)),
    ],
)
async def test_a_bound_of_bytes_waits_for_the_thread_that_sums(others: int, most: int) -> None:
    """Where many payloads are under way, only a few keep more than the others."""
    kept = [Sums(signed=False) for _ in range(others)]
    for each in kept:
        await each.update(bytes(65 * KIB))
    sums, gate, fed = Sums(signed=False), threading.Event(), 0

    class Slow:
        def update(self, data: bytes, /) -> None:
            gate.wait(HANG_SECONDS)

        def digest(self) -> bytes:
            return b""

    sums._all.append(Slow())

    async def feed() -> None:
        nonlocal fed
        for _ in range(60):
            await sums.update(bytes(100 * KIB))
            fed += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert fed == most
        gate.set()
    await sums.finish()
    assert sums.md5.digest() == hashlib.md5(bytes(6000 * KIB)).digest()


async def test_a_payload_that_is_given_up_leaves_the_threads_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(50):
        await Sums(signed=True).update(bytes(3 * MIB))
    sums, hops, start = Sums(signed=False), 0, trio.lowlevel.start_thread_soon

    def counted(*arguments: Any) -> None:
        nonlocal hops
        hops += 1
        start(*arguments)

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", counted)
    for _ in range(80):
        await sums.update(bytes(128 * KIB))
    await sums.finish()
    assert sums.md5.digest() == hashlib.md5(bytes(10 * MIB)).digest()
    assert hops <= 10, "each is of a mebibyte"


async def test_failed_records_end_the_process_and_are_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application that serves the port looks for this error."""

    def fail(*_: object) -> None:
        raise RecordsFailed("the disk")

    service = Service.__new__(Service)
    monkeypatch.setattr(service, "_names", fail)
    control = SimpleNamespace(fresh=trio.lowlevel.checkpoint)
    monkeypatch.setattr(service, "_control", control, raising=False)
    request: Any = SimpleNamespace(method="GET", headers=RequestHeaders(), scope={"raw_path": b"/"})
    with pytest.raises(RecordsFailed):
        await service.serve(request, lambda call: None)


async def test_a_trailer_signature_that_is_no_text_is_refused() -> None:
    headers, signed = chunked()
    trailed = CHUNKED[:-2] + b"x-amz-trailer-signature:\xff\r\n\r\n"
    with pytest.raises(S3Error) as failed:
        await read([trailed], headers, signed)
    assert failed.value.code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("named", [True, False])
async def test_chunks_of_who_signs_nothing(named: bool) -> None:
    """botocore leaves the header with their kind out where it does not sign."""
    crc = base64.b64encode(zlib.crc32(b"data").to_bytes(4)).decode()
    headers = {
        "content-encoding": "gzip, aws-chunked",
        "x-amz-decoded-content-length": "4",
        "x-amz-trailer": "x-amz-checksum-crc32",
    }
    if named:
        headers["x-amz-content-sha256"] = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    body = f"4\r\ndata\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n".encode()
    found, payload = await read([body], headers, None)
    assert (found, payload.checksum) == (b"data", f"crc32:{crc}")


async def test_a_body_that_is_too_long_is_refused_as_it_comes() -> None:
    """And not when all of it has been stored."""
    chunk = b"4\r\ndata\r\n"
    body = Body([chunk, chunk, b"not read"])
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "7"}
    payload = Payload(body, headers, None, None)
    assert await anext(payload) == b"data"
    with pytest.raises(S3Error) as failed:
        await anext(payload)
    assert failed.value.code == "IncompleteBody"
    assert await anext(body) == b"not read"


async def test_chunks_of_one_byte_let_others_work() -> None:
    count, turns = 20_000, 0
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(count)}
    payload = Payload(Body([b"1\r\nx\r\n" * count + b"0\r\n\r\n"]), headers, None, None)

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        pieces = [piece async for piece in payload]
        nursery.cancel_scope.cancel()
    assert b"".join(pieces) == b"x" * count
    assert len(pieces) == 1
    assert turns > 100
