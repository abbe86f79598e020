"""Accepting connections, noticing those who leave, and stopping without a cut.

*The hang-up watch.* Nothing of a body is read before the application asks for it, so a
client that leaves would go unnoticed while the application works. One epoll set for
the whole server watches only for the end of each connection (``EPOLLRDHUP``): it costs
one system call per connection, and nothing per request.

*Slots.* A new connection is accepted at once, also when there are too many: only then
is it known whose it is. Either it takes the slot of a slower one or it is turned away
(see ``slots.py``). None of this waits, so that nobody is behind a crowd in the queue.

*Stopping.* Everything runs in one cancel scope that is shielded once the server is up.
When :func:`serve` is cancelled it sets an event; the shielded part stops accepting,
closes what is idle, and gives the rest ``graceful_seconds``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import ssl
import sys
from collections.abc import Sequence
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import LifespanFailureError

from control.http.connection import Connection
from control.http.forwarded import Proxies, network_of
from control.http.heads import error_answer
from control.http.limits import HttpLimits
from control.http.slots import Slots
from gfs.errors import StartupError

__all__ = ["Server", "listen", "serve"]

log = logging.getLogger("control.http")

BACKLOG = 4096
"""The kernel has a bound of its own, net.core.somaxconn; 4096 unless it was changed."""
ACCEPTS_AT_ONCE = 64
BEGUN_AT_ONCE = 8
"""Of those: others are served between one turn and the next."""
MADE_ROOM_SECONDS = 0.02
"""So often one address gets a new connection for one that it loses."""
SAID_SECONDS = 0.005
HANG_UPS_AT_ONCE = 256
OUT_OF_DESCRIPTORS_SECONDS = 0.1
ROOM_POLL_SECONDS = 0.25
"""Connections become slow just by waiting, without a word from anybody."""
TURNED_AWAY_LOG_SECONDS = 60.0
TURNED_AWAY = error_answer(429, "too many connections of your address; end some, or wait")


def listen(address: str) -> list[socket.socket]:
    """Listening sockets for ``HOST:PORT``; an IPv6 host in brackets, port 0 for any.

    A name with several addresses gives a socket for each, on the same port.

    Raises:
        StartupError: The address is malformed, unknown, taken or not allowed.
    """
    host, port = _split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(found):
            chosen = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_bind(family, (place[0], chosen, *place[2:])))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StartupError(f"cannot listen on {address}: {_advice(error)}") from error
    return sockets


def _split_address(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartupError(f"cannot listen on {address!r}; write HOST:PORT, an IPv6 host as [::1]")
    return host, int(port)


def _bind(family: int, place: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken; stop what uses it or choose another"
    if error.errno == errno.EACCES:
        return "not allowed; ports below 1024 need a privilege"
    if error.errno == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n)"
    return os.strerror(error.errno or 0)


async def serve(
    app: Any,
    sockets: Sequence[socket.socket],
    limits: HttpLimits | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    proxies: Proxies | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* on *sockets* until cancelled; the sockets are closed at the end.

    Args:
        app: An ASGI application. It is started up before ``task_status.started()`` and
            shut down at the end.
        sockets: Bound and listening; may be shared with other processes.
        limits: Every bound, see :class:`HttpLimits`.
        tls: Speak TLS on all of the sockets.
        proxies: Those in front. A request that comes through these is its client's,
            for the application (``scope["client"]``) and for ``per_address_max``.

    Raises:
        Exception: What the application's startup raised, or what ended its lifespan
            task (with its background tasks) while serving.

    When cancelled, accepting stops, idle connections close, requests under way get
    ``limits.graceful_seconds`` to end and are then cancelled, and the application is
    shut down.
    """
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
    server = Server(app, limits or HttpLimits(), tls, proxies or Proxies())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.live, sockets)
            try:
                await server.up.wait()
                if server.failure is None:
                    task_status.started()
                    await server.over.wait()
            finally:
                server.stop.set()
    finally:
        for sock in sockets:
            sock.close()
    if server.failure is not None:
        raise server.failure


class Server:
    """The state shared by all connections of one :func:`serve`."""

    def __init__(
        self, app: Any, limits: HttpLimits, tls: ssl.SSLContext | None, proxies: Proxies
    ) -> None:
        self.app = ASGIWrapper(app)
        self.proxies = proxies
        self.limits = limits
        self.tls = tls
        self.config = _config(limits)
        self.context = WorkerContext(None)
        self.lifespan_state: dict[str, Any] = {}
        self.up = trio.Event()
        self.stop = trio.Event()
        self.over = trio.Event()
        self.failure: BaseException | None = None
        self._connections: dict[int, Connection] = {}
        self._slots: Slots[Connection] = Slots(
            limits.connections_max, limits.per_address_max, limits.slow_seconds, MADE_ROOM_SECONDS
        )
        self._logged = -TURNED_AWAY_LOG_SECONDS
        self._said = -SAID_SECONDS
        self._room = trio.Event()
        self._hang_ups = select.epoll()

    @property
    def stopping(self) -> bool:
        return self.stop.is_set()

    # -- life ------------------------------------------------------------------------

    async def live(self, sockets: Sequence[socket.socket]) -> None:
        """Start the application, serve, stop; see the module's essay."""
        try:
            with trio.CancelScope() as shield:
                async with trio.open_nursery() as nursery:
                    lifespan = AppLifespan(self)
                    nursery.start_soon(lifespan.handle_lifespan)
                    await lifespan.wait_for_startup()
                    if lifespan.failure is None:
                        shield.shield = True  # from here on, stopping is done in order
                        await self._serve_connections(sockets)
                        await lifespan.wait_for_shutdown()
                    self.failure = lifespan.failure
                    nursery.cancel_scope.cancel()
        finally:
            self._hang_ups.close()
            self.up.set()
            self.over.set()

    async def _serve_connections(self, sockets: Sequence[socket.socket]) -> None:
        async with trio.open_nursery() as watch:
            watch.start_soon(self._watch_hang_ups)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for sock in sockets:
                        sock.setblocking(False)
                        accepting.start_soon(self._accept, sock, connections)
                    self.up.set()
                    await self.stop.wait()
                    accepting.cancel_scope.cancel()
                for sock in sockets:
                    sock.close()  # so that new clients are refused instead of kept waiting
                self._ask_to_end()
                connections.cancel_scope.deadline = (
                    trio.current_time() + self.limits.graceful_seconds
                )
            watch.cancel_scope.cancel()

    def _ask_to_end(self) -> None:
        for connection in list(self._connections.values()):
            connection.stop()

    # -- accepting -------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Take connections from one socket. Another process may be faster: no matter."""
        failing = False
        while True:
            await trio.lowlevel.wait_readable(listener)
            await self._wait_for_room()
            try:
                begun = 0
                for _ in range(ACCEPTS_AT_ONCE):
                    sock, place = listener.accept()
                    failing = False
                    begun += self._begin(sock, place[0], connections)
                    if begun == BEGUN_AT_ONCE or self._must_wait():
                        break
            except BlockingIOError:
                continue
            except OSError as error:
                # Out of descriptors or memory; or that client is gone already.
                if error.errno != errno.ECONNABORTED:
                    if not failing:
                        log.error("new clients must wait: %s", _advice(error))
                    failing = True
                    await trio.sleep(OUT_OF_DESCRIPTORS_SECONDS)

    def _must_wait(self) -> bool:
        """Whether there is no slot for anybody."""
        return self._slots.all_taken and self._slots.slowest_of_all(trio.current_time()) is None

    async def _wait_for_room(self) -> None:
        while self._must_wait():
            if self._room.is_set():
                self._room = trio.Event()
            with trio.move_on_after(ROOM_POLL_SECONDS):
                await self._room.wait()

    def _begin(self, sock: socket.socket, address: str, connections: trio.Nursery) -> bool:
        """Serve it, or turn it away; which."""
        sock.setblocking(False)
        if not self._make_room(address):
            now = trio.current_time()
            if self.tls is None and now >= self._said + SAID_SECONDS:
                self._said = now
                with contextlib.suppress(OSError):
                    sock.send(TURNED_AWAY)
            sock.close()
            return False
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer whose machine is gone takes nothing either, and says nothing.
            stall_ms = int(self.limits.send_stall_seconds * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        try:
            self._hang_ups.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        except OSError as error:
            log.error("a client was turned away: cannot watch its connection: %s", error)
            sock.close()
            return False
        connection = Connection(self, sock, address)
        self._connections[sock.fileno()] = connection
        self._slots.take(connection, network_of(address), trio.current_time())
        connections.start_soon(connection.run)
        return True

    # -- slots -----------------------------------------------------------------------

    def _make_room(self, address: str) -> bool:
        """Whether a new connection of *address* may have a slot, if need be another's."""
        if not self._make_room_of(address):
            return False
        if self._slots.all_taken:
            slowest = self._slots.slowest_of_all(trio.current_time())
            if slowest is not None:
                slowest.evict()
        return True

    def _make_room_of(self, address: str) -> bool:
        """Whether *address* may have one more slot, if need be one that it has already.
        A proxy of ours may have all: its connections are of many clients."""
        if self.proxies.has(address):
            return True
        try:
            slowest = self._slots.slowest_of(network_of(address), trio.current_time())
        except LookupError:
            self._log_turned_away(address)
            return False
        if slowest is not None:
            slowest.evict()
        return True

    def _log_turned_away(self, address: str) -> None:
        now = trio.current_time()
        if now >= self._logged + TURNED_AWAY_LOG_SECONDS:
            self._logged = now
            log.warning(
                "%s has the %d connections that one address may have: more are turned away",
                address,
                self.limits.per_address_max,
            )

    def move(self, connection: Connection, address: str) -> bool:
        """The slot of *connection* becomes one of *address*; False: that has too many."""
        if not self._make_room_of(address):
            return False
        self._slots.take(connection, network_of(address), trio.current_time())
        return True

    def got_on(self, connection: Connection, *, idle: bool = False) -> None:
        """*connection* has made progress; *idle*: it waits for a request from now on."""
        self._slots.got_on(connection, trio.current_time(), idle=idle)
        if idle:
            self._room.set()

    # -- what connections report -----------------------------------------------------

    def forget(self, connection: Connection) -> None:
        """*connection* is about to close its socket."""
        self._slots.give_back(connection)
        descriptor = connection.wire.sock.fileno()
        if self._connections.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._hang_ups.unregister(descriptor)
        self._room.set()

    async def _watch_hang_ups(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._hang_ups.fileno())
            for descriptor, events in self._hang_ups.poll(0, HANG_UPS_AT_ONCE):
                connection = self._connections.get(descriptor)
                if connection is not None:
                    connection.hang_up(reset=bool(events & (select.EPOLLHUP | select.EPOLLERR)))


def _config(limits: HttpLimits) -> Config:
    config = Config()
    config.include_server_header = False
    config.h11_max_incomplete_size = limits.header_bytes_max
    config.websocket_max_message_size = limits.websocket_message_bytes_max
    config.websocket_ping_interval = limits.websocket_ping_seconds
    return config


class AppLifespan(Lifespan):
    """Hypercorn's lifespan that keeps the application's own error.

    Attributes:
        failure: What the startup raised, or what ended the application while serving.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.app, server.config, server.lifespan_state)
        self._server = server
        self.failure: BaseException | None = None

    async def handle_lifespan(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        try:
            await self.app(
                {
                    "type": "lifespan",
                    "asgi": {"spec_version": "2.0", "version": "3.0"},
                    "state": self.state,
                },
                self.asgi_receive,
                self.asgi_send,
                trio.to_thread.run_sync,
                trio.from_thread.run,
            )
        except Exception as error:
            # Before the startup this means that the application knows no lifespan.
            # Later its background tasks are gone, and it must not go on without them.
            if self.startup.is_set() and self.failure is None:
                self.failure = error
                self._server.stop.set()
        finally:
            self.supported = False
            self.startup.set()
            self.shutdown.set()

    async def asgi_send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            # Frameworks send this while they handle what went wrong, and pass on only
            # its text. The error itself is more use to whoever started the server.
            self.failure = sys.exc_info()[1] or LifespanFailureError(
                "startup", message.get("message", "")
            )
            self.startup.set()
        elif message["type"] == "lifespan.shutdown.failed":
            log.error("the application's shutdown failed: %s", message.get("message", ""))
            self.shutdown.set()
        else:
            await super().asgi_send(message)
