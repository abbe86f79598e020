"""What an older version kept in Podman's volumes is moved to disks: it takes longer than a call.

So it goes on while calls come and go; each is told that it is under way, and comes again.
What was cut off is begun anew.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine.http import Refused

__all__ = ["Moves"]

log = logging.getLogger("control.compute")

#: A call waits so long and is then told to come again.
WAIT_SECONDS = 10.0


class _Move(msgspec.Struct):
    scope: trio.CancelScope
    ended: trio.Event
    failure: str = ""


class Moves:
    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._moves: dict[str, _Move] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def done(self, container_id: str, work: Callable[[], Awaitable[None]]) -> None:
        """Return when ``work`` was done. Raises BackendUnavailable: it goes on, or failed."""
        move = self._moves.get(container_id)
        if move is None:
            if self._nursery is None:
                raise BackendUnavailable("Containers are not driven by this process now.")
            move = self._moves[container_id] = _Move(trio.CancelScope(), trio.Event())
            self._nursery.start_soon(self._do, container_id, move, work)
        with trio.move_on_after(WAIT_SECONDS):
            await move.ended.wait()
            if move.failure:
                raise BackendUnavailable(move.failure)
            return
        raise BackendUnavailable("What it kept is being copied to a disk of its own, once.")

    async def give_up(self, container_id: str) -> None:
        if (move := self._moves.get(container_id)) is not None:
            move.scope.cancel()
            await move.ended.wait()

    async def _do(
        self, container_id: str, move: _Move, work: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            with move.scope:
                await work()
        except (BackendUnavailable, Refused, OSError) as error:
            move.failure = f"What it kept cannot be copied to a disk of its own: {error}"
            log.warning("podman: %s: %s", container_id, move.failure)
        finally:
            del self._moves[container_id]
            move.ended.set()
