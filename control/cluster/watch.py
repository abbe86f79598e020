"""Looks at the cluster every few seconds and keeps what it sees, for all processes.

One process of those that share the records looks: the one that has the lock. When it dies, another
one goes on within a step.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import trio
from msgspec.structs import replace

from control.api import ApiError, Connection, Control, RecordsFailed
from control.api.internals import Lock
from control.cluster import series
from control.cluster.events import LAST, WARNING, Facts, Happened, add, between, facts_of, last
from control.cluster.series import STEP_SECONDS, Counters, counters_of, of_master, rates
from gfs.errors import GfsError

log = logging.getLogger(__name__)

#: How long one look waits for the master.
LOOK_SECONDS = 8.0
#: So many looks in a row without an answer are an event: one may be a failover.
AWAY_LOOKS = 3


class Watch:
    def __init__(self, control: Control, connection: Connection) -> None:
        self._control = control
        self._connection = connection
        self._counters: tuple[float, Counters] | None = None
        self._looks_away = 0

    async def run(self) -> None:
        lock = Lock(self._control.directory / "cluster.lock")
        shared = self._control.records.lock("cluster")
        with trio.move_on_after(STEP_SECONDS):
            await self._connection.connected.wait()
        try:
            while True:
                began = trio.current_time()
                if lock.take() and (shared is None or await shared.take()):
                    await self.look()
                await trio.sleep_until(began + STEP_SECONDS)
        finally:
            lock.close()

    async def look(self) -> None:
        """Look once. Failures are logged."""
        try:
            values = await self._rates()
            try:
                values |= await self._ask()
                self._looks_away = 0
            except (GfsError, ApiError, trio.TooSlowError):
                await self._note_away()
            series.add(self._control.volatile, values, time.time())
        except RecordsFailed:
            raise  # and with it this process ends
        except (GfsError, ApiError, OSError) as error:
            log.warning("the cluster could not be watched: %s", error)

    async def _rates(self) -> dict[str, float]:
        now = time.monotonic()
        counters = counters_of((await self._control.metrics.text()).decode())
        before, self._counters = self._counters, (now, counters)
        return rates(before[1], counters, now - before[0]) if before is not None else {}

    async def _ask(self) -> dict[str, float]:
        with trio.fail_after(LOOK_SECONDS):
            began = trio.current_time()
            status = await self._connection.fs.status()
            took = trio.current_time() - began
            repair = await self._connection.fs.repair()
        await self._note(facts_of(status))
        return of_master(status, repair, took)

    async def _note(self, facts: Facts) -> None:
        before = self._last()
        happened = list(between(before, facts)) if before is not None else []
        if before != facts:
            write = partial(add, facts=facts, happened=happened, now_ns=time.time_ns())
            await self._control.records.write(write)

    async def _note_away(self) -> None:
        self._looks_away += 1
        before = self._last()
        if self._looks_away != AWAY_LOOKS or before is None or before.is_away:
            return
        away = replace(before, is_away=True)
        happened = [Happened("master_away", WARNING, "the master does not answer")]
        write = partial(add, facts=away, happened=happened, now_ns=time.time_ns())
        await self._control.records.write(write)

    def _last(self) -> Facts | None:
        with self._control.records.read() as txn:
            return last.get(txn, LAST)
