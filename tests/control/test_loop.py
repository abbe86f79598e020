"""Nothing that a request can ask for keeps the event loop to itself for long.

Here are the requests that once did, or might. How much a step computes is told by the calls it
makes, which are the same on each machine. ``holds`` looks at the CPU time, in all tests of the
control plane.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec
import pytest
import trio
from auth_server import running
from checks import bearer, ok
from cloud import Cloud
from computing import Computing
from computing import computing as in_process
from http_served import connected
from limits import HANG_SECONDS
from raw import FORM_TYPE, Connection

from control.api import Call, Module, Route, in_order, json_array
from control.api.answers import PIECE_ROWS
from control.app import loop
from control.app.loop import STEP_SECONDS
from control.http.limits import HEADER_LINES_MAX, PARAMETERS_MAX
from control.identity.access import PUBLIC
from control.identity.rows import Session, User, sessions, users
from control.records import Txn
from control.settings import ControlSettings
from control.testing import make_app, served

ROWS = 20_000
HEAD_BYTES = 60_000
#: What is taken of JSON at most.
BODY_BYTES = ControlSettings().json_bytes_max
#: In one step, of functions in Python and in C: these take some milliseconds.
CALLS_MAX = 30_000


class Row(msgspec.Struct):
    number: int


class Calls(trio.abc.Instrument):
    """How many calls the longest step makes, and whose that is."""

    def __init__(self) -> None:
        self.most, self.of = 0, ""
        self._now = 0

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        self._now += event in ("call", "c_call")

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._now > self.most:
            self.most, self.of = self._now, f"{task.name} at {loop.place_of(task)}"


@contextmanager
def short_steps() -> Iterator[None]:
    calls = Calls()
    trio.lowlevel.add_instrument(calls)
    loop.log.disabled = True  # to count them makes each several times as slow
    sys.setprofile(calls.note)
    try:
        yield
    finally:
        sys.setprofile(None)
        loop.log.disabled = False
        trio.lowlevel.remove_instrument(calls)
    assert calls.most < CALLS_MAX, calls.of


class Hands:
    """What the loop is watched by: the time that passes, and that of the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.cpu = 0.0
        monkeypatch.setattr(loop, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(loop, "thread_time", lambda: self.cpu)


async def test_a_step_that_is_too_long_is_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Hands(monkeypatch)

    class Computing(Module):
        name = "computing"

        def routes(self) -> Sequence[Route]:
            return [
                Route("GET", "/long", self.long, PUBLIC, "In one step", answer=dict[str, str]),
                Route("GET", "/waits", self.waits, PUBLIC, "Waits", answer=dict[str, str]),
            ]

        async def long(self, call: Call) -> dict[str, str]:
            hands.wall += 1.5 * STEP_SECONDS
            hands.cpu += 1.5 * STEP_SECONDS
            await trio.lowlevel.checkpoint()
            return {}

        async def waits(self, call: Call) -> dict[str, str]:
            hands.wall += 2 * STEP_SECONDS
            return {}

    async with served(make_app(tmp_path, Computing)) as http:
        ok(await http.get("/waits"))
        assert "/waits" not in caplog.text, "the thread computed nothing"
        with caplog.at_level(logging.WARNING, "control.app.loop"):
            ok(await http.get("/long"))
        assert "GET /long held the event loop for 30 ms" in caplog.text
        assert "control/app/application.py" in caplog.text, "where it was"
        lines = dict(line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines())
    longest, computed, waited = (
        float(next(lines[key] for key in lines if key.startswith(f"gfs_control_loop_{name}")))
        for name in ("step_longest_", "step_seconds_sum", "wall_seconds_sum")
    )
    assert (longest, computed) == (1.5 * STEP_SECONDS, 1.5 * STEP_SECONDS)
    assert waited == pytest.approx(3.5 * STEP_SECONDS), "it reports waiting, too"


async def test_a_long_list_is_read_sorted_and_sent_in_pieces(tmp_path: Path) -> None:
    """Every user with a session; in one go these would take 200 ms and more."""
    async with running(tmp_path) as server:

        def insert(txn: Txn) -> None:
            for number in range(ROWS):
                name = f"user-{number * 7919 % ROWS:05}"
                users.insert(txn, User(f"id{number}", name, name, "", False, 1))
                row = Session(f"s{number}", f"id{number}", number // 3, 2**40, "192.0.2.1")
                sessions.insert(txn, row)

        await server.app.control.records.write(insert, seconds=HANG_SECONDS)
        with short_steps():
            found = ok(await server.call("GET", "/admin/users", server.admin))
        names = [row["username"] for row in found]
        assert names == sorted(names)
        assert set(names) == {"admin", *(f"user-{number:05}" for number in range(ROWS))}
        with short_steps():
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


@pytest.fixture
async def c(tmp_path: Path) -> AsyncIterator[Computing]:
    async with in_process(tmp_path) as made:
        yield made


def fill(piece: str, size: int = HEAD_BYTES) -> str:
    return piece * (size // len(piece))


ETAGS = fill('"a",')
ACCENTS = fill("\\u00e9", BODY_BYTES - 99)

#: Method, path, header lines, body.
REQUESTS: dict[str, tuple[str, str, list[str], bytes]] = {
    "bearer": ("GET", "/api/session", [f"Authorization: Bearer {fill('a.')}"], b""),
    "cookies": ("GET", "/api/session", [f"Cookie: {fill(';')}"], b""),
    "parameters": ("GET", f"/api/session?{fill('a&')}", [], b""),
    "as many as may be": ("GET", f"/api/session?{'a=%41&' * (PARAMETERS_MAX - 1)}", [], b""),
    "headers": ("GET", "/healthz", ["a:"] * 15_000, b""),
    "as many headers": ("GET", "/healthz", ["a: b"] * (HEADER_LINES_MAX - 5), b""),
    "slashes": ("GET", f"/{fill('a/')}", [], b""),
    "forwarded": ("GET", "/healthz", [f"X-Forwarded-For: {fill(',')}"], b""),
}
STORAGE = {
    "escapes": ("GET", f"/storage/loop/{fill('%41')}", [], b""),
    "ranges": ("GET", "/storage/loop/file", [f"Range: bytes={fill('0-0,')}1-1"], b""),
    "etags": ("GET", "/storage/loop/file", [f"If-None-Match: {ETAGS}"], b""),
    "parts": (
        "POST",
        "/storage/upload?namespace=loop",
        [f"Content-Type: {FORM_TYPE}"],
        b"--boundary-of-the-tests\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n" * 10_000,
    ),
    "almost boundaries": (
        "POST",
        "/storage/upload?namespace=loop",
        [f"Content-Type: {FORM_TYPE}"],
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
FRAMES_SENT = 2_000  # In one go so many would make ten times the calls that any step may.
FRAMES = {
    # Each is answered.
    "pings": (b"\x89\x80" + MASK) * FRAMES_SENT,
    "texts": (b"\x81\x80" + MASK) * FRAMES_SENT,
    "nothing in pieces": b"\x01\x80" + MASK + (b"\x00\x80" + MASK) * FRAMES_SENT,
    "bytes in pieces": b"\x02\x80" + MASK + (b"\x00\x81" + MASK + b"x") * FRAMES_SENT,
    "large": (b"\x82\xff" + struct.pack(">Q", 1 << 20) + b"abcd" + bytes(1 << 20)) * 3,
}


def request(method: str, path: str, lines: list[str], body: bytes) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}"]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_that_is_much_to_look_at(c: Computing, name: str) -> None:
    for _ in range(2):  # what the first one loads is not what it is of
        async with connected(c.port) as client:
            with short_steps():
                assert (await client.ask(request(*REQUESTS[name]))).status < 500


@pytest.mark.parametrize("name", JSON)
async def test_json_that_is_much_to_look_at(c: Computing, name: str) -> None:
    """Sent to every route that takes JSON."""
    id_ = (await c.running(c.ada))["id"]
    for path, methods in ok(await c.call("GET", "/openapi.json"))["paths"].items():
        for method, reported in methods.items():
            if "application/json" in reported.get("requestBody", {}).get("content", {}):
                who = c.admin if path.startswith("/admin") else c.ada
                line = f"Authorization: Bearer {who['token']}"
                path = path.replace("{id}", id_)
                with short_steps():
                    async with connected(c.port) as client:
                        await client.ask(request(method.upper(), path, [line], JSON[name].encode()))


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_of_a_websocket(c: Computing, name: str) -> None:
    made = await c.running(c.ada)
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    token = f"Authorization: Bearer {c.ada['token']}"
    for path in ("/compute/ws", f"/compute/containers/{made['id']}/terminal"):
        with short_steps():
            async with connected(c.port) as client, trio.open_nursery() as nursery:
                await client.send(request("GET", path, [token, *upgrade, key], b""))
                assert (await client.head()).status == 101
                nursery.start_soon(client.send, FRAMES[name] + b"\x88\x80" + MASK)
                await client.rest()


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/metrics", "/readyz"])
async def test_what_anybody_may_ask_for(c: Computing, path: str) -> None:
    for _ in range(2):
        with short_steps():
            assert (await c.server.http.get(path)).status_code == 200


@pytest.fixture(scope="module")
def token(cloud: Cloud) -> str:
    user, _ = cloud.make_user()
    ok(user.post("/storage/namespaces", json={"name": "loop", "visibility": 0}))
    ok(user.put("/storage/loop/file", content=bytes(100_000)))
    return f"Authorization: Bearer {bearer(user)}"


@pytest.mark.parametrize("name", STORAGE)
def test_a_request_of_storage_that_is_much_to_look_at(cloud: Cloud, token: str, name: str) -> None:
    method, path, lines, body = STORAGE[name]
    with Connection(cloud.url) as connection:
        connection.send(request(method, path, [token, *lines], body))
        assert connection.answer().status < 500
