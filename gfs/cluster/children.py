"""Child processes that are restarted when they die: those of ``gfs up``, and the workers
of ``gfs control``.

A :class:`ChildRunner` starts a child, waits for its report, restarts it when it dies,
and stops it when it is cancelled itself. See :mod:`gfs.cluster` for the
descriptors that a child inherits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from gfs.cluster.directory import open_log
from gfs.cluster.report import failure, receive_report
from gfs.errors import GfsError, StartupError
from gfs.variables import environment_of_child

RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 10.0
#: A process that served this long and crashed then is started again at once.
HEALTHY_SECONDS = 30.0
#: A start is given up after so many deaths without a reason before the child first serves.
FIRST_STARTS_MAX = 3
#: The time between SIGTERM and SIGKILL.
STOP_SECONDS = 10.0


@dataclass
class Child:
    """One process that is restarted when it dies."""

    name: str
    arguments: list[str]
    #: The file for its output; None: that of its parent.
    log: Path | None = None
    #: Its latest report that it serves.
    facts: dict[str, Any] = field(default_factory=dict)
    #: Whether it is of the control plane, and gets the passwords of :mod:`gfs.variables`.
    is_control: bool = False


class ChildRunner:
    """Restarts children that die. One lifeline for all of them.

    Args:
        lifeline: the end of a pipe that is never written to.
        inherited: further descriptors that every child gets.
        note_serving: called with each report of a child that serves.
        say: prints one line.
        stop_seconds: a child's time from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        lifeline: int,
        inherited: Sequence[int],
        note_serving: Callable[[Child, dict[str, Any]], None],
        say: Callable[[str], None],
        *,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self._lifeline = lifeline
        self._inherited = inherited
        self._note_serving = note_serving
        self._say = say
        self._stop_seconds = stop_seconds
        self._hasten = trio.Event()

    def hasten(self) -> None:
        """Kill the children that are stopping, and those that will be stopped."""
        self._hasten.set()

    async def run(
        self, child: Child, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run ``child``, with restarts, until cancelled; started when it first serves.

        Raises StartupError if it never serves.
        """
        backoff = Backoff()
        served = False
        serves_since: float | None = None

        def note_serving(report: dict[str, Any]) -> None:
            nonlocal served, serves_since
            serves_since = trio.current_time()
            child.facts.update(report)
            self._note_serving(child, report)
            if not served:
                served = True
                task_status.started()

        while True:
            serves_since = None
            end = await self._run_once(child, note_serving)
            if not served:
                _judge_first_start(child, end, backoff.deaths)
            now = trio.current_time()
            delay = backoff.after(end, now - serves_since if serves_since is not None else 0.0)
            self._say(f"{child.name} {end}; starting it again in {delay:g} s")
            await trio.sleep(delay)

    async def _run_once(
        self, child: Child, note_serving: Callable[[dict[str, Any]], None]
    ) -> Ending:
        """One life of ``child``. Cancelled, it stops the process before it returns."""
        try:
            process, pipe = await self._spawn(child)
        except OSError as error:
            # No memory or no descriptors for a process: the running ones continue.
            return Ending(None, None, error.strerror or str(error))
        try:
            report = await receive_report(pipe)
            reason = failure(report) if report is not None else None
            if report is not None and reason is None:
                note_serving(report)
            await process.wait()
        finally:
            await self._stop(process)
        return Ending(process.pid, process.returncode, reason)

    async def _spawn(self, child: Child) -> tuple[trio.Process, int]:
        """The new process, and the descriptor its report will come from."""
        log = self._open_log(child)
        receive, send = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                [
                    *interpreter(),
                    *child.arguments,
                    f"--ready-fd={send}",
                    f"--life-fd={self._lifeline}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(send, self._lifeline, *self._inherited),
                env=environment_of_child(is_control=child.is_control),
                # Only the parent gets Ctrl-C at the terminal.
                start_new_session=True,
            )
        except BaseException:
            os.close(receive)
            raise
        finally:
            os.close(send)
            if log is not None:
                os.close(log)
        return process, receive

    def _open_log(self, child: Child) -> int | None:
        if child.log is None:
            return None
        try:
            return open_log(child.log)
        except StartupError as error:
            self._say(f"{error}; the output of {child.name} is not logged")
            return os.open(os.devnull, os.O_WRONLY)

    async def _stop(self, process: trio.Process) -> None:
        """End ``process`` with SIGTERM, after ``stop_seconds`` with SIGKILL. Cannot be
        cancelled."""
        if process.returncode is not None:
            return
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(self._stop_seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_first, process.wait, nursery.cancel_scope)
                    nursery.start_soon(_first, self._hasten.wait, nursery.cancel_scope)
            if process.returncode is None:
                self._say(f"pid {process.pid} does not stop: killing it")
                process.kill()
                await process.wait()


async def _first(wait: Callable[[], Any], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


@dataclass(frozen=True)
class Ending:
    """How a process ended, or why there was none (``pid`` None)."""

    pid: int | None
    returncode: int | None
    #: Its error, or why it could not be started.
    reason: GfsError | str | None

    @property
    def is_from_outside(self) -> bool:
        """Whether it was killed, or asked to stop: no process does that to itself, and the
        kernel only where memory is short."""
        return self.returncode in (0, -signal.SIGKILL, -signal.SIGTERM)

    def __str__(self) -> str:
        if self.pid is None:
            return f"cannot be started ({self.reason})"
        reason = f": {self.reason}" if self.reason else ""
        return f"(pid {self.pid}) {how_it_ended(self.returncode)}{reason}"


def _judge_first_start(child: Child, end: Ending, deaths: int) -> None:
    """Raise if ``child``, which has never served, should not be restarted."""
    if isinstance(end.reason, StartupError):
        raise StartupError(f"{child.name}: {end.reason}")
    is_hopeless = end.pid is None or end.returncode == StartupError.exit_code
    if is_hopeless or deaths + 1 >= FIRST_STARTS_MAX:
        where = f"; its log: {child.log}" if child.log is not None else ""
        raise StartupError(f"{child.name} {end}{where}")


def how_it_ended(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            return f"was ended by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was ended by signal {-returncode}"
    return f"ended with exit code {returncode}"


class Backoff:
    """How long to wait before a process that ended is started again.

    At once if it served and was ended from outside, since its clients must not wait longer for
    that, however often it happens. What crashes by itself, or ends before it serves, waits longer
    each time.
    """

    def __init__(self) -> None:
        self.deaths = 0

    def after(self, end: Ending, served_seconds: float) -> float:
        """``served_seconds``: how long it had served; 0 if it never did."""
        if served_seconds >= HEALTHY_SECONDS or (served_seconds > 0 and end.is_from_outside):
            self.deaths = 0
        # The exponent is bounded too, for a process that dies for weeks.
        delay = RESTART_SECONDS_MIN * 2.0 ** min(self.deaths, 16)
        self.deaths += 1
        return min(delay, RESTART_SECONDS_MAX)


def interpreter() -> list[str]:
    """The command that runs ``gfs`` again, from any working directory."""
    return [sys.executable, "-P", "-m", "gfs.cli"]
