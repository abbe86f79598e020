"""Group commit: the writes that wait in this process share one transaction.

A durable commit costs milliseconds whatever is in it, and LMDB has one writer
at a time over all processes. So one thread does the writing: it takes LMDB's
write lock, then everything that waits by then, runs each in a child
transaction (one that raises undoes only itself), commits once and answers all.

LMDB's lock can be waited for only in a thread and without a deadline; the
deadline is the caller's. A write that was given up before it began is taken
off the queue and never happens.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import outcome
import trio

from control.records.errors import RecordsBusy
from control.records.txn import Txn

#: What waits at most: more than a worker has connections, and at some 50 µs for each, in one
#: commit, nobody waits long.
WAITING_MAX = 4096
CLOSE_SECONDS = 10.0


class Job:
    """One caller's write, and its outcome."""

    def __init__(self, decide: Callable[[Txn], Any]) -> None:
        self.decide = decide
        self.outcome: outcome.Outcome[Any] | None = None
        self.done = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def answer(self) -> None:
        # The run of a caller that is no longer there may have ended.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.done.set)


class Commit(Protocol):
    """Runs one transaction: take the write lock, then the jobs, give each its outcome."""

    def __call__(self, take: Callable[[], list[Job]], /) -> None: ...


class Writer:
    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    async def run(self, decide: Callable[[Txn], Any], seconds: float) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        job = Job(decide)
        self._add(job)
        try:
            with trio.move_on_after(seconds):
                await job.done.wait()
        finally:
            self._give_up(job)
        if not job.done.is_set() or job.outcome is None:
            raise RecordsBusy(
                f"the records could not be written within {seconds:g} s: another process "
                "is writing them or the disk is slow; the change may still be made"
            )
        return job.outcome.unwrap()

    def close(self) -> bool:
        """Finish what waits and end the thread. False: it hangs in LMDB's lock."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(CLOSE_SECONDS)
        return not self._thread.is_alive()

    def _add(self, job: Job) -> None:
        with self._changed:
            if self._closing:
                raise RecordsBusy("the records are closed: the server is stopping")
            if len(self._waiting) >= WAITING_MAX:
                raise RecordsBusy(f"{WAITING_MAX} changes wait to be written: try again later")
            self._waiting.append(job)
            if self._thread is None:
                # A daemon, so that a process that forgot close() can end: a
                # commit that is cut short is one that never happened.
                self._thread = threading.Thread(target=self._work, name="records", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _give_up(self, job: Job) -> None:
        with self._changed, contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def _work(self) -> None:
        while self._wait_for_work():
            taken: list[Job] = []

            def take(taken: list[Job] = taken) -> list[Job]:
                with self._changed:
                    taken.extend(self._waiting)
                    self._waiting.clear()
                return taken

            self._commit(take)
            for job in taken:
                job.answer()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return bool(self._waiting)
