"""Nothing that a request can ask for keeps the event loop to itself for long.

All tests of the control plane look at this: see ``held`` in ``conftest.py`` and
``Cloud.stop``. Here are the requests that once did, or might.
"""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio
from auth_server import running
from checks import bearer, ok
from cloud import Cloud
from compute_cloud import ComputeCloud
from raw import FORM_TYPE, Closed, Connection

from control.api import Call, Module, Route, in_order, json_array
from control.api.answers import PIECE_ROWS
from control.app.loop import STEP_SECONDS
from control.http.limits import HEADER_LINES_MAX, PARAMETERS_MAX
from control.identity.access import PUBLIC
from control.identity.rows import Session, User, sessions, users
from control.records import Txn
from control.settings import ControlSettings
from control.testing import make_app, served

#: One that is slow is slow each time; others may be once, on a machine that is busy.
TIMES = 2
ROWS = 20_000
HEAD_BYTES = 60_000
#: What is taken of JSON at most.
BODY_BYTES = ControlSettings().json_bytes_max


class Row(msgspec.Struct):
    number: int


class Computing(Module):
    name = "computing"

    def routes(self) -> Sequence[Route]:
        return [
            Route("GET", "/long", self.long, PUBLIC, "In one step", answer=dict[str, str]),
            Route("GET", "/waits", self.waits, PUBLIC, "Waits", answer=dict[str, str]),
        ]

    async def long(self, call: Call) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        end = time.thread_time() + 1.5 * STEP_SECONDS
        while time.thread_time() < end:
            pass
        await trio.lowlevel.checkpoint()
        return {}

    async def waits(self, call: Call) -> dict[str, str]:
        time.sleep(2 * STEP_SECONDS)  # noqa: ASYNC251
        return {}


@pytest.mark.holds_the_loop
async def test_a_step_that_is_too_long_is_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(make_app(tmp_path, Computing)) as http:
        ok(await http.get("/waits"))
        assert "/waits" not in caplog.text, "the thread computed nothing"
        with caplog.at_level(logging.WARNING, "control.app.loop"):
            ok(await http.get("/long"))
        assert "GET /long held the event loop for" in caplog.text
        assert "control/app/application.py" in caplog.text, "where it was"
        lines = dict(line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines())
    (longest,) = (lines[key] for key in lines if key.startswith("gfs_control_loop_step_longest_"))
    assert float(longest) >= STEP_SECONDS
    (waited,) = (lines[key] for key in lines if key.startswith("gfs_control_loop_wall_seconds_sum"))
    (computed,) = (
        lines[key] for key in lines if key.startswith("gfs_control_loop_step_seconds_sum")
    )
    assert float(waited) >= float(computed) + 2 * STEP_SECONDS, "it reports waiting, too"


# -- long lists ----------------------------------------------------------------------------


async def test_a_long_list_is_read_sorted_and_sent_in_pieces(tmp_path: Path) -> None:
    """Every user with a session; in one go these would take 200 ms and more."""
    async with running(tmp_path) as server:

        def insert(txn: Txn) -> None:
            for number in range(ROWS):
                name = f"user-{number * 7919 % ROWS:05}"
                users.insert(txn, User(f"id{number}", name, name, "", False, 1))
                row = Session(f"s{number}", f"id{number}", number // 3, 2**40, "192.0.2.1")
                sessions.insert(txn, row)

        await server.app.control.records.write(insert, seconds=60.0)
        for _ in range(TIMES):
            found = ok(await server.call("GET", "/admin/users", server.admin))
        names = [row["username"] for row in found]
        assert names == sorted(names)
        assert set(names) == {"admin", *(f"user-{number:05}" for number in range(ROWS))}
        for _ in range(TIMES):
            found = ok(await server.call("GET", "/admin/sessions", server.admin))
        assert len(found) == ROWS + 1
        order = [(row["created_at"], row["id"]) for row in found]
        assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("count", [0, 1, PIECE_ROWS, PIECE_ROWS + 1, 3 * PIECE_ROWS])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_list_is_json_whatever_its_length(count: int, kept: bool) -> None:
    rows = await in_order(list(range(count)), lambda row: -row)
    answer = json_array(rows, lambda row: Row(row) if kept or row % 400 == 0 else None)
    found = json.loads(await answer.get_data())
    expected = [row for row in reversed(range(count)) if kept or row % 400 == 0]
    assert found == [{"number": row} for row in expected]


# -- requests ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    made = ComputeCloud(tmp_path_factory.mktemp("loop"), chunkservers=2)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def fill(piece: str, size: int = HEAD_BYTES) -> str:
    return piece * (size // len(piece))


ETAGS = fill('"a",')
ACCENTS = fill("\\u00e9", BODY_BYTES - 99)

#: Method, path, header lines, body. {token} is a user's, {space} a storage namespace of his.
REQUESTS: dict[str, tuple[str, str, list[str], bytes]] = {
    "bearer": ("GET", "/api/session", [f"Authorization: Bearer {fill('a.')}"], b""),
    "cookies": ("GET", "/api/session", [f"Cookie: {fill(';')}"], b""),
    "parameters": ("GET", f"/api/session?{fill('a&')}", [], b""),
    "as many as may be": ("GET", f"/api/session?{'a=%41&' * (PARAMETERS_MAX - 1)}", [], b""),
    "headers": ("GET", "/healthz", ["a:"] * 15_000, b""),
    "as many headers": ("GET", "/healthz", ["a: b"] * (HEADER_LINES_MAX - 5), b""),
    "slashes": ("GET", f"/{fill('a/')}", [], b""),
    "escapes": ("GET", f"/storage/{{space}}/{fill('%41')}", ["{token}"], b""),
    "ranges": ("GET", "/storage/{space}/file", ["{token}", f"Range: bytes={fill('0-0,')}1-1"], b""),
    "etags": ("GET", "/storage/{space}/file", ["{token}", f"If-None-Match: {ETAGS}"], b""),
    "forwarded": ("GET", "/healthz", [f"X-Forwarded-For: {fill(',')}"], b""),
    "parts": (
        "POST",
        "/storage/upload?namespace={space}",
        ["{token}", f"Content-Type: {FORM_TYPE}"],
        b"--boundary-of-the-tests\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n" * 10_000,
    ),
    "almost boundaries": (
        "POST",
        "/storage/upload?namespace={space}",
        ["{token}", f"Content-Type: {FORM_TYPE}"],
        b'--boundary-of-the-tests\r\nContent-Disposition: form-data; name="file"; filename="q"'
        b"\r\n\r\n" + b"\r\n--" * 500_000,
    ),
}
JSON = {
    "keys": "{" + ",".join(f'"{number:x}":0' for number in range(BODY_BYTES // 10)) + "}",
    "actions": json.dumps({"name": "x", "scopes": {"storage.0": ["read"] * (BODY_BYTES // 8 - 9)}}),
    "scopes": json.dumps({"name": "x", "scopes": {f"{n:x}": [] for n in range(BODY_BYTES // 12)}}),
    "digits": '{"name":' + fill("1", BODY_BYTES - 99) + "}",
    "depth": fill("[", BODY_BYTES),
    "escapes": f'{{"name":"{ACCENTS}"}}',
    "text": '{"name":"x","public_key":"ssh-ed25519 ' + fill("A", BODY_BYTES - 99) + '"}',
    "paths": json.dumps(
        {"name": "x", "ssh_key_ids": [1], "mount_paths": ["/a/b"] * (BODY_BYTES // 8 - 99)}
    ),
    "rules": json.dumps(
        {"name": "x", "ssh_key_ids": [1], "ingress_rules": [{"port": 80}] * (BODY_BYTES // 14 - 9)}
    ),
}
assert all(0.8 * BODY_BYTES < len(text) <= BODY_BYTES for text in JSON.values())
MASK = b"\0\0\0\0"
FRAMES = {
    # Each is answered. In one go so many would take ten times as long as anything may.
    "pings": (b"\x89\x80" + MASK) * 5_000,
    "texts": (b"\x81\x80" + MASK) * 15_000,
    "nothing in pieces": b"\x01\x80" + MASK + (b"\x00\x80" + MASK) * 15_000,
    "bytes in pieces": b"\x02\x80" + MASK + (b"\x00\x81" + MASK + b"x") * 15_000,
    "large": (b"\x82\xff" + struct.pack(">Q", 1 << 20) + b"abcd" + bytes(1 << 20)) * 3,
}


@pytest.fixture(scope="module")
def known(cloud: ComputeCloud) -> dict[str, str]:
    user, _ = cloud.make_user()
    ok(user.post("/storage/namespaces", json={"name": "loop", "visibility": 0}))
    ok(user.put("/storage/loop/file", content=bytes(100_000)))
    container = cloud.running(user)
    return {
        "token": f"Authorization: Bearer {bearer(user)}",
        "space": "loop",
        "id": container["id"],
        "admin": f"Authorization: Bearer {bearer(cloud.admin)}",
    }


def send(cloud: ComputeCloud, data: bytes) -> None:
    """Send it, and wait for an answer if there is one."""
    with Connection(cloud.url) as connection:
        connection.send(data)
        with suppress(Closed):
            connection.answer()


def request(method: str, path: str, lines: list[str], body: bytes) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}"]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_much_to_look_at(
    cloud: ComputeCloud, known: dict[str, str], name: str
) -> None:
    method, path, lines, body = REQUESTS[name]
    for key, value in known.items():
        path = path.replace(f"{{{key}}}", value)
        lines = [line.replace(f"{{{key}}}", value) for line in lines]
    for _ in range(TIMES):
        send(cloud, request(method, path, lines, body))
    assert cloud.held_the_loop() == []


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_much_to_look_at(
    cloud: ComputeCloud, known: dict[str, str], name: str
) -> None:
    """Sent to every route that takes JSON."""
    for path, methods in ok(cloud.admin.get("/openapi.json"))["paths"].items():
        for method, reported in methods.items():
            if "application/json" in reported.get("requestBody", {}).get("content", {}):
                token = known["admin" if path.startswith("/admin") else "token"]
                path = path.replace("{id}", known["id"]).replace("{name}", "loop")
                for _ in range(TIMES):
                    send(cloud, request(method.upper(), path, [token], JSON[name].encode()))
    assert cloud.held_the_loop() == []


@pytest.mark.parametrize("name", FRAMES)
def test_frames_of_a_websocket(cloud: ComputeCloud, known: dict[str, str], name: str) -> None:
    paths = ["/compute/ws", f"/compute/containers/{known['id']}/terminal"] * TIMES
    for path in paths:
        upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        with Connection(cloud.url) as connection:
            connection.send(request("GET", path, [known["token"], *upgrade, key], b""))
            assert connection.next_head().status == 101
            connection.send(FRAMES[name] + b"\x88\x80" + MASK)
            connection.read_to_end()
    assert cloud.held_the_loop() == []


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/metrics", "/readyz"])
def test_what_anybody_may_ask_for(cloud: ComputeCloud, path: str) -> None:
    for _ in range(3):
        ok_or_page = cloud.client().get(path)
        assert ok_or_page.status_code == 200
    assert cloud.held_the_loop() == []


def test_what_all_workers_counted(make_cloud: Callable[..., Cloud]) -> None:
    """Each has counts of each route, in files that whoever is asked must read."""
    cloud = make_cloud("--control-workers", "4", chunkservers=1).start()
    nobody = cloud.client()
    for path, methods in ok(nobody.get("/openapi.json"))["paths"].items():
        for method in methods:
            for _ in range(4):  # by another worker, with luck
                with cloud.client() as somebody:
                    somebody.request(method, path.replace("{", "").replace("}", ""))
    for _ in range(5):
        with cloud.client() as somebody:
            assert "gfs_control_requests_total" in somebody.get("/metrics").text
    assert cloud.held_the_loop() == []
