"""Hostile input: each gets its clear refusal, and others are served meanwhile.

A witness asks for his session and a file all the time; a test fails if one of his
requests does, or if none is answered while it runs. The last test looks for traces.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from checks import (
    anonymous,
    bearer,
    get,
    make_namespace,
    make_token,
    ok,
    paths,
    put,
    refused,
    unique,
    wait_for,
    with_token,
)
from cloud import Cloud
from raw import (
    FORM_BOUNDARY,
    FORM_END,
    FORM_TYPE,
    Answer,
    Closed,
    Connection,
    form_part,
    head,
    send_bytes,
)

KIB = 1024
MIB = 1024 * KIB
#: A witness's request takes no longer, on the busiest machine.
WITNESS_SECONDS = 30.0
WITNESS_PAUSE_SECONDS = 0.05


class Witness:
    """Another client, who notices when he is not served."""

    def __init__(self, cloud: Cloud) -> None:
        self.client, _ = cloud.make_user(unique("witness"))
        self.space = make_namespace(self.client, "witness")
        put(self.client, self.space, "f", b"seen")
        self.token = bearer(self.client)
        self.url = cloud.url
        self.served = 0
        self.failures: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with with_token(self.url, self.token) as client:
            client.timeout = httpx.Timeout(WITNESS_SECONDS)
            while not self._done.wait(WITNESS_PAUSE_SECONDS):
                try:
                    assert client.get("/api/session").status_code == 200
                    assert client.get(f"/storage/{self.space}/f").content == b"seen"
                except Exception as error:
                    self.failures.append(repr(error))
                self.served += 1

    def stop(self) -> None:
        self._done.set()
        self._thread.join(2 * WITNESS_SECONDS)
        assert not self._thread.is_alive()

    def check(self, since: int) -> None:
        """He was served since ``since``, in a request that began after it."""
        wait_for(lambda: self.served >= since + 2, 2 * WITNESS_SECONDS, "answer for the witness")
        assert self.failures == []


@pytest.fixture(scope="module")
def witness(cloud: Cloud) -> Iterator[Witness]:
    made = Witness(cloud)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def others_are_served(witness: Witness) -> Iterator[None]:
    since = witness.served
    yield
    witness.check(since)


@pytest.fixture(scope="module")
def user(cloud: Cloud) -> Iterator[httpx.Client]:
    client, _ = cloud.make_user(unique("victim"))
    with client:
        yield client


@pytest.fixture(scope="module")
def authorization(user: httpx.Client) -> dict[str, str]:
    return {"Authorization": f"Bearer {bearer(user)}"}


@pytest.fixture(scope="module")
def space(user: httpx.Client, everything_before: dict[str, Any]) -> str:
    return make_namespace(user, "hostile")


def everything(cloud: Cloud) -> dict[str, Any]:
    """All that is stored, as the administrator and the file system see it."""
    return {
        "namespaces": {item["name"] for item in ok(cloud.admin.get("/admin/namespaces"))},
        "files": {
            (item["namespace"], item["path"]) for item in ok(cloud.admin.get("/admin/files"))
        },
        "users": {item["username"] for item in ok(cloud.admin.get("/admin/users"))},
        "tree": set(cloud.cluster.gfs("ls", "-R", "/").stdout.splitlines()),
    }


@pytest.fixture(scope="module")
def everything_before(cloud: Cloud, user: httpx.Client, witness: Witness) -> dict[str, Any]:
    return everything(cloud)


def ask(
    cloud: Cloud, method: str, target: str, headers: dict[str, str], body: bytes | None = None
) -> Answer:
    """One request whose target is sent as it is."""
    with Connection(cloud.url) as connection:
        return connection.exchange(method, target, headers, body)


# --- names that are paths ----------------------------------------------------------------

#: As they stand in a URL. A name that decodes to one of these is none.
BAD_PATHS = [
    "..", ".", "%2e%2e", "%2e", "..%2f..%2fetc%2fpasswd", "%2e%2e%2fx", "a/..", "a/../b", "a/./b",
    "a%2f..%2fb", "a//b", "a%2f%2fb", "a/", "a%2f", "%2f", "%2fa", "a%00", "a%00.txt", "%00",
    "a%0a", "a%0d%0aX-Evil:%201", "a%1b", "a%7f", "a%5cb", "..%5c..%5cx", "%5c", "%c0%ae%c0%ae",
    "%c0%ae%c0%ae%2fx", "%c0%af", "%e0%80%af", "%ed%a0%80", "%ed%b0%80", "%f5%80%80%80", "%ff",
    "a%80", "x" * 300, "%c3%bc" * 150, "%e2%82%ac" * 100, "a%c2%80b", "a%c2%85b",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: path[:30])
@pytest.mark.parametrize(
    "form",
    ["GET /storage/{space}/{path}", "HEAD /storage/{space}/{path}", "PUT /storage/{space}/{path}",
     "POST /storage/{space}/{path}", "DELETE /storage/{space}/{path}",
     "GET /storage/download/{space}/{path}",
     "GET /storage/download?namespace={space}&name={path}",
     "POST /storage/upload?namespace={space}&name={path}",
     "DELETE /storage/delete?namespace={space}&name={path}"],
)  # fmt: skip
def test_a_path_that_is_no_file_name(
    cloud: Cloud, authorization: dict[str, str], space: str, form: str, path: str
) -> None:
    method, _, target = form.format(space=space, path=path).partition(" ")
    body = b"hostile" if method in ("PUT", "POST") else None
    answer = ask(cloud, method, target, authorization, body)
    if method == "HEAD":
        assert answer.status in (400, 404, 405)
        return
    refused(answer, (400, 404, 405))
    for name, value in answer.headers:
        assert "evil" not in name.lower(), (name, value)


@pytest.mark.parametrize(
    "path",
    ["/storage/%2e%2e/x", "/storage/../etc/passwd", "/storage/./x", "/storage/..%2fx/y",
     "/storage/%00/x", "/storage/a%00b/x", "/storage//x", "/storage/%2f/x", "/storage/a%5cb/x",
     "/storage/%c0%ae/x", "/storage/%ed%a0%80/x", "/storage/" + "x" * 300 + "/x",
     "/storage/%20/x", "/storage/a%20b/x", "/storage/%e2%82%ac/x", "/../../etc/passwd",
     "/%2e%2e/%2e%2e/etc/passwd", "/storage/default/../../api/session"],
    ids=lambda path: path[:40],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_namespace_that_is_none(
    cloud: Cloud, authorization: dict[str, str], space: str, method: str, path: str
) -> None:
    body = b"hostile" if method == "PUT" else None
    refused(ask(cloud, method, path, authorization, body), (400, 404, 405))


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..", "a%2fb", "%00", "a%00", "a%0a", "%5c", "%c0%ae", "%ed%a0%80", "%ff",
     "x" * 65, "x" * 5000, "", "%20", "a%20b", "files", "%66iles"],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_a_namespace_in_a_query_that_is_none(
    cloud: Cloud, authorization: dict[str, str], space: str, name: str
) -> None:
    for method, target in (
        ("GET", "/storage/files?namespace={}"),
        ("GET", "/storage/download?namespace={}&name=x"),
        ("DELETE", "/storage/delete?namespace={}&name=x"),
        ("PUT", "/storage/namespaces/{}"),
        ("DELETE", "/storage/namespaces/{}"),
    ):
        if name == "" and "?" in target:
            continue  # whether an empty one means ``default`` is left open
        body = b'{"visibility": 2}' if method == "PUT" else None
        refused(ask(cloud, method, target.format(name), authorization, body), (400, 404, 405))
    target = f"/storage/upload?namespace={name}&name=x"
    if name:
        refused(ask(cloud, "POST", target, authorization, b"hostile"), (400, 404))


@pytest.mark.parametrize(
    "filename",
    ["..", "../..", "a/..", "a\\\\..", "%2e%2e/..", "x" * 300, "\x00", "a\x00.txt", "a\x1b[2J",
     "a\x7f", "", "/", "\\\\", "."],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_a_filename_that_is_none(user: httpx.Client, space: str, filename: str) -> None:
    refused(form(user, space, form_part("file", b"hostile", filename) + FORM_END), 400)


@pytest.mark.parametrize(
    "raw_name",
    [b"\xc0\xae\xc0\xae", b"\xff\xfe", b"\xed\xa0\x80", b"a\x80", b"\xf5\x80\x80\x80"],
)
def test_a_filename_that_is_not_utf_8(user: httpx.Client, space: str, raw_name: bytes) -> None:
    body = form_part("file", b"hostile", "NAME").replace(b"NAME", raw_name) + FORM_END
    refused(form(user, space, body), 400)


@pytest.mark.parametrize("segments", [200, 2000, 20000])
def test_very_long_paths(
    cloud: Cloud, authorization: dict[str, str], space: str, segments: int
) -> None:
    target = f"/storage/{space}/" + "/".join(["a"] * segments) + "/" + "b" * 200 + "/" + "c" * 250
    answer = ask(cloud, "PUT", target, authorization, b"hostile")
    refused(answer, (400, 414, 431))


def test_a_prefix_is_only_compared(user: httpx.Client, space: str) -> None:
    for prefix in ("..", "../", "/", "//", "a/../../", "\\", "x" * 3000):
        answer = user.get("/storage/files", params={"namespace": space, "prefix": prefix})
        assert ok(answer) == []


@pytest.mark.parametrize("transfer", ["..%2f..%2fx", "%00", "x" * 5000, "a%0d%0adata:%20x", "%ff"])
def test_the_id_of_a_transfer_is_no_path(
    cloud: Cloud, authorization: dict[str, str], space: str, transfer: str
) -> None:
    target = f"/storage/{space}/{unique('transfer')}?id={transfer}"
    answer = ask(cloud, "PUT", target, authorization, b"")
    if transfer.startswith(".."):
        ok(answer)
        ok(ask(cloud, "DELETE", target, authorization))
    else:
        refused(answer, 400)


# --- JSON --------------------------------------------------------------------------------

# Within the largest body that is taken.
DEEP = b"[" * 60_000 + b"]" * 60_000
DEEP_OBJECTS = b'{"name":' * 13_000 + b"1" + b"}" * 13_000


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        DEEP_OBJECTS,
        b"[" * 100_000,
        b'{"name": ' + DEEP + b"}",
        b'{"name": "x", "visibility": NaN}',
        b'{"name": "x", "visibility": Infinity}',
        b'{"name": "x", "visibility": -Infinity}',
        b'{"name": "x", "visibility": 1e400}',
        b'{"name": "x", "visibility": ' + b"9" * 50_000 + b"}",
        b'{"name": "\xff"}',
        b'{"name": "\xed\xa0\x80"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\\u0000"}',
        b'{"name": "a\nb"}',
        b'{"name": "x",}',
        b"{'name': 'x'}",
        b'{"name": "x"} trailing',
        b"\xef\xbb\xbf{",
        b'{"name": ["x"]}',
        b'{"name": {"name": "x"}}',
        b'{"name": true}',
        b"\x00" * 1000,
        '{"name": "x"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_json_that_is_none_or_of_the_wrong_shape(
    user: httpx.Client, space: str, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    refused(user.post("/storage/namespaces", content=body, headers=headers), 400)
    # What anybody may send without credentials may have a lower limit.
    login = user.post("/api/login", content=body, headers=headers)
    refused(login, (400, 413) if len(body) > 10_000 else 400)
    refused(user.post("/api/tokens", content=body, headers=headers), 400)


def test_unknown_fields_that_are_nested_deeply(user: httpx.Client, space: str) -> None:
    body = b'{"name": "' + b"." * 65 + b'", "other": ' + DEEP + b"}"
    headers = {"Content-Type": "application/json"}
    refused(user.post("/storage/namespaces", content=body, headers=headers), 400)


def test_a_json_body_of_two_mebibytes(user: httpx.Client, space: str) -> None:
    body = b'{"name": "' + b"x" * 2 * MIB + b'"}'
    headers = {"Content-Type": "application/json"}
    refused(user.post("/storage/namespaces", content=body, headers=headers), 413)


def test_duplicate_keys(user: httpx.Client, space: str) -> None:
    """The last one counts."""
    first, second = unique("twice"), unique("twice")
    body = f'{{"name": "{first}", "name": "{second}"}}'.encode()
    headers = {"Content-Type": "application/json"}
    assert ok(user.post("/storage/namespaces", content=body, headers=headers))["name"] == second
    refused(user.delete(f"/storage/namespaces/{first}"), 404)
    ok(user.delete(f"/storage/namespaces/{second}"))


def test_very_many_scopes(user: httpx.Client) -> None:
    user_id = ok(user.get("/api/session"))["user_id"]
    scopes = {f"storage.{user_id}.files.n{number}": ["read"] for number in range(2_500)}
    refused(user.post("/api/tokens", json={"name": "x", "scopes": scopes}), 400, "scopes")
    scopes = {f"storage.{user_id}.files": ["read"] * 10_000}
    made = ok(user.post("/api/tokens", json={"name": "x", "scopes": scopes}))
    assert made["scopes"] == {f"storage.{user_id}.files": ["read"]}


@pytest.mark.parametrize("size", [5_000, 500_000])
def test_very_long_credentials(user: httpx.Client, size: int) -> None:
    """Hashing what is this long would keep a processor busy."""
    body = {"username": "x" * size, "password": "y"}
    refused(user.post("/api/login", json=body), (400, 401, 413))
    body = {"username": unique("x"), "password": "y" * size}
    refused(user.post("/api/login", json=body), (400, 401, 413))


# --- forms -------------------------------------------------------------------------------


def form(client: httpx.Client, space: str, body: bytes, kind: str = FORM_TYPE) -> httpx.Response:
    return client.post(
        "/storage/upload",
        params={"namespace": space},
        content=body,
        headers={"Content-Type": kind},
    )


GOOD_PART = form_part("file", b"hostile", "hostile.bin")


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=other",
        "multipart/form-data; boundary=" + "x" * 5000,
        "multipart/form-data; boundary=a b",
        'multipart/form-data; boundary="unclosed',
        "multipart/form-data; boundary=\xe4",
        "multipart/mixed; boundary=" + FORM_BOUNDARY,
        "application/json",
        "application/x-www-form-urlencoded",
        "nonsense",
        ";;;=",
    ],
    ids=lambda kind: kind[:50],
)
def test_a_form_whose_type_does_not_fit(
    cloud: Cloud, authorization: dict[str, str], space: str, kind: str
) -> None:
    headers = {**authorization, "Content-Type": kind}
    answer = ask(cloud, "POST", f"/storage/upload?namespace={space}", headers, GOOD_PART + FORM_END)
    refused(answer, (400, 415))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"\r\n" * 10_000,
        GOOD_PART,
        GOOD_PART[:-2],
        GOOD_PART + f"--{FORM_BOUNDARY}".encode(),
        GOOD_PART + f"--{FORM_BOUNDARY}-".encode(),
        GOOD_PART[:40],
        FORM_END,
        b"\r\n" + FORM_END,
        form_part("other", b"x", "other.bin") + FORM_END,
        form_part("File", b"x", "other.bin") + FORM_END,
        form_part("", b"x", "other.bin") + FORM_END,
        f"--{FORM_BOUNDARY}\r\n\r\nno headers\r\n".encode() + FORM_END,
        f"--{FORM_BOUNDARY}\r\nContent-Disposition: attachment\r\n\r\nx\r\n".encode() + FORM_END,
        f"--{FORM_BOUNDARY}\r\nno colon here\r\n\r\nx\r\n".encode() + FORM_END,
        f"--{FORM_BOUNDARY}\nContent-Disposition: form-data; name=file\n\nx\n".encode(),
    ],
    ids=range(17),
)
def test_a_form_that_is_none(user: httpx.Client, space: str, body: bytes) -> None:
    refused(form(user, space, body), 400)


def test_a_form_field_without_a_file_name(user: httpx.Client, space: str) -> None:
    """``file`` as a text field: there is no name to store it under."""
    refused(form(user, space, form_part("file", b"hostile") + FORM_END), 400)


def test_ten_thousand_parts(user: httpx.Client, space: str) -> None:
    body = form_part("other", b"x") * 10_000 + form_part("file", b"hostile", "many") + FORM_END
    refused(form(user, space, body), (400, 413))
    body = form_part("file", b"hostile", "many") + form_part("other", b"x") * 10_000 + FORM_END
    refused(form(user, space, body), (400, 413))


@pytest.mark.parametrize("size", [100 * KIB, 5 * MIB])
def test_a_part_with_huge_headers(user: httpx.Client, space: str, size: int) -> None:
    more = "X-Padding: " + "x" * size + "\r\n"
    body = form_part("file", b"hostile", "huge", more) + FORM_END
    refused(form(user, space, body), (400, 413, 431))
    refused(form(user, space, form_part("file", b"hostile", "x" * size) + FORM_END), (400, 413))
    refused(form(user, space, form_part("x" * size, b"hostile") + FORM_END), (400, 413))


def test_a_part_with_very_many_headers(user: httpx.Client, space: str) -> None:
    more = "".join(f"X-{number}: y\r\n" for number in range(5000))
    refused(form(user, space, form_part("file", b"x", "huge", more) + FORM_END), (400, 413, 431))


def test_a_huge_preamble(user: httpx.Client, space: str) -> None:
    """It is allowed, but never held in memory."""
    ok(form(user, space, b"x" * 4 * MIB + b"\r\n" + GOOD_PART + FORM_END))
    assert get(user, space, "hostile.bin") == b"hostile"
    user.delete("/storage/delete", params={"namespace": space, "name": "hostile.bin"})


def test_two_files_in_a_form(user: httpx.Client, space: str) -> None:
    """Refused whole."""
    body = (
        form_part("file", b"first", "first.bin")
        + form_part("file", b"second", "second.bin")
        + FORM_END
    )
    refused(form(user, space, body), 400)
    assert paths(user, space) == []


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("form-data; name=\"file\"; filename*=UTF-8''na%20me.bin", None),
        ("form-data; name=\"file\"; filename*=UTF-8''..%2f..%2fevil.bin", None),
        ("form-data; name=\"file\"; filename*=UTF-8''%00", None),
        ("form-data; name=\"file\"; filename*=UTF-8''..", None),
        ('form-data; name="file"; filename*=nonsense', None),
        ("form-data; name=\"file\"; filename*=UTF-8''%ff%fe", None),
        ("form-data; name=\"file\"; filename*=UTF-7''+AC4ALg-", None),
        ('form-data; name="file"; filename="a.bin"; filename="../b.bin"', "b.bin"),
        ('form-data; name="file"; filename="unclosed', None),
        ('form-data; name="file"; filename="a\\"; name=\\"x.bin"', 'a"; name="x.bin'),
        ('form-data; name="file; filename=x"', None),
        ("form-data; name=file; filename=plain.bin", "plain.bin"),
        ('form-data; name="fi\\le"; filename="x.bin"', None),
        ('FORM-DATA; NAME="file"; FILENAME="upper.bin"', "upper.bin"),
    ],
)
def test_odd_dispositions(
    user: httpx.Client, space: str, disposition: str, expected: str | None
) -> None:
    """Refused, or stored under a good name: never under another one."""
    body = (
        f"--{FORM_BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\nhostile\r\n".encode()
        + FORM_END
    )
    answer = form(user, space, body)
    if expected is None:
        refused(answer, 400)
        assert paths(user, space) == []
        return
    assert ok(answer)["name"] == expected
    assert paths(user, space) == [expected]
    ok(user.delete("/storage/delete", params={"namespace": space, "name": expected}))


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "gzip", "nonsense"])
def test_a_part_in_a_transfer_encoding(user: httpx.Client, space: str, encoding: str) -> None:
    """RFC 7578, 4.7: deprecated. Stored as it came."""
    body = form_part("file", b"aGVsbG8=", "e", f"Content-Transfer-Encoding: {encoding}\r\n")
    ok(form(user, space, body + FORM_END))
    assert get(user, space, "e") == b"aGVsbG8="
    ok(user.delete("/storage/delete", params={"namespace": space, "name": "e"}))


# --- heads -------------------------------------------------------------------------------


def broken(cloud: Cloud, data: bytes, *statuses: int, ends: bool = False) -> None:
    """HTTP itself is broken: one of the ``statuses`` and the end of the connection.

    With ``ends`` the client ends its side, so that the server cannot wait for more.
    """
    with Connection(cloud.url) as connection:
        connection.send(data)
        if ends:
            with contextlib.suppress(OSError):  # the server may have closed already
                connection.socket.shutdown(socket.SHUT_WR)
        refused(connection.answer(), statuses)
        assert connection.is_closed()


def plain(*lines: str, target: str = "/healthz", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


def test_a_header_of_100_kib(cloud: Cloud) -> None:
    broken(cloud, plain("X-Big: " + "x" * 100 * KIB), 431)


def test_a_header_of_10_mib(cloud: Cloud) -> None:
    broken(cloud, plain("X-Big: " + "x" * 10 * MIB), 431)


def test_ten_thousand_header_lines(cloud: Cloud) -> None:
    broken(cloud, plain(*(f"X-{number}: y" for number in range(10_000))), 431)


def test_a_request_line_of_100_kib(cloud: Cloud) -> None:
    broken(cloud, plain(target="/" + "x" * 100 * KIB), 431)
    broken(cloud, b"G" * 200 * KIB, 431)
    broken(cloud, plain(method="M" * 100 * KIB), 431)


def test_headers_that_never_end(cloud: Cloud) -> None:
    """The server must not keep all of it: 64 MiB are more than sockets hold."""
    with Connection(cloud.url) as connection:
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        for _ in range(16 * KIB):
            if not connection.send(b"X-More: " + b"x" * 4000 + b"\r\n"):
                break
            if select.select([connection.socket], [], [], 0)[0]:
                with contextlib.suppress(Closed):  # what is sent on may cost the answer
                    refused(connection.answer(), 431)
                break
        else:
            raise AssertionError("the server takes headers without end")


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -1"],
        ["Content-Length: x"],
        ["Content-Length: 1.5"],
        ["Content-Length: 0x10"],
        ["Content-Length: +5"],
        ["Content-Length: 5 5"],
        ["Content-Length: 5, 6"],
        ["Content-Length: "],
        ["Content-Length: " + "9" * 100],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity, chunked"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["Content-Length : 5"],
        ["Content-Length\t: 5"],
        ["no colon here"],
        [": no name"],
        ["Bad Name: x"],
        ["X\x00Y: x"],
        ["X: a\x00b"],
        ["X: a\rb"],
        ["X(Y): x"],
    ],
    ids=repr,
)
def test_heads_that_could_be_read_in_two_ways(
    cloud: Cloud, authorization: dict[str, str], space: str, lines: list[str]
) -> None:
    """Request smuggling: refused, and what follows is never taken for a request."""
    inner = plain(f"Authorization: {authorization['Authorization']}",
                  method="DELETE", target=f"/storage/namespaces/{space}")  # fmt: skip
    lines = [f"Authorization: {authorization['Authorization']}", *lines]
    data = plain(*lines, method="PUT", target=f"/storage/{space}/smuggled")
    broken(cloud, data + b"0\r\n\r\n" + inner, 400, 501)


def test_folded_headers(
    cloud: Cloud, authorization: dict[str, str], user: httpx.Client, space: str
) -> None:
    """RFC 9112, 5.2: refused."""
    name = unique("folded")
    token = f"Authorization: {authorization['Authorization']}"
    lines = [token, "X-One: a", " Content-Length: 500", "\tTransfer-Encoding: chunked"]
    lines.append("Content-Length: 5")
    with Connection(cloud.url) as connection:
        connection.send(plain(*lines, method="PUT", target=f"/storage/{space}/{name}") + b"12345")
        refused(connection.answer(), 400)
    assert name not in paths(user, space)


@pytest.mark.parametrize(
    "body",
    [b"x\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n",
     b"3\r\nab\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\nabc", b"3;" + b"x" * 200_000 + b"\r\nabc\r\n",
     b"3\nabc\n0\n\n", b"\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\nX",
     b"1\r\nx\r\n" + b"0" * 200_000, b"3\r\nabc0\r\n\r\n",
     b"0\r\n" + b"X-Trailer: x\r\n" * 20_000 + b"\r\n"],
    ids=range(14),
)  # fmt: skip
def test_bad_chunks(
    cloud: Cloud, authorization: dict[str, str], user: httpx.Client, space: str, body: bytes
) -> None:
    name = unique("chunks")
    lines = [f"Authorization: {authorization['Authorization']}", "Transfer-Encoding: chunked"]
    data = plain(*lines, method="PUT", target=f"/storage/{space}/{name}")
    broken(cloud, data + body, 400, 431, ends=True)
    assert name not in paths(user, space)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        b"\x00" * 1000,
        b"\xff" * 1000,
        bytes(range(256)) * 40,
        b"GET\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G(T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\nHost: x\n\n\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9,
        b"HELO mail.example\r\nMAIL FROM:<x>\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
    ids=lambda data: repr(data[:25]),
)
def test_bytes_that_are_no_http(cloud: Cloud, data: bytes) -> None:
    with Connection(cloud.url) as connection:
        connection.send(data)
        connection.socket.shutdown(socket.SHUT_WR)
        refused(connection.answer(), 505 if data.startswith(b"PRI") else 400)


@pytest.mark.parametrize(
    ("version", "status"),
    [("HTTP/0.9", 505), ("HTTP/1.2", 505), ("HTTP/2.0", 505), ("HTTP/3.0", 505), ("HTTP/11", 400),
     ("http/1.1", 400), ("HTTPS/1.1", 400), ("HTTP/1.1.1", 400), ("HTTP/-1.1", 400)],
)  # fmt: skip
def test_versions_that_are_not_spoken(cloud: Cloud, version: str, status: int) -> None:
    answer = send_bytes(cloud.url, f"GET /healthz {version}\r\nHost: x\r\n\r\n".encode())
    refused(answer, status)


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://evil.example/healthz", 200), ("*", 404), ("evil.example:443", 400),
     ("//evil.example/healthz", 404), ("/healthz#fragment", 404),
     ("/healthz?%ff=%ff&token=%00", 400), ("/healthz?" + "&" * 5000, 400), ("/%zz", 400),
     ("/%", 400), ("/healthz%", 400)],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_odd_targets(cloud: Cloud, target: str, status: int) -> None:
    answer = ask(cloud, "GET", target, {})
    assert answer.status == status
    if status != 200:
        refused(answer, status)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("Range", "bytes=" + "9" * 5000 + "-", 416), ("Range", "bytes=0-" + ",0-" * 5000, 200),
     ("If-None-Match", '"' * 5000, 200), ("If-None-Match", ",".join(['"x"'] * 5000), 200),
     ("If-Modified-Since", "Thu, 01 Jan 99999 00:00:00 GMT", 200),
     ("If-Modified-Since", "x" * 5000, 200), ("If-Range", "\xff", 200),
     ("Cookie", "token=" + "=;" * 5000, 200), ("Cookie", "\x01token", 200),
     ("Authorization", "Bearer " + "." * 5000, 401), ("Origin", "\xff" * 100, 200),
     ("X-Transfer-Id", "\xff", 400), ("Accept", "\x7f" * 50, 200),
     ("X-Forwarded-For", "x" * 5000, 200), ("Connection", "close, keep-alive, upgrade, x", 200),
     ("Upgrade", "websocket", 200), ("Upgrade", "h2c", 200), ("Content-Type", "x" * 5000, 200),
     ("TE", "trailers, gzip", 200)],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_odd_header_values(
    cloud: Cloud, space: str, witness: Witness, name: str, value: str, status: int
) -> None:
    target = f"/storage/{witness.space}/f?token={witness.token}"
    answer = ask(cloud, "GET", target, {name: value})
    assert answer.status == status
    if status >= 400:
        refused(answer, status)


# --- lengths that lie --------------------------------------------------------------------


def test_a_body_shorter_than_it_says(
    cloud: Cloud, authorization: dict[str, str], user: httpx.Client, space: str
) -> None:
    for method, target, kind, body in (
        ("PUT", f"/storage/{space}/short", "application/octet-stream", b"x" * 1000),
        ("POST", f"/storage/upload?namespace={space}", FORM_TYPE, GOOD_PART + FORM_END),
        ("POST", "/storage/namespaces", "application/json", b'{"name": "short-body"}'),
        ("POST", "/api/login", "application/json", b'{"username": "admin", "password": "x"}'),
    ):
        with Connection(cloud.url) as connection:
            headers = {
                **authorization,
                "Content-Type": kind,
                "Content-Length": str(len(body) + 1000),
            }
            connection.send(head(method, target, connection.host, headers) + body)
            connection.socket.shutdown(socket.SHUT_WR)
            refused(connection.answer(), 400)
    assert paths(user, space) == []
    names = [item["name"] for item in ok(user.get("/storage/namespaces"))]
    assert "short-body" not in names


def test_a_body_longer_than_it_says(
    cloud: Cloud, authorization: dict[str, str], user: httpx.Client, space: str
) -> None:
    """The rest is taken for a request: one that is none, or its own, but never for data."""
    target = f"/storage/{space}/long"
    with Connection(cloud.url) as connection:
        headers = {**authorization, "Content-Length": "5"}
        connection.send(head("PUT", target, connection.host, headers) + b"12345EXTRA\r\n\r\n")
        ok(connection.answer())
        refused(connection.answer(), 400)
        assert connection.is_closed()
    assert get(user, space, "long") == b"12345"
    ok(user.delete(f"/storage/{space}/long"))


def test_a_length_beyond_all_disks(
    cloud: Cloud, authorization: dict[str, str], user: httpx.Client, space: str
) -> None:
    """Nothing is reserved for what is only said to come."""
    for length in (2**40, 2**63 - 1):
        with Connection(cloud.url) as connection:
            headers = {**authorization, "Content-Length": str(length)}
            connection.send(head("PUT", f"/storage/{space}/vast", connection.host, headers) + b"x")
            connection.socket.shutdown(socket.SHUT_WR)
            refused(connection.answer(), (400, 413))
    assert paths(user, space) == []


# --- slow clients ------------------------------------------------------------------------

SLOW_LIMITS = {
    "GFS_CONTROL_HEADER_SECONDS": "1",
    "GFS_CONTROL_BODY_STALL_SECONDS": "1",
    "GFS_CONTROL_SEND_STALL_SECONDS": "2",
    "GFS_CONTROL_KEEP_ALIVE_SECONDS": "2",
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud that waits for nobody for long."""
    made = Cloud(tmp_path_factory.mktemp("impatient"), chunkservers=1, environment=SLOW_LIMITS)
    try:
        yield made.start()
    finally:
        made.stop()


def drip(connection: Connection, piece: bytes, seconds: float = 20.0) -> Answer | None:
    """Send ``piece`` again and again, slowly, until the server has had enough of it."""
    deadline = time.monotonic() + seconds
    connection.socket.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            data = connection.socket.recv(65536)
        except TimeoutError:
            if not connection.send(piece):
                return None
            continue
        except ConnectionResetError:
            return None
        connection.buffer += data
        if not data:
            return None
        connection.socket.settimeout(20)
        return connection.answer()
    raise AssertionError(f"the server still waits after {seconds:g} s")


def test_slow_heads(impatient: Cloud) -> None:
    user, _ = impatient.make_user()
    slow = []
    for _ in range(50):
        connection = Connection(impatient.url)
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        slow.append(connection)
    ok(user.get("/api/session"))
    answer = drip(slow[0], b"X: y\r\n")
    if answer is not None:
        refused(answer, 408)
    for connection in slow[1:]:
        refused(connection.answer(), 408)
        assert connection.is_closed()
        ok(user.get("/api/session"))
    for connection in slow:
        connection.close()


def test_idle_connections_are_closed(impatient: Cloud) -> None:
    never, served = Connection(impatient.url), Connection(impatient.url)
    assert served.exchange("GET", "/healthz").status == 200
    assert served.is_closed()
    assert never.is_closed()
    never.close()
    served.close()


def test_bodies_that_stop(impatient: Cloud) -> None:
    user, _ = impatient.make_user()
    space = make_namespace(user, "slow")
    token = {"Authorization": f"Bearer {bearer(user)}"}
    for method, target, kind, body in (
        ("PUT", f"/storage/{space}/f", "application/octet-stream", b"x" * 100_000),
        ("POST", f"/storage/upload?namespace={space}", FORM_TYPE, GOOD_PART),
        ("POST", "/storage/namespaces", "application/json", b'{"name": "slow'),
    ):
        with Connection(impatient.url) as connection:
            headers = {**token, "Content-Type": kind, "Content-Length": "120000"}
            connection.send(head(method, target, connection.host, headers) + body)
            ok(user.get("/api/session"))
            refused(connection.answer(), 408)
            assert connection.is_closed()
    assert paths(user, space) == []


def test_a_slow_body_that_moves_is_served(impatient: Cloud) -> None:
    """The limit is for a stall, not for the whole."""
    user, _ = impatient.make_user()
    space = make_namespace(user, "steady")
    with Connection(impatient.url) as connection:
        headers = {"Authorization": f"Bearer {bearer(user)}", "Content-Length": "30"}
        connection.send(head("PUT", f"/storage/{space}/f", connection.host, headers))
        for _ in range(30):  # three seconds; a stall is one
            readable, _, _ = select.select([connection.socket], [], [], 0.1)
            assert not readable, connection.answer()
            connection.send(b"x")
        ok(connection.answer())
    assert get(user, space, "f") == b"x" * 30


def test_readers_that_stop(impatient: Cloud) -> None:
    """They are cut off, short of ``Content-Length``, and others are served meanwhile."""
    user, _ = impatient.make_user()
    space = make_namespace(user, "stalled")
    data = b"y" * 48 * MIB
    ok(user.put(f"/storage/{space}/f", content=data))
    stalled = []
    for _ in range(5):
        connection = Connection(impatient.url, receive_bytes=16 * KIB)
        connection.request(
            "GET", f"/storage/{space}/f", {"Authorization": f"Bearer {bearer(user)}"}
        )
        assert connection.answer_head().status == 200
        stalled.append(connection)
    with anonymous(impatient.url) as nobody:

        def is_idle() -> bool:
            ok(user.get("/api/session"))
            text = nobody.get("/metrics").text
            active = [
                float(line.split()[-1])
                for line in text.splitlines()
                if line.startswith("gfs_control_transfers_active{")
            ]
            return sum(active) == 0

        wait_for(is_idle, 30, "end of the stalled downloads")
    for connection in stalled:
        assert len(connection.read_to_end()) < len(data)
        connection.close()


def test_many_idle_connections_do_not_keep_others_out(cloud: Cloud, user: httpx.Client) -> None:
    opened = []
    try:
        for _ in range(400):
            place = ("127.0.0.1", httpx.URL(cloud.url).port)
            opened.append(socket.create_connection(place, 10, ("127.0.0.2", 0)))
        with anonymous(cloud.url) as client:
            ok(client.get("/healthz"))
    finally:
        for connection in opened:
            connection.close()


def test_more_connections_than_allowed(make_cloud: Callable[..., Cloud]) -> None:
    """At the limit an idle one makes room."""
    cloud = make_cloud(chunkservers=1, environment={"GFS_CONTROL_CONNECTIONS_MAX": "20"}).start()
    opened = []
    try:
        for _ in range(60):
            connection = Connection(cloud.url)
            assert connection.exchange("GET", "/healthz").status == 200
            opened.append(connection)
    finally:
        for connection in opened:
            connection.close()


# --- tokens ------------------------------------------------------------------------------


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(claims: dict[str, Any], header: dict[str, Any], key: bytes | None) -> str:
    signed = f"{encoded(header)}.{encoded(claims)}"
    signature = b"" if key is None else hmac.new(key, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.fixture(scope="module")
def forgeries(cloud: Cloud, user: httpx.Client) -> dict[str, str]:
    """Tokens that must not be believed. The administrator would be theirs to be."""
    genuine = bearer(cloud.admin)
    header = jwt.get_unverified_header(genuine)
    claims: dict[str, Any] = jwt.decode(genuine, options={"verify_signature": False})
    head_part, claims_part, signature = genuine.split(".")
    mine = bearer(user)
    my_claims: dict[str, Any] = jwt.decode(mine, options={"verify_signature": False})
    my_id = my_claims["user_id"]
    api = make_token(user, {f"storage.{my_id}": ["read", "create"]})["token"]
    api_claims = jwt.decode(api.removeprefix("ecloud_"), options={"verify_signature": False})
    past = int(time.time()) - 1000
    wrong = b"not the key, but as long as one is"
    return {
        "alg none": forged(claims, {**header, "alg": "none"}, None),
        "alg None": forged(claims, {**header, "alg": "None"}, None),
        "alg NONE, signed": forged(claims, {**header, "alg": "NONE"}, wrong),
        "no alg": forged(claims, {"typ": "JWT", "kid": header["kid"]}, wrong),
        "empty signature": f"{head_part}.{claims_part}.",
        "no signature": f"{head_part}.{claims_part}",
        "wrong key": forged(claims, header, wrong),
        "empty key": forged(claims, header, b""),
        "key is the kid": forged(claims, header, header["kid"].encode()),
        "unknown kid": forged(claims, {**header, "kid": "unknown"}, wrong),
        "no kid": forged(claims, {"alg": "HS256", "typ": "JWT"}, wrong),
        "kid is a path": forged(claims, {**header, "kid": "../../../dev/null"}, b""),
        "kid is a number": forged(claims, {**header, "kid": 0}, wrong),
        "kid is a list": forged(claims, {**header, "kid": ["x"]}, wrong),
        "RS256": forged(claims, {**header, "alg": "RS256"}, wrong),
        "ES256": forged(claims, {**header, "alg": "ES256"}, wrong),
        "HS512": forged(claims, {**header, "alg": "HS512"}, wrong),
        "jwk given": forged(claims, {**header, "jwk": {"kty": "oct", "k": encoded("x")}}, b"x"),
        "crit": forged(claims, {**header, "crit": ["exp"]}, wrong),
        "not base64": f"{head_part}.{claims_part}.!!!!",
        "not json": f"{encoded('x')}.{encoded('y')}.{signature}",
        "claims are a list": forged({}, header, wrong).replace(encoded({}), encoded([])),
        "my claims, admin": f"{mine.split('.')[0]}."
        f"{encoded({**my_claims, 'is_admin': True})}.{mine.split('.')[2]}",
        "other's signature": f"{head_part}.{claims_part}.{mine.split('.')[2]}",
        "expired, wrong key": forged({**claims, "exp": past}, header, wrong),
        "cut": genuine[:-1],
        "lengthened": genuine + "A",
        "two": f"{genuine}.{genuine}",
        "api token as session": api.removeprefix("ecloud_"),
        "session as api token": f"ecloud_{mine}",
        "api token, type changed": api.removeprefix("ecloud_").split(".")[0]
        + f".{encoded({**api_claims, 'type': 'session'})}."
        + api.split(".")[2],
        "api token of nobody": "ecloud_"
        + forged({**api_claims, "token_id": "unknown"}, header, wrong),
        "api token, wider scopes": f"{api.split('.')[0]}."
        f"{encoded({**api_claims, 'scopes': {f'storage.{my_id}': ['delete']}})}."
        f"{api.split('.')[2]}",
        "prefix alone": "ecloud_",
        "dots": "..",
        "long": "A" * 20_000,
    }


NAMES_OF_FORGERIES = [
    "alg none", "alg None", "alg NONE, signed", "no alg", "empty signature", "no signature",
    "wrong key", "empty key", "key is the kid", "unknown kid", "no kid", "kid is a path",
    "kid is a number", "kid is a list", "RS256", "ES256", "HS512", "jwk given", "crit",
    "not base64", "not json", "claims are a list", "my claims, admin", "other's signature",
    "expired, wrong key", "cut", "lengthened", "two", "api token as session",
    "session as api token", "api token, type changed", "api token of nobody",
    "api token, wider scopes", "prefix alone", "dots", "long",
]  # fmt: skip


def test_all_forgeries_are_tried(forgeries: dict[str, str]) -> None:
    assert list(forgeries) == NAMES_OF_FORGERIES


@pytest.mark.parametrize("name", NAMES_OF_FORGERIES)
def test_a_forged_token_is_nobodys(cloud: Cloud, forgeries: dict[str, str], name: str) -> None:
    token = forgeries[name]
    with with_token(cloud.url, token) as client:
        for method, target in (
            ("GET", "/api/session"),
            ("GET", "/api/tokens"),
            ("GET", "/admin/users"),
            ("GET", "/api/service-accounts"),
        ):
            refused(client.request(method, target), 401)
        refused(client.post("/storage/namespaces", json={"name": unique("forged")}), 401)
        refused(client.put(f"/storage/default/{unique('forged')}", content=b"x"), 401)
        # Where anybody may ask it is as if there were no token.
        ok(client.get("/storage/namespaces"))
    with anonymous(cloud.url) as client:
        refused(client.get("/api/session", params={"token": token}), 401)
        refused(client.get("/sse/progress", params={"id": "x", "token": token}), 401)


def test_the_genuine_token_of_the_forgeries_works(cloud: Cloud) -> None:
    """Else the test above would not show anything."""
    ok(cloud.admin.get("/admin/users"))


# --- afterwards --------------------------------------------------------------------------


def test_at_last_nothing_odd_is_stored(
    cloud: Cloud, user: httpx.Client, space: str, everything_before: dict[str, Any]
) -> None:
    assert paths(user, space) == []
    ok(user.delete(f"/storage/namespaces/{space}"))
    after = everything(cloud)
    assert after["namespaces"] == everything_before["namespaces"]
    assert after["files"] == everything_before["files"]
    assert after["users"] == everything_before["users"]
    assert after["tree"] == everything_before["tree"]
    assert cloud.cluster.json("fsck")["damaged"] == []


def test_at_last_no_request_was_the_servers_fault(cloud: Cloud) -> None:
    """No 5xx was counted, and the log holds no traceback."""
    with anonymous(cloud.url) as client:
        text = client.get("/metrics").text
    failed = [line for line in text.splitlines() if 'status="5' in line]
    assert failed == []
    logs = [
        cloud.cluster.output,
        *(path for path in Path(cloud.cluster.state).rglob("*.log") if path.is_file()),
    ]
    for path in logs:
        assert b"Traceback" not in path.read_bytes(), path
