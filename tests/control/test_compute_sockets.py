"""``/compute/ws``, terminals and logs: what is sent, what is held in memory, how it ends."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import socket
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import trio
import trio.testing
from checks import bearer, ok, refused
from compute_cloud import ComputeCloud
from computing import Computing
from limits import HANG_SECONDS
from sockets import Client, Refused, websocket
from wsproto.events import Ping
from wsproto.frame_protocol import FrameProtocol

import control.api.call
import control.app.watch
from control.api import Call, Socket, StreamingRequest
from control.compute import rows
from control.compute.backend import Phase, answers
from control.compute.podman.engine.api import Execution
from control.compute.podman.terminal import _descriptor
from control.compute.streams import terminal as terminals
from control.compute.streams.hub import Hub
from control.compute.streams.logs import READERS_MAX
from control.compute.streams.terminal import TERMINALS_MAX
from control.http.connection import Connection
from control.http.http1 import Http1
from control.http.websocket import WebSocket
from control.http.wire import Wire
from gfs.cluster.process import allow_descriptors

MIB = 1024 * 1024
Box = dict[str, Any]


@pytest.fixture
async def made(c: Computing) -> Box:
    """A container that runs."""
    return await c.running(c.ada)


def terminal_of(container: Box) -> str:
    return f"/compute/containers/{container['id']}/terminal"


def logs_of(container: Box, query: str = "") -> str:
    return f"/compute/containers/{container['id']}/logs{query}"


# --- /compute/ws ------------------------------------------------------------------------


async def test_a_listener_gets_everything_in_order(c: Computing) -> None:
    old = await c.running(c.ada, name="old")
    await c.running(c.bob, name="not ada's")
    async with websocket(c.port, "/compute/ws", c.ada["token"]) as listener:
        first = await listener.json()
        assert set(first) == {"type", "data"}
        assert first["type"] == "containers"
        assert first["data"] == ok(await c.call("GET", "/compute/containers", c.ada))["containers"]
        assert [each["id"] for each in first["data"]] == [old["id"]]

        made = await c.container(c.ada)
        assert [await listener.json() for _ in range(3)] == [
            status(made, "pending"),
            status(made, "initializing"),
            status(made, "running", "192.0.2.7"),
        ]
        await c.container(c.bob)  # of which ada hears nothing
        await c.call("POST", f"/compute/containers/{made['id']}/stop", c.ada)
        assert await listener.json() == status(made, "stopped")
        c.world.move(old["id"], "failed", "it fell over")
        assert await listener.json() == status(old, "failed")
        await c.call("DELETE", f"/compute/containers/{old['id']}", c.ada)
        assert await listener.json() == status(old, "deleting")
        gone = {"type": "container_deleted", "data": {"container_id": old["id"]}}
        assert await listener.json() == gone
        await listener.close()
        assert await listener.receive() is None
        assert listener.close_code == 1000


def status(container: dict[str, Any], value: str, ip: str = "") -> dict[str, Any]:
    data = {"container_id": container["id"], "status": value}
    return {"type": "container_status", "data": {**data, "external_ip": ip} if ip else data}


async def test_what_a_listener_sends_is_dropped(c: Computing) -> None:
    async with websocket(c.port, f"/compute/ws?token={c.ada['token']}") as listener:
        assert await listener.json() == {"type": "containers", "data": []}
        for data in ("hello", b"\0\xff" * 1000, '{"type":"subscribe"}'):
            await listener.send(data)
        made = await c.container(c.ada)
        assert await listener.json() == status(made, "pending")


async def test_how_often_clients_are_pinged(made: Box, c: Computing) -> None:
    paths = ok(await c.call("GET", "/openapi.json"))["paths"]
    reported = {path: each["get"]["x-websocket"]["pingSeconds"] for path, each in paths.items()
            if "x-websocket" in each.get("get", {})}  # fmt: skip
    terminal = "/compute/containers/{id}/terminal"
    assert reported == {"/compute/ws": 30, terminal: 5, "/compute/containers/{id}/logs": 20}
    for path in reported:
        async with websocket(c.port, path.replace("{id}", made["id"]), c.ada["token"]) as client:
            while not isinstance(await client.event(pings=True), Ping):  # the first comes at once
                pass


class Slow:
    """A client's side that takes nothing until the test lets it."""

    def __init__(self) -> None:
        self.takes = trio.Event()
        self.has_first = trio.Event()
        self.taken: list[Any] = []

    async def accept(self, ping_seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, text: str) -> None:
        if self.has_first.is_set():
            await self.takes.wait()
        self.taken.append(json.loads(text))
        self.has_first.set()


class Asks:
    """As much of a call as the hub looks at."""

    def __init__(self, user_id: str) -> None:
        self.user = type("User", (), {"user_id": user_id})


async def test_one_that_lags_holds_up_nobody_and_gets_the_present_state(c: Computing) -> None:
    """Behind by more than is kept: not what happened, but how things stand."""
    kept, lost = await c.running(c.ada), await c.running(c.ada)
    hub = Hub(c.module.control.records, c.module.changes, c.module.containers)
    slow, quick = Slow(), Slow()
    quick.takes.set()
    with mock.patch.object(rows, "EVENTS_KEPT", 6):
        async with trio.open_nursery() as nursery:
            for each in (slow, quick):
                nursery.start_soon(hub.listen, Asks(c.ada["user_id"]), each)
            await slow.has_first.wait()
            for _ in range(5):
                for what in ("stop", "start"):
                    ok(await c.call("POST", f"/compute/containers/{kept['id']}/{what}", c.ada))
                await c.until(c.ada, kept["id"], "running")
            ok(await c.call("DELETE", f"/compute/containers/{lost['id']}", c.ada))
            gone = {"type": "container_deleted", "data": {"container_id": lost["id"]}}
            with trio.fail_after(HANG_SECONDS):
                while quick.taken[-1] != gone:
                    await c.module.changes.after(c.module.changes.number() - 1)
                    await trio.testing.wait_all_tasks_blocked()
            assert len(slow.taken) == 1
            slow.takes.set()
            with trio.fail_after(HANG_SECONDS):
                while gone not in slow.taken:
                    await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    # One message it was about to take; then the truth, and not the forty changes.
    assert len(slow.taken) <= 5
    assert slow.taken[-1] == status(kept, "running", "192.0.2.7")
    seen = [each for each in quick.taken if each.get("data", {}) and "status" in each["data"]]
    assert [each["data"]["status"] for each in seen[:1]] == ["stopped"]


async def test_a_listener_knows_what_it_was_sent(made: Box, c: Computing) -> None:
    """So that, if it lags, it learns what is gone."""
    hub = Hub(c.module.control.records, c.module.changes, c.module.containers)
    known: set[str] = set()
    number, _ = hub._news(c.ada["user_id"], 0, known)
    assert known == {made["id"]}
    ok(await c.call("DELETE", f"/compute/containers/{made['id']}", c.ada))
    await c.until_empty()
    hub._news(c.ada["user_id"], number, known)
    assert known == set()


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let VmHWM, the most memory there ever was, begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


LISTENERS = 200


async def test_two_hundred_listeners_cost_little_and_all_hear(computing: ComputeCloud) -> None:
    computing.forget()  # what other tests keep open counts for this address, too
    client, _ = computing.make_user()
    made = computing.running(client)
    port, token = httpx.URL(computing.url).port, bearer(client)
    assert port is not None
    pid = computing.cluster.pid("control")
    for _ in range(5):  # what is loaded once is no listener's
        async with websocket(port, "/compute/ws", token) as one:
            await one.json()
    before = memory_bytes(pid)
    heard: list[str] = []
    ready, all_heard, finished = trio.Event(), trio.Event(), trio.Event()
    listening = 0

    async def listen() -> None:
        nonlocal listening
        async with websocket(port, "/compute/ws", token) as listener:
            assert (await listener.json())["type"] == "containers"
            listening += 1
            if listening == LISTENERS:
                ready.set()
            heard.append((await listener.json())["data"]["status"])
            if len(heard) == LISTENERS:
                all_heard.set()
            await finished.wait()

    async def stall() -> None:
        """Reads not even the first message."""
        async with websocket(port, "/compute/ws", token, small=True):
            await finished.wait()

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stall)
            for _ in range(LISTENERS):
                nursery.start_soon(listen)
            await ready.wait()
            each = (memory_bytes(pid) - before) / LISTENERS
            await trio.to_thread.run_sync(client.post, f"/compute/containers/{made['id']}/stop")
            await all_heard.wait()
            finished.set()
    assert heard == ["stopped"] * LISTENERS
    assert each < MIB, f"{each / 1024:.0f} KiB for each listener"
    print(f"{each / 1024:.0f} KiB for each listener")


# --- terminals --------------------------------------------------------------------------


async def test_a_terminal_takes_text_and_binary_and_sends_binary(made: Box, c: Computing) -> None:
    async with websocket(c.port, terminal_of(made), c.ada["token"]) as terminal:
        for typed in ("ls\n", b"\x03\xff\0", "ünïcode", "{", '{"type":"resize"}',
                      '{"type":"resize","cols":0,"rows":1}', '{"cols":1,"rows":1}',
                      '{"type":"resize","cols":"1","rows":1}', "[" * 1000):  # fmt: skip
            await terminal.send(typed)
            shown = await terminal.receive()
            assert shown == (typed.encode() if isinstance(typed, str) else typed)
        await terminal.send(b'{"type":"resize","cols":100,"rows":40}')  # typed: it is binary
        assert await terminal.receive() == b'{"type":"resize","cols":100,"rows":40}'
        await terminal.send("size")
        assert await terminal.receive() == b"80x24"
        await terminal.send('{"type":"resize","cols":132,"rows":43}')
        await terminal.send("size")
        assert await terminal.receive() == b"132x43"
        await terminal.send("exit")
        assert await terminal.receive() is None
        assert terminal.close_code == 1000
    await until_closed(c)


async def until_closed(c: Computing) -> None:
    """Until all shells are over."""
    with trio.fail_after(HANG_SECONDS):
        for shell in c.world.terminals:
            await shell.closed.wait()


@pytest.mark.parametrize("how", ["stop", "delete", "mounts", "delete-user"])
async def test_a_terminal_ends_with_the_run_it_is_in(made: Box, c: Computing, how: str) -> None:
    path = f"/compute/containers/{made['id']}"
    async with websocket(c.port, terminal_of(made), c.ada["token"]) as terminal:
        await terminal.send("size")
        await terminal.receive()
        match how:
            case "stop":
                ok(await c.call("POST", f"{path}/stop", c.ada))
            case "delete":
                ok(await c.call("DELETE", path, c.ada))
            case "mounts":
                ok(await c.call("PUT", f"{path}/mounts", c.ada, mount_paths=["/srv"]))
            case "delete-user":
                ok(await c.call("DELETE", f"/admin/users?id={c.ada['user_id']}", c.admin))
        assert await terminal.receive() is None
        # A user who is gone may be answered by either: his credential is not valid any more.
        assert terminal.close_code in ((1011, 4401) if how == "delete-user" else (1011,))
        if terminal.close_code == 1011:
            assert "the container was stopped" in terminal.close_reason
    await until_closed(c)


@pytest.mark.parametrize(
    ("typed", "phase", "code", "reason"),
    [
        ("exit 3", "running", 1000, ""),
        # A shell says so, too, if its last command was killed.
        ("exit 137", "running", 1000, ""),
        ("exit 137", "initializing", 1011, "the container was stopped"),
        ("vanish", "failed", 1011, "the container was stopped"),
        ("vanish", "running", 1011, "the connection to the container broke"),
    ],
)
async def test_how_a_shell_ended_is_reported(
    made: Box,
    c: Computing,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    phase: Phase,
    code: int,
    reason: str,
) -> None:
    monkeypatch.setattr(terminals, "_ENDING_SECONDS", 0.2)
    async with websocket(c.port, terminal_of(made), c.ada["token"]) as terminal:
        await terminal.send("size")
        await terminal.receive()
        c.world.move(made["id"], phase)
        await c.until(c.ada, made["id"], phase)
        await terminal.send(typed)
        assert await terminal.receive() is None
        assert terminal.close_code == code
        assert (terminal.close_reason or "").startswith(reason)
    await until_closed(c)


async def look(c: Computing) -> None:
    """What the watch on credentials does every two seconds."""
    with mock.patch.object(control.app.watch, "SHORT_SECONDS", 0.0):
        await c.server.app.watch.look()


async def test_a_terminal_ends_when_its_credential_does(made: Box, c: Computing) -> None:
    scopes = {f"compute.{c.ada['user_id']}.containers.{made['id']}": ["update"]}
    token = ok(await c.call("POST", "/api/tokens", c.ada, name="one", scopes=scopes))
    async with websocket(c.port, terminal_of(made), token["token"]) as terminal:
        await terminal.send("size")
        await terminal.receive()
        ok(await c.call("DELETE", f"/api/tokens/{token['id']}", c.ada))
        await look(c)
        assert await terminal.receive() is None
        assert terminal.close_code == 4401
        assert terminal.close_reason == control.api.call.ENDED
    await until_closed(c)


async def test_a_terminal_that_nobody_reads_ends_with_its_credential(
    made: Box, c: Computing
) -> None:
    """The shell waits for a client that takes nothing, and no close frame gets through."""
    async with websocket(c.port, terminal_of(made), c.ada["token"], small=True) as terminal:
        await terminal.send(f"flood {FLOOD}")
        await terminal.receive()
        ok(await c.call("POST", "/api/logout", c.ada))
        await look(c)
        await until_closed(c)
        with trio.fail_after(HANG_SECONDS):
            received = sum([len(piece) async for piece in terminal.stream])
    assert received < FLOOD


@pytest.mark.parametrize("what", ["terminal", "logs", "ws"])
async def test_a_websocket_ends_when_its_service_account_may_no_longer(
    c: Computing, what: str
) -> None:
    made, other = await c.running(c.ada), await c.running(c.ada)
    path = "/compute/ws" if what == "ws" else f"/compute/containers/{made['id']}/{what}"
    action = "update" if what == "terminal" else "read"
    every = f"compute.{c.ada['user_id']}.containers"
    account = await c.call(
        "POST", "/api/service-accounts", c.ada, name="one", scopes={every: [action]}
    )
    account_path = f"/api/service-accounts/{ok(account)['id']}"
    token = ok(await c.call("POST", f"{account_path}/tokens", c.ada, name="one"))["token"]
    c.world.logs_go_on = True
    async with websocket(c.port, path, token) as client:
        # Widened it goes on, narrowed to others it does not.
        for scopes in ({every: ["read", "update"]}, {f"{every}.{other['id']}": [action]}):
            ok(await c.call("PUT", f"{account_path}/scopes", c.ada, scopes=scopes))
            await look(c)
        while await client.receive() is not None:
            pass
        assert client.close_code == 4403
        assert client.close_reason == f"this token was not granted '{action}' on {every}"
    await until_closed(c)


@pytest.mark.parametrize(
    ("typed", "errors", "logged"),
    [("break", [], "the connection to the container is lost"), ("bug", ["ERROR"], "")],
)
async def test_a_terminal_that_breaks_ends_with_a_clean_code(
    made: Box,
    c: Computing,
    caplog: pytest.LogCaptureFixture,
    typed: str,
    errors: list[str],
    logged: str,
) -> None:
    """And what is a mistake of the backend is logged as such."""
    async with websocket(c.port, terminal_of(made), c.ada["token"]) as terminal:
        await terminal.send(typed)
        assert await terminal.receive() is None
        assert terminal.close_code == 1011
    await until_closed(c)
    assert [each.levelname for each in caplog.records if each.levelno >= logging.ERROR] == errors
    assert logged in caplog.text


async def test_a_terminal_that_cannot_be_opened_is_refused_in_json(made: Box, c: Computing) -> None:
    c.world.is_up = False
    with pytest.raises(Refused) as caught:
        async with websocket(c.port, terminal_of(made), c.ada["token"]):
            pass
    refused(caught.value, 503, "the world is down")


async def test_a_container_has_only_so_many_terminals_and_each_that_ends_makes_room(
    c: Computing,
) -> None:
    made, other = await c.running(c.ada), await c.running(c.ada)
    async with AsyncExitStack() as stack:

        async def open_one(container: dict[str, Any]) -> Client:
            return await stack.enter_async_context(
                websocket(c.port, terminal_of(container), c.ada["token"])
            )

        terminals = [await open_one(made) for _ in range(TERMINALS_MAX)]
        with pytest.raises(Refused) as caught:
            await open_one(made)
        refused(caught.value, 429, str(TERMINALS_MAX), "close one")
        assert int(caught.value.header("Retry-After") or 0) > 0
        await open_one(other)
        assert len(c.world.terminals) == TERMINALS_MAX + 1
        await terminals[0].send("exit")
        assert await terminals[0].receive() is None
        await c.world.terminals[0].closed.wait()
        await open_one(made)


FLOOD = 64 * MIB
#: What the kernel takes of a connection nobody reads, and a piece on its way: the most
#: that Linux lets a socket buffer (tcp_wmem) is 4 MiB by default, twice for its books.
AHEAD = 12 * MIB


async def test_a_slow_reader_slows_its_shell(made: Box, c: Computing) -> None:
    async with websocket(c.port, terminal_of(made), c.ada["token"], small=True) as terminal:
        await terminal.send(f"flood {FLOOD}")
        received = 0
        while received < FLOOD:
            if received < 4 * MIB:
                await trio.testing.wait_all_tasks_blocked()
            [shell] = c.world.terminals
            assert shell.given - received <= AHEAD
            data = await terminal.receive()
            assert isinstance(data, bytes)
            received += len(data)
        await terminal.send("exit")
        assert await terminal.receive() is None
        assert terminal.close_code == 1000


async def test_much_output_costs_no_memory(computing: ComputeCloud) -> None:
    client, _ = computing.make_user()
    made = computing.running(client)
    port = httpx.URL(computing.url).port
    assert port is not None
    pid = computing.cluster.pid("control")
    async with websocket(port, terminal_of(made), bearer(client), small=True) as terminal:
        for size in (MIB, FLOOD):
            # The first is what is loaded and grows once.
            before = memory_bytes(pid)
            forget_peak(pid)
            await terminal.send(f"flood {size}")
            received = 0
            while received < size:
                data = await terminal.receive()
                assert isinstance(data, bytes)
                received += len(data)
        grown = memory_bytes(pid, "VmHWM") - before
    assert grown < 8 * MIB, f"{grown / MIB:.1f} MiB more for {FLOOD // MIB} MiB of output"


# --- logs -------------------------------------------------------------------------------

LINES = [f"2026-11-25T10:20:{number:02d}Z line {number}" for number in range(60)]


async def test_logs_as_text(made: Box, c: Computing) -> None:
    c.world.logs += LINES
    answer = await c.call("GET", logs_of(made), c.ada)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text == "".join(f"{line}\n" for line in LINES)
    few = await c.call("GET", logs_of(made, "?tail=2"), c.ada)
    assert few.text == "".join(f"{line}\n" for line in LINES[-2:])
    assert (await c.call("GET", logs_of(made, "?tail=0"), c.ada)).text == ""
    head = await c.call("HEAD", logs_of(made), c.ada)
    assert (head.status_code, head.content) == (200, b"")
    c.world.is_up = False
    refused(await c.call("GET", logs_of(made), c.ada), 503, "the world is down")


async def test_logs_as_they_come(made: Box, c: Computing) -> None:
    c.world.logs += LINES
    async with websocket(c.port, logs_of(made, "?tail=3"), c.ada["token"]) as follower:
        shown = [await follower.receive() for _ in range(5)]
        assert shown == [*LINES[-3:], "more", "and more"]
        assert await follower.receive() is None
        assert follower.close_code == 1000


async def test_a_container_has_only_so_many_readers_of_its_logs(c: Computing) -> None:
    made, other = await c.running(c.ada), await c.running(c.ada)
    c.world.logs += LINES
    c.world.logs_go_on = True
    async with AsyncExitStack() as stack:

        async def follow(container: dict[str, Any]) -> Client:
            reader = await stack.enter_async_context(
                websocket(c.port, logs_of(container), c.ada["token"])
            )
            assert await reader.receive() == LINES[0]
            return reader

        readers = [await follow(made) for _ in range(READERS_MAX)]
        with pytest.raises(Refused) as caught:
            await follow(made)
        refused(caught.value, 429, str(READERS_MAX), "close one")
        refused(await c.call("GET", logs_of(made), c.ada), 429, "close one")
        await follow(other)
        await readers[0].close()
        while (await c.call("HEAD", logs_of(made), c.ada)).status_code == 429:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_following_logs_ends_with_the_container(computing: ComputeCloud) -> None:
    client, _ = computing.make_user()
    made = computing.running(client)
    port = httpx.URL(computing.url).port
    assert port is not None
    logs = computing.world.directory / "logs"
    logs.write_text("2026 one\n")
    try:
        async with websocket(port, logs_of(made), bearer(client)) as follower:
            assert await follower.receive() == "2026 one"
            logs.write_text("2026 one\n2026 two\n")
            assert await follower.receive() == "2026 two"
            ok(client.delete(f"/compute/containers/{made['id']}"))
            assert await follower.receive() is None
            assert follower.close_code == 1000
    finally:
        logs.unlink()


async def test_a_follower_whose_backend_fails_gets_the_code(made: Box, c: Computing) -> None:
    c.world.is_up = False
    async with websocket(c.port, logs_of(made), c.ada["token"]) as follower:
        assert await follower.receive() is None
        assert follower.close_code == 1011


async def test_a_terminal_of_podman_may_have_a_descriptor_beyond_1024() -> None:
    """select() takes none of these, and a server has thousands of connections."""
    near, far = socket.socketpair()
    allow_descriptors(2048)
    with near, far, socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 1500)) as high:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(high))
        far.send(b"output, so it has begun")
        api = mock.Mock(inspect_exec=mock.AsyncMock(return_value=Execution(running=False)))
        assert await _descriptor(api, "an id", stream) is None


# --- what is left of them ---------------------------------------------------------------

#: What the server makes for one client and its request, and what holds their bytes.
OF_A_CLIENT = (Connection, Http1, Wire, WebSocket, Socket, Call, StreamingRequest, FrameProtocol)


def of_clients() -> Counter[str]:
    found = (each for each in gc.get_objects() if isinstance(each, OF_A_CLIENT))
    return Counter(type(each).__name__ for each in found)


async def leave(client: Client, how: str) -> None:
    """What was typed is waiting there, and what is printed here; then the WebSocket ends."""
    await client.send(b"x" * 10_000)
    await client.receive()
    if how == "in order":
        await client.close()
    elif how == "at once":
        await client.send(b"flood 30000000")
    elif how == "in a message":
        await client.stream.send_all(b"\x82\xff" + (MIB).to_bytes(8, "big") + bytes(10_000))
    else:
        await client.send(how.encode())  # an end of the shell's
    if how not in ("at once", "in a message"):
        assert await client.receive() is None


async def test_what_a_terminal_held_is_freed_when_it_ends(
    made: Box, c: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the garbage collector runs, which it rarely does in a server."""
    # pytest keeps each record, and with it the error of a shell that broke.
    monkeypatch.setattr(logging.getLogger(answers.__name__), "disabled", True)
    ways = ("in order", "at once", "in a message", "exit", "break")

    async def come_and_go(how: str) -> None:
        async with websocket(c.port, terminal_of(made), c.ada["token"]) as client:
            await leave(client, how)
            client.protocol.connection._proto._parse_more.close()  # type: ignore[union-attr]
        await c.world.terminals[-1].closed.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)

    for how in ways:  # what is made once and stays
        await come_and_go(how)
    gc.collect()
    before = of_clients()
    gc.disable()
    try:
        for number in range(100):
            await come_and_go(ways[number % len(ways)])
        assert of_clients() - before == Counter()
    finally:
        gc.enable()


async def test_what_a_refused_request_held_is_freed(c: Computing) -> None:
    async def ask() -> None:
        refused(await c.call("GET", "/compute/containers/00000000", c.ada), 404)
        refused(await c.call("POST", "/compute/ssh-keys", c.ada, name=""), 400)
        with pytest.raises(Refused):
            async with websocket(c.port, "/compute/containers/00000000/logs", c.ada["token"]):
                pass
        await trio.testing.wait_all_tasks_blocked(0.01)

    await ask()
    gc.collect()
    before = of_clients()
    gc.disable()
    try:
        for _ in range(20):
            await ask()
        assert of_clients() - before == Counter()
    finally:
        gc.enable()
