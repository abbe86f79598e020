"""The HTTPS server of a kubelet: exec and logs, as the API server asks for them.

``/exec/NAMESPACE/POD/CONTAINER`` upgrades to a WebSocket, which the API server passes
through byte by byte (see :mod:`kubelet_exec`). ``/containerLogs/…`` answers with the
lines that the pod has written, each with its time in front.

A command ends with its connection, with its pod's containers, and with this server.
"""

from __future__ import annotations

import functools
import ssl
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import kube_acts as acts
import trio
from kube_acts import Run
from kube_api import Object
from kubelet_exec import PROTOCOLS, READ_BYTES, Command, Socket
from limits import HANG_SECONDS
from wsproto.utilities import RemoteProtocolError

#: Lines kept of each pod's log.
LOG_LINES_MAX = 10_000

GONE = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    h11.RemoteProtocolError,
    RemoteProtocolError,
)

Find = Callable[[str, str], "Pod"]


class Pod:
    """A pod on its node: its state, and who waits for it to change."""

    def __init__(self, pod: Object, address: str, directory: Path) -> None:
        self.run = Run(pod, address, acts.now())
        self.directory = directory
        self.log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        #: How many lines there ever were, for those who follow.
        self.log_count = 0
        #: Set at the next line, and at the end of a run.
        self.logged = trio.Event()
        self.deleted = trio.Event()
        self.gone = trio.Event()
        #: Ends what runs in its containers; a new one for each run of theirs.
        self.over = trio.Event()
        #: That they end; a new one as well.
        self.crashed = trio.Event()

    @property
    def key(self) -> tuple[str, str]:
        about = self.run.pod["metadata"]
        return about["namespace"], about["name"]

    @property
    def path(self) -> str:
        namespace, name = self.key
        return f"/api/v1/namespaces/{namespace}/pods/{name}"

    def write(self, line: str) -> None:
        self.log.append(line)
        self.log_count += 1
        self._wake()

    def end_run(self) -> None:
        self.over.set()
        self._wake()

    def _wake(self) -> None:
        self.logged.set()
        self.logged = trio.Event()

    def lines(self, reported: int) -> list[str]:
        """Those after the first ``reported`` that are still kept."""
        return list(self.log)[max(0, len(self.log) - (self.log_count - reported)) :]


def served_with(tls: Path) -> ssl.SSLContext:
    """For a server that wants a certificate of its clients: see :class:`certificates.Authority`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
    return context


class KubeletServer:
    def __init__(self, find: Find) -> None:
        """``find`` gives the pod of a namespace and name, or raises LookupError."""
        self._find = find
        self._scopes: set[trio.CancelScope] = set()
        #: What of :data:`PROTOCOLS` is spoken; a test may leave out the newer.
        self.protocols: tuple[str, ...] = PROTOCOLS
        #: How many commands run for exec.
        self.executing = 0
        #: Whether none does; for other threads to wait for.
        self.idle = threading.Event()
        self.idle.set()

    async def serve(
        self, tls: Path, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a free port of loopback, which is given to ``task_status``. Who comes
        without a certificate of our authority is not let in."""
        context = served_with(tls)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                functools.partial(
                    trio.serve_ssl_over_tcp,
                    self._connection,
                    0,
                    context,
                    host="127.0.0.1",
                    https_compatible=True,
                )
            )
            task_status.started(listeners[0].transport_listener.socket.getsockname()[1])

    def drop(self) -> None:
        """Cut all connections."""
        for scope in self._scopes:
            scope.cancel()

    async def _connection(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await self._serve_one(stream)
            except* GONE:
                # A peer that is gone is no failure of ours, in whichever task it shows.
                pass
            finally:
                self._scopes.discard(scope)
                await trio.aclose_forcefully(stream)

    async def _serve_one(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """One request a connection: the API server does not mind."""
        connection = h11.Connection(h11.SERVER)
        with trio.fail_after(HANG_SECONDS):
            request = await _read_request(stream, connection)
        target = urlsplit(request.target.decode())
        parts = [unquote(part) for part in target.path.strip("/").split("/")]
        query = parse_qs(target.query, keep_blank_values=True)
        try:
            verb, namespace, name, *_ = parts
            pod = self._find(namespace, name)
        except (LookupError, ValueError):
            await _answer(stream, connection, 404, b"pod does not exist\n")
            return
        if verb == "containerLogs":
            await _send_logs(stream, connection, pod, query)
        elif pod.run.stage == "running":
            await self._exec(stream, connection, request, pod, query)
        else:
            await _answer(stream, connection, 500, b"container not found\n")

    async def _exec(
        self,
        stream: trio.SSLStream[trio.SocketStream],
        connection: h11.Connection,
        request: h11.Request,
        pod: Pod,
        query: dict[str, list[str]],
    ) -> None:
        socket = Socket(stream, connection.trailing_data[0])
        await socket.accept(request, self.protocols)
        self.executing += 1
        self.idle.clear()
        try:
            async with trio.open_nursery() as nursery:

                async def end_with_the_pod() -> None:
                    await pod.over.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_with_the_pod)
                await Command(socket, pod.directory, query["command"]).run()
                nursery.cancel_scope.cancel()
        finally:
            self.executing -= 1
            if not self.executing:
                self.idle.set()


async def _read_request(stream: trio.abc.ReceiveStream, connection: h11.Connection) -> h11.Request:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(READ_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            raise h11.RemoteProtocolError("no request")


async def _answer(
    stream: trio.abc.SendStream, connection: h11.Connection, status: int, body: bytes
) -> None:
    headers = [("Content-Length", str(len(body))), ("Connection", "close")]
    await _send(stream, connection, h11.Response(status_code=status, headers=headers))
    await _send(stream, connection, h11.Data(data=body))
    await _send(stream, connection, h11.EndOfMessage())


async def _send(stream: trio.abc.SendStream, connection: h11.Connection, event: h11.Event) -> None:
    data = connection.send(event)
    if data:
        await stream.send_all(data)


async def _send_logs(
    stream: trio.abc.Stream, connection: h11.Connection, pod: Pod, query: dict[str, list[str]]
) -> None:
    follow = query.get("follow", [""])[0] in ("1", "true")
    tail = int(query["tailLines"][0]) if "tailLines" in query else LOG_LINES_MAX
    headers = [
        ("Content-Type", "text/plain"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
    ]
    await _send(stream, connection, h11.Response(status_code=200, headers=headers))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_closed, stream, nursery.cancel_scope)
        async with aclosing(_follow(pod, tail, follow=follow)) as pieces:
            async for lines in pieces:
                text = "".join(f"{line}\n" for line in lines)
                await _send(stream, connection, h11.Data(data=text.encode()))
        await _send(stream, connection, h11.EndOfMessage())
        nursery.cancel_scope.cancel()


async def _follow(pod: Pod, tail: int, *, follow: bool) -> AsyncGenerator[list[str], None]:
    """A reader who falls behind what is kept misses what is gone."""
    reported = max(0, pod.log_count - tail)
    while True:
        logged, is_over = pod.logged, pod.over.is_set()
        lines, reported = pod.lines(reported), pod.log_count
        if lines:
            yield lines
        elif is_over or not follow:
            return
        else:
            await logged.wait()


async def _until_closed(stream: trio.abc.ReceiveStream, scope: trio.CancelScope) -> None:
    while await stream.receive_some(READ_BYTES):
        pass
    scope.cancel()
