"""HTTP/1.1 over Podman's unix socket: one connection for each request.

A connection to a unix socket costs a tenth of a millisecond, so none is pooled, and a
request that was interrupted leaves no connection in an unknown state. A request
whose caller is cancelled is interrupted; Podman may have carried it out nevertheless.

httpx or httpcore would replace only the lines around h11 below, at 1.5 to
2.5 times the processor time (``python -m bench.podman_http``). And a caller that stops reading
a body before its end, as readers of followed logs do, would leave their generators to the
garbage collector, about which Trio warns.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

import h11
import msgspec
import trio

from control.compute.backend import BackendUnavailable

#: The largest answer that is read whole: a thousand containers take about 2 MiB.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
PIECE_BYTES = 64 * 1024
#: How long an answer may take to begin, unless the caller sets another time.
SECONDS = 30.0


class Refused(Exception):
    """Podman answered with an error. ``str()`` is its message, in one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes


class Body:
    """The body of an answer, read as it arrives."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end. Raises BackendUnavailable if the body is cut short."""
        while True:
            event = await _next_event(self._stream, self._connection)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""


class Client:
    """Sends requests to the socket ``directory/name``, however long that path is."""

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = name

    async def ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        *,
        json: object = None,
        seconds: float = SECONDS,
    ) -> Answer:
        """Send a request, and return the whole answer.

        Raises:
            Refused: The answer is an error (status 400 or more).
            BackendUnavailable: Nothing listens, or no whole answer came within ``seconds``.
        """
        target = _target(path, query)
        with _deadline(seconds, f"{method} {path}"):
            async with self.connected() as stream:
                connection, answer = await _ask(stream, method, target, json)
                return await _whole(stream, connection, answer.status_code)

    @asynccontextmanager
    async def stream(
        self, path: str, query: dict[str, str] | None = None, *, seconds: float = SECONDS
    ) -> AsyncGenerator[Body, None]:
        """GET an answer that is read as it arrives, and begins within ``seconds``."""
        async with self.connected() as stream:
            with _deadline(seconds, path):
                connection, answer = await _ask(stream, "GET", _target(path, query), None)
                if answer.status_code >= 400:
                    await _whole(stream, connection, answer.status_code)
            yield Body(stream, connection)

    @asynccontextmanager
    async def hijack(
        self, path: str, json: object, *, seconds: float
    ) -> AsyncGenerator[tuple[trio.SocketStream, bytes], None]:
        """POST, then a raw stream in both directions, with the first bytes that came on it."""
        async with self.connected() as stream:
            with _deadline(seconds, path):
                connection, answer = await _ask(
                    stream, "POST", _target(path, None), json, upgrade=True
                )
                if answer.status_code != 101:
                    await _whole(stream, connection, answer.status_code)
                    raise BackendUnavailable(f"Podman did not open a stream for {path}.")
            yield stream, bytes(connection.trailing_data[0])

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[trio.SocketStream, None]:
        # A unix socket's path has at most 107 bytes; through the directory's descriptor
        # it is always short enough.
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                stream = await trio.open_unix_socket(f"/proc/self/fd/{directory}/{self._name}")
            finally:
                os.close(directory)
        except OSError as error:
            raise BackendUnavailable(
                f"Podman's service does not answer ({error.strerror or error})."
            ) from None
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


@contextlib.contextmanager
def _deadline(seconds: float, request: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds) as scope:
            yield
            scope.deadline = math.inf
    except trio.TooSlowError:
        raise BackendUnavailable(f"Podman did not answer {request} in {seconds:.0f} s.") from None


def _target(path: str, query: dict[str, str] | None) -> str:
    target = "/v4.0.0/libpod" + quote(path)
    return f"{target}?{urlencode(query)}" if query else target


async def _ask(
    stream: trio.SocketStream,
    method: str,
    target: str,
    json: object,
    *,
    upgrade: bool = False,
) -> tuple[h11.Connection, h11.Response | h11.InformationalResponse]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    headers = [("Host", "podman")]
    if upgrade:
        headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
    else:
        headers += [("Connection", "close")]
    body = b""
    if json is not None:
        body = msgspec.json.encode(json)
        headers += [("Content-Type", "application/json")]
    headers += [("Content-Length", str(len(body)))]
    head = connection.send(h11.Request(method=method, target=target, headers=headers))
    data = connection.send(h11.Data(data=body)) if body else b""
    connection.send(h11.EndOfMessage())
    assert head is not None
    assert data is not None
    try:
        await stream.send_all(head + data)
    except trio.BrokenResourceError:
        raise BackendUnavailable("Podman's service hung up.") from None
    while True:
        event = await _next_event(stream, connection)
        if isinstance(event, h11.Response):
            return connection, event
        if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            return connection, event


async def _whole(stream: trio.SocketStream, connection: h11.Connection, status: int) -> Answer:
    body = Body(stream, connection)
    pieces = []
    size = 0
    while piece := await body.receive():
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise BackendUnavailable("Podman's answer is too long.")
        pieces.append(piece)
    whole = b"".join(pieces)
    if status >= 400:
        raise Refused(status, _reason(whole) or f"status {status}")
    return Answer(status, whole)


async def _next_event(
    stream: trio.SocketStream, connection: h11.Connection
) -> h11.Event | type[h11.PAUSED]:
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            raise BackendUnavailable("Podman's service hung up in its answer.") from None
        if event is not h11.NEED_DATA:
            assert not isinstance(event, type) or event is h11.PAUSED
            return event
        try:
            connection.receive_data(await stream.receive_some(PIECE_BYTES))
        except trio.BrokenResourceError:
            raise BackendUnavailable("Podman's service hung up.") from None


class _Error(msgspec.Struct):
    message: str = ""


def _reason(body: bytes) -> str:
    try:
        message = msgspec.json.decode(body, type=_Error).message
    except msgspec.DecodeError:
        message = body[:500].decode("utf-8", "replace")
    return " ".join(message.split())[:500]
