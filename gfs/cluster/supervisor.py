"""``gfs up``: starts a cluster's processes, keeps them running, stops them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from gfs.cluster.directory import (
    StateDirectory,
    bound_log,
    check_ports,
    free_ports,
    missing_directories,
    open_log,
    remove_empty,
    supervisor_pid,
    try_lock,
    write_atomically,
)
from gfs.cluster.report import failure, receive_report
from gfs.config import MasterSettings, load
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.state import KEY_NAME

HOST = "127.0.0.1"
CHUNKSERVERS_DEFAULT = 3
CHUNKSERVERS_MAX = 1000

RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 10.0
#: A process that ran this long is healthy: its next death is a first one.
HEALTHY_SECONDS = 30.0
#: Deaths without a reason, before it ever served, after which a start is given up.
FIRST_STARTS_MAX = 3
#: Between SIGTERM and SIGKILL.
STOP_SECONDS = 10.0
#: Children of a supervisor that was killed need this long to notice and stop.
LEFTOVER_SECONDS = 15.0
SLOW_START_SECONDS = 10.0
LOG_CHECK_SECONDS = 60.0


@dataclass(frozen=True)
class Wishes:
    """What ``gfs up`` was asked for; None leaves a choice to the state."""

    state: Path
    chunkservers: int | None = None
    replication: int | None = None
    port: int = 9400
    ready_file: Path | None = None
    config: Path | None = None


@dataclass
class Child:
    """One process that is kept running."""

    name: str
    arguments: list[str]
    log: Path
    #: What goes into the ready file, as of the last time it served.
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A start, decided. Nothing of it exists yet."""

    directory: StateDirectory
    master: Child
    chunkservers: list[Child]
    numbers: list[int]
    #: Goal of new files, and the live servers that a new chunk needs.
    replication: int
    replicas_min: int
    ready_files: list[Path]


def choose_numbers(existing: list[int], wanted: int | None) -> list[int]:
    """Which chunkservers run: all that exist, and new ones up to ``wanted``.

    One that exists holds data, so a smaller wish never leaves it out.
    """
    if wanted is None:
        wanted = 0 if existing else CHUNKSERVERS_DEFAULT
    chosen = set(existing)
    number = 1
    while len(chosen) < wanted:
        chosen.add(number)
        number += 1
    return sorted(chosen)


def make_plan(wishes: Wishes, directory: StateDirectory) -> Plan:
    """Decide a start on ``directory``, whose lock is held.

    Raises StartupError or SettingsError; changes nothing.
    """
    numbers = choose_numbers(directory.chunkservers(), wishes.chunkservers)
    replication = wishes.replication or directory.read_settled().get("replication")
    settings = load(
        MasterSettings, "master", file=wishes.config, flags={"replication": replication}
    )
    ports = _ports(wishes.port, numbers)
    check_ports([f"{HOST}:{port}" for port in ports])
    master_address = f"{HOST}:{ports[0]}"
    config = ["--config", str(wishes.config.absolute())] if wishes.config else []
    master = Child(
        "master",
        [
            "master",
            f"--state={directory.path}",
            f"--address={master_address}",
            f"--replication={settings.replication}",
            *config,
        ],
        directory.log("master"),
    )
    chunkservers = [
        Child(
            f"chunkserver-{number}",
            [
                "chunkserver",
                f"--dir={directory.chunkserver(number)}",
                f"--master={master_address}",
                f"--address={HOST}:{port}",
                f"--key-file={directory.path / KEY_NAME}",
                *config,
            ],
            directory.log(f"chunkserver-{number}"),
            {"dir": str(directory.chunkserver(number))},
        )
        for number, port in zip(numbers, ports[1:], strict=True)
    ]
    return Plan(
        directory,
        master,
        chunkservers,
        numbers,
        settings.replication,
        settings.replicas_min,
        [directory.ready, *([wishes.ready_file.absolute()] if wishes.ready_file else [])],
    )


def _ports(base: int, numbers: list[int]) -> list[int]:
    """The master's port, then one for each number; base 0: any that are free."""
    if base == 0:
        return free_ports(HOST, 1 + len(numbers))
    if base + numbers[-1] > 65535:
        raise SettingsError(f"--port {base}: {base + numbers[-1]} would be no port any more")
    return [base, *(base + number for number in numbers)]


async def up(wishes: Wishes, on_ready: Callable[[Plan, dict[str, Any]], None]) -> None:
    """Run a cluster until SIGINT, SIGTERM or SIGHUP; returns after a clean stop.

    ``on_ready`` is called once, when everything serves, with what the ready
    file says. Raises StartupError, or another GfsError whose exit code says
    the same, when the cluster cannot start: then nothing of it runs.
    """
    directory = StateDirectory(wishes.state)
    fresh = missing_directories(directory.path)
    lock = await _take_lock(directory)
    try:
        plan = make_plan(wishes, directory)
        _prepare(plan, wishes)
    except BaseException:
        if fresh:
            directory.lock.unlink(missing_ok=True)  # while it is still held
        os.close(lock)
        remove_empty(fresh)
        raise
    try:
        await Supervisor(plan, lock, on_ready).run()
    finally:
        os.close(lock)


async def _take_lock(directory: StateDirectory) -> int:
    """The lock, after what a killed supervisor left behind has ended."""
    try:
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"{directory.path}: cannot be made: {error.strerror}") from None
    with trio.move_on_after(LEFTOVER_SECONDS):
        while (lock := try_lock(directory.lock)) is None:
            pid = supervisor_pid(directory.lock)
            if pid is not None:
                raise StartupError(
                    f"{directory.path}: a cluster runs on it already (gfs up, pid {pid}): "
                    "stop it with gfs down, or use another --state"
                )
            await trio.sleep(0.05)
        return lock
    raise StartupError(
        f"{directory.path}: processes of a cluster whose gfs up was killed still hold "
        f"{directory.lock}: end them first"
    )


def _prepare(plan: Plan, wishes: Wishes) -> None:
    """Everything that can be found out without a process, and made for one."""
    directory = plan.directory
    directory.prepare(plan.numbers)
    try:
        if wishes.replication:
            settled = directory.read_settled() | {"replication": wishes.replication}
            write_atomically(directory.settled, settled)
        for path in plan.ready_files:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Nobody may take the last run for this one. That the new file can
            # be written is tried too: afterwards is too late.
            write_atomically(path, {})
            path.unlink()
    except OSError as error:
        raise StartupError(f"{error.filename}: cannot be written: {error.strerror}") from None


def say(text: str) -> None:
    """Tell the person at the terminal; the cluster goes on if there is none."""
    with contextlib.suppress(OSError, ValueError):
        print(f"gfs up: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Runs a plan. One use."""

    def __init__(
        self, plan: Plan, lock: int, on_ready: Callable[[Plan, dict[str, Any]], None]
    ) -> None:
        self._plan = plan
        self._lock = lock
        self._on_ready = on_ready
        self._hasten = trio.Event()
        self._is_ready = False
        self._lifeline = -1

    async def run(self) -> None:
        with _pipe() as (lifeline, _):
            self._lifeline = lifeline
            work = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals, work)
                try:
                    with work:
                        await self._work()
                finally:
                    for path in self._plan.ready_files:
                        path.unlink(missing_ok=True)
                nursery.cancel_scope.cancel()

    async def _watch_signals(
        self,
        work: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The first signal stops the cluster, the next one hastens that."""
        watched = {signal.SIGINT, signal.SIGTERM}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            watched.add(signal.SIGHUP)
        with trio.open_signal_receiver(*watched) as signals:
            task_status.started()
            async for number in signals:
                if work.cancel_called:
                    self._hasten.set()
                    return
                say(f"stopping ({signal.Signals(number).name}); again to hasten")
                work.cancel()

    async def _work(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_when_slow)
            await nursery.start(self._keep, self._plan.master)
            async with trio.open_nursery() as starting:
                for child in self._plan.chunkservers:
                    starting.start_soon(nursery.start, self._keep, child)
            self._is_ready = True
            self._write_ready()
            self._on_ready(self._plan, self._facts())
            while True:
                await trio.sleep(LOG_CHECK_SECONDS)
                for child in self._children:
                    bound_log(child.log)

    @property
    def _children(self) -> list[Child]:
        return [self._plan.master, *self._plan.chunkservers]

    async def _say_when_slow(self) -> None:
        while not self._is_ready:
            await trio.sleep(SLOW_START_SECONDS)
            late = [child.name for child in self._children if "pid" not in child.facts]
            if late:
                say(f"waiting for {', '.join(late)}; logs: {self._plan.directory.logs}")

    async def _keep(
        self, child: Child, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep ``child`` running until cancelled; started when it first serves."""
        backoff = Backoff()
        served = False

        def note_serving(report: dict[str, Any]) -> None:
            nonlocal served
            self._note_serving(child, report)
            if not served:
                served = True
                task_status.started()

        while True:
            began = trio.current_time()
            end = await self._run_once(child, note_serving)
            if not served:
                _judge_first_start(child, end, backoff.deaths)
            delay = backoff.after(trio.current_time() - began)
            say(f"{child.name} {end}; starting it again in {delay:g} s")
            await trio.sleep(delay)

    async def _run_once(
        self, child: Child, note_serving: Callable[[dict[str, Any]], None]
    ) -> Ending:
        """One life of ``child``. Cancelled, it stops the process before it returns."""
        try:
            process, pipe = await self._spawn(child)
        except OSError as error:
            # No memory or no descriptors for a process: those that run go on.
            return Ending(None, None, error.strerror or str(error))
        try:
            report = await receive_report(pipe)
            told = failure(report) if report is not None else None
            if report is not None and told is None:
                note_serving(report)
            await process.wait()
        finally:
            await self._stop(process)
        return Ending(process.pid, process.returncode, told)

    async def _spawn(self, child: Child) -> tuple[trio.Process, int]:
        """The new process, and the descriptor its report will come from."""
        try:
            log = open_log(child.log)
        except StartupError as error:
            say(f"{error}; what {child.name} says is lost")
            log = os.open(os.devnull, os.O_WRONLY)
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
                pass_fds=(send, self._lifeline, self._lock),
                # Ctrl-C at the terminal is for the supervisor alone.
                start_new_session=True,
            )
        except BaseException:
            os.close(receive)
            raise
        finally:
            os.close(send)
            os.close(log)
        return process, receive

    async def _stop(self, process: trio.Process) -> None:
        """End ``process``: by SIGTERM, in the end by SIGKILL. Not cancelled."""
        if process.returncode is not None:
            return
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(STOP_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_first, process.wait, nursery.cancel_scope)
                    nursery.start_soon(_first, self._hasten.wait, nursery.cancel_scope)
            if process.returncode is None:
                say(f"pid {process.pid} does not stop: killing it")
                process.kill()
                await process.wait()

    def _note_serving(self, child: Child, report: dict[str, Any]) -> None:
        child.facts.update(report)
        if self._is_ready:
            say(f"{child.name} serves again (pid {report['pid']})")
            self._write_ready()

    def _facts(self) -> dict[str, Any]:
        return {
            "master": self._plan.master.facts,
            "chunkservers": [child.facts for child in self._plan.chunkservers],
            "state": str(self._plan.directory.path),
        }

    def _write_ready(self) -> None:
        for path in self._plan.ready_files:
            try:
                write_atomically(path, self._facts())
            except OSError as error:
                # A full disk must not end a cluster that serves.
                say(f"{path}: cannot be written: {error.strerror}")


async def _first(wait: Callable[[], Any], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


@dataclass(frozen=True)
class Ending:
    """How a process ended, or why there was none (``pid`` None)."""

    pid: int | None
    returncode: int | None
    #: What it reported, or the reason why it could not be made.
    told: GfsError | str | None

    def __str__(self) -> str:
        if self.pid is None:
            return f"cannot be started ({self.told})"
        told = f": {self.told}" if self.told else ""
        return f"(pid {self.pid}) {how_it_ended(self.returncode)}{told}"


def _judge_first_start(child: Child, end: Ending, deaths: int) -> None:
    """Raise if ``child``, which has never served, is not worth another try."""
    if isinstance(end.told, StartupError):
        raise StartupError(f"{child.name}: {end.told}")
    is_hopeless = end.pid is None or end.returncode == StartupError.exit_code
    if is_hopeless or deaths + 1 >= FIRST_STARTS_MAX:
        raise StartupError(f"{child.name} {end}; its log: {child.log}")


def how_it_ended(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            return f"was ended by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was ended by signal {-returncode}"
    return f"ended with exit code {returncode}"


class Backoff:
    """How long to wait before a process that died is started again."""

    def __init__(self) -> None:
        self.deaths = 0

    def after(self, ran_seconds: float) -> float:
        if ran_seconds >= HEALTHY_SECONDS:
            self.deaths = 0
        # The exponent is bounded too, for a process that dies for weeks.
        delay = RESTART_SECONDS_MIN * 2.0 ** min(self.deaths, 16)
        self.deaths += 1
        return min(delay, RESTART_SECONDS_MAX)


def interpreter() -> list[str]:
    """The command that runs ``gfs`` again, whatever directory we are in."""
    return [sys.executable, "-P", "-m", "gfs.cli"]


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)
