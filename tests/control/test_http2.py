"""HTTP/2 over TLS: what HTTP/1.1 promises, to clients that nobody here wrote and to
frames that no client sends."""

from __future__ import annotations

import errno
import json
import math
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hpack import Encoder
from http_served import MIB, Answer, Notes, connected, post, running

from control.http import HttpLimits
from control.http.connection import Connection
from control.http.forwarded import Proxies
from control.http.frames import CREDIT_MAX, FRAMES_AT_ONCE, OVERHEAD_MAX, Flooded, FrameMeter
from control.http.wire import Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Trust = ssl.SSLContext


@asynccontextmanager
async def served(
    certificate: Path, limits: HttpLimits | None = None, **more: Any
) -> AsyncIterator[tuple[int, Notes, Trust]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    trust.set_alpn_protocols(["h2"])
    async with running(limits, context, **more) as (port, notes):
        yield port, notes, trust


class Peer:
    """The other end: h2 as a client, or any bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.continued: set[int] = set()
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.over = False
        self.takes = True
        self._sending = trio.StrictFIFOLock()

    async def send(self, data: bytes) -> None:
        """Any bytes, also while another task sends."""
        async with self._sending:
            await self.stream.send_all(data)

    async def flush(self) -> None:
        await self.send(self.h2.data_to_send())

    async def begin(
        self, path: str, method: str = "GET", *more: tuple[str, str], end: bool = True
    ) -> int:
        number = self.h2.get_next_available_stream_id()
        headers = [
            (":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path),
        ]  # fmt: skip
        self.h2.send_headers(number, [*headers, *more], end_stream=end)
        await self.flush()
        return number

    async def until(self, met: Callable[[], bool]) -> None:
        """Read until that is so, or the connection ends."""
        while not self.over and not met():
            try:
                data = bytes(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                data = b""
            self.over = not data
            for event in self.h2.receive_data(data) if data else ():
                self._note(event)
            await self._answer()

    async def _answer(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.flush()

    def _note(self, event: Any) -> None:
        if isinstance(event, ResponseReceived):
            headers = dict(event.headers)
            self.answers[event.stream_id] = Answer(int(headers[":status"]), headers, b"")
        elif isinstance(event, InformationalResponseReceived):
            self.continued.add(event.stream_id)
        elif isinstance(event, DataReceived):
            self.answers[event.stream_id].body += event.data
            if self.takes:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, ConnectionTerminated):
            self.goaway = event.error_code

    async def answer(self, number: int) -> Answer:
        await self.until(lambda: number in self.ended or number in self.resets)
        return self.answers[number]

    async def ask(self, path: str, method: str = "GET", *more: tuple[str, str]) -> Answer:
        return await self.answer(await self.begin(path, method, *more))

    async def upload(self, body: bytes) -> Any:
        """What ``/count`` answers to *body*."""
        number = await self.begin("/count", "POST", end=False)
        while body:
            await self.until(lambda: self.h2.local_flow_control_window(number) > 0)
            piece = body[: min(self.h2.local_flow_control_window(number), 16384)]
            body = body[len(piece) :]
            self.h2.send_data(number, piece, end_stream=not body)
            await self.flush()
        return json.loads((await self.answer(number)).body)

    async def rest(self) -> None:
        await self.until(lambda: False)


@asynccontextmanager
async def peer_of(port: int, trust: Trust, *, hello: bool = True) -> AsyncIterator[Peer]:
    raw = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(raw, trust, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == "h2"
    peer = Peer(stream)
    if hello:
        peer.h2.initiate_connection()
        await peer.flush()
    try:
        yield peer
    finally:
        await raw.aclose()


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    size = len(payload).to_bytes(3, "big")
    return size + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


HELLO = PREFACE + frame(4)
GET = Encoder().encode(
    [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/wait")]
)


# -- clients that nobody here wrote ----------------------------------------------------


async def test_httpx_speaks_http_2(certificate: Path) -> None:
    async with (
        served(certificate) as (port, _, trust),
        httpx.AsyncClient(base_url=f"https://localhost:{port}", http2=True, verify=trust) as client,
    ):
        answer = await client.get("/path/a%20b?q=1")
        assert (answer.http_version, answer.json()) == ("HTTP/2", {"path": "a b", "query": "1"})
        body = bytes(3 * MIB)
        assert (await client.post("/count", content=body)).json()["bytes"] == len(body)
        views = await client.get("/views")
        assert views.content == b"".join(bytes([number]) * MIB for number in range(8))
        assert (await client.head("/hello")).headers["content-length"] == "5"
        assert (await client.post("/refused", json={})).status_code == 403
        got: list[bytes] = []

        async def get() -> None:
            got.append((await client.get("/hello")).content)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(get)
        assert got == [b"hello"] * 50


@pytest.mark.parametrize("version", ["2", "1.1"])
async def test_curl_speaks_both(certificate: Path, tmp_path: Path, version: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(5 * MIB))
    async with served(certificate) as (port, _, _):
        url = f"https://localhost:{port}"
        common = ["curl", "-sS", "--noproxy", "*", "--cacert", str(certificate), f"--http{version}"]

        async def curl(*arguments: str) -> bytes:
            done = await trio.run_process([*common, *arguments], capture_stdout=True)
            return bytes(done.stdout)

        answer = await curl("-w", " %{http_version}", f"{url}/hello")
        assert answer == b"hello " + version.encode()
        sent = await curl("-X", "POST", "-T", str(source), f"{url}/count")
        assert json.loads(sent)["bytes"] == 5 * MIB
        piped = ["-X", "POST", "-T", "-", f"{url}/count"]
        done = await trio.run_process([*common, *piped], stdin=bytes(MIB), capture_stdout=True)
        assert json.loads(done.stdout)["bytes"] == MIB
        cut = await trio.run_process(
            [*common, f"{url}/breaks"], capture_stdout=True, check=False, stderr=subprocess.DEVNULL
        )
        assert cut.returncode != 0  # half an answer is never taken for whole


# -- what HTTP/1.1 promises, too ---------------------------------------------------------


async def test_requests_share_a_connection(certificate: Path) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        waiting = await peer.begin("/wait")
        await notes.entered.wait()
        assert (await peer.ask("/hello")).body == b"hello"
        endless = await peer.begin("/endless")
        await peer.until(lambda: endless in peer.answers and len(peer.answers[endless].body) > MIB)
        peer.h2.reset_stream(endless, ErrorCodes.CANCEL)
        await peer.flush()
        await notes.cancelled.wait()
        notes.go_on.set()
        assert (await peer.answer(waiting)).body == b"waited"


async def test_a_client_that_resets_its_request_cancels_it(certificate: Path) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        waiting = await peer.begin("/wait")
        await notes.entered.wait()
        peer.h2.reset_stream(waiting, ErrorCodes.CANCEL)
        await peer.flush()
        await notes.cancelled.wait()
        assert (await peer.ask("/hello")).status == 200


async def test_a_body_that_is_reset_is_cut_for_its_reader(certificate: Path) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/cut", "POST", ("content-length", "10"), end=False)
        peer.h2.send_data(number, b"12345")
        peer.h2.reset_stream(number, ErrorCodes.CANCEL)
        await peer.flush()
        assert (await peer.ask("/hello")).status == 200
        await notes.cut.wait()


@pytest.mark.parametrize("trailer", [("x-checksum", "1"), ("content-length", "5")])
async def test_trailers_do_not_make_a_cut_body_whole(
    certificate: Path, trailer: tuple[str, str]
) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        more = [("content-length", "10"), ("expect", "100-continue")]
        number = await peer.begin("/cut", "POST", *more, end=False)
        await peer.until(lambda: number in peer.continued)
        peer.h2.send_data(number, b"12345")
        peer.h2.send_headers(number, [trailer], end_stream=True)
        await peer.flush()
        await peer.until(lambda: number in peer.resets or number in peer.ended)
        assert peer.resets == {number: ErrorCodes.PROTOCOL_ERROR}
        await notes.cut.wait()


async def test_a_head_that_ends_the_stream_has_no_body(certificate: Path) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/count", "POST", ("content-length", "5"))
        await peer.until(lambda: number in peer.resets or number in peer.ended)
        assert peer.resets == {number: ErrorCodes.PROTOCOL_ERROR}
        assert (await peer.ask("/count", "POST", ("content-length", "0"))).status == 200


async def test_trailers_end_a_whole_body(certificate: Path) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/count", "POST", ("content-length", "5"), end=False)
        peer.h2.send_data(number, b"12345")
        peer.h2.send_headers(number, [("content-length", "7")], end_stream=True)
        await peer.flush()
        assert json.loads((await peer.answer(number)).body)["bytes"] == 5


async def test_continue_is_sent_when_the_handler_reads_the_body(certificate: Path) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/count", "POST", ("expect", "100-continue"), end=False)
        await peer.until(lambda: number in peer.continued)
        peer.h2.send_data(number, b"abc", end_stream=True)
        await peer.flush()
        assert json.loads((await peer.answer(number)).body)["bytes"] == 3


async def test_continue_is_not_sent_within_an_answer(certificate: Path) -> None:
    """Within one of HTTP/1.1 it would be taken for a part of the answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        body = (await receive())["body"]
        await send({"type": "http.response.body", "body": body})

    async with served(certificate, app=app) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/", "POST", ("expect", "100-continue"), end=False)
        await peer.until(lambda: number in peer.answers)
        peer.h2.send_data(number, b"two", end_stream=True)
        await peer.flush()
        assert (await peer.answer(number)).body == b"onetwo"
        assert not peer.continued
    async with running(app=app) as (port, _), connected(port) as client:
        await client.send(post("/", "Content-Length: 3", "Expect: 100-continue"))
        await client.until(b"one\r\n")
        await client.send(b"two")
        assert await client.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_a_stalled_body_is_answered_408(certificate: Path) -> None:
    limits = HttpLimits(body_stall_seconds=0.1, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/count", "POST", end=False)
        answer = await peer.answer(number)
        assert (answer.status, bool(answer.error)) == (408, True)
        await peer.until(lambda: number in peer.resets)
        assert peer.resets[number] == ErrorCodes.NO_ERROR
        assert (await peer.ask("/hello")).status == 200


async def test_a_body_that_nobody_reads_stays_with_the_client(certificate: Path) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        number = await peer.begin("/wait", "POST", end=False)
        await notes.entered.wait()
        while (window := peer.h2.local_flow_control_window(number)) > 0:
            peer.h2.send_data(number, bytes(min(window, 16384)))
        await peer.flush()
        assert (await peer.ask("/hello")).status == 200  # its GET needs no window
        assert peer.h2.local_flow_control_window(number) == 0
        notes.go_on.set()
        assert (await peer.answer(number)).body == b"waited"


async def test_bodies_that_nobody_reads_hold_up_no_other(certificate: Path) -> None:
    """They are of other users, if a proxy sends all requests over one connection."""
    limits = HttpLimits(body_stall_seconds=1, graceful_seconds=0)
    async with served(certificate, limits) as (port, notes, trust), peer_of(port, trust) as peer:
        assert (await peer.upload(b"abc"))["bytes"] == 3
        unread = [await peer.begin("/wait", "POST", end=False) for _ in range(99)]
        for number in unread:
            while (window := peer.h2.local_flow_control_window(number)) > 0:
                peer.h2.send_data(number, bytes(min(window, 16384)))
            await peer.flush()
        assert (await peer.upload(bytes(3 * MIB)))["bytes"] == 3 * MIB
        notes.go_on.set()
        for number in unread:
            assert (await peer.answer(number)).body == b"waited"


async def test_windows_of_bodies_that_nobody_reads_are_given_back(certificate: Path) -> None:
    limits = HttpLimits(streams_max=1, graceful_seconds=0)
    async with served(certificate, limits) as (port, notes, trust), peer_of(port, trust) as peer:
        notes.go_on.set()
        for _ in range(80):
            number = await peer.begin("/wait", "POST", end=False)
            while (window := peer.h2.local_flow_control_window(number)) > 0:
                peer.h2.send_data(number, bytes(min(window, 16384)))
                await peer.flush()
            await peer.answer(number)
        assert (await peer.upload(b"abc"))["bytes"] == 3


async def test_few_requests_at_once_have_wide_windows(certificate: Path) -> None:
    """All others go on with the narrow one; those that end make place for these."""
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        for _ in range(2):
            numbers = [await peer.begin("/count", "POST", end=False) for _ in range(4)]
            await peer.ask("/hello")  # all of them have asked for their bodies
            windows = sorted(map(peer.h2._get_stream_by_id, numbers), key=lambda s: s.stream_id)
            wide = [stream.outbound_flow_control_window > 65_535 for stream in windows]
            assert wide == [True, True, False, False]
            for number in numbers:
                peer.h2.end_stream(number)
                await peer.flush()
                await peer.answer(number)


async def test_a_client_that_opens_no_window_loses_the_request(certificate: Path) -> None:
    limits = HttpLimits(send_stall_seconds=0.2, graceful_seconds=0)
    async with served(certificate, limits) as (port, notes, trust), peer_of(port, trust) as peer:
        peer.takes = False
        number = await peer.begin("/endless")
        await peer.until(lambda: number in peer.resets)
        assert peer.resets[number] == ErrorCodes.INTERNAL_ERROR
        await notes.cancelled.wait()


async def test_windows_of_other_requests_do_not_prolong_the_wait(certificate: Path) -> None:
    limits = HttpLimits(send_stall_seconds=0.3, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust), peer_of(port, trust) as peer:
        peer.takes = False
        number = await peer.begin("/endless")
        waiting = await peer.begin("/wait")
        for _ in range(60):
            peer.h2.increment_flow_control_window(1, waiting)
            peer.h2.update_settings({SettingCodes.MAX_FRAME_SIZE: 16384})
            await peer.flush()
            with trio.move_on_after(0.05):
                await peer.until(lambda: number in peer.resets)
                break
        assert peer.resets == {number: ErrorCodes.INTERNAL_ERROR}


async def test_frames_are_no_larger_than_we_can_copy_at_once(certificate: Path) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        peer.h2.update_settings(
            {SettingCodes.MAX_FRAME_SIZE: 2**24 - 1, SettingCodes.INITIAL_WINDOW_SIZE: 2**24}
        )
        peer.h2.increment_flow_control_window(2**24)
        sizes: list[int] = []
        note = peer._note
        peer._note = lambda event: (  # type: ignore[method-assign]
            sizes.append(len(event.data)) if isinstance(event, DataReceived) else note(event)
        )
        await peer.answer(await peer.begin("/views"))
        assert sum(sizes) == 8 * MIB
        assert max(sizes) == 64 * 1024


@pytest.mark.parametrize("path", ["/short", "/breaks"])
async def test_an_answer_that_cannot_be_finished_is_reset(certificate: Path, path: str) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        number = await peer.begin(path)
        await peer.until(lambda: number in peer.resets)
        assert number not in peer.ended
        assert (await peer.ask("/hello")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(f"x-{number}", "1") for number in range(300)], 431),
        ([("x-large", "a" * 18_000)] * 2, 431),
        ([("x-large", "a" * 48_000)], None),
        ([("content-length", "x")], None),
        ([("x-bad", "a\x00b")], None),
        ([("transfer-encoding", "chunked")], None),
        ([("connection", "close")], None),
        ([("X-Upper", "1")], None),
        ([("host", "elsewhere")], None),
    ],
)
async def test_bad_heads_are_refused(
    certificate: Path, headers: list[tuple[str, str]], status: int | None
) -> None:
    """With an answer if one is possible, and the connection ends, as with HTTP/1.1."""
    async with served(certificate) as (port, _, trust), peer_of(port, trust, hello=False) as peer:
        lines = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost")]
        block = Encoder().encode([*lines, (":path", "/hello"), *headers])
        pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
        sent = frame(1, 1 | (4 if len(pieces) == 1 else 0), 1, pieces[0])
        for number, piece in enumerate(pieces[1:], 2):
            sent += frame(9, 4 if number == len(pieces) else 0, 1, piece)
        peer.h2.initiate_connection()
        peer.h2.send_headers(1, [*lines, (":path", "/hello")], end_stream=True)
        peer.h2.clear_outbound_data_buffer()
        await peer.stream.send_all(HELLO + sent)
        await peer.rest()
        assert peer.goaway is not None
        assert (peer.answers[1].status if peer.answers else None) == status


@pytest.mark.parametrize(
    "target", ["nothing", "/%", "/%ff", "/a?" + "&" * 300, "https://elsewhere/hello"]
)
async def test_targets_are_read_as_strictly(certificate: Path, target: str) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        answer = await peer.ask(target)
        assert (answer.status, bool(answer.error)) == (400, True)
        assert (await peer.ask("/hello")).status == 200


async def test_requests_have_slots_like_connections(certificate: Path) -> None:
    limits = HttpLimits(per_address_max=4, slow_seconds=60, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust), peer_of(port, trust) as peer:
        waiting = [await peer.begin("/wait") for _ in range(3)]
        refused = await peer.ask("/hello")
        assert (refused.status, bool(refused.error)) == (429, True)
        peer.h2.reset_stream(waiting[0], ErrorCodes.CANCEL)
        await peer.flush()
        while (await peer.ask("/hello")).status != 200:
            pass


async def test_a_slow_request_makes_room_for_another(certificate: Path) -> None:
    limits = HttpLimits(per_address_max=2, slow_seconds=0.1, graceful_seconds=0)
    async with served(certificate, limits) as (port, notes, trust), peer_of(port, trust) as peer:
        peer.takes = False
        slow = await peer.begin("/endless")
        await peer.until(lambda: slow in peer.answers and len(peer.answers[slow].body) == 65_535)
        await trio.sleep(0.2)  # what makes it slow
        answer = await peer.ask("/nothing")
        assert answer.status == 204
        await peer.until(lambda: slow in peer.resets)
        await notes.cancelled.wait()


async def test_refused_requests_do_not_keep_their_connection(certificate: Path) -> None:
    """They have no slots, so they must not wait for the client either."""
    limits = HttpLimits(per_address_max=1, slow_seconds=0.1, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust), peer_of(port, trust) as peer:
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        refused = await peer.ask("/hello", "get")
        assert (refused.status, refused.body) == (501, b"")
        assert refused.headers["content-length"] == "0"
        async with peer_of(port, trust) as other:
            assert (await other.ask("/hello", "get")).status == 501
        await peer.rest()


async def test_an_evicted_request_does_not_keep_its_connection(certificate: Path) -> None:
    go_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        with trio.move_on_after(3, shield=True):
            await go_on.wait()  # it takes its time to end

    limits = HttpLimits(per_address_max=2, slow_seconds=0.5, graceful_seconds=0)
    async with (
        served(certificate, limits, app=app) as (port, _, trust),
        peer_of(port, trust) as peer,
    ):
        number = await peer.begin("/")
        await peer.until(lambda: number in peer.answers)
        await trio.sleep(0.6)  # what makes it slow
        async with peer_of(port, trust):
            await trio.sleep(0.1)  # an address makes room only so often
            async with peer_of(port, trust):
                go_on.set()


async def test_behind_a_proxy_each_request_has_its_clients_slot(certificate: Path) -> None:
    limits = HttpLimits(per_address_max=1, slow_seconds=60, graceful_seconds=0)
    proxies = Proxies(["127.0.0.1"])
    async with (
        served(certificate, limits, proxies=proxies) as (port, notes, trust),
        peer_of(port, trust) as peer,
    ):
        await peer.begin("/wait", "GET", ("x-forwarded-for", "10.1.1.1"))
        await notes.entered.wait()
        assert (await peer.ask("/hello", "GET", ("x-forwarded-for", "10.1.1.1"))).status == 429
        assert (await peer.ask("/hello", "GET", ("x-forwarded-for", "10.1.1.2"))).status == 200


async def test_an_idle_connection_ends_whatever_it_pings(certificate: Path) -> None:
    limits = HttpLimits(keep_alive_seconds=0.3, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust), peer_of(port, trust) as peer:
        assert (await peer.ask("/hello")).status == 200

        async def ping() -> None:
            while True:
                await peer.send(frame(6, 0, 0, bytes(8)))
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping)
            await peer.until(lambda: peer.goaway is not None)
            nursery.cancel_scope.cancel()
        assert peer.goaway == ErrorCodes.NO_ERROR


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        PREFACE[:10],
        HELLO,
        HELLO + frame(1, 0, 1),
        HELLO + frame(1, 5, 1, GET) + frame(1, 5, 3, GET)[:-1],
    ],
)
async def test_a_request_must_come_in_time(certificate: Path, sent: bytes) -> None:
    limits = HttpLimits(header_seconds=0.3, keep_alive_seconds=60, graceful_seconds=0)
    async with (
        served(certificate, limits) as (port, _, trust),
        peer_of(port, trust, hello=False) as peer,
    ):
        await peer.stream.send_all(sent)
        while await peer.stream.receive_some(65536):
            pass


async def test_stopping_lets_requests_under_way_end(certificate: Path) -> None:
    limits = HttpLimits(graceful_seconds=10)
    notes: Notes
    async with trio.open_nursery() as nursery:
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            async with served(certificate, limits) as found:
                task_status.started(found)
                await stopped.wait()

        port, notes, trust = await nursery.start(run)
        async with peer_of(port, trust) as peer:
            waiting = await peer.begin("/wait")
            await notes.entered.wait()
            stopped.set()
            raw = bytearray()
            while frame(7)[3:4] not in raw[3:4]:
                # Read by hand: h2's client sends nothing more after a GOAWAY.
                raw = bytearray(await peer.stream.receive_some(65536))
            notes.go_on.set()
            while data := await peer.stream.receive_some(65536):
                raw += data
            assert b"waited" in raw
            assert waiting == 1


async def test_a_handshake_does_not_hold_up_the_end(certificate: Path) -> None:
    limits = HttpLimits(header_seconds=60, graceful_seconds=60)
    async with trio.open_nursery() as nursery:
        stopped = trio.Event()

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            async with served(certificate, limits) as found:
                task_status.started(found)
                await stopped.wait()

        port, _, trust = await nursery.start(run)
        async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
            await trio.sleep(0.2)  # until it is accepted
            stopped.set()
            await trio.sleep(0.1)
            stream = trio.SSLStream(raw, trust, server_hostname="localhost")
            while await stream.receive_some(65536):
                pass


async def test_a_client_that_goes_gets_its_answers(certificate: Path) -> None:
    async with served(certificate) as (port, notes, trust), peer_of(port, trust) as peer:
        waiting = await peer.begin("/wait")
        await notes.entered.wait()
        await peer.stream.send_all(frame(7, 0, 0, bytes(8)))
        await peer.stream.send_all(frame(6, 0, 0, bytes(8)))
        notes.go_on.set()
        assert (await peer.answer(waiting)).body == b"waited"
        await peer.rest()


async def test_the_end_of_the_connection_leaves_the_answers_in_the_kernel(
    certificate: Path,
) -> None:
    """Whoever closes a socket while the other end sends on takes back what was sent."""
    size = 200_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(size)})

    async with served(certificate, app=app) as (port, _, trust):
        sock = trio.socket.socket()
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 8192)
        await sock.connect(("127.0.0.1", port))
        raw = trio.SocketStream(sock)
        async with raw:
            stream = trio.SSLStream(raw, trust, server_hostname="localhost")
            peer = Peer(stream)
            peer.h2.initiate_connection()
            peer.h2.increment_flow_control_window(size)
            await peer.flush()
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2 * size})
            number = await peer.begin("/")
            await peer.stream.send_all(frame(7, 0, 0, bytes(8)))
            await trio.sleep(0.5)  # the server has answered and ends the connection
            await peer.stream.send_all(frame(6, 0, 0, bytes(8)))
            await trio.sleep(0.1)
            assert len((await peer.answer(number)).body) == size
            assert number in peer.ended


async def test_an_answer_that_is_taken_slowly_outlives_its_connection(certificate: Path) -> None:
    """A whole answer may be in the kernel; closing then would take it back, since the
    client goes on to send window updates."""
    size = 600_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(size)})

    limits = HttpLimits(keep_alive_seconds=0.2, linger_seconds=0.3, graceful_seconds=0)
    async with served(certificate, limits, app=app) as (port, _, trust):
        sock = trio.socket.socket()
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 8192)
        await sock.connect(("127.0.0.1", port))
        async with trio.SocketStream(sock) as raw:
            peer = Peer(trio.SSLStream(raw, trust, server_hostname="localhost"))
            peer.h2.initiate_connection()
            peer.h2.increment_flow_control_window(size)
            peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
            number = await peer.begin("/")
            await peer.until(lambda: number in peer.answers)
            answer = peer.answers[number]
            while len(answer.body) < size:
                had = len(answer.body)
                await peer.until(lambda had=had: len(answer.body) > had)  # type: ignore[misc]
                assert not peer.over
                await trio.sleep(0.1)  # what makes it slow: 4 s in all
                await peer.stream.send_all(frame(8, 0, 0, b"\0\0\0\1"))
            assert number in peer.ended


async def test_the_end_of_a_connection_waits_once_for_a_silent_client(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    queued_bytes = Wire.queued_bytes
    monkeypatch.setattr(Wire, "queued_bytes", lambda wire: waits.append(1) or queued_bytes(wire))
    limits = HttpLimits(linger_seconds=0.2, graceful_seconds=15)
    async with AsyncExitStack() as stack:
        async with served(certificate, limits) as (port, _, trust):
            peer = await stack.enter_async_context(peer_of(port, trust))
            assert (await peer.ask("/hello")).status == 200
        assert waits == [1]


async def test_requests_after_the_end_are_refused_and_no_more(certificate: Path) -> None:
    """Even one that the client takes back in the same breath."""
    limits = HttpLimits(header_bytes_max=1000, graceful_seconds=0)
    async with served(certificate, limits) as (port, notes, trust), peer_of(port, trust) as peer:
        waiting = await peer.begin("/wait")
        await notes.entered.wait()
        large = await peer.begin("/hello", "GET", ("x-large", "a" * 1200))
        number = large + 2
        raw = bytearray()
        while b"\0\0\x08\x07\0" not in raw:
            raw += await peer.stream.receive_some(65536)
        await peer.stream.send_all(frame(1, 5, number, GET) + frame(3, 0, number, bytes(4)))
        await peer.stream.send_all(frame(6, 0, 0, b"are here"))
        while b"are here" not in raw:
            data = await peer.stream.receive_some(65536)
            assert data
            raw += data
        notes.go_on.set()
        while data := await peer.stream.receive_some(65536):
            raw += data
        assert b"waited" in raw
        assert waiting == 1


# -- frames that no client sends ----------------------------------------------------------

CUT = Encoder().encode(
    [
        *((":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/count")),
        ("content-length", "5"),
    ]
)
OVER = frame(1, 5, 1, GET) + frame(3, 0, 1, bytes(4))
FLOODS = {
    "headers for nobody": lambda number: (OVER if number == 0 else b"") + frame(1, 5, 1, GET),
    "ping": lambda number: frame(6, 0, 0, bytes(8)),
    "settings": lambda number: frame(4, 0, 0, b"\0\3\0\0\0\1"),
    "settings of many names": lambda number: frame(
        4, 0, 0, b"".join((32 * number + name).to_bytes(2) + bytes(4) for name in range(99, 131))
    ),
    "settings in one frame": lambda number: frame(4, 0, 0, b"\1\0\0\0\0\1" * 33),
    "priority": lambda number: frame(2, 0, 1, bytes(5)),
    "window": lambda number: frame(8, 0, 0, b"\0\0\0\1"),
    "unknown": lambda number: frame(99),
    "goaway": lambda number: frame(7, 0, 0, bytes(8)),
    "rapid reset": lambda number: (
        frame(1, 5, 2 * number + 1, GET) + frame(3, 0, 2 * number + 1, b"\0\0\0\10")
    ),
    "empty data": lambda number: (frame(1, 4, 1, GET) if number == 0 else b"") + frame(0, 0, 1),
    "data for nobody": lambda number: (
        (frame(1, 4, 1, GET) + frame(3, 0, 1, bytes(4)) if number == 0 else b"")
        + frame(0, 0, 1, b"a")
    ),
    "continuation": lambda number: frame(1, 1, 1, b"") if number == 0 else frame(9, 0, 1),
    "continuation with bytes": lambda number: (
        frame(1, 1, 1, b"") if number == 0 else frame(9, 0, 1, b"\0" * 1024)
    ),
}


MADE_RESETS = {
    "window": lambda number: frame(1, 5, number, GET) + frame(8, 0, number, b"\x7f\xff\xff\xff"),
    "data": lambda number: frame(1, 5, number, GET) + frame(0, 0, number, b"a"),
    "length": lambda number: frame(1, 5, number, CUT),
}
"""What makes the server reset a request."""


@pytest.mark.parametrize("name", MADE_RESETS)
async def test_to_be_made_to_reset_costs_as_much_as_a_reset(certificate: Path, name: str) -> None:
    make = MADE_RESETS[name]
    async with (
        served(certificate) as (port, _, trust),
        peer_of(port, trust, hello=False) as peer,
    ):
        sent = b"".join(make(2 * number + 1) for number in range(OVERHEAD_MAX // 5))
        await peer.stream.send_all(HELLO + sent)
        raw = bytearray()
        with suppress(trio.BrokenResourceError):
            while data := await peer.stream.receive_some(65536):
                raw += data
        goaway = raw[raw.index(frame(7, 0, 0, bytes(8))[:9]) :]
        assert int.from_bytes(goaway[13:17]) == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_client_cannot_fill_the_log(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("control.http.http2._warned", -math.inf)
    async with served(certificate) as (port, _, trust):
        for _ in range(3):
            async with peer_of(port, trust, hello=False) as peer:
                await peer.stream.send_all(HELLO + FLOODS["settings in one frame"](0))
                while await peer.stream.receive_some(65536):
                    pass
    assert caplog.text.count("was ended") == 1


async def test_a_request_does_not_ask_the_kernel_who_its_client_is(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reset the kernel does not know any more."""
    real = Connection.peer.fget
    asked: list[Connection] = []

    def once(connection: Connection) -> Any:
        if connection in asked:
            raise OSError(errno.ENOTCONN, "not connected")
        asked.append(connection)
        return real(connection)  # type: ignore[misc]

    monkeypatch.setattr(Connection, "peer", property(once))
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        for _ in range(2):
            assert (await peer.ask("/hello")).status == 200


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_end_the_connection_and_nobody_elses(certificate: Path, name: str) -> None:
    make = FLOODS[name]
    limits = HttpLimits(header_seconds=600, keep_alive_seconds=600, graceful_seconds=0)
    async with served(certificate, limits) as (port, _, trust):
        async with peer_of(port, trust, hello=False) as peer:
            peer.h2.initiate_connection()
            sent = b"".join(map(make, range(2 * OVERHEAD_MAX)))

            async def send() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await peer.stream.send_all(HELLO + sent)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                with suppress(trio.BrokenResourceError):
                    while await peer.stream.receive_some(65536):
                        pass
        async with peer_of(port, trust) as other:
            assert (await other.ask("/hello")).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO + b"\xff\xff\xff" + frame(0, 0, 1)[3:],
        HELLO + frame(4, 0, 0, b"\0\0\0\0\0"),
        HELLO + frame(4, 0, 1),
        HELLO + frame(0, 0, 1, b"data"),
        HELLO + frame(1, 5, 2, GET),
        HELLO + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"),
        HELLO + frame(1, 4, 1, b"\x3f\xff\xff\xff\xff\xff\xff\xff"),
        HELLO + frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        HELLO + frame(5, 4, 1, b"\0\0\0\2" + GET),
        HELLO + frame(9, 4, 1, GET),
        HELLO + b"".join(frame(1, 5, 2 * number + 1, GET) for number in range(101)),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection(certificate: Path, sent: bytes) -> None:
    async with served(certificate) as (port, _, trust):
        async with peer_of(port, trust, hello=False) as peer:
            await peer.stream.send_all(sent)
            while await peer.stream.receive_some(65536):
                pass
        async with peer_of(port, trust) as other:
            assert (await other.ask("/hello")).status == 200


async def test_a_client_cannot_make_us_remember_more(certificate: Path) -> None:
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        peer.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**24})
        await peer.flush()
        acknowledged: list[Any] = []
        note = peer._note
        peer._note = lambda event: (  # type: ignore[method-assign]
            acknowledged.append(event) if isinstance(event, SettingsAcknowledged) else note(event)
        )
        await peer.until(lambda: bool(acknowledged))
        assert (await peer.ask("/hello")).status == 200
        assert peer.h2.decoder.header_table_size <= 4096


async def test_settings_that_nobody_knows_are_forgotten(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[H2Connection] = []

    def make(config: H2Configuration) -> H2Connection:
        made.append(H2Connection(config))
        return made[-1]

    monkeypatch.setattr("control.http.http2.H2Connection", make)
    async with served(certificate) as (port, _, trust), peer_of(port, trust) as peer:
        for number in range(20):
            await peer.stream.send_all(FLOODS["settings of many names"](number))
        assert (await peer.ask("/hello")).status == 200
        assert set(made[0].remote_settings) <= set(SettingCodes)


def test_the_meter_gives_h2_few_frames_at_once_and_all_but_goaway() -> None:
    pings = frame(6, 0, 0, b"12345678") * 200
    sent = PREFACE + pings + frame(7, 0, 0, bytes(8)) + frame(0, 1, 1, b"abc")
    for step in (1, 7, len(sent)):
        meter = FrameMeter(1000)
        pieces = [
            piece for at in range(0, len(sent), step) for piece in meter.feed(sent[at : at + step])
        ]
        assert b"".join(pieces) == PREFACE + pings + frame(0, 1, 1, b"abc")
        assert max(map(len, pieces)) <= len(PREFACE) + FRAMES_AT_ONCE * 17
        assert meter.client_goes


@pytest.mark.parametrize(
    "block",
    [
        frame(1, 5, 1, GET),
        frame(1, 1, 1, GET) + frame(9, 4, 1),
        frame(1, 1, 1) + frame(9, 0, 1, GET) + frame(9, 4, 1, GET),
    ],
)
def test_the_meter_gives_h2_one_header_block_at_once(block: bytes) -> None:
    """Each may repeat headers of 4 KiB with a byte: 64 blocks took 300 ms."""
    ping = frame(6, 0, 0, bytes(8))
    sent = PREFACE + (ping + block) * 5 + ping
    for step in (1, 7, len(sent)):
        meter = FrameMeter(1000)
        pieces = [
            piece for at in range(0, len(sent), step) for piece in meter.feed(sent[at : at + step])
        ]
        assert b"".join(pieces) == sent
        if step == len(sent):
            assert pieces == [PREFACE + ping + block, *[ping + block] * 4, ping]
        assert not meter.in_header_block


def test_window_updates_for_each_4_kib_are_no_flood() -> None:
    """Go's client sends two, one of them for the connection."""
    meter = FrameMeter(1000)
    list(meter.feed(PREFACE))
    for count in range(1, 2 * OVERHEAD_MAX):
        list(meter.feed(frame(8, 0, 0, b"\0\0\x10\0") + frame(8, 0, 1, b"\0\0\x10\0")))
        assert not meter.is_flooded(0, 0, count * 4096)


def test_what_a_client_may_send_grows_with_what_it_does() -> None:
    def flooded(frames: int, *done: int) -> bool:
        meter = FrameMeter(1000)
        list(meter.feed(PREFACE + frame(6, 0, 0, bytes(8)) * frames))
        return meter.is_flooded(*done)

    assert flooded(OVERHEAD_MAX + 100, 0, 0, 0)
    assert not flooded(OVERHEAD_MAX + 100, 60, 0, 0)
    assert not flooded(OVERHEAD_MAX + 100, 0, 10, 0)
    assert not flooded(OVERHEAD_MAX + 100, 0, 0, MIB)
    meter = FrameMeter(1000)
    assert not meter.is_flooded(86_400, 0, 0)  # a day does not save up for a flood
    list(meter.feed(PREFACE + frame(6, 0, 0, bytes(8)) * (OVERHEAD_MAX + CREDIT_MAX + 1)))
    assert meter.is_flooded(86_400, 0, 0)
    meter = FrameMeter(1000)
    list(meter.feed(PREFACE + frame(4, 0, 0, bytes(6 * 32)) * (OVERHEAD_MAX // 32 + 1)))
    assert meter.is_flooded(0, 0, 0)
    with pytest.raises(Flooded):
        list(meter.feed(frame(4, 0, 0, bytes(6 * 33))))
    with pytest.raises(Flooded):
        list(meter.feed(frame(1, 0, 1, bytes(600)) + frame(9, 0, 1, bytes(600))))
