"""New events, for all tasks of this process that wait for one."""

from __future__ import annotations

import trio

from control.compute.rows import last_event
from control.records import Records

#: How soon changes that another process made are noticed here.
POLL_SECONDS = 0.15


class Changes:
    """Wakes who waits. Looks into the records only while somebody does."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._news = trio.Event()
        self._waiting = 0
        self._wanted = trio.Event()

    def number(self) -> int:
        """Of the last event."""
        with self._records.read() as txn:
            return last_event(txn)

    def poke(self) -> None:
        """This process has just written: nobody need wait for the next look."""
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
        known = self.number()
        while True:
            if not self._waiting:
                self._wanted = trio.Event()
                await self._wanted.wait()
                known = -1
            now = self.number()
            if now != known:
                known = now
                self.poke()
            await trio.sleep(POLL_SECONDS)
