"""Hostile input: each gets its clear refusal, and others are served meanwhile.

A witness asks for his session and a file all the time; a test fails if one of his
requests does, or if none is answered while it runs. The last test looks for traces.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from checks import (
    anonymous,
    bearer,
    make_namespace,
    metrics,
    ok,
    paths,
    put,
    refused,
    unique,
    wait_for,
    with_token,
)
from cloud import Cloud
from raw import FORM_END, FORM_TYPE, Answer, Connection, form_part, head

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
            while not self._done.wait(WITNESS_PAUSE_SECONDS):
                try:
                    assert client.get("/api/session").status_code == 200
                    assert client.get(f"/storage/{self.space}/f").content == b"seen"
                except Exception as error:
                    self.failures.append(repr(error))
                self.served += 1

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def check(self, since: int) -> None:
        """He was served since ``since``, in a request that began after it."""
        wait_for(lambda: self.served >= since + 2, "answer for the witness")
        assert self.failures == []


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One that nobody else changes: all that it has is looked at afterwards."""
    with Cloud(tmp_path_factory.mktemp("hostile"), chunkservers=1) as made:
        yield made.start()


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
def test_an_invalid_namespace(
    cloud: Cloud, authorization: dict[str, str], space: str, method: str, path: str
) -> None:
    body = b"hostile" if method == "PUT" else None
    refused(ask(cloud, method, path, authorization, body), (400, 404, 405))


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..", "a%2fb", "%00", "a%00", "a%0a", "%5c", "%c0%ae", "%ed%a0%80", "%ff",
     "x" * 65, "x" * 4000, "", "%20", "a%20b", "files", "%66iles"],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_an_invalid_namespace_in_a_query(
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


@pytest.mark.parametrize("transfer", ["..%2f..%2fx", "%00", "x" * 4000, "a%0d%0adata:%20x", "%ff"])
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
        b'{"name": "' + b"." * 65 + b'", "other": ' + DEEP + b"}",
        *(b"", b"{", b"nonsense", b"null", b'"text"', b"[1]", b"3", b"\xff\xfe{}", b"{}{}"),
        *(b"name=a&password=b", b"\xef\xbb\xbf{", b"\x00" * 1000),
        *(
            b'{"name": "x", "visibility": %s}' % number
            for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 50_000)
        ),
        *(
            b'{"name": "%s"}' % text
            for text in (b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"a\nb")
        ),
        *(b'{"name": %s}' % other for other in (b'["x"]', b'{"name": "x"}', b"true")),
        *(b'{"name": "x",}', b"{'name': 'x'}", b'{"name": "x"} trailing'),
        '{"name": "x"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_json_that_is_none_or_of_the_wrong_shape(
    user: httpx.Client, space: str, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    for target in ("/storage/namespaces", "/api/tokens", "/api/service-accounts"):
        refused(user.post(target, content=body, headers=headers), 400)
    # What anybody may send without credentials may have a lower limit.
    login = user.post("/api/login", content=body, headers=headers)
    refused(login, (400, 413) if len(body) > 10_000 else 400)


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


def form(client: httpx.Client, space: str, body: bytes, kind: str = FORM_TYPE) -> httpx.Response:
    return client.post(
        "/storage/upload", params={"namespace": space}, content=body, headers={"Content-Type": kind}
    )


GOOD_PART = form_part("file", b"hostile", "hostile.bin")


def test_a_form_field_without_a_file_name(user: httpx.Client, space: str) -> None:
    """``file`` as a text field: there is no name to store it under."""
    refused(form(user, space, form_part("file", b"hostile") + FORM_END), 400)


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://evil.example/healthz", 200), ("*", 400), ("evil.example:443", 400),
     ("//evil.example/healthz", 404), ("//healthz", 404), ("///healthz", 404),
     ("/%2fhealthz", 404), ("//metrics", 404), ("http://evil.example//healthz", 404),
     ("//console/", 404), ("/healthz#fragment", 400), ("http://a b@evil.example/healthz", 400),
     ("http://user@evil.example/healthz", 400),
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
    [("Range", "bytes=" + "9" * 4000 + "-", 416), ("Range", "bytes=0-" + ",0-" * 1000, 200),
     ("Range", "bytes=" + "9" * 4096 + "-", 431), ("Accept", "a/b" + " " * 5000 + "x", 200),
     ("If-None-Match", '"' * 4000, 200), ("If-None-Match", ",".join(['"x"'] * 1000), 200),
     ("If-None-Match", '"' * 5000, 431),
     ("If-Modified-Since", "Thu, 01 Jan 99999 00:00:00 GMT", 200),
     ("If-Modified-Since", "x" * 4000, 200), ("If-Range", "\xff", 200),
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


#: Heads, readers and idle connections that stop are in test_http_server.
#: The others, who are served meanwhile, are slow on a busy machine, too.
STALLS = {"GFS_CONTROL_BODY_STALL_SECONDS": "5"}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud that waits for nobody for long."""
    with Cloud(tmp_path_factory.mktemp("impatient"), chunkservers=1, environment=STALLS) as made:
        yield made.start()


def test_bodies_that_stop(impatient: Cloud) -> None:
    user, _ = impatient.make_user()
    space = make_namespace(user, "slow")
    token = {"Authorization": f"Bearer {bearer(user)}"}
    with contextlib.ExitStack() as stack:
        slow = []
        for method, target, kind, body in (
            ("PUT", f"/storage/{space}/f", "application/octet-stream", b"x" * 100_000),
            ("POST", f"/storage/upload?namespace={space}", FORM_TYPE, GOOD_PART),
            ("POST", "/storage/namespaces", "application/json", b'{"name": "slow'),
        ):
            slow.append(stack.enter_context(Connection(impatient.url)))
            headers = {**token, "Content-Type": kind, "Content-Length": "120000"}
            slow[-1].send(head(method, target, slow[-1].host, headers) + body)
        ok(user.get("/api/session"))
        for connection in slow:
            refused(connection.answer(), 408)
            assert connection.is_closed()
    assert paths(user, space) == []


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
        text = metrics(client)
    failed = [line for line in text.splitlines() if 'status="5' in line]
    assert failed == []
    logs = [
        cloud.cluster.output,
        *(path for path in Path(cloud.cluster.state).rglob("*.log") if path.is_file()),
    ]
    for path in logs:
        assert b"Traceback" not in path.read_bytes(), path
