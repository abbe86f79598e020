"""Accepting connections, and stopping without cutting answers.

*Accepting.* A new connection is accepted at once, also when there are too many, since
only then its address is known. Either it takes the slot of a slower one or it is refused
(see ``slots.py``). None of this waits, so no client waits behind those of others.

*Stopping.* Everything runs in one cancel scope that is shielded once the server is up.
When :func:`serve` is cancelled it sets an event; the shielded part stops accepting,
closes what is idle, and gives the rest ``graceful_seconds``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Sequence

import trio

from control.http.access_log import Note
from control.http.admission import Admission
from control.http.connection import TOO_MANY, Connection
from control.http.exchange import serve_requests
from control.http.forwarded import Proxies
from control.http.hangups import HangUps
from control.http.heads import error_answer, in_json
from control.http.lifespan import Lifespan
from control.http.limits import HttpLimits
from control.http.listening import advice
from control.http.service import Application, Service

log = logging.getLogger("control.http")

ACCEPTS_AT_ONCE = 64
BEGUN_AT_ONCE = 8
"""How many connections are accepted in one turn, before other tasks run."""
REFUSAL_SECONDS = 0.005
"""How often at most a refused client gets the reason; others are only closed."""
OUT_OF_DESCRIPTORS_SECONDS = 0.1
TURNED_AWAY = error_answer(TOO_MANY.status, in_json(TOO_MANY))


async def serve(
    app: Application,
    sockets: Sequence[socket.socket],
    limits: HttpLimits | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    proxies: Proxies | None = None,
    note: Note | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* on *sockets* until cancelled; the sockets are closed at the end.

    Args:
        app: An ASGI application. It is started up before ``task_status.started()`` and
            shut down at the end.
        sockets: Bound and listening; may be shared with other processes.
        limits: Every bound, see :class:`HttpLimits`.
        tls: Use TLS on all of the sockets.
        proxies: The trusted proxies. A request that comes through one counts for its
            client, for the application (``scope["client"]``) and ``per_address_max``.
        note: Called for each request that has ended; see ``access_log.py``.

    Raises:
        Exception: What the application's startup raised, or what ended its lifespan
            task (with its background tasks) while serving.

    When cancelled, accepting stops, idle connections close, requests under way get
    ``limits.graceful_seconds`` to end and are then cancelled, and the application is
    shut down.
    """
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
    server = _Server(app, limits or HttpLimits(), tls, proxies or Proxies(), note)
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


class _Server:
    """One call of :func:`serve`: starts and stops the application, and accepts."""

    def __init__(
        self,
        app: Application,
        limits: HttpLimits,
        tls: ssl.SSLContext | None,
        proxies: Proxies,
        note: Note | None,
    ) -> None:
        self.up = trio.Event()
        self.stop = trio.Event()
        self.over = trio.Event()
        self._limits = limits
        self._tls = tls
        self._lifespan = Lifespan(app, self.stop.set)
        self._service = Service(app, limits, self._lifespan.state, self.stop, note)
        self._admission = Admission(limits, proxies)
        self._hang_ups = HangUps()
        self._connections: set[Connection] = set()
        self._refused = -REFUSAL_SECONDS

    @property
    def failure(self) -> BaseException | None:
        return self._lifespan.failure

    # -- life ------------------------------------------------------------------------

    async def live(self, sockets: Sequence[socket.socket]) -> None:
        """Start the application, serve, stop; see the module's essay."""
        try:
            with trio.CancelScope() as shield:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._lifespan.run)
                    await self._lifespan.start()
                    if self.failure is None:
                        shield.shield = True  # from now on the server stops in order
                        await self._serve_connections(sockets)
                        await self._lifespan.stop()
                    nursery.cancel_scope.cancel()
        finally:
            self._hang_ups.close()
            self.up.set()
            self.over.set()

    async def _serve_connections(self, sockets: Sequence[socket.socket]) -> None:
        async with trio.open_nursery() as watch:
            watch.start_soon(self._hang_ups.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for sock in sockets:
                        sock.setblocking(False)
                        accepting.start_soon(self._accept, sock, connections)
                    self.up.set()
                    await self.stop.wait()
                    accepting.cancel_scope.cancel()
                for sock in sockets:
                    sock.close()  # so that new clients are refused instead of waiting
                for connection in list(self._connections):
                    connection.stop()
                connections.cancel_scope.deadline = (
                    trio.current_time() + self._limits.graceful_seconds
                )
            watch.cancel_scope.cancel()

    # -- accepting -------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept connections from one socket; other processes may do so, too."""
        failing = False
        while True:
            await trio.lowlevel.wait_readable(listener)
            await self._admission.wait_for_room()
            try:
                begun = 0
                for _ in range(ACCEPTS_AT_ONCE):
                    sock, place = listener.accept()
                    failing = False
                    begun += self._begin(sock, place[0], connections)
                    if begun == BEGUN_AT_ONCE or self._admission.is_full:
                        break
            except BlockingIOError:
                continue
            except OSError as error:
                # There are no descriptors or memory left; or the client has left already.
                if error.errno != errno.ECONNABORTED:
                    if not failing:
                        log.error("new clients must wait: %s", advice(error))
                    failing = True
                    await trio.sleep(OUT_OF_DESCRIPTORS_SECONDS)

    def _begin(self, sock: socket.socket, address: str, connections: trio.Nursery) -> bool:
        """Serve the connection or refuse it. Returns whether it is served."""
        if not self._admission.make_room(address):
            now = trio.current_time()
            if self._tls is None and now >= self._refused + REFUSAL_SECONDS:
                self._refused = now
                with contextlib.suppress(OSError):
                    sock.send(TURNED_AWAY, socket.MSG_DONTWAIT)
            sock.close()
            return False
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer whose machine is gone acknowledges nothing, and reports no error.
            stall_ms = int(self._limits.send_stall_seconds * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        connection = Connection(
            self._service, self._admission, self._hang_ups, sock, address, self._tls
        )
        try:
            connection.admit()
        except OSError as error:
            log.error("a client was turned away: cannot watch its connection: %s", error)
            sock.close()
            return False
        connections.start_soon(self._run, connection)
        return True

    async def _run(self, connection: Connection) -> None:
        self._connections.add(connection)
        try:
            await connection.run(serve_requests)
        finally:
            self._connections.discard(connection)
