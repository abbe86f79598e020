"""``gfs up``: starts a cluster's processes, keeps them running, stops them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gfs.cluster.certificates import make_certificates
from gfs.cluster.children import Child, ChildRunner
from gfs.cluster.directory import (
    StateDirectory,
    bound_log,
    check_port,
    free_ports,
    missing_directories,
    remove_empty,
    supervisor_pid,
    try_lock,
    write_atomically,
)
from gfs.config import MasterSettings, load, read_table
from gfs.errors import SettingsError, StartupError
from gfs.io import join_address, split_address
from gfs.state import KEY_NAME, TLS_NAME, find_tls

HOST = "127.0.0.1"
CONTROL_DEFAULTS = {
    "bind": f"{HOST}:8080",
    "s3_bind": "",
    "admin_username": "admin",
}
CHUNKSERVERS_DEFAULT = 3
CHUNKSERVERS_MAX = 1000
#: With an engine that elects one of them.
MASTERS_DEFAULT = 3
MASTERS_MAX = 9

#: Children of a supervisor that was killed need this long to notice and stop.
LEFTOVER_SECONDS = 15.0
SLOW_START_SECONDS = 10.0
LOG_CHECK_SECONDS = 60.0


@dataclass(frozen=True)
class UpOptions:
    """The options of ``gfs up``; None: as stored in the state, else the default."""

    state: Path
    chunkservers: int | None = None
    replication: int | None = None
    #: How many masters run, of which the engine ``elect`` elects one.
    masters: int | None = None
    elect: str | None = None
    port: int = 9400
    ready_file: Path | None = None
    config: Path | None = None
    #: Whether the control plane runs too, where it listens (HOST:PORT), and in
    #: how many processes; None leaves both to its settings.
    control: bool = True
    control_bind: str | None = None
    control_workers: int | None = None
    s3_bind: str | None = None
    #: Encrypt connections with certificates, which are made if they do not exist.
    tls: bool = False
    #: Serve metrics of each server, at a port of its own.
    metrics: bool = False


@dataclass(frozen=True)
class Plan:
    """A planned start. Nothing of it exists yet."""

    directory: StateDirectory
    masters: list[Child]
    chunkservers: list[Child]
    control: Child | None
    numbers: list[int]
    #: Goal of new files, and the live servers that a new chunk needs.
    replication: int
    replicas_min: int
    #: What later starts on this directory use without options.
    stored: dict[str, Any]
    #: The user that a new control plane starts with.
    admin: str
    ready_files: list[Path]


def choose_numbers(existing: list[int], wanted: int | None) -> list[int]:
    """Which chunkservers run: all that exist, and new ones up to ``wanted``.

    An existing one holds data, so a smaller number never leaves it out.
    """
    if wanted is None:
        wanted = 0 if existing else CHUNKSERVERS_DEFAULT
    chosen = set(existing)
    number = 1
    while len(chosen) < wanted:
        chosen.add(number)
        number += 1
    return sorted(chosen)


def make_plan(options: UpOptions, directory: StateDirectory) -> Plan:
    """Decide a start on ``directory``, whose lock is held.

    Raises StartupError or SettingsError; changes nothing.
    """
    numbers = choose_numbers(directory.chunkservers(), options.chunkservers)
    stored = directory.read_stored()
    if options.replication:
        stored["replication"] = options.replication
    replication = stored.get("replication")
    settings = load(
        MasterSettings, "master", file=options.config, flags={"replication": replication}
    )
    ports = _ports(options.port, numbers)
    stored |= _elected(options, stored, ports)
    master_addresses: list[str] = stored.get("masters", [f"{HOST}:{ports[0]}"])
    servers = [*(split_address(each)[1] for each in master_addresses), *ports[1:]]
    control_address = _control_address(options, servers)
    taken = [*servers, split_address(control_address)[1]] if control_address else servers
    s3_address = _s3_address(options, taken)
    for port in servers:
        check_port(HOST, port, "--port")
    if control_address is not None:
        check_port(*split_address(control_address), "--control-bind")
        check_port(*split_address(s3_address), "--s3-bind")
    master_address = ",".join(master_addresses)
    config = ["--config", str(options.config.absolute())] if options.config else []
    tls = None if options.tls else find_tls(None, directory.path)
    if options.tls or tls is not None:
        config.append(f"--tls={(tls or directory.path / TLS_NAME).absolute()}")
    metrics = [f"--metrics={HOST}:0"] if options.metrics else []
    elect = [f"--elect={stored['elect']}"] if "elect" in stored else []
    masters = [
        Child(
            name,
            [
                "master",
                f"--state={state}",
                f"--address={address}",
                f"--replication={settings.replication}",
                f"--key-file={directory.path / KEY_NAME}",
                *elect,
                *config,
                *metrics,
            ],
            directory.log(name),
        )
        for name, state, address in (
            (f"master-{number}", directory.path / f"master-{number}", address)
            if number > 1
            else ("master", directory.path, address)
            for number, address in enumerate(master_addresses, 1)
        )
    ]
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
                *metrics,
            ],
            directory.log(f"chunkserver-{number}"),
            {"dir": str(directory.chunkserver(number))},
        )
        for number, port in zip(numbers, ports[1:], strict=True)
    ]
    return Plan(
        directory,
        masters,
        chunkservers,
        _control(options, directory, control_address, s3_address, master_address, config),
        numbers,
        settings.replication,
        settings.replicas_min,
        stored,
        _control_setting(options, "admin_username"),
        [directory.ready, *([options.ready_file.absolute()] if options.ready_file else [])],
    )


def _elected(options: UpOptions, stored: dict[str, Any], ports: list[int]) -> dict[str, Any]:
    """The engine, and the addresses of the masters that it elects, which stay the same: the
    masters know one another by them."""
    elect = options.elect or stored.get("elect")
    if elect is None:
        if options.masters not in (None, 1):
            raise SettingsError(
                f"--masters {options.masters} needs an engine that elects one of them: "
                "--elect etcd://HOST:PORT/NAME"
            )
        return {}
    known = stored.get("masters", [f"{HOST}:{ports[0]}"])
    wanted = options.masters or max(MASTERS_DEFAULT, len(known))
    if wanted < len(known):
        raise SettingsError(
            f"--masters {wanted}: there are {len(known)} already, and each counts: gfs forget "
            "those that are lost for good"
        )
    taken = {*ports, *(split_address(each)[1] for each in known)}
    free = [port for port in free_ports(HOST, wanted + len(taken)) if port not in taken]
    more = [f"{HOST}:{port}" for port in free[: wanted - len(known)]]
    return {"elect": elect, "masters": [*known, *more]}


def _ports(base: int, numbers: list[int]) -> list[int]:
    """The master's port, then one for each number; base 0: any that are free."""
    if base == 0:
        return free_ports(HOST, 1 + len(numbers))
    if base + numbers[-1] > 65535:
        raise SettingsError(f"--port {base}: {base + numbers[-1]} is above the highest port")
    return [base, *(base + number for number in numbers)]


def _control_address(options: UpOptions, ports: list[int]) -> str | None:
    """The address of the control plane, other than ``ports``; None: it does not run.

    Port 0 is resolved here and not in the child, which then listens at the same
    address after a restart.
    """
    if not options.control:
        return None
    said = options.control_bind or (
        f"{HOST}:0" if options.port == 0 else _control_setting(options, "bind")
    )
    return _resolved(said, ports, "--control-bind")


def _s3_address(options: UpOptions, ports: list[int]) -> str:
    """Where the control plane serves S3, other than ``ports``."""
    said = options.s3_bind or _control_setting(options, "s3_bind") or f"{HOST}:0"
    return _resolved(said, ports, "--s3-bind")


def _resolved(said: str, ports: list[int], flag: str) -> str:
    """An address with a port that is none of ``ports``."""
    try:
        host, port = split_address(said)
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}") from None
    if port == 0:
        port = next(free for free in free_ports(host, len(ports) + 1) if free not in ports)
    elif port in ports:
        raise SettingsError(
            f"port {port} is the control plane's and a server's: choose other ports with "
            f"--port or {flag}"
        )
    return join_address(host, port)


def _control_setting(options: UpOptions, name: str) -> str:
    """A setting of the control plane, whose code the file system does not know: the
    port is checked before anything is started, and the admin's name is printed."""
    said = os.environ.get(f"GFS_CONTROL_{name.upper()}")
    if said is None and options.config is not None:
        said = read_table(options.config, "control").get(name)
    return CONTROL_DEFAULTS[name] if said is None else str(said)


def _control(
    options: UpOptions,
    directory: StateDirectory,
    address: str | None,
    s3_address: str,
    master_address: str,
    config: list[str],
) -> Child | None:
    if address is None:
        return None
    workers = [f"--workers={options.control_workers}"] if options.control_workers else []
    return Child(
        "control",
        [
            "control",
            f"--state={directory.path}",
            f"--master={master_address}",
            f"--bind={address}",
            f"--s3-bind={s3_address}",
            *workers,
            *config,
        ],
        directory.log("control"),
        is_control=True,
    )


async def up(options: UpOptions, on_ready: Callable[[Plan, dict[str, Any]], None]) -> None:
    """Run a cluster until SIGINT, SIGTERM or SIGHUP; returns after a clean stop.

    ``on_ready`` is called once, when everything serves, with the contents of the
    ready file. Raises StartupError, or another GfsError whose exit code says
    the same, when the cluster cannot start: then nothing of it runs.
    """
    directory = StateDirectory(options.state)
    fresh = missing_directories(directory.path)
    lock = await _take_lock(directory)
    try:
        plan = make_plan(options, directory)
        _prepare(plan, options)
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
    """The lock, after the processes of a killed supervisor have ended."""
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


def _prepare(plan: Plan, options: UpOptions) -> None:
    """Check everything that needs no process, and make directories and files for the processes."""
    directory = plan.directory
    directory.prepare(plan.numbers)
    if options.tls:
        make_certificates(directory.path / TLS_NAME)
    try:
        if plan.stored != directory.read_stored():
            write_atomically(directory.stored, plan.stored)
        for path in plan.ready_files:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Test now that the ready file can be written, since later is too late; under
            # another name, since a waiting program reads the file as soon as it exists.
            # A file of the last run is removed, so that it is not taken for that of this run.
            trial = path.with_name(f".{path.name}.trial")
            write_atomically(trial, {})
            trial.unlink()
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StartupError(f"{error.filename}: cannot be written: {error.strerror}") from None


def say(text: str) -> None:
    """Print a line, if stderr is open; the cluster runs on if it is not."""
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
        self._is_ready = False

    async def run(self) -> None:
        with pipe() as (lifeline, _):
            runner = ChildRunner(lifeline, [self._lock], self._note_serving, say)
            work = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals, work, runner)
                try:
                    with work:
                        await self._work(runner)
                finally:
                    for path in self._plan.ready_files:
                        path.unlink(missing_ok=True)
                nursery.cancel_scope.cancel()

    async def _watch_signals(
        self,
        work: trio.CancelScope,
        runner: ChildRunner,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The first signal stops the cluster, the next one kills it."""
        watched = {signal.SIGINT, signal.SIGTERM}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            watched.add(signal.SIGHUP)
        with trio.open_signal_receiver(*watched) as signals:
            task_status.started()
            async for number in signals:
                if work.cancel_called:
                    runner.hasten()
                    return
                say(f"stopping ({signal.Signals(number).name}); again to hasten")
                work.cancel()

    async def _work(self, runner: ChildRunner) -> None:
        plan = self._plan
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_when_slow)
            # One that is not elected serves once it has a copy of the others' metadata.
            async with trio.open_nursery() as starting:
                for child in plan.masters:
                    starting.start_soon(nursery.start, runner.run, child)
            async with trio.open_nursery() as starting:
                for child in plan.chunkservers:
                    starting.start_soon(nursery.start, runner.run, child)
            if plan.control is not None:
                # It has processes of its own, which hold the lock as well.
                plan.control.arguments.append(f"--hold-fd={self._lock}")
                await nursery.start(runner.run, plan.control)
            self._is_ready = True
            self._write_ready()
            self._on_ready(self._plan, self._facts())
            while True:
                await trio.sleep(LOG_CHECK_SECONDS)
                for child in self._children:
                    if child.log is not None:
                        bound_log(child.log)

    @property
    def _children(self) -> list[Child]:
        plan = self._plan
        last = [plan.control] if plan.control is not None else []
        return [*plan.masters, *plan.chunkservers, *last]

    async def _say_when_slow(self) -> None:
        while not self._is_ready:
            await trio.sleep(SLOW_START_SECONDS)
            late = [child.name for child in self._children if "pid" not in child.facts]
            if late:
                say(f"waiting for {', '.join(late)}; logs: {self._plan.directory.logs}")

    def _note_serving(self, child: Child, report: dict[str, Any]) -> None:
        if self._is_ready:
            say(f"{child.name} serves again (pid {report['pid']})")
            self._write_ready()

    def _facts(self) -> dict[str, Any]:
        masters = [child.facts for child in self._plan.masters]
        return {
            "master": masters[0],
            **({"masters": masters} if len(masters) > 1 else {}),
            **({"control": self._plan.control.facts} if self._plan.control else {}),
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


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)
