"""The control plane as processes: one that serves, or several that share a port.

With one, the process serves itself. With more, it binds the port and serves
nothing: it starts *workers*, which inherit the listening sockets, and keeps them
running. The kernel gives a connection to the process that accepts first. The port is the
parent's, so no worker's death closes it; while one is started again the others
accept. A worker that dies takes only its own connections with it.

The workers hold a lifeline of the parent's (see :mod:`gfs.cluster`): whatever
kills the parent ends them, and with the last of them the port is free.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from control import metrics
from control.http import HttpLimits, listen, open_access_log, serve
from control.settings import ControlSettings
from gfs.cluster.children import STOP_SECONDS, Child, ChildRunner
from gfs.cluster.supervisor import pipe
from gfs.errors import SettingsError
from gfs.io.real import join_address

__all__ = ["adopt", "alone", "facts", "listen", "shared", "tls_context"]

log = logging.getLogger(__name__)

#: A worker has less time to stop than its parent, which waits for it.
WORKER_STOP_SECONDS = STOP_SECONDS - 2.0
#: The services in a ready file, whatever is installed: one port serves all of them.
SERVICES = ("auth", "storage", "compute")
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
    """Raises SettingsError for files that are no certificate with its key."""
    if not settings.certfile:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = f"certfile {settings.certfile}, keyfile {settings.keyfile}"
    try:
        # An encrypted key would ask for its password on the terminal.
        context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: b"")
    except ssl.SSLError as error:
        why = (error.reason or "not readable").lower().replace("_", " ")
        raise SettingsError(f"{files}: not a PEM certificate and its key ({why})") from None
    except OSError as error:
        raise SettingsError(f"{files}: {error.strerror}") from None
    return context


def facts(settings: ControlSettings, sockets: Sequence[socket.socket]) -> dict[str, str]:
    """The URL of each service: all on the one port."""
    url = settings.public_url.rstrip("/") or _url(sockets[0], bool(settings.certfile))
    return dict.fromkeys(settings.module_names or SERVICES, url)


def _url(sock: socket.socket, is_tls: bool) -> str:
    """Where this machine reaches ``sock``."""
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
        with contextlib.ExitStack() as stack:
            note = stack.enter_context(open_access_log(log_format)) if settings.access_log else None
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


def shared(
    command: list[str],
    count: int,
    sockets: Sequence[socket.socket],
    held: Sequence[int],
    directory: Path,
) -> Start:
    """Serve in ``count`` processes that run ``gfs`` with ``command`` on ``sockets``.

    ``held`` are descriptors that they keep open for as long as they run; what they
    count goes below ``directory`` meanwhile.
    """

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        descriptors = [sock.fileno() for sock in sockets]
        arguments = [*command, *(f"--listen-fd={descriptor}" for descriptor in descriptors)]
        children = [Child(f"worker-{number}", arguments) for number in range(1, count + 1)]
        with metrics.share(directory), pipe() as (lifeline, _):
            runner = ChildRunner(
                lifeline,
                [*descriptors, *held],
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
