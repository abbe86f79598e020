"""The access log: whom it names, what it leaves out, and that nobody waits for it."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from http_served import connected, get, post, running
from limits import HANG_SECONDS

from control.http.access_log import FORMATS, LINES_MAX, Access, AccessLog, open_access_log
from control.http.forwarded import Proxies

#: As the documentation of Apache and nginx has it, field by field.
COMBINED = re.compile(
    r'(?P<client>\S+) - - \[(?P<when>[^]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) '
    r'(?P<bytes>\d+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"\Z'
)
SECRETS = Access(
    client="10.1.2.3",
    method="GET",
    target=b'/a%20"b?ticket=secret&token=secret',
    protocol="HTTP/1.1",
    headers=[
        (b"authorization", b"Bearer secret"),
        (b"cookie", b"token=secret"),
        (b"referer", b"https://example.org/page?ticket=secret&token=secret#secret"),
        (b"user-agent", b'evil" "\r\n\xff\x1b[31m'),
    ],
    status=200,
    sent_bytes=17,
    seconds=0.25,
    request="00000000ab",
)


@asynccontextmanager
async def noted(**named: Any) -> AsyncIterator[tuple[int, trio.MemoryReceiveChannel[Access]]]:
    to_test, found = trio.open_memory_channel[Access](100)
    async with running(note=to_test.send_nowait, **named) as (port, _):
        yield port, found


@pytest.mark.parametrize("form", FORMATS)
def test_a_line_has_no_secret_and_nothing_that_ends_it(form: str) -> None:
    line = FORMATS[form](SECRETS, 1_700_000_000.0)
    assert "secret" not in line
    assert line.isprintable()
    if form == "json":
        found = json.loads(line)
        assert (found["client"], found["status"]) == ("10.1.2.3", 200)
        assert (found["path"], found["request"]) == ('/a%20"b', "00000000ab")
        assert found["time"] == "2023-11-14T22:13:19.750Z"
    else:
        match = COMBINED.match(line)
        assert match is not None, line
        assert match["request"] == r"GET /a%20\x22b HTTP/1.1"
        assert match["when"] == "14/Nov/2023:22:13:19 +0000"
        assert (match["client"], match["status"], match["bytes"]) == ("10.1.2.3", "200", "17")
        assert match["referer"] == "https://example.org/page"


async def test_every_request_is_logged_once_with_what_was_answered() -> None:
    async with noted(proxies=Proxies(["127.0.0.1"])) as (port, found):
        async with connected(port) as client:
            assert (await client.ask(get("/hello", "X-Forwarded-For: 10.9.8.7"))).status == 200
            assert (await client.ask(post("/refused", "Content-Length: 0"))).status == 403
            await client.send(get("/endless"))
            await client.until(b"\r\n\r\n")
        async with connected(port) as client:
            await client.send(b"nonsense\r\n\r\n")
            await client.rest()
        noted_ones = [await found.receive() for _ in range(4)]
        seen = {(each.client, each.method, each.target, each.status) for each in noted_ones}
        assert seen == {
            ("10.9.8.7", "GET", b"/hello", 200),
            ("127.0.0.1", "POST", b"/refused", 403),
            ("127.0.0.1", "GET", b"/endless", 200),
            ("127.0.0.1", "-", b"", 400),
        }
        assert noted_ones[0].sent_bytes == len(b"hello")


async def test_a_request_whose_client_leaves_is_logged_as_unanswered() -> None:
    async with noted() as (port, found):
        async with connected(port) as client:
            await client.send(get("/wait"))
        left = await found.receive()
        assert (left.target, left.status) == (b"/wait", 0)
        assert '" 499 0 "' in FORMATS["text"](left, 0.0)


async def test_websockets_are_logged() -> None:
    async with noted() as (port, found):
        async with connected(port) as client:
            headers = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            await client.send(get("/much", *headers, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="))
            await client.exactly(1 << 20)
        each = await found.receive()
        assert each.status == 101
        assert each.sent_bytes >= 1 << 20


class Stuck(io.StringIO):
    """A stderr whose reader has stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = threading.Event()

    def write(self, text: str) -> int:
        assert self.reads.wait(HANG_SECONDS)
        return super().write(text)


def test_a_log_that_cannot_be_written_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stuck()
    log = AccessLog(stream, "text")
    writer = threading.Thread(target=log.write)
    writer.start()
    for _ in range(LINES_MAX + 100):
        log.note(SECRETS)
    stream.reads.set()
    while log._lines.qsize():
        pass
    log.note(SECRETS)
    log.stop()
    writer.join(HANG_SECONDS)
    assert "lacks" in caplog.text
    assert LINES_MAX <= stream.getvalue().count("\n") <= LINES_MAX + 2


def test_what_was_logged_is_written_at_the_end() -> None:
    stream = io.StringIO()
    with open_access_log("json", stream) as note:
        note(SECRETS)
    assert json.loads(stream.getvalue())["event"] == "request"
