"""New events, for all tasks of this process that wait for one."""

from __future__ import annotations

import trio

from control.api import Records
from control.compute.rows import last_event

#: How soon changes that another process of this machine made are noticed here.
POLL_SECONDS = 0.15


class Changes:
    """Wakes tasks that wait for an event. Reads the records only while a task waits."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._news = trio.Event()
        self._waiting = 0
        self._wanted = trio.Event()
        self._known = -1

    def number(self) -> int:
        """The number of the last event."""
        with self._records.read() as txn:
            return last_event(txn)

    def poke(self) -> None:
        """Wake the tasks at once, since this process has just written an event."""
        self._news.set()
        self._news = trio.Event()

    async def after(self, number: int) -> None:
        """Wait for an event after this one."""
        await trio.lowlevel.checkpoint()
        while self.number() <= number:
            self._waiting += 1
            self._wanted.set()
            try:
                await self._news.wait()
            finally:
                self._waiting -= 1

    async def run(self) -> None:
        if self._records.watch(self._look):
            self._look()
            await trio.sleep_forever()
        while True:
            if not self._waiting:
                self._wanted = trio.Event()
                await self._wanted.wait()
            self._look()
            await trio.sleep(POLL_SECONDS)

    def _look(self) -> None:
        now = self.number() if self._waiting else -1
        if now != self._known:
            self._known = now
            self.poke()
