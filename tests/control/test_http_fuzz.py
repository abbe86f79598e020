"""Random requests, whole and broken, in random pieces: the server sees what h11 sees.

The server reads heads with h11 but the bodies itself, and makes a new
``h11.Connection`` for each request. So one ``h11.Connection`` that is led through all of
the same bytes at once says which requests there are; the server must find the same, with
the same bodies, however the bytes are cut and whether or not its application reads them.
Chunks are to be stricter than h11's, by a grammar that is written here once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h11
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from limits import HANG_SECONDS

from control.http import HttpLimits, listen, serve
from control.http.heads import Refusal, read_head, refuse_loose_lines

LIMITS = HttpLimits(graceful_seconds=0, header_seconds=HANG_SECONDS)
UNREAD = "/unread"
"""The path for which the application answers without reading the body."""

Seen = list[tuple[str, str, bytes]]


bodies = st.binary(max_size=40)


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    data = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        extension = draw(st.sampled_from([b""] * 9 + [b";x=y", b" ", b";a=\r;b", b";\n"]))
        data += b"%x%s\r\n%s\r\n" % (len(piece), extension, piece)
    trailer = draw(
        st.sampled_from(
            [b""] * 9 + [b"X: y\r\n", b"Content-Length: 5\r\n", b"X : y\r\n", b"X: y\n", b"\n"]
        )
    )
    return data + b"0\r\n" + trailer + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD"] * 5 + [b"head"]))
    target = draw(st.sampled_from([b"/read", b"/read", UNREAD.encode()] * 8 + [b"*", b"/%zz"]))
    version = draw(st.sampled_from([b"1.1"] * 20 + [b"1.0", b"1.2"]))
    lines = [b"%s %s HTTP/%s" % (method, target, version), b"Host: a"]
    framing = draw(st.sampled_from(["none", "length", "chunks"] * 6 + ["both"]))
    body = b""
    if framing in ("length", "both"):
        body = draw(bodies)
        lines.append(b"Content-Length: %d" % len(body))
    if framing in ("chunks", "both"):
        body = draw(chunked())
        lines.append(b"Transfer-Encoding: chunked")
    odd = [b"Expect: 100-continue", b"Connection: close", b"Content-Length: 5", b" folded"]
    lines += draw(st.lists(st.sampled_from([b"X: y"] * 20 + odd), max_size=2))
    end = draw(st.sampled_from([b"\r\n"] * 40 + [b"\n"]))
    return end.join([*lines, b"", b""]) + body


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Some requests, one after the other, now and then with a few bytes changed."""
    data = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=5))))
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 2]))):
        place = draw(st.integers(0, len(data) - 1))
        with_what = draw(st.sampled_from([b"", b"\r", b"\n", b"\0", b" ", b":", b"1", b"a"]))
        data[place : place + draw(st.integers(0, 2))] = with_what
        if not data:
            data += b"\r"
    return bytes(data)


@dataclass
class Verdict:
    """The requests in a stream, and whether the server ends the connection after them.

    Attributes:
        refused: It does so because what follows is no request.
    """

    seen: Seen = field(default_factory=list)
    ends: bool = False
    refused: bool = False


def verdict_of(data: bytes) -> Verdict:
    verdict = Verdict()
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        for request, start in _requests(connection, data):
            head = read_head(request)
            refuse_loose_lines(data[start : len(data) - len(connection.trailing_data[0])])
            if head.path == UNREAD:
                verdict.seen.append((head.method, head.path, b""))
            body = b""
            framed_in_chunks = head.body_bytes is None
            rest = connection.trailing_data[0]
            if head.path == UNREAD and (
                framed_in_chunks or (head.expects_continue and head.body_bytes)
            ):
                verdict.ends = True
                return verdict
            if framed_in_chunks and not whole_chunks(rest):
                return verdict  # more would have to follow
            while isinstance(event := connection.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return verdict  # more would have to follow
            if head.path != UNREAD:
                verdict.seen.append((head.method, head.path, body))
            if not head.keep_alive:
                verdict.ends = True
                return verdict
    except (h11.RemoteProtocolError, Refusal):
        verdict.ends = verdict.refused = True
    return verdict


TOKEN = rb"[-!#-'*+.^`|~\w]+"
SIZE_LINE = rb"([0-9a-fA-F]{1,16})(;%b(=%b)?)*\r\n" % (TOKEN, TOKEN)  # without quotes
TRAILER = rb"%b:[\t -~\x80-\xff]*\r\n" % TOKEN


def whole_chunks(data: bytes) -> bool:
    """Whether a whole body in chunks is at the start of *data*; False: more must follow."""
    while (end := data.find(b"\n") + 1) > 0:
        line, data = data[:end], data[end:]
        size = re.fullmatch(SIZE_LINE, line)
        if size is None:
            raise Refusal(400, "no chunk")
        count = int(size[1], 16)
        if not count:
            break
        after = data[count : count + 2]
        if not b"\r\n".startswith(after):
            raise Refusal(400, "no end of a chunk")
        if len(after) < 2:
            return False
        data = data[count + 2 :]
    else:
        return False
    while (end := data.find(b"\n") + 1) > 0:
        line, data = data[:end], data[end:]
        if line == b"\r\n":
            return True
        if not re.fullmatch(TRAILER, line):
            raise Refusal(400, "no trailer")
    return False


def _requests(connection: h11.Connection, data: bytes) -> Iterator[tuple[h11.Request, int]]:
    while True:
        start = len(data) - len(connection.trailing_data[0])
        event = connection.next_event()
        if not isinstance(event, h11.Request):
            return
        yield event, start
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()


async def converse(pieces: list[bytes], verdict: Verdict) -> tuple[Seen, bytes]:
    """Send *pieces*, and read until as much has come as *verdict* lets expect."""
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != UNREAD
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            more = message["more_body"]
        seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            sockets = listen("127.0.0.1:0")
            place = sockets[0].getsockname()

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await serve(app, sockets, LIMITS, task_status=task_status)

            await nursery.start(run)
            client = await trio.open_tcp_stream(*place)
            nursery.start_soon(_send, client, pieces)
            got = b""
            async with client:
                while verdict.ends or got.count(b"HTTP/1.1 204") < len(verdict.seen):
                    try:
                        data = await client.receive_some()
                    except trio.BrokenResourceError:
                        break
                    if not data:
                        break
                    got += data
            nursery.cancel_scope.cancel()
    return seen, got


async def _send(client: trio.SocketStream, pieces: list[bytes]) -> None:
    try:
        for piece in pieces:
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()  # so that it is read by itself
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # refused, or enough is known


@given(streams(), st.data())
def test_the_server_sees_what_h11_sees(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(stream)), max_size=6, unique=True)))
    pieces = [
        stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    verdict = verdict_of(stream)
    seen, got = trio.run(converse, [piece for piece in pieces if piece], verdict)
    assert seen == verdict.seen
    statuses = re.findall(rb"HTTP/1.1 (\d+)", got)
    answers = [status for status in statuses if status != b"100"]
    assert answers[: len(seen)] == [b"204"] * len(seen)
    assert len(answers) == len(seen) + verdict.refused
    assert all(status >= b"400" for status in answers[len(seen) :])
