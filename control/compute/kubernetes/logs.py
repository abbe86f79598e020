"""A container's output, from the API server's stream: text, each line with its time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import trio_websocket

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client import Api, Refused, open_stream, translated
from control.compute.kubernetes.manifests import CONTAINER, POD

__all__ = ["Lines", "logs"]

PROTOCOLS = ("binary.k8s.io",)
MESSAGE_BYTES_MAX = 1024 * 1024
#: A longer line is sent in pieces.
LINE_BYTES_MAX = 64 * 1024


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
    """See :meth:`control.compute.backend.Backend.logs`. Without a run there is no output."""
    query = {
        "container": CONTAINER,
        "tailLines": str(tail),
        "timestamps": "true",
        "follow": "true" if follow else "false",
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{POD}/log"
    lines = Lines()
    try:
        async with open_stream(
            api, path, query.items(), PROTOCOLS, message_bytes_max=MESSAGE_BYTES_MAX
        ) as stream:
            try:
                while True:
                    message = await stream.get_message()
                    data = message.encode() if isinstance(message, str) else message
                    for line in lines.feed(data):
                        yield line
            except trio_websocket.ConnectionClosed as closed:
                if closed.reason is None or closed.reason.code != 1000:
                    raise BackendUnavailable("the connection to the logs broke") from None
    except Refused as refused:
        # There is no pod, or its container has not started.
        if refused.status in (400, 404):
            return
        with translated():
            raise
    for line in lines.end():
        yield line


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
