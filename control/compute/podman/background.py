"""Work that takes longer than a call may: the call is refused, and repeated later.

A container may wait for its image or its disk. The work goes on when calls end, and all
calls that wait for the same work share it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine import Refused

log = logging.getLogger("control.compute")


class _Job(msgspec.Struct):
    scope: trio.CancelScope
    ended: trio.Event
    failure: str = ""


class Background:
    """Does such work while :meth:`run` is running."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._jobs: dict[str, _Job] = {}
        #: The failure that was logged last, until the work succeeds.
        self._logged: dict[str, str] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def do(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        seconds: float,
        *,
        busy: str,
        idle: str,
    ) -> None:
        """Return when ``work`` has ended. It is started unless work of this name is under way.

        Raises BackendUnavailable: with the failure of the work; after ``seconds``, while the
        work continues, with the reason ``busy``; and with ``idle`` unless :meth:`run` is
        running. A failure is logged once, however often the work is started again.
        """
        job = self._jobs.get(name)
        if job is None:
            if self._nursery is None:
                raise BackendUnavailable(idle)
            job = self._jobs[name] = _Job(trio.CancelScope(), trio.Event())
            self._nursery.start_soon(self._do, name, job, work)
        with trio.move_on_after(seconds):
            await job.ended.wait()
            if job.failure:
                raise BackendUnavailable(job.failure)
            return
        raise BackendUnavailable(busy)

    async def cancel(self, name: str) -> None:
        """Cancel the work of this name. No work of this name runs when this returns."""
        self._logged.pop(name, None)
        if (job := self._jobs.get(name)) is not None:
            job.scope.cancel()
            await job.ended.wait()

    async def _do(self, name: str, job: _Job, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with job.scope:
                await work()
                if self._logged.pop(name, None) is not None:
                    log.info("podman: %s: succeeded after failures", name)
        except (BackendUnavailable, Refused, OSError) as error:
            job.failure = str(error)
            if self._logged.get(name) != job.failure:
                self._logged[name] = job.failure
                log.warning("podman: %s: %s", name, job.failure)
        finally:
            del self._jobs[name]
            job.ended.set()
