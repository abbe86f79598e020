"""The control plane as processes: one that serves, or several that share a port.

With one, the process serves the API itself. With more, it binds the port and serves
nothing: it starts *workers*, which inherit the listening sockets, and keeps them
running. The kernel gives a connection to the process that accepts first. The parent
holds the port, so it stays open when a worker dies: the other workers accept
connections until that one is restarted. Only the dead worker's connections are lost.

The workers hold a lifeline of the parent (see :mod:`gfs.cluster`): they end when the
parent ends for any reason, and the port is free when the last of them has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from control import metrics
from control.http import HttpLimits, listen, open_access_log, serve
from control.settings import ControlSettings
from gfs.cluster.children import STOP_SECONDS, Child, ChildRunner
from gfs.cluster.supervisor import pipe
from gfs.errors import SettingsError
from gfs.io import join_address

__all__ = ["adopt", "alone", "facts", "listen", "shared", "tls_context"]

log = logging.getLogger(__name__)

#: A worker has less time to stop than its parent, which waits for it.
WORKER_STOP_SECONDS = STOP_SECONDS - 2.0
#: Modules have so long for their clean-up, once all requests have ended.
CLOSE_SECONDS = 15.0
#: The services in a ready file, independent of what is installed: one port serves all of them.
SERVICES = ("auth", "storage", "compute", "console")
S3 = "s3"
#: The page of the console, if it is built.
CONSOLE = Path(__file__).parents[1] / "console" / "built" / "index.html"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Start(Protocol):
    """Calls ``task_status.started()`` when it serves, then serves until cancelled."""

    async def __call__(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None: ...


def adopt(descriptors: Sequence[int]) -> list[socket.socket]:
    """The listening sockets that a worker inherited."""
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for sock in sockets:
        sock.set_inheritable(False)
        sock.setblocking(False)
    return sockets


def tls_context(settings: ControlSettings) -> ssl.SSLContext | None:
    """Raises SettingsError for files that are not a certificate with its key."""
    if not settings.certfile:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = f"certfile {settings.certfile}, keyfile {settings.keyfile}"
    try:
        # For an encrypted key the library would prompt for a password on the terminal.
        context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: b"")
    except ssl.SSLError as error:
        why = (error.reason or "not readable").lower().replace("_", " ")
        raise SettingsError(f"{files}: not a PEM certificate and its key ({why})") from None
    except OSError as error:
        raise SettingsError(f"{files}: {error.strerror}") from None
    return context


#: The sockets of modules that have a port of their own, by its name.
Ports = Mapping[str, Sequence[socket.socket]]


def own_ports(settings: ControlSettings, inherited: Sequence[int]) -> Ports:
    """The ports of modules that have their own: that of S3, if it is served."""
    if inherited:
        return {S3: adopt(inherited)}
    is_served = settings.s3_bind and (not settings.module_names or S3 in settings.module_names)
    return {S3: listen(settings.s3_bind)} if is_served else {}


def numbers(ports: Ports) -> dict[int, str]:
    return {sock.getsockname()[1]: name for name, own in ports.items() for sock in own}


def facts(
    settings: ControlSettings, sockets: Sequence[socket.socket], ports: Ports
) -> dict[str, str]:
    """The URL of each service: on one port, but for those that have their own."""
    url = settings.public_url.rstrip("/") or _url(sockets[0], bool(settings.certfile))
    shared = [name for name in settings.module_names or SERVICES if name != S3]
    if not CONSOLE.is_file():
        shared = [name for name in shared if name != "console"]
    own = {name: _url(there[0], bool(settings.certfile)) for name, there in ports.items()}
    return dict.fromkeys(shared, url) | own


def _url(sock: socket.socket, is_tls: bool) -> str:
    """The URL of ``sock`` on this machine."""
    host, port = sock.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://{join_address(_ANY.get(host, host), port)}"


def alone(
    app: Any,
    sockets: Sequence[socket.socket],
    settings: ControlSettings,
    tls: ssl.SSLContext | None,
    log_format: str,
) -> Start:
    """Serve in this process; ``log_format`` is that of the access log, if there is one."""
    limits = HttpLimits(
        connections_max=settings.connections_max,
        per_address_max=settings.connections_per_address_max,
        header_bytes_max=settings.header_bytes_max,
        header_seconds=settings.header_seconds,
        keep_alive_seconds=settings.keep_alive_seconds,
        body_stall_seconds=settings.body_stall_seconds,
        send_stall_seconds=settings.send_stall_seconds,
        graceful_seconds=settings.graceful_seconds,
    )

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with contextlib.AsyncExitStack() as stack:
            note = stack.enter_context(open_access_log(log_format)) if settings.access_log else None
            await stack.enter_async_context(_in_time(app, settings.graceful_seconds))
            await serve(
                app,
                sockets,
                limits,
                tls=tls,
                proxies=settings.proxies,
                note=note,
                task_status=task_status,
            )

    return run


@contextlib.asynccontextmanager
async def _in_time(app: Any, graceful_seconds: float) -> AsyncIterator[None]:
    """End this process if the block goes on for long after it was cancelled: a module may
    have shielded itself. What is acknowledged is on the disk."""

    def give_up() -> None:
        log.error("stopping takes too long: %s does not end", " and ".join(app.running) or "it")
        os._exit(1)

    overdue = threading.Timer(graceful_seconds + CLOSE_SECONDS, give_up)
    overdue.daemon = True

    async def begin() -> None:
        try:
            await trio.sleep_forever()
        finally:
            overdue.start()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            yield
            nursery.cancel_scope.cancel()
    finally:
        overdue.cancel()


def shared(
    command: list[str],
    count: int,
    sockets: Sequence[socket.socket],
    held: Sequence[int],
    directory: Path,
    ports: Ports,
) -> Start:
    """Serve in ``count`` processes that run ``gfs`` with ``command`` on ``sockets``.

    ``held`` are descriptors that they keep open while they run; their metrics are
    stored below ``directory`` meanwhile.
    """

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        descriptors = [sock.fileno() for sock in sockets]
        own = [sock.fileno() for sock in ports.get(S3, ())]
        arguments = [*command, *(f"--listen-fd={descriptor}" for descriptor in descriptors)]
        arguments += [f"--s3-listen-fd={descriptor}" for descriptor in own]
        names = [f"worker-{number}" for number in range(1, count + 1)]
        children = [Child(name, arguments, is_control=True) for name in names]
        with metrics.share(directory), pipe() as (lifeline, _):
            runner = ChildRunner(
                lifeline,
                [*descriptors, *own, *held],
                _note_serving,
                log.warning,
                stop_seconds=WORKER_STOP_SECONDS,
            )
            async with trio.open_nursery() as nursery:
                # The first creates the files of a new state; the others find them.
                await nursery.start(runner.run, children[0])
                async with trio.open_nursery() as starting:
                    for child in children[1:]:
                        starting.start_soon(nursery.start, runner.run, child)
                task_status.started()

    return run


def _note_serving(child: Child, report: dict[str, Any]) -> None:
    log.info("%s serves (pid %d)", child.name, report["pid"])
