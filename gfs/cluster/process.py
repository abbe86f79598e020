"""One server process: run a role until it is asked to stop.

SIGTERM, SIGINT, or the end of the lifeline stop it. A second signal
ends the process at once, as signals do by default.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from gfs.cluster.report import Reporter
from gfs.errors import GfsError, StartupError
from gfs.failures import EXPECTED, sentence, the_one

log = logging.getLogger(__name__)

#: A process without a supervisor kills itself after this time if it hangs.
ORPHAN_STOP_SECONDS = 10.0


class Role(Protocol):
    """Starts to serve, calls ``task_status.started(facts)``, serves until cancelled."""

    def __call__(self, *, task_status: trio.TaskStatus[dict[str, Any]]) -> Awaitable[None]: ...


def calm_collector() -> None:
    """Run the garbage collector rarely, and not over the objects that the imports made.

    A server makes thousands of short-lived objects a request batch, hardly any in
    cycles; by default the collector walks the heap for every 700 of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def descriptors() -> int:
    """How many open files and sockets this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def allow_descriptors(wanted: int, needed: int = 0, what: str = "") -> None:
    """Raise the limit of open files and sockets to ``wanted``, as far as permitted.

    Raises StartupError, which says that ``what`` needs them, if fewer than ``needed`` are.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors() < wanted:
        permitted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (permitted, hard))
    if descriptors() < needed:
        raise StartupError(
            f"{what} needs {needed} open files and sockets, and this process may have "
            f"{descriptors()}: raise its limit (ulimit -Hn, or LimitNOFILE= in its unit)"
        )


def serve(role: Role, *, report: int | None = None, lifeline: int | None = None) -> None:
    """Run ``role``; returns after a clean stop.

    ``report`` and ``lifeline`` are inherited descriptors, see
    :mod:`gfs.cluster`. Errors of the role are reported and raised, without their
    exception groups; an OSError before it serves comes as a StartupError.
    """
    reporter = Reporter(report)
    calm_collector()
    try:
        trio.run(_serve, role, reporter, lifeline)
    except BaseException as error:
        failure = the_one(error)
        if not isinstance(failure, EXPECTED):
            raise
        if not isinstance(failure, GfsError):
            failure = (StartupError if reporter.is_pending else GfsError)(sentence(failure))
        reporter.failed(sentence(failure), failure.exit_code)
        raise failure from error


async def _serve(role: Role, reporter: Reporter, lifeline: int | None) -> None:
    async with trio.open_nursery() as nursery:
        stop = nursery.cancel_scope.cancel
        await nursery.start(_stop_on_signal, stop)
        if lifeline is not None:
            nursery.start_soon(_stop_at_end, lifeline, stop)

        async def until_it_ends(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
            await role(task_status=task_status)
            stop()

        facts = await nursery.start(until_it_ends)
        log.info("serving: %s (pid %d)", facts, os.getpid())
        reporter.serving(facts)


async def _stop_on_signal(
    stop: Callable[[], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            stop()
            return


async def _stop_at_end(lifeline: int, stop: Callable[[], None]) -> None:
    """Stop when the lifeline ends. It is never written to: readable means ended."""
    os.set_inheritable(lifeline, False)
    await trio.lowlevel.wait_readable(lifeline)
    log.warning("stopping: the supervisor is gone")
    timer = threading.Timer(ORPHAN_STOP_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()
    stop()
