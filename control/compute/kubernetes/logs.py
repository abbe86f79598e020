"""A container's output, from the API server's stream: text, each line with its time.

The node has it as long as the pod is there. What a run has printed that is stopped is kept as an
annotation of its StatefulSet, which goes with the container and needs no more rights."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio_websocket

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client import Api, Refused, open_stream, translated
from control.compute.kubernetes.manifests import CONTAINER, GRACE_SECONDS, POD

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

PROTOCOLS = ("binary.k8s.io",)
MESSAGE_BYTES_MAX = 1024 * 1024
#: A longer line is sent in pieces.
LINE_BYTES_MAX = 64 * 1024
#: What is kept of a run that is stopped: an object has 256 KiB of annotations.
KEPT_BYTES = 192 * 1024
#: As many as can be asked for.
KEPT_LINES = 10_000
#: How long a stop waits for the last of them.
LAST_SECONDS = GRACE_SECONDS + 5.0


class Lines:
    """Splits bytes into lines. Keeps less than one line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = b""
        for line in whole:
            yield _text(line)
        while len(rest) >= LINE_BYTES_MAX:
            yield _text(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._rest = rest

    def end(self) -> Iterator[str]:
        if self._rest:
            yield _text(self._rest)


async def logs(api: Api, namespace: str, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
    """See :meth:`control.compute.backend.Backend.logs`. Without a run there is what was kept of the
    last one."""
    try:
        async with (
            _opened(api, namespace, tail, follow=follow) as stream,
            aclosing(_lines(stream)) as lines,
        ):
            async for line in lines:
                yield line
        return
    except Refused as refused:
        # There is no pod, or its container has not started.
        if refused.status not in (400, 404):
            with translated():
                raise
        is_there = refused.status == 400
    if not is_there:
        with translated():
            workload = await api.workload(namespace, CONTAINER)
        kept = workload.logs.split("\n")[:-1] if workload is not None else []
        for line in kept[max(0, len(kept) - tail) :]:
            yield line


class Last:
    """The last lines of a run, up to KEPT_BYTES."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._bytes = 0

    def add(self, line: str) -> None:
        if len(self._lines) == KEPT_LINES:
            self._drop()
        self._lines.append(line)
        self._bytes += _size(line)
        while self._bytes > KEPT_BYTES:
            self._drop()

    def _drop(self) -> None:
        self._bytes -= _size(self._lines.popleft())

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


@asynccontextmanager
async def last_lines(api: Api, namespace: str) -> AsyncGenerator[Last, None]:
    """What a run prints to its end, which the block orders; known when it is left. Nothing, if it
    cannot be read: that must not keep the run from being ended."""
    last = Last()
    async with AsyncExitStack() as stack:
        stream = None
        try:
            opening = _opened(api, namespace, KEPT_LINES, follow=True)
            stream = await stack.enter_async_context(opening)
        except (Refused, BackendUnavailable):
            pass  # it does not run, or its node does not answer
        yield last
        if stream is None:
            return
        with trio.move_on_after(LAST_SECONDS):
            try:
                async with aclosing(_lines(stream)) as lines:
                    async for line in lines:
                        last.add(line)
            except BackendUnavailable:
                pass  # it broke off: the lines so far are kept


def _opened(
    api: Api, namespace: str, tail: int, *, follow: bool
) -> AbstractAsyncContextManager[WebSocketConnection]:
    query = {
        "container": CONTAINER,
        "tailLines": str(tail),
        "timestamps": "true",
        "follow": "true" if follow else "false",
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{POD}/log"
    return open_stream(api, path, query.items(), PROTOCOLS, message_bytes_max=MESSAGE_BYTES_MAX)


async def _lines(stream: WebSocketConnection) -> AsyncGenerator[str, None]:
    lines = Lines()
    try:
        while True:
            message = await stream.get_message()
            data = message.encode() if isinstance(message, str) else message
            for line in lines.feed(data):
                yield line
    except trio_websocket.ConnectionClosed as closed:
        if closed.reason is None or closed.reason.code != 1000:
            raise BackendUnavailable("the connection to the logs broke") from None
    for line in lines.end():
        yield line


def _size(line: str) -> int:
    return len(line.encode()) + 1


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
