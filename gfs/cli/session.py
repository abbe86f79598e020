"""Running a subcommand's coroutine with a client, ended cleanly by signals."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from gfs.cli.exits import Interrupted, complain
from gfs.cli.options import Cluster, check_address, state_directory
from gfs.client import Client, connect, find_masters
from gfs.cluster.directory import StateDirectory, is_locked
from gfs.config import ClientSettings, load
from gfs.errors import MasterUnavailable

T = TypeVar("T")

SAY_AFTER_SECONDS = 1.0
#: A mistyped address, or a cluster that does not run, is reported within 5 s. A longer restart of a
#: master is waited for by ``gfs --wait``, and by a command that was connected before it.
REFUSED_SECONDS = 4.0


def client_settings(cluster: Cluster) -> ClientSettings:
    return load(ClientSettings, "client", file=cluster.config)


def run_with_client(
    cluster: Cluster, work: Callable[[Client], Awaitable[T]], *, seconds: float = math.inf
) -> T:
    """``await work(client)``, in a Trio loop of its own, as :func:`run` does.

    Raises MasterUnavailable if it takes more than ``seconds``.
    """

    async def connected() -> T:
        settings = client_settings(cluster)
        check_runs(cluster)
        with trio.move_on_after(seconds):
            return await ask(settings)
        where = ", ".join(find_masters(cluster.master, cluster.state))
        raise MasterUnavailable(
            f"no answer from the master at {where} within {seconds:g} s: see its log; start it "
            "(gfs up, gfs master), or make a shadow master the master (gfs promote)"
        )

    async def ask(settings: ClientSettings) -> T:
        waiting = saying_that_it_waits(cluster, min(seconds, settings.retry_seconds))
        async with waiting as waits:
            waits(True)
            async with _connected(cluster, settings) as client:
                waits(False)
                return await work(client)

    return run(connected)


@contextlib.asynccontextmanager
async def _connected(cluster: Cluster, settings: ClientSettings) -> AsyncIterator[Client]:
    is_connected = False
    try:
        async with connect(
            cluster.master,
            state=cluster.state,
            key=cluster.key_file,
            tls=cluster.tls,
            settings=settings,
            refused_seconds=refused_seconds(cluster),
        ) as client:
            is_connected = True
            yield client
    except MasterUnavailable as error:
        if is_connected:
            raise
        raise with_advice(cluster, error) from error


def check_runs(cluster: Cluster) -> None:
    """Fail at once for an invalid address, and for a local cluster that is stopped."""
    named = cluster.master
    if named is None and cluster.state is None:
        named = os.environ.get("GFS_MASTER") or None
    if named is not None:
        for address in named.split(","):
            check_address("--master", address.strip())
        return
    directory = StateDirectory(state_directory(cluster))
    if directory.ready.exists() and not is_locked(directory.lock):
        raise MasterUnavailable(
            f"{directory.path}: the cluster there is not running: start it with gfs up"
        )


def with_advice(cluster: Cluster, error: MasterUnavailable) -> MasterUnavailable:
    """``error``, with what to do if all addresses refused connections."""
    if cluster.wait or not isinstance(error.__cause__, ConnectionRefusedError):
        return error
    return MasterUnavailable(f"{error} (start it, or check the address; gfs --wait … waits for it)")


def refused_seconds(cluster: Cluster) -> float:
    """How long to wait while all addresses of masters refuse connections."""
    return math.inf if cluster.wait else REFUSED_SECONDS


@contextlib.asynccontextmanager
async def saying_that_it_waits(
    cluster: Cluster, seconds: float
) -> AsyncIterator[Callable[[bool], None]]:
    """The body calls what it is given as it begins to wait for the master, for up to ``seconds``,
    and as it goes on: if that takes long, it is said."""
    where = ", ".join(find_masters(cluster.master, cluster.state))
    text = f"waiting for the master at {where}, up to {seconds:g} s (Ctrl-C ends)"
    async with trio.open_nursery() as nursery:
        waiting = trio.CancelScope()

        def waits(begins: bool) -> None:
            nonlocal waiting
            waiting.cancel()
            if begins:
                waiting = trio.CancelScope()
                nursery.start_soon(_say_that_it_waits, waiting, text)

        yield waits
        nursery.cancel_scope.cancel()


async def _say_that_it_waits(waiting: trio.CancelScope, text: str) -> None:
    """Print what the command waits for, if stderr is a terminal."""
    with waiting:
        await trio.sleep(SAY_AFTER_SECONDS)
        if sys.stderr.isatty():
            complain(text)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """``await work()`` in a Trio loop of its own.

    SIGINT and SIGTERM cancel it, so that it can clean up half-finished work, and
    Interrupted is raised; the second signal ends the process at once. The library's log
    is not shown: the user need not know of failures that it recovers from.
    """
    logging.getLogger("gfs").addHandler(logging.NullHandler())
    if os.environ.get("GFS_DEBUG"):
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    return trio.run(_interruptible, work)


async def _interruptible(work: Callable[[], Awaitable[T]]) -> T:
    scope = trio.CancelScope()
    caught: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, scope, caught)
        with scope:
            result = await work()
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise Interrupted(caught[0])
    return result


async def _watch_signals(
    scope: trio.CancelScope,
    caught: list[int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if caught:
                os._exit(128 + number)
            caught.append(number)
            scope.cancel()
