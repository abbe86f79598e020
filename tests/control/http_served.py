"""A Quart application on the HTTP server, and a client that sends exactly what a test says."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing
from certificates import Authority
from limits import HANG_SECONDS
from quart import Response, request, websocket
from quart_trio import QuartTrio

from control.http import BodyCutShort, HttpConnection, HttpLimits, StreamingRequest, listen, serve
from control.http.forwarded import Proxies

MIB = 1024 * 1024
MUCH_PIECES = 128
PIECE = 32 * 1024


@dataclass
class Notes:
    """What the application saw."""

    seen: list[Any] = field(default_factory=list)
    entered: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    cut: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)


def make_app(notes: Notes) -> QuartTrio:
    app = QuartTrio(__name__)
    app.asgi_http_class = HttpConnection  # type: ignore[assignment]
    app.request_class = StreamingRequest

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.get("/path/<path:rest>")
    async def path(rest: str) -> dict[str, str]:
        return {"path": rest, "query": request.args.get("q", "")}

    @app.post("/count")
    async def count() -> dict[str, Any]:
        pieces = [len(piece) async for piece in request.body]
        return {"bytes": sum(pieces), "largest": max(pieces, default=0)}

    @app.post("/json")
    async def json_() -> dict[str, Any]:
        return {"is": await request.get_json(force=True)}

    @app.post("/limited")
    async def limited() -> bytes:
        data = await request.get_data(limit=1000)
        assert isinstance(data, bytes)
        return data

    @app.post("/refused")
    async def refused() -> tuple[dict[str, str], int]:
        return {"error": "not yours"}, 403

    @app.post("/cut")
    async def cut() -> tuple[dict[str, str], int]:
        try:
            async for _ in request.body:
                pass
        except BodyCutShort as error:
            notes.seen.append(error)
            notes.cut.set()
            return {"error": "cut"}, 400
        return {}, 200

    @app.route("/wait", methods=["GET", "POST"])
    async def wait() -> str:
        notes.entered.set()
        try:
            await notes.go_on.wait()
        except trio.Cancelled:
            notes.cancelled.set()
            raise
        return "waited"

    @app.get("/endless")
    async def endless() -> Response:
        async def pieces() -> AsyncIterator[memoryview]:
            try:
                while True:
                    yield memoryview(bytes(MIB))
            finally:
                notes.cancelled.set()

        return Response(pieces())

    @app.get("/views")
    async def views() -> Response:
        buffer = bytearray(MIB)

        async def pieces() -> AsyncIterator[memoryview]:
            for number in range(8):
                buffer[:] = bytes([number]) * MIB  # the server must have sent the last one
                yield memoryview(buffer)

        return Response(pieces(), headers={"Content-Length": str(8 * MIB)})

    @app.get("/chunks")
    async def chunks() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            yield b""
            yield b"two"

        return Response(pieces())

    @app.get("/chunks-for-ever")
    async def chunks_without_end() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"one"
                await trio.sleep(1)

        return Response(pieces())

    @app.get("/short")
    async def short() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"12345"

        return Response(pieces(), headers={"Content-Length": "10"})

    @app.get("/breaks")
    async def breaks() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"12345"
            raise RuntimeError("broken on purpose")

        return Response(pieces(), headers={"Content-Length": "10"})

    @app.get("/breaks-unannounced")
    async def breaks_unannounced() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"12345"
            await notes.go_on.wait()
            raise RuntimeError("broken on purpose")

        return Response(pieces())

    @app.get("/nothing")
    async def nothing() -> tuple[str, int]:
        return "", 204

    @app.websocket("/echo")
    async def echo() -> None:
        while True:
            await websocket.send(await websocket.receive())

    @app.websocket("/flood")
    async def flood() -> None:
        try:
            while True:
                await websocket.send(bytes(MIB))
        finally:
            notes.cancelled.set()

    @app.websocket("/much")
    async def much() -> None:
        for number in range(MUCH_PIECES):
            await websocket.send(bytes([number]) * PIECE)
        assert await websocket.receive() == "that was all"

    @app.websocket("/closed")
    async def closed() -> tuple[dict[str, str], int]:
        return {"error": "not for you"}, 401

    return app


@asynccontextmanager
async def running(
    limits: HttpLimits | None = None,
    tls: ssl.SSLContext | None = None,
    app: Any = None,
    proxies: Proxies | None = None,
    note: Any = None,
) -> AsyncIterator[tuple[int, Notes]]:
    notes = Notes()
    sockets = listen("127.0.0.1:0")
    port = sockets[0].getsockname()[1]
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await serve(
                    app or make_app(notes),
                    sockets,
                    limits or HttpLimits(graceful_seconds=0),
                    tls=tls,
                    proxies=proxies,
                    note=note,
                    task_status=task_status,
                )

            await nursery.start(run)
            yield port, notes
            nursery.cancel_scope.cancel()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert isinstance(error, str)
        return error


class Client:
    """A client that sends exactly what a test says."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._data = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def _more(self) -> bool:
        data = bytes(await self.stream.receive_some(65536))
        self._data += data
        return bool(data)

    async def until(self, end: bytes) -> bytes:
        while end not in self._data:
            assert await self._more(), f"ended in {self._data!r}"
        found, _, self._data = self._data.partition(end)
        return found + end

    async def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            assert await self._more(), f"ended after {len(self._data)} bytes"
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def rest(self) -> bytes:
        while await self._more():
            pass
        found, self._data = self._data, b""
        return found

    async def head(self) -> Answer:
        first, *lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in pairs}
        return Answer(int(first.split(" ")[1]), headers, b"")

    async def answer(self) -> Answer:
        answer = await self.head()
        answer.body = await self.exactly(int(answer.headers.get("content-length", 0)))
        return answer

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()


@asynccontextmanager
async def connected(port: int, address: str = "127.0.0.1") -> AsyncIterator[Client]:
    """A client at *address*: all of 127.0.0.0/8 are this machine's."""
    stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
    async with stream:
        yield Client(stream)


def get(path: str, *headers: str) -> bytes:
    return request_bytes("GET", path, headers)


def post(path: str, *headers: str) -> bytes:
    return request_bytes("POST", path, headers)


def request_bytes(method: str, path: str, headers: tuple[str, ...]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def make_certificate(directory: Path) -> Path:
    """A PEM file with a certificate for localhost, its key and who has signed it."""
    made = Authority().write(directory / "tls", "localhost")
    path = directory / "server.pem"
    path.write_bytes(
        b"".join((made / f"{name}.pem").read_bytes() for name in ("key", "cert", "ca"))
    )
    return path


@asynccontextmanager
async def running_tls(
    certificate: Path, limits: HttpLimits, *, strict: bool = False
) -> AsyncIterator[tuple[int, Notes, Callable[[], Any]]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    async with running(limits, context) as (port, notes):

        @asynccontextmanager
        async def secured() -> AsyncIterator[Client]:
            raw = await trio.open_tcp_stream("127.0.0.1", port)
            async with trio.SSLStream(
                raw, trust, server_hostname="localhost", https_compatible=not strict
            ) as stream:
                yield Client(stream)

        yield port, notes, secured
