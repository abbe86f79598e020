"""Measures how long each task holds the event loop.

All requests of a process take turns on one thread, so all others wait while one computes
without a pause. Every step of a task, from one pause to the next, is timed: no step
of a request may take more than :data:`STEP_SECONDS`. A longer one is
counted, and the log names the request and where in the code the step ended.

The thread's CPU time counts, since an overloaded machine also stops the thread in the
middle of a short step. Reading it is a system call of some microseconds, so it is read
at the beginning of a step only if the last time was :data:`SAMPLE_SECONDS` ago: up to that
much CPU time of earlier steps counts for a long one. The elapsed time costs a tenth of
a microsecond, and is checked first. It has a metric of its own, which shows waits for a disk
or a lock, or a machine that is too busy. Python's garbage collector runs in any step, and is not
counted for the request.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from time import perf_counter, thread_time

import trio

from control.metrics import Metrics

log = logging.getLogger(__name__)

#: The longest step that a request may cause.
STEP_SECONDS = 0.020
#: Shorter steps are not counted, since that would cost more than timing them.
COUNTED_SECONDS = 0.005
#: How old the CPU time at the beginning of a step may be.
SAMPLE_SECONDS = 0.001
#: How many long steps are logged in a minute; further ones are only counted. Those that are
#: much longer are counted apart, so that many of the others do not hide them.
LINES_PER_MINUTE = 10
MUCH_LONGER_SECONDS = 0.050

#: The work of a task, for the log: its request, if there is one.
_doing: ContextVar[object] = ContextVar("doing")

_PACKAGES = Path(__file__).parents[2]


class Loop(trio.abc.Instrument):
    """Times the steps of one event loop; see :meth:`watched`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wall = self._computed = 0.0
        #: When the CPU time was last asked for, by the clock on the wall.
        self._sampled = 0.0
        self._minute, self._lines = 0.0, [0, 0]
        self._context = copy_context()
        self._thread = 0
        self._collecting = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the present event loop until the block ends."""
        self._thread = threading.get_ident()
        trio.lowlevel.add_instrument(self)
        gc.callbacks.append(self._collect)
        self.before_task_step(trio.lowlevel.current_task())
        try:
            yield
        finally:
            gc.callbacks.remove(self._collect)
            trio.lowlevel.remove_instrument(self)

    def _collect(self, phase: str, info: dict[str, int]) -> None:
        """Subtract the garbage collector's time from the step that it runs in."""
        if threading.get_ident() == self._thread:
            if phase == "start":
                self._collecting = thread_time()
            else:
                self._computed += thread_time() - self._collecting

    def note(self, what: str) -> None:
        """Name the work of the present task, for this step and later ones."""
        _doing.set(what)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._context = task.context  # the end of a request may change it
        self._wall = now = perf_counter()
        if now - self._sampled > SAMPLE_SECONDS:
            self._sampled, self._computed = now, thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        wall = perf_counter() - self._wall
        if wall >= COUNTED_SECONDS:
            self._metrics.note_wall(wall)
            seconds = thread_time() - self._computed
            if seconds >= COUNTED_SECONDS:
                self._metrics.note_step(seconds)
            if seconds >= STEP_SECONDS:
                self._log(task, seconds)

    def _log(self, task: trio.lowlevel.Task, seconds: float) -> None:
        if perf_counter() > self._minute + 60:
            self._minute, self._lines = perf_counter(), [0, 0]
        kind = seconds >= MUCH_LONGER_SECONDS
        self._lines[kind] += 1
        if self._lines[kind] <= LINES_PER_MINUTE:
            log.warning(
                "%s held the event loop for %.0f ms, until %s",
                self._context.get(_doing) or f"the task {task.name}",
                seconds * 1000,
                place_of(task),
            )


def place_of(task: trio.lowlevel.Task) -> str:
    """The frames of our code where the task stopped, the innermost last."""
    places = []
    for frame, line in task.iter_await_frames():
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGES) and "site-packages" not in path.parts:
            places.append(f"{path.relative_to(_PACKAGES)}:{line} ({frame.f_code.co_name})")
    return " > ".join(places[-3:]) or "its end"
