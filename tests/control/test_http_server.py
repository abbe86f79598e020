"""The HTTP server's promises, each over a real socket to a real Quart application."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from http_served import (
    MIB,
    MUCH_PIECES,
    PIECE,
    Client,
    Notes,
    connected,
    get,
    make_app,
    post,
    request_bytes,
    running,
    running_tls,
)
from limits import HANG_SECONDS
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    TextMessage,
)
from wsproto.events import Request as Upgrade
from wsproto.extensions import PerMessageDeflate

from control.http import BodyCutShort, HttpLimits, listen, serve
from gfs.errors import StartupError

pytestmark = pytest.mark.usefixtures("virtual_time")

LIMITS = HttpLimits(graceful_seconds=0)


def seconds() -> int:
    """Since the test began, by its own clock."""
    return round(trio.current_time())


@pytest.fixture
async def served() -> AsyncIterator[tuple[int, Notes]]:
    async with running() as made:
        yield made


@pytest.fixture
def port(served: tuple[int, Notes]) -> int:
    return served[0]


@pytest.fixture
def notes(served: tuple[int, Notes]) -> Notes:
    return served[1]


@pytest.fixture
async def client(port: int) -> AsyncIterator[Client]:
    async with connected(port) as made:
        yield made


END = object()
CLOSES, TEN = {"connection": "close"}, {"content-length": "10"}
CHUNKED, EXPECT = "Transfer-Encoding: chunked", "Expect: 100-continue"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


def length(size: int) -> str:
    return f"Content-Length: {size}"


HELLO = (get("/hello"), 200, b"hello")
#: What is sent, the status, and the answer: its body, what is in its JSON, or what is left until
#: the connection ends; of None only the head is looked at, of ... no more than that. Then headers.
#: Where ``END`` is, nothing follows.
CONVERSATIONS: dict[str, list[Any]] = {
    "many requests": [HELLO, HELLO, HELLO],
    "pipelined ones are answered in order": [
        (get("/path/one") + post("/count", length(5)) + b"12345", 200, {"path": "one"}),
        (get("/path/two"), 200, {"bytes": 5}),
        (b"", 200, {"path": "two"}),
    ],
    "the path is decoded once and strictly": [
        (get("/path/%C3%A9%20%2525?q=%E2%82%AC"), 200, {"path": "é %25", "query": "€"}),
        (get("http://test/path/abc"), 200, {"path": "abc"}),
    ],
    "an upgrade to h2c is ignored": [
        (get("/hello", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), 200, b"hello")
    ],
    "HTTP/1.0": [(b"GET /hello HTTP/1.0\r\n\r\n", 200, b"hello"), END],
    "Connection: close": [(get("/hello", "Connection: close"), 200, b"hello"), END],
    # Sent in 64 KiB, it comes in pieces that are bounded.
    "a large body": [
        (post("/count", length(4 * MIB)) + bytes(4 * MIB), 200, {"bytes": 4 * MIB}),
        HELLO,
    ],
    "a chunked body": [
        (post("/limited", CHUNKED), 0, None),
        (b"5\r\nhel", 0, None),
        (b"lo\r\n6;x=y\r\n world\r\n0\r\n\r\n", 200, b"hello world"),
        HELLO,
    ],
    "large chunks": [
        (post("/count", CHUNKED, EXPECT), 100, None),
        (b"5\r\nhello\r\n100000\r\n" + bytes(MIB) + b"\r\n0\r\n\r\n", 200, {"bytes": MIB + 5}),
        HELLO,
    ],
    "what follows a body is a request or refused as one": [
        (post("/count", length(5)) + b"12345EXTRA\r\n\r\n", 200, {"bytes": 5}),
        (b"", 400, {}),
        END,
    ],
    "text that is not UTF-8 is the client's mistake": [
        (post("/json", length(4)) + b'"\xc3\xa9"', 200, {"is": "é"}),
        (post("/json", length(3)) + b'"\xff"', 400, ...),
    ],
    "continue comes when the handler reads the body": [
        (post("/count", length(3), EXPECT), 100, None),
        (b"abc", 200, {"bytes": 3}),
        HELLO,
    ],
    # Clients that expect it for an empty body, too, take what follows for the answer.
    "continue comes first where no body does": [
        (post("/count", length(0), EXPECT), 100, None),
        (b"", 200, {"bytes": 0}),
        (post("/count", length(0), EXPECT), 100, None),
        (b"", 200, {"bytes": 0}),
    ],
    "no continue to a refused request": [(post("/refused", length(10000), EXPECT), 403, {}), END],
    "no continue to one that is too long": [
        (post("/limited", length(10000), EXPECT), 413, ...),
        END,
    ],
    "no continue once the body has come": [
        (post("/count", length(3), EXPECT) + b"abc", 200, {"bytes": 3})
    ],
    # Sends everything before it reads anything, as many clients do.
    "the answer to an unread body can be read": [
        (post("/refused", length(20 * MIB)) + bytes(20 * MIB), 403, {"error": "not yours"}, CLOSES)
    ],
    "a small unread body does not cost the connection": [
        (post("/refused", length(1000)) + bytes(1000), 403, {}),
        HELLO,
    ],
    "an unread body is waited for within limits": [
        (post("/refused", length(20 * MIB)), 403, {}),
        END,
    ],
    # What it was made of is used again at once.
    "views": [(get("/views"), 200, b"".join(bytes([n]) * MIB for n in range(8))), HELLO],
    "a body of unknown length": [(get("/chunks"), 200, "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), HELLO],
    "a body of unknown length in HTTP/1.0": [
        (b"GET /chunks HTTP/1.0\r\n\r\n", 200, None, {**CLOSES, "transfer-encoding": None}),
        b"onetwo",
    ],
    **{
        f"HEAD {path}": [(request_bytes("HEAD", path, ()), 200, None), HELLO]
        for path in ("/hello", "/views", "/endless")
    },
    "204 has no body": [(get("/nothing"), 204, None), HELLO],
    "an answer that is shorter than it says": [(get("/short"), 200, None, TEN), b"12345"],
    "an answer that breaks": [(get("/breaks"), 200, None, TEN), b"12345"],
    "half a handshake of a WebSocket": [(get("/echo", *UPGRADE), 400, {}), END],
    # It is accepted or refused, not both.
    "a WebSocket that begins too early": [
        (WSConnection(ConnectionType.CLIENT).send(Upgrade("test", "/echo")) + b"early", 400, {}),
        END,
    ],
}
#: A proxy before it may speak TLS or not: it is the same HTTP.
OVER_TLS = ("many requests", "a large body", "large chunks", "views", "HTTP/1.0")


async def talk(client: Client, steps: list[Any]) -> None:
    for step, after in zip_longest(steps, steps[1:]):
        if not isinstance(step, tuple):
            assert await client.rest() == (b"" if step is END else step)
            continue
        sent, status, expected, *more = step
        await client.send(sent)
        if not status:
            continue
        answer = await client.head()
        assert answer.status == status
        headers: dict[str, str | None] = {"connection": "close" if after is END else None}
        headers |= more[0] if more else {}
        assert {name: answer.headers.get(name) for name in headers} == headers
        if expected is None:
            continue
        if isinstance(expected, str):
            assert answer.headers["transfer-encoding"] == "chunked"
            assert await client.until(b"0\r\n\r\n") == expected.encode()
            continue
        answer.body = await client.exactly(int(answer.headers["content-length"]))
        if isinstance(expected, bytes):
            assert "date" in answer.headers
            assert answer.body == expected
        elif expected is not ...:
            found = json.loads(answer.body)
            assert expected.items() <= found.items()
            assert found.get("largest", 0) <= 256 * 1024
            assert status == 200 or answer.error


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_conversations(name: str, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    await talk(client, CONVERSATIONS[name])
    assert name.startswith("an answer that ") or not caplog.records


@pytest.mark.parametrize("name", OVER_TLS)
async def test_conversations_over_tls(name: str, certificate: Path) -> None:
    async with running_tls(certificate, LIMITS) as (_, _, secured), secured() as client:
        await talk(client, CONVERSATIONS[name])


#: None of these is a request.
MALFORMED: list[tuple[bytes, int]] = [
    *(
        (line + b"\r\n\r\n", 400)
        for line in (
            *(b"nonsense", b"HELO mail.example\r\nMAIL FROM:<x>", b"SSH-2.0-OpenSSH_9.6"),
            *(b"GET", b"GET /hello", b"GET /hello HTTP/1.1"),  # no Host
            *(b"\x00" * 1000, b"\xff" * 1000, bytes(range(256)) * 40),
        )
    ),
    *(
        (line + b"\r\nHost: a\r\n\r\n", 400)
        for line in (
            *(b"GET  /hello HTTP/1.1", b"GET /hello HTTP/1.1 ", b"GET /hel lo HTTP/1.1"),
            *(b"GET /\x00 HTTP/1.1", b"G(T /hello HTTP/1.1", b"GET hello HTTP/1.1"),
            *(b"GET /caf\xe9 HTTP/1.1", b"GET /hello HTTP/1.1\r\nHost: b"),
        )
    ),
    *(
        (f"GET /hello {version}\r\nHost: a\r\n\r\n".encode(), status)
        for status, versions in (
            (505, "HTTP/0.9 HTTP/1.2 HTTP/2.0 HTTP/3.0"),
            (400, "HTTP/11 http/1.1 HTTPS/1.1 HTTP/1.1.1 HTTP/-1.1"),
        )
        for version in versions.split()
    ),
    # Among them half of a surrogate pair.
    *((get(f"/path/{path}"), 400) for path in ("%c0%af", "%zz", "%", "%ed%a0%80")),
    *((get(f"/path/a?q={query}"), 400) for query in ("%ff", "%2")),
    *(
        (post("/count", f"Content-Length: {length}"), 400)
        for length in ("-1", "x", "1.5", "0x10", "+3", "5 5", "3, 4", "", "9" * 100, "9" * 5000)
    ),
    (post("/count", "Content-Length: 1", "Content-Length: 2"), 400),
    (post("/count", "Content-Length: 3", "Transfer-Encoding: chunked"), 400),
    (post("/count", "Transfer-Encoding: chunked", "Content-Length: 3"), 400),
    *(
        (post("/count", line), 400)
        for line in (
            *("Content-Length : 3", "Content-Length\t: 3"),
            *("Transfer-Encoding : chunked", "Transfer-Encoding:\x0bchunked"),
        )
    ),
    *(
        (post("/count", f"Transfer-Encoding: {coding}"), 501)
        for coding in ("gzip", "xchunked", "chunked, identity", "identity, chunked")
    ),
    (b"POST /count HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (post("/count", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"), 501),
    (b"GET /hello HTTP/1.1\nHost: a\n\n", 400),
    *(
        (get("/hello", line), 400)
        for line in (
            *("X: a\n b", "X: a\r\n b", "X: a\nY: b"),  # bare line feeds, folded lines
            *("X: a\rY: b", "X: a\rb", "X: a\0b", "X\0Y: a", "X(Y): a"),
            *("no colon here", ": no name", "Bad Name: a"),
        )
    ),
    (b"head /hello HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    (b"CONNECT other:80 HTTP/1.1\r\nHost: other\r\n\r\n", 501),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS where none is spoken
]
#: No chunks of a body.
BAD_CHUNKS = [
    b"zz\r\n", b"\r\n", b"+2\r\nab\r\n", b"2\r\nabc\r\n", b"3\r\nab\r\n", b"2\r\nab0\r\n\r\n",
    b"1\r\nx\r\n" + b"0" * 200_000, b"1;" + b"x" * 200_000 + b"\r\n", b"2\r\nab\n", b"2\nab\r\n",
    b"2 \r\n", b" 2\r\n", b"1;\nx\r\n", b"1;a=\r;b\r\n", b"1;a=\0\r\n", b"1;\r\n", b"1 ;a\r\n",
    b'1;a="\r\n', b"1;" + b"a" * 300 + b"\r\n", b"-1\r\n", b"0x1\r\n", b"f" * 21 + b"\r\n",
    b"0\r\n\n", b"0\n\r\n", b"0\n\n", b"0\r\nX: y\n\r\n", b"0\r\nX: y\r\n\n",
    b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nX: y\rZ: z\r\n\r\n", b"0\r\nX : y\r\n\r\n",
    b"0\r\nX\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\nX: \0\r\n\r\n",
]  # fmt: skip
#: Heads that are too large.
TOO_LARGE = [
    get("/hello", "X: " + "a" * 100 * 1024),
    get("/hello", *(f"X-{number}: y" for number in range(10_000))),
    get("/" + "x" * 100 * 1024),
    get("/hello").replace(b"GET", b"M" * 100 * 1024),
    b"G" * 200 * 1024,
    get("/hello")[:-2] + b"X: y\r\n" * 40_000,  # there is no end of it
    post("/count", CHUNKED) + b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        *((sent + b"0\r\n\r\n" + get("/hello"), status) for sent, status in MALFORMED),
        *((post("/count", CHUNKED) + chunks + get("/hello"), 400) for chunks in BAD_CHUNKS),
        *((sent, 431) for sent in TOO_LARGE),
    ],
    ids=lambda each: ascii(each.removesuffix(get("/hello"))[-30:] if type(each) is bytes else each),
)
async def test_what_is_no_request_is_refused_in_json(
    client: Client, sent: bytes, status: int
) -> None:
    """Nor is what follows it ever taken for a request (smuggling)."""
    await talk(client, [(sent, status, {}), END])


async def test_a_slow_head_ends_while_others_are_served() -> None:
    async with running() as (port, _), connected(port) as slow, connected(port) as other:
        await slow.send(b"GET /hello HTTP/1.1\r\n")
        assert (await other.ask(get("/hello"))).status == 200

        async def drip(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            while True:
                await slow.send(b"X: y\r\n")
                await trio.sleep(0.7)

        async with trio.open_nursery() as nursery:
            await nursery.start(drip)
            answer = await slow.answer()
            nursery.cancel_scope.cancel()
        assert (answer.status, seconds()) == (408, LIMITS.header_seconds)
        assert answer.error
        assert (await other.ask(get("/hello"))).status == 200


async def test_an_idle_connection_ends() -> None:
    async with running() as (port, _), connected(port) as client:
        assert (await client.ask(get("/hello"))).status == 200
        assert await client.rest() == b""
        assert seconds() == LIMITS.keep_alive_seconds
    async with running() as (port, _), connected(port) as client:
        assert await client.rest() == b"", "it has never asked for anything"
    assert seconds() == LIMITS.keep_alive_seconds + LIMITS.header_seconds


async def test_tiny_chunks_neither_multiply_nor_hold_up_the_loop() -> None:
    sizes: list[int] = []
    ticks: list[int] = [0]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def tick() -> None:
            while True:
                ticks[0] += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            more = True
            while more:
                message = await receive()
                sizes.append(len(message["body"]))
                more = message["more_body"]
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with running(app=app) as (port, _), connected(port) as client:
        await client.send(post("/", "Transfer-Encoding: chunked"))
        await client.send(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
        assert (await client.head()).status == 204
    assert sum(sizes) == 5000
    assert len(sizes) < 500
    assert ticks[0] >= len(sizes) - 1  # one turn for the others between any two


async def test_a_cancelled_read_takes_nothing() -> None:
    entered, go_on = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            entered.set()
            await go_on.wait()
            with trio.CancelScope() as scope_:
                scope_.cancel()
                await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with running(app=app) as (port, _), connected(port) as client:
        await client.send(post("/", "Content-Length: 1000"))
        await entered.wait()
        await client.send(bytes(1000))
        go_on.set()
        assert (await client.head()).status == 204
        assert (await client.ask(get("/"))).status == 204  # found where it begins


async def test_a_stalled_body_is_answered_408(client: Client) -> None:
    answer = await client.ask(post("/count", "Content-Length: 100") + b"some")
    assert (answer.status, seconds()) == (408, LIMITS.body_stall_seconds)
    assert answer.error
    assert await client.rest() == b""


async def test_a_slow_body_that_moves_is_taken(client: Client) -> None:
    """The limit is for a stall, not for the whole."""
    await client.send(post("/count", "Content-Length: 5"))
    for _ in range(5):
        await trio.sleep(LIMITS.body_stall_seconds - 1)
        await client.send(b"x")
    assert json.loads((await client.answer()).body)["bytes"] == 5


async def test_a_body_that_ends_early_is_reported_to_its_reader(
    notes: Notes, client: Client
) -> None:
    await client.send(post("/cut", "Content-Length: 100") + b"some")
    stream = client.stream
    assert isinstance(stream, trio.SocketStream)
    await stream.send_eof()
    answer = await client.answer()
    assert (answer.status, answer.error) == (400, "cut")
    assert len(notes.seen) == 1
    assert isinstance(notes.seen[0], ConnectionError)


async def test_a_handler_that_reads_nothing_stops_the_sender(notes: Notes, client: Client) -> None:
    stream = client.stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    await client.send(post("/wait", f"Content-Length: {200 * MIB}"))
    await notes.entered.wait()
    accepted = 0
    while accepted < 200 * MIB:
        with trio.move_on_after(0.5) as scope:
            await client.send(bytes(64 * 1024))
            accepted += 64 * 1024
        if scope.cancelled_caught:
            break
    assert accepted < 32 * MIB  # what the kernel's buffers take; ours hold nothing


@pytest.mark.parametrize(
    "sent",
    [get("/wait"), post("/wait", "Content-Length: 100000") + b"part"],
    ids=["no body", "unread body"],
)
async def test_a_client_that_leaves_cancels_its_request(sent: bytes) -> None:
    async with running() as (port, notes):
        async with connected(port) as client:
            await client.send(sent)
            await notes.entered.wait()
        await notes.cancelled.wait()


async def test_a_client_that_only_ended_its_side_is_answered() -> None:
    async with running() as (port, _):
        with socket.socket() as raw:  # all is there before the server looks
            raw.connect(("127.0.0.1", port))
            raw.sendall(get("/hello"))
            raw.shutdown(socket.SHUT_WR)
            raw.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw))
            assert (await Client(stream).answer()).body == b"hello"


async def test_a_client_that_ended_its_side_is_not_waited_for_without_end() -> None:
    async with running() as (port, notes):
        with socket.socket() as raw:
            raw.connect(("127.0.0.1", port))
            raw.sendall(get("/wait"))
            raw.shutdown(socket.SHUT_WR)
            await notes.cancelled.wait()


async def test_a_head_in_pieces_after_a_long_idle_time_is_taken(client: Client) -> None:
    assert (await client.ask(get("/hello"))).status == 200
    await trio.sleep(LIMITS.header_seconds + 1)
    await client.send(get("/hello")[:10])
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert (await client.ask(get("/hello")[10:])).status == 200


async def test_a_client_that_takes_nothing_is_dropped(notes: Notes, client: Client) -> None:
    await client.send(get("/endless"))
    await notes.cancelled.wait()
    # Its system may still take what its own buffer grows by, and then the time begins anew.
    assert seconds() in (LIMITS.send_stall_seconds, 2 * LIMITS.send_stall_seconds)


async def test_half_an_answer_that_lasts_until_the_end_ends_with_a_reset(
    notes: Notes, client: Client
) -> None:
    await client.send(b"GET /breaks-unannounced HTTP/1.0\r\n\r\n")
    assert "content-length" not in (await client.head()).headers
    assert await client.exactly(5) == b"12345"
    notes.go_on.set()
    with pytest.raises(trio.BrokenResourceError):
        await client.rest()


async def test_nothing_follows_a_send_that_was_cancelled() -> None:
    gone_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"%d" % (32 * MIB + 5))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        with trio.move_on_after(0.1) as blocked:  # more than fits into the kernel's buffers
            await send({"type": "http.response.body", "body": bytes(32 * MIB), "more_body": True})
        assert blocked.cancelled_caught
        gone_on.set()
        await send({"type": "http.response.body", "body": b"12345"})

    async with running(app=app) as (port, _), connected(port) as client:
        await client.send(get("/"))
        await gone_on.wait()
        await client.head()
        read = await client.rest()
        assert len(read) < 32 * MIB
        assert not read.strip(b"\0")


async def test_a_failure_is_logged_without_query_and_on_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken on purpose")

    async with running(app=app) as (port, _), connected(port) as client:
        await talk(client, [(get("/a%0aforged?token=secret"), 500, {}, CLOSES)])
    [record] = [record for record in caplog.records if record.name == "control.http"]
    assert record.getMessage() == "GET /a%0aforged failed"
    assert "secret" not in caplog.text


async def test_a_header_with_a_line_break_is_not_sent() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        forged = [(b"content-disposition", b'attachment; filename="a\r\nSet-Cookie: b"')]
        await send({"type": "http.response.start", "status": 200, "headers": forged})
        await send({"type": "http.response.body", "body": b"x"})

    async with running(app=app) as (port, _), connected(port) as client:
        answer = await client.ask(get("/"))
        assert answer.status == 500
        assert "set-cookie" not in answer.headers


async def test_the_longest_idle_connection_makes_room() -> None:
    limits = HttpLimits(connections_max=2, graceful_seconds=0)
    async with running(limits) as (port, _), connected(port) as first, connected(port) as second:
        assert (await first.ask(get("/hello"))).status == 200
        assert (await second.ask(get("/hello"))).status == 200
        async with connected(port) as third:
            assert (await third.ask(get("/hello"))).status == 200
            assert await first.rest() == b""
            assert (await second.ask(get("/hello"))).status == 200


async def test_a_new_connection_waits_while_all_are_busy() -> None:
    limits = HttpLimits(connections_max=1, graceful_seconds=0)
    async with running(limits) as (port, notes), connected(port) as busy:
        await busy.send(get("/wait"))
        await notes.entered.wait()
        async with connected(port) as waiting:
            await waiting.send(get("/hello"))
            notes.go_on.set()
            assert (await busy.answer()).body == b"waited"
            assert (await waiting.answer()).body == b"hello"


async def test_clients_wait_while_there_are_no_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    none_left = True

    class Listener(socket.socket):
        def accept(self) -> Any:
            if none_left:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    def listening(address: str) -> list[Listener]:
        return [Listener(fileno=sock.detach()) for sock in listen(address)]

    monkeypatch.setattr("http_served.listen", listening)
    async with running() as (port, _), connected(port) as client:
        await trio.sleep(1)
        [record] = caplog.records
        assert "ulimit" in record.getMessage()
        none_left = False
        assert (await client.ask(get("/hello"))).body == b"hello"


async def test_a_connection_that_cannot_be_watched_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        """An epoll set at the kernel's limit of watches, for the first connection."""

        def __init__(self) -> None:
            self._real = make()
            self._full = True

        def register(self, descriptor: int, events: int) -> None:
            full, self._full = self._full, False
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._real.register(descriptor, events)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    make = select.epoll
    server = "control.http.hangups.select"
    monkeypatch.setattr(server, SimpleNamespace(**{**vars(select), "epoll": Full}))
    async with running() as (port, _):
        async with connected(port) as client:
            assert await client.rest() == b""
        async with connected(port) as client:
            assert (await client.ask(get("/hello"))).body == b"hello"


@asynccontextmanager
async def stoppable(app: Any) -> AsyncIterator[tuple[int, trio.Event]]:
    """Served with the limits that users get, until the event; then the block goes on."""
    sockets, stop = listen("127.0.0.1:0"), trio.Event()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as serving:
            await serving.start(functools.partial(serve, app, sockets, HttpLimits()))
            task_status.started()
            await stop.wait()
            serving.cancel_scope.cancel()

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield sockets[0].getsockname()[1], stop
            stop.set()


async def test_stopping_lets_requests_under_way_end() -> None:
    notes, ended = Notes(), trio.Event()
    app = make_app(notes)

    @app.after_serving
    async def after() -> None:
        ended.set()

    async with stoppable(app) as (port, stop), connected(port) as idle, connected(port) as client:
        assert (await idle.ask(get("/hello"))).status == 200
        await client.send(get("/wait"))
        await notes.entered.wait()
        stop.set()
        assert await idle.rest() == b""
        assert not ended.is_set()
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        notes.go_on.set()
        answer = await client.answer()
        assert answer.body == b"waited"
        assert answer.headers["connection"] == "close"
    assert ended.is_set()


async def test_stopping_cancels_what_does_not_end() -> None:
    async with stoppable(make_app(notes := Notes())) as (port, stop), connected(port) as client:
        await client.send(get("/wait"))
        await notes.entered.wait()
        stop.set()
        await notes.cancelled.wait()
        assert seconds() == HttpLimits().graceful_seconds


async def test_stopping_is_announced_to_websockets() -> None:
    async with stoppable(make_app(Notes())) as (port, stop), connected(port) as client:
        peer = WebSocketClient(client, "/echo")
        assert isinstance(await peer.upgrade(), AcceptConnection)
        stop.set()
        event = await peer.event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1001
        await peer.say(event.response())
        assert await client.rest() == b""


async def test_a_failed_startup_raises_the_applications_own_error() -> None:
    app = make_app(Notes())

    @app.before_serving
    async def before() -> None:
        raise StartupError("nothing to serve")

    with pytest.raises(StartupError, match="nothing to serve"):
        await serve(app, listen("127.0.0.1:0"))


async def test_an_application_that_loses_its_lifespan_ends_the_server() -> None:
    app = make_app(Notes())

    async def background() -> None:
        raise StartupError("the background task failed")

    @app.before_serving
    async def before() -> None:
        app.nursery.start_soon(background)

    with trio.fail_after(HANG_SECONDS), pytest.RaisesGroup(StartupError):
        await serve(app, listen("127.0.0.1:0"))


async def test_an_application_without_lifespan_is_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["more_body"] is False
        await send({"type": "http.response.body", "body": b"plain"})
        assert (await receive())["type"] == "http.disconnect"

    async with stoppable(app) as (port, _), connected(port) as client:
        await talk(client, [(get("/"), 200, "5\r\nplain\r\n0\r\n\r\n")])


async def test_context_variables_do_not_pass_from_request_to_request() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    app = make_app(Notes())

    @app.get("/variable")
    async def seen() -> str:
        before = variable.get()
        variable.set("set")
        return before

    ask = get("/variable")
    async with stoppable(app) as (port, _), connected(port) as client:
        await talk(client, [(ask * 2, 200, b"unset"), (b"", 200, b"unset"), (ask, 200, b"unset")])


async def test_servers_share_a_socket() -> None:
    [shared] = listen("127.0.0.1:0")
    port = shared.getsockname()[1]
    limits = HttpLimits(graceful_seconds=0)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for sock in (shared, shared.dup()):

                async def run(
                    task_status: trio.TaskStatus[None], sock: socket.socket = sock
                ) -> None:
                    await serve(make_app(Notes()), [sock], limits, task_status=task_status)

                await nursery.start(run)
            for _ in range(20):
                async with connected(port) as client:
                    assert (await client.ask(get("/hello"))).status == 200
            nursery.cancel_scope.cancel()


async def test_listen_names_what_is_wrong() -> None:
    [taken] = listen("127.0.0.1:0")
    with taken, pytest.raises(StartupError, match="taken"):
        listen(f"127.0.0.1:{taken.getsockname()[1]}")
    for malformed in ("", "8080", "::1:80", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(StartupError, match="HOST:PORT"):
            listen(malformed)


async def test_tls_notices_a_client_that_leaves_and_one_that_stalls(certificate: Path) -> None:
    async with running_tls(certificate, LIMITS) as (_, notes, secured):
        async with secured() as client:
            await client.send(get("/wait"))
            await notes.entered.wait()
        await notes.cancelled.wait()
        notes.cancelled = trio.Event()
        async with secured() as client:
            await client.send(get("/endless"))
            await notes.cancelled.wait()


async def test_tls_sends_close_notify_after_whole_answers_only(certificate: Path) -> None:
    async with running_tls(certificate, LIMITS, strict=True) as (_, notes, secured):
        async with secured() as client:
            assert (await client.ask(get("/hello", "Connection: close"))).body == b"hello"
            assert await client.rest() == b""
        async with secured() as client:
            await client.send(b"GET /chunks HTTP/1.0\r\n\r\n")
            await client.head()
            assert await client.rest() == b"onetwo"
        async with secured() as client:
            await client.send(b"GET /breaks-unannounced HTTP/1.0\r\n\r\n")
            await client.head()
            assert await client.exactly(5) == b"12345"
            notes.go_on.set()
            with pytest.raises(trio.BrokenResourceError):
                await client.rest()


@pytest.mark.parametrize(
    "sent",
    [
        post("/cut", "Content-Length: 100") + b"some",
        post("/cut", "Transfer-Encoding: chunked") + b"4\r\nsome\r\n",
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("notified", [False, True])
async def test_a_body_cut_over_tls_is_never_taken_for_whole(
    certificate: Path, sent: bytes, notified: bool
) -> None:
    async with running_tls(certificate, LIMITS) as (port, notes, _):
        trust = ssl.create_default_context(cafile=certificate)
        raw = await trio.open_tcp_stream("127.0.0.1", port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await raw.send_all(outgoing.read())
                incoming.write(await raw.receive_some())
        tls.write(sent)
        if notified:
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
        await raw.send_all(outgoing.read())
        if not notified:
            await raw.send_eof()
        async with raw:
            while data := await raw.receive_some():
                incoming.write(data)
        try:
            answer = tls.read()
        except ssl.SSLWantReadError:
            answer = b""  # without a word at its end there is nobody left to answer
        assert answer[:13] in (b"", b"HTTP/1.1 400 ")
        # The handler gets an error, or it was cancelled because the client has left.
        assert all(isinstance(error, BodyCutShort) for error in notes.seen)


async def test_a_tls_handshake_must_end_in_time(certificate: Path) -> None:
    async with running_tls(certificate, LIMITS) as (port, _, _), connected(port) as client:
        assert await client.rest() == b""
        assert seconds() == LIMITS.header_seconds


class WebSocketClient:
    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path
        self.protocol = WSConnection(ConnectionType.CLIENT)

    async def event(self) -> Any:
        while True:
            for event in self.protocol.events():
                if not isinstance(event, Ping):
                    return event
            self.protocol.receive_data(bytes(await self._client.stream.receive_some(65536)) or None)

    async def say(self, event: Any) -> None:
        await self._client.send(self.protocol.send(event))

    async def upgrade(self) -> Any:
        await self.say(Upgrade("test", self._path))
        return await self.event()


async def test_a_websocket_echoes(client: Client) -> None:
    peer = WebSocketClient(client, "/echo")
    assert isinstance(await peer.upgrade(), AcceptConnection)
    for number in range(3):
        await peer.say(BytesMessage(bytes([number])))
        event = await peer.event()
        assert isinstance(event, BytesMessage)
        assert event.data == bytes([number])
    await peer.say(CloseConnection(1000))
    assert isinstance(await peer.event(), CloseConnection)
    assert await client.rest() == b""


async def test_a_websocket_that_is_reset_leaves_the_others() -> None:
    async with running() as (port, notes), connected(port) as other:
        async with connected(port) as client:
            await WebSocketClient(client, "/flood").upgrade()
        await notes.cancelled.wait()
        assert (await other.ask(get("/hello"))).status == 200


async def test_a_refused_websocket_gets_the_applications_json(client: Client) -> None:
    peer = WebSocketClient(client, "/closed")
    event = await peer.upgrade()
    assert isinstance(event, RejectConnection)
    assert event.status_code == 401


@pytest.mark.parametrize("path", ["/closed", "/echo"])
async def test_the_end_of_a_websocket_is_not_the_end_of_the_server(path: str) -> None:
    async with running() as (port, _):
        for _ in range(2):
            async with connected(port) as client:
                peer = WebSocketClient(client, path)
                if isinstance(await peer.upgrade(), AcceptConnection):
                    await peer.say(CloseConnection(1000))
                await client.rest()
            async with connected(port) as other:
                assert (await other.ask(get("/hello"))).status == 200


async def test_a_websocket_whose_client_takes_nothing_is_dropped(
    notes: Notes, client: Client
) -> None:
    peer = WebSocketClient(client, "/flood")
    await peer.upgrade()
    await notes.cancelled.wait()


async def test_a_websocket_whose_client_reads_slowly_goes_on(client: Client) -> None:
    """Pings wait behind what it has not read yet, for longer than a dead one is given."""
    peer = WebSocketClient(client, "/much")
    await peer.upgrade()
    digest = hashlib.sha256()
    received = 0
    while received < MUCH_PIECES * PIECE:
        peer.protocol.receive_data(bytes(await client.stream.receive_some(4 * PIECE)) or None)
        for event in peer.protocol.events():
            if isinstance(event, Ping):
                await peer.say(event.response())
            else:
                assert isinstance(event, BytesMessage), event
                received += len(event.data)
                digest.update(event.data)
        await trio.sleep(4)  # what makes it slow
    assert seconds() > 3 * LIMITS.websocket_ping_seconds
    expected = b"".join(bytes([number]) * PIECE for number in range(MUCH_PIECES))
    assert digest.digest() == hashlib.sha256(expected).digest()
    await peer.say(TextMessage("that was all"))
    while not isinstance(event := await peer.event(), CloseConnection):
        pass
    assert event.code == 1000


async def test_a_websocket_whose_client_says_nothing_is_dropped(client: Client) -> None:
    peer = WebSocketClient(client, "/echo")
    await peer.upgrade()
    await client.rest()  # with pings in it, and an end
    assert seconds() == 3 * LIMITS.websocket_ping_seconds


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (BytesMessage(bytes(1001), message_finished=False), 1009),
        (b"\x82\xff" + (1 << 20).to_bytes(8) + bytes(4) + bytes(MIB // 2), 1009),
        (b"\x81\x81" + bytes(4) + b"\xff", 1007),
        (b"\x83\x80" + bytes(4), 1002),
        (b"\x81\x01a", 1002),
    ],
)
async def test_a_websocket_client_learns_what_it_did_wrong(sent: Any, code: int) -> None:
    limits = HttpLimits(websocket_message_bytes_max=1000, graceful_seconds=0)
    async with running(limits) as (port, _), connected(port) as client:
        peer = WebSocketClient(client, "/echo")
        await peer.upgrade()
        await client.send(sent if isinstance(sent, bytes) else peer.protocol.send(sent))
        await trio.sleep(0.2)  # the server has ended its side
        with suppress(trio.BrokenResourceError):
            await client.send(bytes(100))
        await trio.sleep(0.1)
        event = await peer.event()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        assert await client.rest() == b""


async def test_websockets_are_not_compressed(client: Client) -> None:
    peer = WebSocketClient(client, "/echo")
    await peer.say(Upgrade("test", "/echo", extensions=[PerMessageDeflate()]))
    event = await peer.event()
    assert isinstance(event, AcceptConnection)
    assert event.extensions == []
