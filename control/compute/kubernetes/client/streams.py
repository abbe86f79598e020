"""WebSockets to the API server: for exec, for logs, and for watches.

Trio reads all streams, so they can be cancelled at any moment and need no
thread, and a slow reader slows down the sender through TCP, with no more in between
than a message or two. Kubernetes serves each of its streams as a WebSocket, too.

The kernel's keep-alive detects a peer that vanished within half a minute; watches also
send pings.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import urlencode

import trio
import trio_websocket

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client.api import SECONDS, Api, Endpoint
from control.compute.kubernetes.client.connecting import connect
from control.compute.kubernetes.client.refusals import Refused

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 1.0
RECEIVE_BYTES = 32 * 1024


@asynccontextmanager
async def open_stream(
    api: Api,
    path: str,
    query: Iterable[tuple[str, str]],
    protocols: Iterable[str] = (),
    *,
    message_bytes_max: int,
    messages: int = 1,
) -> AsyncGenerator[WebSocketConnection, None]:
    """A WebSocket at ``path``.

    Args:
        protocols: The subprotocols to choose from, the best first.
        messages: How many unread messages are kept.

    Raises:
        Refused: The API server refuses it.
        BackendUnavailable: The server does not answer within :data:`OPEN_SECONDS`.
    """
    target = f"{path}?{urlencode(list(query))}"
    offered = list(protocols)
    async with contextlib.AsyncExitStack() as stack:
        endpoint = await _endpoint(api)
        try:
            opened = await stack.enter_async_context(
                _opened(endpoint, target, offered, message_bytes_max, messages)
            )
        except Refused as refused:
            if refused.status != 401 or not await api.renew(endpoint.client):
                raise
            opened = await stack.enter_async_context(
                _opened(await _endpoint(api), target, offered, message_bytes_max, messages)
            )
        yield opened


class _Noticing:
    """A stream that reports its end: a task that waits for the answer to the handshake would
    not notice it otherwise."""

    def __init__(self, stream: trio.abc.Stream, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended = ended
        self.send_all = stream.send_all
        self.aclose = stream.aclose

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            received = bytes(await self._stream.receive_some(max_bytes))
        except BaseException:
            self._ended()
            raise
        if not received:
            self._ended()
        return received


async def _endpoint(api: Api) -> Endpoint:
    # The first call loads the client, and credentials may come from a plug-in.
    with _deadline(SECONDS):
        return await api.endpoint()


@asynccontextmanager
async def _opened(
    endpoint: Endpoint, target: str, protocols: list[str], message_bytes_max: int, messages: int
) -> AsyncGenerator[WebSocketConnection, None]:
    headers = [(b"Origin", f"https://{endpoint.host}".encode())]
    if endpoint.authorization:
        headers.append((b"Authorization", endpoint.authorization.encode()))
    try:
        async with trio.open_nursery() as nursery:
            with _deadline():
                stream = await connect(endpoint)
            try:
                with _deadline(), trio.CancelScope() as opening:
                    connection = await trio_websocket.wrap_client_stream(
                        nursery,
                        cast(trio.SocketStream, _Noticing(stream, opening.cancel)),
                        _host(endpoint),
                        endpoint.prefix + target,
                        subprotocols=protocols,
                        extra_headers=headers,
                        message_queue_size=messages,
                        max_message_size=message_bytes_max,
                        receive_buffer_size=RECEIVE_BYTES,
                    )
                if opening.cancelled_caught:
                    raise BackendUnavailable(f"{endpoint.host} hung up without an answer")
                yield connection
                with trio.move_on_after(CLOSE_SECONDS):
                    await connection.aclose()
            finally:
                await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _the_one(group) from None


def _host(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return host if endpoint.port in (80, 443) else f"{host}:{endpoint.port}"


@contextlib.contextmanager
def _deadline(seconds: float = OPEN_SECONDS) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise BackendUnavailable(f"the cluster opens no stream within {seconds:g} s") from None


def _the_one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The cause of the failure: the caller's own error, or that of the connection; the other
    tasks were cancelled because of it."""
    leaves = list(_leaves(group))
    chosen = next((each for each in leaves if not isinstance(each, trio.Cancelled)), leaves[0])
    if isinstance(chosen, trio_websocket.ConnectionRejected):
        return Refused.of(chosen.status_code, chosen.body)
    return chosen


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
