"""Records that several machines share: PostgreSQL has them, and each process a copy.

Handlers read rows on the loop's thread, many for each request; a question over the network for
each would block the loop or take a thread. So each process has all rows in an LMDB file of its
own, made when it starts, and reads them there in microseconds. Two threads keep it current,
each with a connection of its own:

*The follower* takes what other processes have committed: when PostgreSQL notifies it, when
a request asks, and every :data:`IDLE_SECONDS`. :meth:`Shared.fresh` waits until the copy has every
commit that was acknowledged, anywhere, before the call; requests that ask at the same time
share one statement. Each request asks once, before its credential is checked. So a client may send
each request to another machine, and a revoked token is refused everywhere at once.

*The writer* (:mod:`control.records.writer`) takes the lock of the store in PostgreSQL, takes
what is new, runs all jobs that wait on the copy, stores what they changed in PostgreSQL,
commits there, and then here. No other process can commit in between, so a transaction is
decided on the newest rows, and never on a copy that is behind. If the connection fails, the
jobs are run again, unless they turn out to be committed: so they may run more than once and
have no effect but their rows.

While PostgreSQL is away both fail at once with RecordsAway, and try to connect until it is back.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from typing import Protocol, TypeVar, cast

import lmdb
import outcome
import psycopg
import trio

from control.records.errors import RecordsAway, RecordsBusy, RecordsFailed
from control.records.locks import SharedLock
from control.records.postgres import (
    NONE,
    POST_BYTES_MAX,
    POSTS,
    Commit,
    Database,
    News,
    channel,
)
from control.records.txn import Changes
from control.records.writer import Job
from gfs.errors import GfsError, StartupError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Notifications come sooner; this notices that PostgreSQL is away.
IDLE_SECONDS = 1.0
#: A request waits this long for the copy, some statements; then the client shall try again.
FRESH_SECONDS = 5.0
#: A write is tried again for so long: less than its caller waits.
TRIED_SECONDS = 7.0
#: At the start, PostgreSQL may still be starting, too.
OPEN_SECONDS = 20.0
#: The first and the longest pause between two attempts; half of each is chance.
PAUSE_SECONDS = (0.05, 1.0)
#: Requests that wait for the copy at once; a worker has fewer connections.
ASKING_MAX = 4096
#: Posts that wait to be sent; more are lost.
POSTS_MAX = 4096


class Copy(Protocol):
    """The rows of this process, for this module."""

    def changing(self) -> AbstractContextManager[lmdb.Transaction[bytes]]:
        """A write transaction, committed unless the block raises."""

    def take(self, raw: lmdb.Transaction[bytes], news: News) -> None:
        """Store what other processes have committed."""

    def run(self, raw: lmdb.Transaction[bytes], jobs: list[Job]) -> Changes:
        """Give each job its outcome; returns what they have changed."""

    def fail(self, jobs: list[Job], error: Exception) -> None: ...


class Shared:
    """The two connections of one process for one store. See the module."""

    def __init__(
        self, connect: Callable[..., Database], store: str, writer: str, copy: Copy
    ) -> None:
        self._connect = connect
        self._store = store
        #: The name of this process, and of a lock that it has while it is connected.
        self.writer = writer
        self._session = 0
        self._posts: list[str] = []
        self._receivers: tuple[trio.lowlevel.TrioToken, Callable[[str], None]] | None = None
        self._watcher: tuple[trio.lowlevel.TrioToken, Callable[[], None]] | None = None
        self._copy = copy
        #: The last commit that the copy has.
        self.last = NONE
        #: Held from before the copy is changed until ``last`` says so.
        self._changing = threading.Lock()
        #: Held while all rows are copied, so that only one thread does.
        self._copying = threading.Lock()
        self._line: Database | None = None
        self._asking: list[Job] = []
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._away = ""
        self._closing = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="records-news", daemon=True)

    def be_patient(self) -> None:
        """From the next connection on: for a transaction with all rows."""
        self._connect = partial(self._connect, is_patient=True)

    def start(self) -> None:
        self._follower.start()

    def close(self) -> bool:
        """End the follower; the writer must have ended. False if it hangs. May be called
        twice."""
        if self._closing.is_set():
            return not self._follower.is_alive()
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._follower.join(2 * FRESH_SECONDS)
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._follower.is_alive():
            return False
        os.close(self._wake)
        return True

    # --- reads ----------------------------------------------------------------------------

    async def fresh(self) -> None:
        """Wait until the copy has every commit that was acknowledged before this call.

        Raises RecordsAway if PostgreSQL does not answer.
        """
        await self.ask(_nothing)

    async def ask(self, work: Callable[[Database], T], *, always: bool = False) -> T:
        """Run ``work`` with the follower's connection, after it took what is new; ``always``: also
        if too many requests wait, for what each caller asks once and nobody else can ask."""
        await trio.lowlevel.checkpoint_if_cancelled()
        job = Job(work, trio.lowlevel.current_trio_token())
        with self._lock:
            if self._away or self._closing.is_set():
                raise RecordsAway(self._away or "the server is stopping")
            if len(self._asking) >= ASKING_MAX and not always:
                raise RecordsBusy(f"{ASKING_MAX} requests wait for PostgreSQL: try again later")
            self._asking.append(job)
            os.eventfd_write(self._wake, 1)
        with trio.move_on_after(FRESH_SECONDS):
            await job.done.wait()
        if job.outcome is None:
            raise RecordsAway(f"PostgreSQL has not answered within {FRESH_SECONDS:g} s")
        try:
            return cast(T, job.outcome.unwrap())
        except psycopg.Error as error:
            raise _away(error, False) from error

    def post(self, post: str) -> None:
        """Send a post to all other processes, soon. It may be lost."""
        with self._lock:
            if not self._away and len(self._posts) < POSTS_MAX and len(post) <= POST_BYTES_MAX:
                self._posts.append(post)
                os.eventfd_write(self._wake, 1)

    def take_posts(self, take: Callable[[str], None]) -> None:
        """Call ``take`` with each post of others from now on, on the loop of this thread."""
        self._receivers = (trio.lowlevel.current_trio_token(), take)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed``, on the loop of this thread, soon after commits of others have come."""
        self._watcher = (trio.lowlevel.current_trio_token(), changed)

    def _exchange_posts(self, line: Database) -> None:
        with self._lock:
            posts, self._posts = self._posts, []
        if posts:
            line.post(posts)
        received, line.posts = line.posts, []
        if received and self._receivers is not None:
            token, take = self._receivers
            for post in received:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(take, post)

    def lock(self, name: str) -> SharedLock:
        return SharedLock(self, name)

    @property
    def session(self) -> int:
        """The number of the follower's connection; 0: it has none that is known to work."""
        return 0 if self._away or self._closing.is_set() else self._session

    def _follow(self) -> None:
        pauses = Pauses()
        while not self._closing.is_set():
            line = None
            try:
                line = self._connect()
                line.listen(channel(self._store))
                line.listen(POSTS)
                self._session += 1
                self._look(line)
                if self._away:
                    log.warning("PostgreSQL is back")
                self._away = ""
                pauses = Pauses()
                while not self._closing.is_set():
                    line.wait_for_news(IDLE_SECONDS, self._wake)
                    self._look(line)
            except psycopg.Error as error:
                self._lose(error)
            except Exception as error:
                log.exception("the copy of the records cannot be kept")
                self._lose(error)
            finally:
                if line is not None:
                    line.close()
            self._closing.wait(pauses.next())
        self._refuse("the records are closed: the server is stopping")

    def _look(self, line: Database) -> None:
        # The connection before may still have it, or another process tries it just now.
        line.try_lock(self.writer)
        with self._lock:
            asking, self._asking = self._asking, []
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        try:
            self._bring(line)
        except BaseException:
            with self._lock:
                self._asking += asking
            raise
        for job in asking:
            job.outcome = outcome.capture(job.decide, line)
            job.answer()
        self._exchange_posts(line)

    def _bring(self, line: Database) -> None:
        """Bring the copy up to what PostgreSQL has now."""
        while True:
            news = line.news(self.last)
            if not news.is_known:
                self._copy_all(news.since)
            elif news.commit.sequence <= self.last.sequence or self._store_news(line, news):
                return

    def _store_news(self, line: Database, news: News) -> bool:
        """Returns whether the copy has them now."""
        with self._changing:
            # The other thread may have brought the copy further meanwhile.
            if news.commit.sequence <= self.last.sequence:
                return True
            if news.since != self.last:
                news = line.news(self.last)
            if news.is_known:
                self._store_in_copy(news)
            return news.is_known

    def _copy_all(self, unknown: Commit) -> None:
        """Make the copy again, since PostgreSQL does not know its last commit. On a connection of
        its own: the waits of the others stay short, and nobody waits for a lock meanwhile."""
        with self._copying:
            if self.last != unknown:
                return  # the other thread has just done it
            log.warning(
                "all records are copied again: PostgreSQL does not know commit %d of the copy any "
                "more (it was restored or replaced, or this process has stood still for long)",
                unknown.sequence,
            )
            with closing(self._connect(is_patient=True)) as line:
                news = line.news()
            with self._changing:
                if self.last == unknown:
                    self._store_in_copy(news)

    def _store_in_copy(self, news: News) -> None:
        with self._copy.changing() as raw:
            self._copy.take(raw, news)
        self.last = news.commit
        self._announce()

    def _announce(self) -> None:
        if self._watcher is not None:
            token, changed = self._watcher
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(changed, idempotent=True)

    def _lose(self, error: Exception) -> None:
        if not self._away:
            log.warning("PostgreSQL does not answer: %s", one_line(error))
        self._refuse(f"PostgreSQL does not answer: {one_line(error)}")

    def _refuse(self, why: str) -> None:
        """Refuse what asks, and what will ask until PostgreSQL is back."""
        with self._lock:
            self._away = why
            asking, self._asking = self._asking, []
        for job in asking:
            job.outcome = outcome.Error(RecordsAway(self._away))
            job.answer()

    # --- writes ---------------------------------------------------------------------------

    def commit(self, take: Callable[[], list[Job]]) -> None:
        """Run all jobs that wait in one transaction. In the writer's thread."""
        jobs: list[Job] = []
        pending: Commit | None = None
        until = time.monotonic() + TRIED_SECONDS
        pauses = Pauses()
        while True:
            try:
                line = self._line = self._line or self._connect()
                line.begin()
                if pending is not None and line.has(pending):
                    # It was committed, and only the answer was lost.
                    line.roll_back()
                    self._bring(line)
                    return
                pending = None
                with self._changing:
                    news = line.news(self.last)
                    if news.is_known:
                        jobs = jobs or take()
                        with self._copy.changing() as raw:
                            self._copy.take(raw, news)
                            last = news.commit
                            changes = self._copy.run(raw, jobs)
                            if changes:
                                last = pending = last.next()
                                line.commit(pending, changes)
                            else:
                                line.roll_back()
                        self.last = last
                        self._announce()
                        return
                line.roll_back()
                self._copy_all(news.since)
            except psycopg.Error as error:
                self._drop()
                if time.monotonic() > until:
                    self._copy.fail(jobs or take(), _away(error, pending is not None))
                    return
                self._closing.wait(pauses.next())
            except Exception as error:
                # Of the copy, or because another release has changed the tables.
                self._drop()
                if pending is not None:
                    error = RecordsFailed(f"the copy of the records cannot be kept: {error}")
                self._copy.fail(jobs or take(), error)
                return

    def _drop(self) -> None:
        """Close the writer's connection, whose transaction PostgreSQL then rolls back."""
        if self._line is not None:
            self._line.close()
            self._line = None


class Pauses:
    """Pauses between attempts, each twice as long as the one before, up to a bound."""

    def __init__(self) -> None:
        self._next = PAUSE_SECONDS[0]

    def next(self) -> float:
        pause, self._next = self._next, min(2 * self._next, PAUSE_SECONDS[1])
        return pause * random.uniform(0.5, 1.0)


def at_start(attempt: Callable[[], T]) -> T:
    """``attempt``, again and again while PostgreSQL does not answer. Raises StartupError."""
    until = time.monotonic() + OPEN_SECONDS
    pauses = Pauses()
    while True:
        try:
            return attempt()
        except psycopg.Error as error:
            if time.monotonic() > until or is_refused(error):
                raise StartupError(
                    f"the records in PostgreSQL cannot be opened: {one_line(error)}"
                ) from error
        time.sleep(pauses.next())


def once(work: Callable[[], T]) -> T:
    """``work`` with PostgreSQL at the start. Raises StartupError."""
    try:
        return work()
    except psycopg.Error as error:
        raise StartupError(
            f"the records in PostgreSQL cannot be opened: {one_line(error)}"
        ) from error


def is_refused(error: psycopg.Error) -> bool:
    """Whether it is of no use to try again: a wrong password, user or database."""
    text = str(error)
    return any(each in text for each in ("authentication failed", "does not exist", "no password"))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _away(error: Exception, is_pending: bool) -> GfsError:
    doubt = "the change may have been made" if is_pending else "nothing was changed"
    return RecordsAway(f"PostgreSQL does not answer ({one_line(error)}): {doubt}")


def _nothing(*_: object) -> None:
    """Of a request that only waits."""
