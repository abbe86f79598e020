"""A Trio run that is determined by one seed. The only module that uses Trio's internals.

Trio shuffles every batch of runnable tasks with a generator of its own, so that
nobody relies on an order. For a replay, a seeded generator takes its place here and the
batch is sorted before the shuffle, the way Trio's own tests do it
(``trio._core._run._r`` and ``_ALLOW_DETERMINISTIC_SCHEDULING``). With a clock that
jumps whenever all tasks wait, and no threads and no sockets, a run is then a function
of its seed. ``tests/unit/test_simulated_world.py`` compares two runs.

All loops of the process share Trio's generator. The seeded one serves only its own
thread: otherwise a loop of another thread (a blocking client's) would draw from it
whenever it wakes.

Hypothesis seeds Trio's generator to 0 before every example: inside it, draw the seed
and pass it here.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from trio._core import _run

from gfs.testing.timers import VirtualClock

T = TypeVar("T")

#: How often tasks run before the kernel is asked whether something has come from outside: a
#: signal, or a call of another thread. All else that a simulated run waits for is in it.
ROUNDS_MAX = 50


class _Seeded:
    """A generator that is seeded for the thread that made it; other threads draw from
    the one that it replaces. It has the methods that Trio calls."""

    def __init__(self, seed: int, others: random.Random) -> None:
        self._seeded, self._others = random.Random(seed), others
        self._thread = threading.get_ident()

    def _of_this_thread(self) -> random.Random:
        return self._seeded if threading.get_ident() == self._thread else self._others

    def random(self) -> float:
        return self._of_this_thread().random()

    def uniform(self, a: float, b: float) -> float:
        return self._of_this_thread().uniform(a, b)

    def shuffle(self, x: list[Any]) -> None:
        if len(x) > 1:  # nothing is drawn for one, which most batches of tasks are
            self._of_this_thread().shuffle(x)


class _Seldom:
    """A run's I/O, which asks the kernel in a part of the rounds while tasks can run."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._rounds = 0
        self.process_events = manager.process_events

    def get_events(self, timeout: float) -> Any:
        self._rounds += 1
        if timeout <= 0 and self._rounds < ROUNDS_MAX:
            return ()
        self._rounds = 0
        return self._manager.get_events(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """In the body, ``seed`` alone determines the order in which this thread's tasks run.

    Trio's generator and switch are put back afterwards. One thread at a time.
    """
    generator = _run._r
    if isinstance(generator, _Seeded):
        raise RuntimeError("another simulation runs in this process: one at a time")
    ordered = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r = _Seeded(seed, generator)  # type: ignore[assignment]
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = ordered  # type: ignore[misc]
        _run._r = generator


def running_loop() -> Any:
    """The loop of this thread, for :func:`run_as_loop`."""
    return _run.GLOBAL_RUN_CONTEXT.runner


def run_as_loop(loop: Any, function: Callable[[], None]) -> None:
    """Run code in another thread while the loop's own thread waits: calls that ask Trio
    for the time, or wake a task, then use that loop."""
    _run.GLOBAL_RUN_CONTEXT.runner = loop
    try:
        function()
    finally:
        del _run.GLOBAL_RUN_CONTEXT.runner


def _idle_is_awaited() -> bool:
    """Whether ``wait_all_tasks_blocked`` waits: its time is before the clock's next."""
    return bool(_run.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle)


def run_simulated(seed: int, function: Callable[..., Awaitable[T]], *args: object) -> T:
    """``trio.run`` in virtual time from 0, scheduled by ``seed``.

    Must not be called inside a running Trio loop. A failure names the seed.
    """

    async def main() -> T:
        runner = running_loop()
        runner.io_manager = _Seldom(runner.io_manager)
        return await function(*args)

    with deterministic_scheduling(seed):
        try:
            return trio.run(
                main,
                clock=VirtualClock(_idle_is_awaited),
                strict_exception_groups=True,
            )
        except BaseException as error:
            error.add_note(f"simulated with seed {seed}")
            raise
