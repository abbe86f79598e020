"""Many seeds in many processes: each process has one at a time, and none is handed out
before somebody is free for it.

A process that dies takes its seed with it, and nothing else: that seed is told as lost,
and another process goes on. So is a seed that takes too long, with where it was then.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Lost(Protocol[T_co]):
    def __call__(self, seed: int, why: str, is_late: bool) -> T_co: ...


#: Whoever takes too long has so long to tell where he is, before he is killed.
GRACE_SECONDS = 30.0
#: A process is replaced after so many seeds: whatever they leave behind goes with it.
SEEDS_EACH_MAX = 500

_spawn = multiprocessing.get_context("spawn")


def run_all(
    run: Callable[[int], T], seeds: Iterator[int], jobs: int, patience: float, lost: Lost[T]
) -> Iterator[T]:
    """``run`` of each seed, in ``jobs`` processes, as they come.

    Args:
        patience: seconds of real time; no seed may take longer.
        lost: says what is known of a seed that did (it is late), or whose process died,
            given the reason. In the process of the seed, if that can still be asked.
    """
    crew = [_Worker(run, patience, lost) for _ in range(jobs)]
    try:
        while True:
            for worker in crew:
                if worker.seed is None and (seed := next(seeds, None)) is not None:
                    worker.begin(seed)
            busy = [worker for worker in crew if worker.seed is not None]
            if not busy:
                return
            until = min(worker.until for worker in busy)
            wait([worker.connection for worker in busy], max(0.0, until - time.monotonic()))
            for worker in busy:
                if worker.has_news:
                    yield worker.end()
    finally:
        for worker in crew:
            worker.stop()


class _Worker(Generic[T]):
    """A process, and after it the next one."""

    def __init__(self, run: Callable[[int], T], patience: float, lost: Lost[T]) -> None:
        self._run = run
        self._patience = patience
        self._lost = lost
        self._process: Any = None
        self._done = 0
        self.connection: Connection
        #: The seed that is under way.
        self.seed: int | None = None
        self.until = 0.0

    def begin(self, seed: int) -> None:
        if self._process is None:
            self.connection, theirs = _spawn.Pipe()
            self._process = _spawn.Process(
                target=_serve, args=(theirs, self._run, self._patience, self._lost), daemon=True
            )
            self._process.start()
            theirs.close()  # so that its end is seen here
            self._done = 0
        self.seed = seed
        self.until = time.monotonic() + self._patience + GRACE_SECONDS
        with suppress(ConnectionError):  # it is dead: end() tells
            self.connection.send(seed)

    @property
    def has_news(self) -> bool:
        return self.connection.poll() or time.monotonic() >= self.until

    def end(self) -> T:
        """What came of the seed."""
        seed, self.seed = self.seed, None
        assert seed is not None
        try:
            if self.connection.poll():
                result: T
                result, is_last = self.connection.recv()
                self._done += 1
                if is_last or self._done >= SEEDS_EACH_MAX:
                    self.stop()
                return result
        except (EOFError, ConnectionError):
            self._process.join()
            why, is_late = f"its process ended with exit code {self._process.exitcode}", False
        else:
            why, is_late = f"{_too_long(self._patience)}; nobody can be asked where it is", True
        self.stop()
        return self._lost(seed, why, is_late)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
            self._process = None


def _too_long(patience: float) -> str:
    return f"no end after {patience:g} s of real time"


def _serve(connection: Connection, run: Callable[[int], T], patience: float, lost: Lost[T]) -> None:
    seed = -1

    def give_up(_: int, frame: FrameType | None) -> NoReturn:
        # Nothing unwinds: the half of what was under way would complain.
        where = "".join(traceback.format_stack(frame))
        connection.send((lost(seed, f"{_too_long(patience)}; it was at\n{where}", True), True))
        os._exit(1)

    # As the servers do: the heap of the imports is not walked for each few hundred objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # Whoever started this process is interrupted as well, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, give_up)
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, patience)
        result = run(seed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send((result, False))
