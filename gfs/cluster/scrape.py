"""``/metrics`` of a server, for Prometheus: a minimal HTTP server.

One request a connection, GET or HEAD; a connection with any other request, or none, is
closed. Metrics name disks and servers and need no credential, so it listens only at a
configured address.
"""

from __future__ import annotations

import logging

import prometheus_client  # noqa: F401  (so that no scrape waits for it)
import trio

from gfs.errors import StartupError
from gfs.io import Listener, Stream, World
from gfs.metrics import CONTENT_TYPE, Source

log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 8 * 1024
REQUEST_SECONDS = 5.0
CONNECTIONS_MAX = 16


async def listen(world: World, address: str) -> Listener:
    """Raises StartupError."""
    try:
        return await world.network.listen(address)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"metrics cannot be served at {address}: {reason}") from None


async def serve_metrics(listener: Listener, source: Source) -> None:
    """Answer until cancelled; then the listener is closed."""
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def one(stream: Stream) -> None:
        async with slots:
            try:
                with trio.move_on_after(REQUEST_SECONDS):
                    await stream.send_all(await answer(await _head(stream), source))
            except ConnectionError:
                pass
            finally:
                stream.close()

    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(one, await listener.accept())
    finally:
        listener.close()


async def _head(stream: Stream) -> bytes:
    """The client's bytes up to an empty line, the end, the limit, or the first that are not
    HTTP, so that a client of gfs hears at once whose port it is."""
    head = bytearray()
    buffer = memoryview(bytearray(HEAD_BYTES_MAX))
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        count = await stream.receive_into(buffer)
        if not count:
            break
        head += buffer[:count]
        if not head[:1].isalpha():
            break
    return bytes(head)


async def answer(head: bytes, source: Source) -> bytes:
    """The whole response to any request."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or b"\r\n\r\n" not in head:
        return _response("400 Bad Request", b"this is an HTTP server with /metrics\n")
    method, target = words[0], words[1].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", b"GET it\n", "Allow: GET, HEAD\r\n")
    if target != b"/metrics":
        return _response("404 Not Found", b"/metrics is all there is\n")
    try:
        body = await source.text()
    except Exception:
        log.exception("a bug in the metrics")
        return _response("500 Internal Server Error", b"a bug: see the log\n")
    response = _response("200 OK", body, content_type=CONTENT_TYPE)
    return response if method == b"GET" else response[: len(response) - len(body)]


def _response(
    status: str, body: bytes, more: str = "", content_type: str = "text/plain; charset=utf-8"
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body
