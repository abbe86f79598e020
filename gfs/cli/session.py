"""Running a subcommand's coroutine with a client, ended cleanly by signals."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from gfs.cli.exits import Interrupted
from gfs.cli.options import Cluster
from gfs.client import Client, connect
from gfs.config import ClientSettings, load
from gfs.state import read_key

T = TypeVar("T")


def client_settings(cluster: Cluster) -> ClientSettings:
    return load(ClientSettings, "client", file=cluster.config)


def run_with_client(cluster: Cluster, work: Callable[[Client], Awaitable[T]]) -> T:
    """``await work(client)``, in a Trio loop of its own, as :func:`run` does."""

    async def connected() -> T:
        key = read_key(cluster.key_file) if cluster.key_file else None
        settings = client_settings(cluster)
        async with connect(
            cluster.master, state=cluster.state, key=key, settings=settings
        ) as client:
            return await work(client)

    return run(connected)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """``await work()`` in a Trio loop of its own.

    SIGINT and SIGTERM cancel it, so that it can put away what is half-done,
    and Interrupted is raised; the second signal ends the process at once.
    """
    return trio.run(_interruptible, work)


@contextlib.asynccontextmanager
async def closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close ``iterator`` after the body, here and now, if it is a generator."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


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
