"""The worker threads of a simulated process, and how a hanging disk stops them.

A blocking call takes some virtual time and then happens at once, in the loop. While a disk
of its machine hangs, or a call that hung is still under way, calls get real threads
instead, one of which runs at a time while the loop stands still: so a call can stop in its
middle, for as long as its disk does not answer, with the locks that it holds; others go
on, and wait for those locks in their threads as on a real machine. The seed still
determines everything.

The loop's own thread must never wait. A file call in it, or a wait for a lock that a
hanging call has, raises :class:`LoopBlocked`, and is kept in
:attr:`gfs.testing.life.Life.wrongs` for the cluster's caller.
"""

from __future__ import annotations

import functools
import os
import random
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

import outcome
import trio

from gfs.testing.determinism import run_as_loop, running_loop
from gfs.testing.inode import Hang
from gfs.testing.life import Life
from gfs.testing.timers import sleep_until, sleep_until_shielded

P = ParamSpec("P")
T = TypeVar("T")


class LoopBlocked(AssertionError):
    """The loop's thread waits for a disk."""


def loop_blocked(life: Life, what: str) -> LoopBlocked:
    frames = traceback.extract_stack()
    sites = [f for f in frames if "/gfs/" in f.filename and "/gfs/testing/" not in f.filename]
    where = f"{sites[-1].filename}:{sites[-1].lineno}: {sites[-1].line}" if sites else "a test"
    error = LoopBlocked(f"{life.name}: {what}, in the loop's thread, at {where}")
    life.wrongs.append(error)
    return error


def blocking(method: Callable[P, T]) -> Callable[P, T]:
    """Decorator for a method that may wait for a disk, of a class with a ``_life``."""

    @functools.wraps(method)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        life: Life = args[0]._life  # type: ignore[attr-defined]
        call = life.call
        if call is None:
            if life.guards_loop and life.alive:
                raise loop_blocked(life, f"{method.__qualname__}{args[1:2]}")
            return method(*args, **kwargs)
        result = method(*args, **kwargs)
        if call.late:
            late, call.late = call.late, 0.0
            call.stop(late)
        return result

    return made


class Hesitant(Protocol):
    """A machine whose disks may hang."""

    blocking_seconds: tuple[float, float]

    @property
    def may_hang(self) -> bool: ...


class Threads:
    """The worker threads of one process."""

    def __init__(self, machine: Hesitant, life: Life, delays: random.Random) -> None:
        self._machine = machine
        self._life = life
        self._delays = delays
        #: Calls that stopped in the middle.
        self.stopped = 0
        life.threads = self

    async def run(
        self,
        function: Callable[..., T],
        *args: object,
        limiter: trio.CapacityLimiter | None = None,
        abandon_on_cancel: bool = False,
    ) -> T:
        """As :class:`gfs.io.world.BlockingRunner`. Killed before the function runs, it does
        not run. The result of a call during which the process was killed is dropped."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._life.check()
        call = Call(self._life, self, partial(function, *args))
        if limiter is not None:
            await limiter.acquire_on_behalf_of(call)
        call.due = trio.current_time() + self._delays.uniform(*self._machine.blocking_seconds)
        if abandon_on_cancel:
            try:
                while not call.ended:
                    await call.wait()
                    call.step(self._machine.may_hang)
            except trio.Cancelled:
                trio.lowlevel.spawn_system_task(self._finish, call, limiter)
                raise
            self._release(call, limiter)
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._finish(call, limiter)
        self._life.check()
        assert call.result is not None
        return call.result.unwrap()  # type: ignore[no-any-return]

    async def _finish(self, call: Call, limiter: trio.CapacityLimiter | None) -> None:
        """Complete the call. This cannot be cancelled."""
        while not call.ended:
            await call.wait_shielded()
            call.step(self._machine.may_hang)
        self._release(call, limiter)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _release(self, call: Call, limiter: trio.CapacityLimiter | None) -> None:
        if limiter is not None:
            limiter.release_on_behalf_of(call)


class Worker:
    """A real thread that makes one call after another, while the loop stands still."""

    def __init__(self) -> None:
        self.body: Callable[[], None] | None = None
        # Bare locks: a semaphore of the library makes one for each wait, and wakes in two steps.
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        threading.Thread(target=self._run, name="simulated worker", daemon=True).start()

    def go_on(self) -> None:
        """Let it run until it stops, or its call has ended. Called in the loop."""
        self._go.release()
        self._stopped.acquire()

    def stop(self) -> None:
        """Called in its thread."""
        self._stopped.release()
        self._go.acquire()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            body, self.body = self.body, None
            assert body is not None
            Context().run(body)  # with no variables of the call before
            del body  # what it holds goes now, and not beside the loop
            self._stopped.release()


#: Threads without a call. No child of this process has them.
_idle: list[Worker] = []
os.register_at_fork(after_in_child=_idle.clear)


class Call:
    """One blocking call. ``step`` runs it to its end or to its next stop; it continues
    at ``due``, or when the event that it waits for is set."""

    def __init__(self, life: Life, threads: Threads, function: Callable[[], Any]) -> None:
        self._life = life
        self._threads = threads
        self._function = function
        self.result: outcome.Outcome[Any] | None = None
        self.ended = False
        self.due = 0.0
        #: How long to stop after the present disk call has had its effect.
        self.late = 0.0
        #: What it waits for instead of a time: a lock's next release.
        self._event: trio.Event | None = None
        #: Few calls get one.
        self._worker: Worker | None = None

    async def wait(self) -> None:
        if self._event is not None:
            await self._event.wait()
        else:
            await sleep_until(self.due)

    async def wait_shielded(self) -> None:
        if self._event is not None:
            with trio.CancelScope(shield=True):
                await self._event.wait()
        else:
            await sleep_until_shielded(self.due)

    def step(self, in_thread: bool) -> None:
        """Run it on. Called in the loop."""
        if self.ended:  # it ended when its process was killed
            return
        if self._worker is not None:
            self._switch()
        elif not self._life.alive:
            self.ended = True
        elif in_thread or self._threads.stopped:
            self._worker = _idle.pop() if _idle else Worker()
            self._worker.body = partial(run_as_loop, running_loop(), self._body)
            self._life.hold(self)
            self._threads.stopped += 1
            self._switch()
        else:
            before, self._life.call = self._life.call, self
            self.result = outcome.capture(self._function)
            self._life.call = before
            self.ended = True

    def _switch(self) -> None:
        """Let its thread run until it stops again."""
        worker = self._worker
        assert worker is not None
        before, self._life.call = self._life.call, self
        worker.go_on()
        self._life.call = before
        if self.ended:
            _idle.append(worker)
            self._threads.stopped -= 1
            self._life.let_go(self)

    def _body(self) -> None:
        self.result = outcome.capture(self._function)
        self.ended = True

    def die(self) -> None:
        """End the thread of a killed process: its further calls raise."""
        while not self.ended and self._life.call is not self:
            self._switch()

    # --- in its thread -------------------------------------------------------------

    def stop(self, seconds: float) -> None:
        """Stop, as if the disk did not answer for so long."""
        self.due, self._event = trio.current_time() + seconds, None
        self._stop()

    def stop_until(self, event: trio.Event) -> None:
        self._event = event
        self._stop()

    def _stop(self) -> None:
        assert self._worker is not None
        self._worker.stop()
        self._life.check()

    @property
    def can_stop(self) -> bool:
        return self._worker is not None

    def meets(self, hang: Hang, kind: str, chance: random.Random) -> None:
        """Stop now, or after the present call has had its effect, if ``chance`` says so."""
        if not self.can_stop or (hang.kinds and kind not in hang.kinds):
            return
        if chance.random() < hang.share:
            seconds = chance.uniform(*hang.seconds)
            if chance.random() < 0.5:
                self.stop(seconds)
            else:
                self.late = seconds


class SimLock(AbstractContextManager["SimLock"]):
    """As ``threading.RLock``, for the threads of one process."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._owner: object | None = None
        self._count = 0
        self._released = trio.Event()

    def __enter__(self) -> SimLock:
        me = self._life.call or self._life
        while self._owner not in (None, me):
            if not isinstance(me, Call) or not me.can_stop:
                raise loop_blocked(self._life, "a wait for a lock that a hanging call holds")
            me.stop_until(self._released)
        self._owner = me
        self._count += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._count -= 1
        if not self._count:
            self._owner = None
            self._released.set()
            self._released = trio.Event()
