"""Work that takes longer than a call may: the call is refused, and asks again later.

A container waits for its image, or for its disk. The work goes on while calls come and go,
and is there once for all calls that wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine.http import Refused

__all__ = ["Background"]

log = logging.getLogger("control.compute")


class _Job(msgspec.Struct):
    scope: trio.CancelScope
    ended: trio.Event
    failure: str = ""


class Background:
    """Does such work while :meth:`run` runs."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._jobs: dict[str, _Job] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def do(
        self, name: str, work: Callable[[], Awaitable[None]], seconds: float, busy: str
    ) -> None:
        """Return when ``work`` has ended. It is begun unless work of this name is under way.

        Raises BackendUnavailable: with the failure of the work, or after ``seconds``, while
        the work continues, with the reason ``busy``.
        """
        job = self._jobs.get(name)
        if job is None:
            if self._nursery is None:
                raise BackendUnavailable("Containers are not driven by this process now.")
            job = self._jobs[name] = _Job(trio.CancelScope(), trio.Event())
            self._nursery.start_soon(self._do, name, job, work)
        with trio.move_on_after(seconds):
            await job.ended.wait()
            if job.failure:
                raise BackendUnavailable(job.failure)
            return
        raise BackendUnavailable(busy)

    async def cancel(self, name: str) -> None:
        """Return when no work of this name is under way any more."""
        if (job := self._jobs.get(name)) is not None:
            job.scope.cancel()
            await job.ended.wait()

    async def _do(self, name: str, job: _Job, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with job.scope:
                await work()
        except (BackendUnavailable, Refused, OSError) as error:
            job.failure = str(error)
            log.warning("podman: %s failed: %s", name, error)
        finally:
            del self._jobs[name]
            job.ended.set()
