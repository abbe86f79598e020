"""Group commit: the writes that wait in this process share one transaction.

A durable commit costs milliseconds, however small it is, and LMDB has one writer
at a time over all processes. So one thread writes: it takes LMDB's
write lock, then all jobs that wait by then, runs each in a child
transaction (one that raises undoes only itself), commits once and answers all.

Only a thread can wait for LMDB's lock, and it has no deadline; the
deadline is the caller's. A write that was given up before it began is removed from
the queue and never happens.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import outcome
import trio
from trio.lowlevel import TrioToken, current_trio_token

from control.records.errors import RecordsBusy
from control.records.txn import Txn

#: How many writes wait at most: more than a worker has connections, and since each takes some
#: 50 µs in a common commit, none waits long.
WAITING_MAX = 4096
CLOSE_SECONDS = 10.0


class Job:
    """One caller's write, and its outcome."""

    def __init__(self, decide: Callable[[Any], Any], token: TrioToken | None) -> None:
        self.decide = decide
        self.outcome: outcome.Outcome[Any] | None = None
        self.done = trio.Event()
        #: None: nobody waits for ``done``.
        self._token = token

    def answer(self) -> None:
        # The caller may be gone, and its Trio run may have ended.
        with contextlib.suppress(trio.RunFinishedError):
            assert self._token is not None
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
        job = Job(decide, current_trio_token())
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
        """Finish the writes that wait and end the thread. False if it hangs in LMDB's lock."""
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
                # A daemon thread, so that a process that did not call close() can end: a
                # commit that is cut short has not happened.
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
