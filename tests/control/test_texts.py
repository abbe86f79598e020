"""No text that a stranger or a tenant sends holds the event loop.

The names of all headers and parameters that the application reads are found while it reads them:
each read goes through ``control.http.texts``. So a reader that is added is tested as well. Every
name is sent what is much to look at: as long as is read of it, and longer. What one step of a task
computes is told by the thread's CPU time, to which other processes add little.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from unittest import mock
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import msgspec
import pytest
import trio
from auth_server import CheapAuth, Server, running
from checks import ok
from harness import Cluster
from holds import HOLD_SECONDS
from http_served import connected
from raw import FORM_END, FORM_TYPE, form_part
from s3_client import done, s3_of
from share import share

from control.api import Content
from control.app import loop
from control.cluster import ClusterModule
from control.compute import Compute
from control.console import Console
from control.health import Health
from control.http import texts
from control.http.limits import PATH_BYTES_MAX
from control.paths import PARAMETER
from control.s3 import S3
from control.s3.documents import BYTES_MAX, PIECE_BYTES, QUOTES_MAX, parse
from control.s3.errors import S3Error
from control.s3.policy import ARN, LETTERS_MAX, TEXTS_MAX
from control.storage import Storage

pytestmark = [pytest.mark.real, pytest.mark.thin]

LONG_BYTES = 60_000
FILLS = [" ", ",", "*", ";", "?", "%", '"', "'", "1", "[", "(", "{", "a,", "a=", "a;", '"a",',
         "0-0,", "a.", "/", "../", "=?u?b?", "\\", "a:", "-", "é"]  # fmt: skip
#: What a header begins with, so that its reader goes as far as it can.
BEGINNINGS = {"accept": "a/b", "range": "bytes=", "authorization": "Bearer ", "cookie": "token="}
MODULES = (CheapAuth, Storage, Compute, ClusterModule, Console, Health, S3)
#: Parameters of paths and of queries with which a handler begins its work.
KNOWN = {"namespace": "loop", "name": "loop", "path": "file"}
KNOWN_QUERY = {"namespace": "loop", "name": "file", "path": "file"}
BUCKET = "loop-over-s3"
#: The server itself reads these, and its own tests are about them.
OF_THE_SERVER = {"content-length", "host", "remote-addr", "transfer-encoding"}


class Held:
    """Which steps of tasks held the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: list[str] = []

        def log(watch: loop.Loop, task: trio.lowlevel.Task, seconds: float) -> None:
            place = loop.place_of(task)
            # The client, too, runs in this loop.
            if seconds >= HOLD_SECONDS and "tests/control" not in place:
                what = watch._context.get(loop._doing) or task.name
                self.by.append(f"{what}: {seconds * 1000:.0f} ms, until {place}")

        monkeypatch.setattr(loop.Loop, "_log", log)


class Reads:
    """The names of headers and parameters that the application asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: set[tuple[str, str]] = set()
        for kind, readers in (
            ("header", (texts.RequestHeaders, texts.HeaderTexts)),
            ("parameter", (texts.Parameters, texts.ParameterTexts)),
        ):
            for reader in readers:
                for method in ("get", "getlist", "__getitem__", "__contains__"):
                    if real := getattr(reader, method, None):
                        monkeypatch.setattr(reader, method, self._noting(kind, real))

    def _noting(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def read(mapping: Any, name: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(name, str):
                self.names.add((kind, name.lower() if kind == "header" else name))
            return real(mapping, name, *arguments, **named)

        return read


def mixed(size: int) -> str:
    """One text with something of each kind, for further requests that read a name."""
    pieces = "".join(FILLS)
    return pieces * (size // len(pieces.encode()))


def filled(name: str) -> Iterator[str]:
    """Texts as long as are read of a header or a parameter, and one that is longer."""
    size, start = texts.bytes_max(name), BEGINNINGS.get(name, "")
    for fill in FILLS[: share(len(FILLS))]:
        yield start + fill * ((size - len(start) - 1) // len(fill.encode())) + "x"
    yield mixed(size)
    yield mixed(LONG_BYTES // 3)


class Asker:
    """Sends requests, and looks whether one held the loop."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.held = Held(monkeypatch)
        self.reads = Reads(monkeypatch)
        #: Of each kind of request.
        self.statuses: dict[str, Counter[int]] = {}
        #: What some request was asked for.
        self.seen: set[tuple[str, str]] = set()
        #: The body of the last answer that was read to its end.
        self.rest = b""

    async def ask(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str],
        body: bytes = b"", *, to_the_end: bool = False,
    ) -> int:  # fmt: skip
        """The status of the answer, of which no more than the head is read otherwise."""
        target = f"{quote(path)}?{urlencode(query, quote_via=quote)}" if query else quote(path)
        said = {"Host": "x", **headers, "Content-Length": str(len(body))}
        said |= {"Connection": "close"} if to_the_end else {}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {said[name]}" for name in said)]
        async with connected(self.server.http.base_url.port or 0) as client:
            await client.send("\r\n".join([*lines, "", ""]).encode() + body)
            status = (await client.head()).status
            if to_the_end:
                self.rest = await client.rest()
        shown = {name: value[:40] for name, value in said.items()}
        about = (method, target[:200], shown, body[:80], self.held.by)
        self.statuses.setdefault(f"{method} {path[:60]}", Counter())[status] += 1
        assert not self.held.by, about
        assert status != 500, about
        return status

    async def ask_all(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> None:
        """Send a request with each text that it is asked for, and then with what it is asked for
        in its turn."""
        sent = {("header", name) for name in OF_THE_SERVER}
        self.reads.names.clear()
        await self.ask(method, path, query, headers)
        while left := sorted(self.reads.names - sent):
            sent.update(left)
            for kind, name in left:
                is_new = (kind, name) not in self.seen
                self.seen.add((kind, name))
                others = {key: value for key, value in headers.items() if key.lower() != name}
                for text in filled(name) if is_new else [mixed(texts.bytes_max(name))]:
                    if kind == "header":
                        await self.ask(method, path, query, {**others, name: text.strip()})
                    elif len(quote(text)) < LONG_BYTES:
                        await self.ask(method, path, {**query, name: text}, headers)


@pytest.fixture
async def asker(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asker]:
    with mock.patch.dict(os.environ, {"GFS_COMPUTE_BACKEND": "scripted:make"}):
        async with running(cluster.state, modules=MODULES, login_failures=0) as server:
            made = Asker(server, monkeypatch)
            yield made
            print(sum(map(Counter.total, made.statuses.values())))
            for each in made.statuses.items():
                print(*each)


async def test_headers_and_parameters_over_rest(asker: Asker) -> None:
    server = asker.server
    await server.new_user("ada", is_admin=True)
    for _, route in sorted(server.app.table, key=lambda each: each[1].method == "DELETE"):
        ada = await server.login("ada")  # one that logs out is logged in again
        headers = {"Authorization": f"Bearer {ada['token']}"}
        namespace = {"name": "loop", "visibility": 0}
        await server.http.post("/storage/namespaces", json=namespace, headers=headers)
        url = "/storage/loop/file?overwrite=true"
        ok(await server.http.put(url, content=b"x" * 9, headers=headers))
        fields = route.query.__struct_encode_fields__ if route.query is not None else ()
        query = {name: KNOWN_QUERY[name] for name in fields if name in KNOWN_QUERY}
        path = PARAMETER.sub(lambda found: KNOWN.get(found[1], "0a1b2c3d"), route.path)
        await asker.ask_all(route.method, path, query, headers)
        if route.need.is_open or route.need.takes_cookie:
            await asker.ask_all(route.method, path, query, {})
        for found in PARAMETER.finditer(route.path):
            start, _, end = route.path.partition(found[0])
            for text in (mixed(PATH_BYTES_MAX - 100), "a/" * (PATH_BYTES_MAX // 2 - 50)):
                await asker.ask(route.method, start + text + end, query, headers)
    assert {("header", "accept"), ("header", "cookie"), ("header", "range")} < asker.seen


async def test_the_texts_of_documents_over_rest(asker: Asker) -> None:
    """Each field of each body of JSON."""
    server = asker.server
    await server.new_user("bert", is_admin=True)
    for _, route in server.app.table:
        if route.body is None or isinstance(route.body, Content):
            continue
        ada = await server.login("bert")
        headers = {"Authorization": f"Bearer {ada['token']}"}
        path = PARAMETER.sub(lambda found: KNOWN.get(found[1], "0a1b2c3d"), route.path)
        fields = msgspec.structs.fields(route.body)
        plain = {each.encode_name: value_of(each.type) for each in fields if each.required}
        for each in fields:
            for value in much(each.type):
                body = json.dumps({**plain, each.encode_name: value}).encode()
                await asker.ask(route.method, path, {}, headers, body)


def value_of(kind: Any) -> Any:
    """A value that a field of this type may have."""
    text = str(kind)
    for word, value in (("dict", {}), ("list", []), ("str", "x"), ("bool", True), ("int", 1)):
        if word in text.lower():
            return value
    return None


def much(kind: Any) -> Iterator[Any]:
    """Values of a field that are much to look at."""
    if "str" in str(kind):
        yield from (mixed(LONG_BYTES), " " * LONG_BYTES, "9" * LONG_BYTES)
    if "list" in str(kind) or "tuple" in str(kind):
        yield [f"/{number}" for number in range(6_000)]
        yield list(range(10_000))
        yield [{"port": number} for number in range(5_000)]
        yield [{"path": f"a/{number}"} for number in range(3_000)]
    if "dict" in str(kind).lower():
        yield {f"storage.{number}": ["read"] for number in range(2_000)}
        yield {"storage": ["read"] * 7_000}


# --- S3 -----------------------------------------------------------------------------------


def policy(bucket: str) -> bytes:
    """Lets everybody do everything, if the headers match none of the longest patterns."""
    about = [f"{ARN}{bucket}", f"{ARN}{bucket}/*"]
    everybody = {"Principal": "*", "Action": "s3:*", "Resource": about}
    longest = ["*" + "?" * 2000 + "b*", "*" + "a?" * 1000 + "b*", "*" + "a" * 2000 + "b*"]
    names = ("aws:Referer", "aws:UserAgent", "s3:prefix")
    conditions = {"StringLike": dict.fromkeys(names[:2], longest)}
    conditions |= {"StringEquals": dict.fromkeys(names[2:], "never")}
    denied = [
        {"Effect": "Deny", **everybody, "Condition": {operator: {name: value}}}
        for operator, each in conditions.items()
        for name, value in each.items()
    ]
    statements = [{"Effect": "Allow", **everybody}, *denied]
    text = json.dumps({"Version": "2012-10-17", "Statement": statements}).encode()
    assert len(text) < LETTERS_MAX
    return text


async def test_headers_and_parameters_over_s3(asker: Asker) -> None:
    module = next(each for each in asker.server.app.modules if isinstance(each, S3))
    places = sorted(module._service._operations, key=lambda place: place[0] == "DELETE")
    async with s3_of(asker.server) as call:
        for method, level, subresource in places:
            await call("PUT", BUCKET)
            done(await call("PUT", BUCKET, {"policy": ""}, policy(BUCKET)))
            done(await call("PUT", f"{BUCKET}/key", {}, b"x" * 9))
            path = {"service": "/", "bucket": f"/{BUCKET}", "object": f"/{BUCKET}/key"}[level]
            query = {subresource: ""} if subresource not in ("", "copy") else {}
            headers = {"x-amz-copy-source": f"/{BUCKET}/key"} if subresource == "copy" else {}
            await asker.ask_all(method, path, query, headers)
        cors = {"Origin": "https://example.org", "Access-Control-Request-Method": "GET"}
        await asker.ask_all("OPTIONS", f"/{BUCKET}/key", {}, cors)
    assert {("header", "referer"), ("header", "origin"), ("parameter", "prefix")} < asker.seen


def nested(element: str, count: int) -> bytes:
    return f"<{element}>".encode() * count + f"</{element}>".encode() * count


def listed(root: str, item: str, size: int) -> bytes:
    return f"<{root}>{item * (size // len(item))}</{root}>".encode()


#: Of each root what has the most of something, in as many bytes as are read.
ITEMS = {
    "CORSConfiguration": [
        "<CORSRule><AllowedOrigin>a</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>",
        "<CORSRule><AllowedOrigin>a</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
        + "<AllowedHeader>b</AllowedHeader>" * 499
        + "<AllowedHeader>a*</AllowedHeader></CORSRule>",
    ],
    "LifecycleConfiguration": [
        "<Rule><Status>Enabled</Status><Filter><Prefix>a</Prefix></Filter>"
        "<Expiration><Days>1</Days></Expiration></Rule>"
    ],
    "Tagging": ["<TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet>"],
    "AccessControlPolicy": [
        "<AccessControlList><Grant><Grantee><ID>a</ID></Grantee><Permission>READ</Permission>"
        "</Grant></AccessControlList>"
    ],
    "Delete": ["<Object><Key>a</Key></Object>", "<Object/>"],
    "CompleteMultipartUpload": [
        f"<Part><PartNumber>1</PartNumber><ETag>{'0' * 32}</ETag></Part>", "<Part/>"
    ],
    "VersioningConfiguration": ["<Status>Enabled</Status>"],
    "OwnershipControls": ["<Rule><ObjectOwnership>a</ObjectOwnership></Rule>"],
    "PublicAccessBlockConfiguration": ["<BlockPublicAcls>true</BlockPublicAcls>"],
    "CreateBucketConfiguration": ["<a/>"],
}  # fmt: skip
SIZES = (BYTES_MAX // 33, BYTES_MAX - 100)


def documents(root: str) -> Iterator[bytes]:
    for size in SIZES:
        for item in [*ITEMS[root], "<a/>", "&#97;", "&amp;", " ", "\n", "<?a?>", "]]"]:
            yield listed(root, item, size)
        yield b"<%b>%b</%b>" % (root.encode(), nested("a", size // 7), root.encode())
        names = [f'a{number}=""' for number in range(size // 11)]
        yield f"<{root} {' '.join(names)}/>".encode()
        yield f'<{root} a="{"x" * size}"/>'.encode()
        yield f"<{root}>".encode() + b"<" * size
        yield f"<{root} {'a:' * (size // 2)}/>".encode()


async def test_the_documents_of_s3(asker: Asker) -> None:
    """Of every operation that takes one; that no thread keeps the loop waiting is asked of its
    parser below."""
    module = next(each for each in asker.server.app.modules if isinstance(each, S3))
    async with s3_of(asker.server) as call:
        for method, level, subresource in module._service._operations:
            if method not in ("PUT", "POST") or level == "service":
                continue
            await call("PUT", BUCKET)
            done(await call("PUT", BUCKET, {"policy": ""}, policy(BUCKET)))
            path = {"bucket": f"/{BUCKET}", "object": f"/{BUCKET}/key"}[level]
            query = {subresource: "0" * 32} if subresource not in ("", "copy") else {}
            for root in [root for root in ITEMS if takes(subresource, root)]:
                for body in documents(root):
                    await asker.ask(method, path, query, {}, body)
            if subresource == "policy":
                for fill in FILLS:
                    body = fill.encode() * (LETTERS_MAX // len(fill.encode()))
                    await asker.ask(method, path, query, {}, body)


def takes(subresource: str, root: str) -> bool:
    roots = {"cors": "CORSConfiguration", "lifecycle": "LifecycleConfiguration",
             "tagging": "Tagging", "acl": "AccessControlPolicy", "delete": "Delete",
             "uploadId": "CompleteMultipartUpload", "versioning": "VersioningConfiguration",
             "ownershipControls": "OwnershipControls",
             "publicAccessBlock": "PublicAccessBlockConfiguration",
             "": "CreateBucketConfiguration"}  # fmt: skip
    return roots.get(subresource) == root


def statement(bucket: str, **fields: Any) -> dict[str, Any]:
    about = [f"{ARN}{bucket}", f"{ARN}{bucket}/*"]
    return {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": about, **fields}


#: Statements that need much for each request, as many texts as a policy may have.
COSTLY: dict[str, dict[str, Any]] = {
    "networks of a referrer": {"Condition": {"IpAddress": {"aws:Referer": ["::"] * 1900}}},
    "networks": {"Condition": {"NotIpAddress": {"aws:SourceIp": ["::1"] * 1900}}},
    "other letters": {"Condition": {"StringEqualsIgnoreCase": {"aws:Referer": ["ab"] * 1900}}},
    "truths": {"Condition": {"Bool": {"aws:Referer": ["ab"] * 1900}}},
    "nearly everywhere": {
        "Condition": {"StringLike": {"aws:Referer": [f"*{'a' * 50}b{'a' * 50}*"] * 150}}
    },
    "resources": {"Resource": [f"{ARN}*/*{'a' * 40}b{'a' * 40}*"] * 150},
    "actions": {"Action": ["s3:*a?b"] * 1500},
}


@pytest.mark.parametrize("case", COSTLY)
async def test_a_stranger_asks_where_a_policy_needs_much(asker: Asker, case: str) -> None:
    costly = statement(BUCKET, Effect="Deny", **COSTLY[case])
    found = {"Version": "2012-10-17", "Statement": [statement(BUCKET), costly]}
    body = json.dumps(found, separators=(",", ":")).encode()
    assert body.count(b'"') > TEXTS_MAX or len(body) > LETTERS_MAX // 2
    async with s3_of(asker.server) as call:
        await call("PUT", BUCKET)
        done(await call("PUT", BUCKET, {"policy": ""}, body))
        for text in ("a" * 4096, ":" * 4096, "é" * 2048, "." * 4096):
            for key in ("key", "/".join(["a" * 250] * 4)):
                await asker.ask("GET", f"/{BUCKET}/{key}", {}, {"Referer": text})
        done(await call("DELETE", BUCKET, {"policy": ""}))


async def test_the_fields_of_a_form_over_s3(asker: Asker) -> None:
    """Of anybody, also its key, into which the name of the file is put."""
    async with s3_of(asker.server) as call:
        await call("PUT", BUCKET)
        done(await call("PUT", BUCKET, {"policy": ""}, policy(BUCKET)))
        headers = {"Content-Type": FORM_TYPE}
        names = ["key", "acl", "policy", "tagging", "success_action_redirect", "x-amz-meta-a"]
        for name in [*names, "x-amz-signature", "x-amz-checksum-crc32", "content-type", "expires"]:
            for fill in [*FILLS, "${filename}"]:
                text = (fill * (LONG_BYTES // len(fill.encode()))).encode()
                fields = {"key": b"key", name: text}
                parts = b"".join(form_part(field, value) for field, value in fields.items())
                file = form_part("file", b"x", "f" * 4000)
                await asker.ask("POST", f"/{BUCKET}", {}, headers, parts + file + FORM_END)


async def test_a_stranger_asks_about_a_thousand_keys_and_a_hundred_headers(asker: Asker) -> None:
    """Of a bucket that a tenant has prepared for him."""
    key = "/".join(["a" * 200] * 4)
    keys = "".join(f"<Object><Key>{number}/{key}</Key></Object>" for number in range(1000))
    body = f"<Delete>{keys}</Delete>".encode()
    async with s3_of(asker.server) as call:
        await call("PUT", BUCKET)
        done(await call("PUT", BUCKET, {"policy": ""}, policy(BUCKET)))
        for text, answer in (("a" * 4096, b"<Deleted>"), ("a" * 4000 + "b", b"AccessDenied")):
            headers, query = {"Referer": text, "User-Agent": text}, {"delete": ""}
            await asker.ask("POST", f"/{BUCKET}", query, headers, body, to_the_end=True)
            assert asker.rest.count(answer) == 1000
        rules = f"<CORSConfiguration>{ITEMS['CORSConfiguration'][1]}</CORSConfiguration>".encode()
        done(await call("PUT", BUCKET, {"cors": ""}, rules))
        for count, status in ((100, 200), (101, 400), (30_000, 400)):
            names = ",".join(["a"] * count)
            asked = {"Origin": "a", "Access-Control-Request-Method": "GET"}
            asked |= {"Access-Control-Request-Headers": names}
            assert await asker.ask("OPTIONS", f"/{BUCKET}", {}, asked) == status


def test_a_document_is_parsed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread holds Python's lock while it parses a piece: none is more than its bound, and none
    has more elements or attributes than take a few milliseconds."""
    fed: list[int] = []

    class Parser(ElementTree.XMLParser):
        def feed(self, data: Any, /) -> None:
            fed.append(len(data))
            super().feed(data)

    monkeypatch.setattr(ElementTree, "XMLParser", Parser)
    keys = "".join(f"<Object><Key>{'a' * 1000}{number}</Key></Object>" for number in range(1000))
    assert len(parse(f"<Delete>{keys}</Delete>".encode(), "Delete", 7_000)) == 1000
    assert max(fed) <= PIECE_BYTES < sum(fed)
    for root in ITEMS:
        for document in documents(root):
            fed.clear()
            with suppress(S3Error):
                parse(document, root, 7_000)
            elements = document.count(b"<") // 2
            assert not fed or (elements <= 7_001 and document.count(b'="') <= QUOTES_MAX // 2)
