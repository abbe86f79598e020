"""Compute without sockets and in virtual time: the production rows, requests and driver
over a world that does what a test says.

The event loop runs in a thread of its own, and only while a test's command runs: between
two commands it stands still, time included. So a test can be a plain state machine, and
the same commands lead to the same end.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import trio
import trio.testing
from limits import HANG_SECONDS
from scripted import Answers, Thing

from control.compute.backend import BackendUnavailable, Impossible, Phase, Sighting, Spec, Watch
from control.compute.reconcile import changes, machine
from control.compute.reconcile.changes import Changes
from control.compute.reconcile.driver import BUGS_MAX, RECONCILE_SECONDS, Driver
from control.compute.requests import containers as requests
from control.compute.requests.containers import Containers
from control.compute.requests.shapes import NewContainer, NewRule
from control.compute.rows import (
    COMPUTE,
    Container,
    Event,
    Key,
    containers,
    count_up,
    events,
    forget_user,
    keys,
)
from control.errors import ApiError
from control.identity.access import ANYBODY
from control.identity.rows import IDENTITY, User, users
from control.quota.limits import QUOTA, Limits
from control.records import Records, Txn
from control.records.writer import Job

IMAGE = "an-image"
USERS = ("ada", "bob")
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class ExposureLost:
    id: str


News = Sighting | ExposureLost | str  # or the id of one that is gone


class World(Answers):
    """What is there, and the news of it, which come when the test lets them."""

    name = "sim"

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        #: Of what happened, still to be reported; and all that ever was.
        self.news: list[News] = []
        self.reported: list[News] = []
        self.watch: Watch | None = None
        #: How the next calls fail: "unavailable", "impossible", "bug", "hang", or with
        #: "late-" in front when they have done their work.
        self.faults: list[str] = []
        #: Virtual seconds that each half of a call takes.
        self.call_seconds = 0.2
        self.is_up = True
        #: A run that has ended leaves nothing that shows which it was, as in Podman.
        self.forgets = False
        self.under_way: set[str] = set()
        self.overlaps: list[str] = []
        #: Containers that had reason to fail since their user started them.
        self.excused: set[str] = set()
        #: Runs that there ever were: container and generation.
        self.ran: set[tuple[str, int]] = set()
        #: Containers whose ports were refused.
        self.closed: set[str] = set()
        self.bugs: dict[str, int] = {}

    # --- what happens -------------------------------------------------------------------

    def changed(self, container_id: str) -> None:
        thing = self.things.get(container_id)
        self.news.append(container_id if thing is None else thing.sighting)

    def move(self, container_id: str, phase: Phase) -> None:
        thing = self.things[container_id]
        thing.phase = phase
        if phase == "running":
            self.ran.add((container_id, thing.generation))
        if phase == "stopped" and self.forgets:
            thing.generation = 0
        thing.external_ip = "192.0.2.7" if phase == "running" else ""
        thing.reason = "it fell over" if phase == "failed" else ""
        self.changed(container_id)

    def lose_exposure(self, container_id: str) -> None:
        self.things[container_id].exposed = None
        self.news.append(ExposureLost(container_id))

    def advance(self) -> None:
        """What was begun goes on to its end."""
        for container_id, thing in list(self.things.items()):
            if thing.phase in ("pending", "initializing"):
                self.move(container_id, "running")

    def deliver(self, count: int = 1_000_000) -> None:
        for _ in range(min(count, len(self.news))):
            news = self.news.pop(0)
            self.reported.append(news)
            self.report(news)

    def report(self, news: News) -> None:
        if self.watch is not None:
            if isinstance(news, str):
                self.watch.gone(news)
            elif isinstance(news, ExposureLost):
                self.watch.exposure_lost(news.id)
            else:
                self.watch.seen(news)

    def relist(self) -> None:
        """As a watch does that begins again: what was not reported is lost."""
        self.news.clear()
        if self.watch is not None:
            for thing in self.things.values():
                self.watch.seen(thing.sighting)
            self.watch.synced(set(self.things))

    # --- the backend --------------------------------------------------------------------

    async def check(self) -> None:
        if not self.is_up:
            raise BackendUnavailable("the world is down")

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self.watch = watch
        self.relist()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.watch = None

    async def create(self, spec: Spec) -> None:
        async with self._call(spec.id):
            if spec.id not in self.things:
                self.things[spec.id] = Thing(spec)
                self.changed(spec.id)

    async def start(self, spec: Spec) -> None:
        async with self._call(spec.id):
            thing = self.things.setdefault(spec.id, Thing(spec))
            if thing.generation != spec.generation or thing.phase == "stopped":
                if thing.phase != "stopped":
                    self.move(spec.id, "stopped")
                thing.spec, thing.generation = spec, spec.generation
                self.move(spec.id, "pending")

    async def stop(self, spec: Spec) -> None:
        async with self._call(spec.id, excuses=False):
            if spec.id in self.things:
                self.things[spec.id].exposed = None
                self.move(spec.id, "stopped")

    async def delete(self, container_id: str, user_id: str) -> None:
        async with self._call(container_id):
            if self.things.pop(container_id, None) is not None:
                self.changed(container_id)

    async def expose(self, spec: Spec) -> None:
        self.closed.add(spec.id)
        async with self._call(spec.id, excuses=False):
            if spec.id in self.things:
                self.things[spec.id].exposed = spec
            self.closed.discard(spec.id)

    @asynccontextmanager
    async def _call(self, container_id: str, *, excuses: bool = True) -> AsyncIterator[None]:
        """``excuses``: if it is refused, the container may fail."""
        if container_id in self.under_way:
            self.overlaps.append(container_id)
        self.under_way.add(container_id)
        try:
            fault = self.faults.pop(0) if self.faults else ""
            await trio.sleep(self.call_seconds)
            if not fault.startswith("late-"):
                await self._fail(container_id, fault, excuses)
            if not self.is_up:
                raise BackendUnavailable("the world is down")
            yield
            await trio.sleep(self.call_seconds)
            await self._fail(container_id, fault.removeprefix("late-"), excuses)
        finally:
            self.under_way.discard(container_id)

    async def _fail(self, container_id: str, fault: str, excuses: bool) -> None:
        match fault:
            case "unavailable":
                raise BackendUnavailable("not now")
            case "impossible":
                if excuses:
                    self.excused.add(container_id)
                raise Impossible("not in this world")
            case "bug":
                self.bugs[container_id] = self.bugs.get(container_id, 0) + 1
                if self.bugs[container_id] >= BUGS_MAX:
                    self.excused.add(container_id)
                raise LookupError("a bug")
            case "hang":
                await trio.sleep_forever()


class _Call:
    """As much of a request as :class:`Containers` looks at."""

    need = ANYBODY

    def __init__(self, container_id: str) -> None:
        self.params = {"id": container_id}

    def allow(self, target: Any) -> None:
        """Who may do what is tested elsewhere."""


class _SameThread:
    """Commits at once instead of in a thread, whose pace would be that of real time."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def run(self, decide: Callable[[Txn], Any], seconds: float) -> Any:
        await trio.lowlevel.checkpoint()
        job = Job(decide, None)
        self._records._commit(lambda: [job])
        assert job.outcome is not None
        return job.outcome.unwrap()

    def close(self) -> bool:
        return True


@dataclass
class Sim:
    """Everything, for one run. Its methods run inside the event loop: see :class:`Stepped`."""

    directory: Path
    reconcile_seconds: float = RECONCILE_SECONDS
    world: World = field(default_factory=World)
    #: Ids in the order of their creation, also of those that are gone.
    ids: list[str] = field(default_factory=list)

    async def main(self, commands: Callable[[], Awaitable[None] | None]) -> None:
        """Run commands until there are none: ``commands`` blocks until there is one."""
        self.records = Records.open(self.directory, [IDENTITY, QUOTA, COMPUTE], sync=False)
        self.records._writer = cast(Any, _SameThread(self.records))
        try:
            async with trio.open_nursery() as self.nursery:
                await self.records.write(self._people)
                self._begin()
                while True:
                    command = commands()
                    if command is None:
                        break
                    await command
                self.nursery.cancel_scope.cancel()
        finally:
            self.records.close()

    def _people(self, txn: Txn) -> None:
        for name in USERS:
            users.put(txn, User(name, name, name, "", False, 0))
            self._key(txn, name)

    def _key(self, txn: Txn, user: str) -> None:
        keys.put(txn, Key(count_up(txn, "key"), user, "key", f"ssh-ed25519 {user}", 0))

    def _begin(self) -> None:
        """The control plane starts."""
        self.changes = Changes(self.records)
        world = cast(Any, self.world)
        self.containers = Containers(self.records, self.changes, world, IMAGE, Limits())
        driver = Driver(
            self.records,
            self.changes,
            world,
            IMAGE,
            reconcile_seconds=self.reconcile_seconds,
        )
        self.scope = trio.CancelScope()

        async def run() -> None:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.changes.run)
                    nursery.start_soon(driver.run)

        self.nursery.start_soon(run)

    async def restart(self) -> None:
        """It dies wherever it is, and starts again."""
        self.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        self.world.under_way.clear()
        self._begin()
        await trio.testing.wait_all_tasks_blocked()

    # --- requests -----------------------------------------------------------------------

    async def create(self, user: str, count: int) -> int:
        """``count`` requests at once; how many succeeded."""
        made: list[str] = []
        with self.records.read() as txn:
            key = next(iter(keys.by(txn, "owner", user))).id

        async def ask() -> None:
            body = NewContainer(name="box", ssh_key_ids=[key], ingress_rules=[NewRule(80)])
            with suppress(ApiError):
                made.append((await self.containers.create(user, body, lambda txn: None)).id)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask)
        self.ids += made
        return len(made)

    async def ask(self, what: str, container_id: str) -> bool:
        """Whether it was done."""
        call = cast(Any, _Call(container_id))
        try:
            match what:
                case "start":
                    # Excused no more: it is made to run anew.
                    row = self.row(container_id)
                    if row is not None and machine.start(row) != row:
                        self.world.excused.discard(container_id)
                        self.world.bugs.pop(container_id, None)
                    await self.containers.start(call)
                case "stop":
                    await self.containers.stop(call)
                case "delete":
                    await self.containers.delete(call)
                case "mount":
                    await self.containers.set_mounts(call, ["/root", "/srv"])
                case "unmount":
                    await self.containers.set_mounts(call, ["/root"])
                case "ssh":
                    row = self.row(container_id)
                    await self.containers.set_ssh(call, not (row and row.ssh_enabled))
                case "open":
                    await self.containers.add_rule(call, NewRule(8080))
                case "close":
                    await self.containers.remove_rule(call, 8080)
        except ApiError:
            return False
        return True

    async def delete_user(self, user: str) -> None:
        """And make one of the same id, with a key."""
        await self.records.write(lambda txn: forget_user(txn, user))
        await self.records.write(lambda txn: self._key(txn, user))

    # --- looking ------------------------------------------------------------------------

    def row(self, container_id: str) -> Container | None:
        with self.records.read() as txn:
            return containers.get(txn, container_id)

    def rows(self) -> dict[str, Container]:
        """Also of those that are deleted and not gone yet."""
        with self.records.read() as txn:
            return {row.id: row for row in containers.scan(txn)}

    def events(self) -> list[Event]:
        with self.records.read() as txn:
            return list(events.scan(txn))

    def spec(self, row: Container) -> Spec:
        return machine.spec(row, IMAGE)

    # --- time ---------------------------------------------------------------------------

    async def blink(self) -> None:
        """Whatever can be done without waiting."""
        await trio.testing.wait_all_tasks_blocked()

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def go_on(self) -> None:
        """What was begun goes on to its end, and that is reported."""
        await trio.sleep(1.0)
        self.world.advance()
        self.world.deliver()
        await self.blink()

    async def settle(self, seconds: float, *, relist: bool) -> None:
        """Nothing fails any more, all news come, and time goes by."""
        world = self.world
        world.faults.clear()
        world.is_up, world.call_seconds = True, 0.0
        for _ in range(4):
            await trio.sleep(seconds)
            await self.go_on()
            await trio.sleep(seconds)
            if relist:
                world.relist()
            await self.blink()


class Stepped:
    """A :class:`Sim` in a thread of its own that runs command by command."""

    def __init__(self, directory: Path, reconcile_seconds: float) -> None:
        self.sim = Sim(directory, reconcile_seconds)
        self._commands: queue.SimpleQueue[Callable[[], Awaitable[Any]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        #: Whether a command has failed, which ends the thread.
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self(self.sim.blink)

    def __call__(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``command`` and stand still again."""
        self._commands.put(command)
        return self._answer()

    def close(self) -> None:
        if not self._has_failed:
            self._commands.put(None)
            self._answer()
        self._thread.join(HANG_SECONDS)

    def _answer(self) -> Any:
        result, error = self._answers.get(timeout=HANG_SECONDS)
        if error is not None:
            self._has_failed = True
            raise error
        return result

    def _run(self) -> None:
        numbers = itertools.count(1)
        try:
            with (
                # So that the same commands lead to the same ids, in the same order.
                mock.patch.object(requests, "_new_id", side_effect=lambda: f"{next(numbers):08x}"),
                # Each costs real time, and there are hours of the virtual one.
                mock.patch.object(changes, "POLL_SECONDS", POLL_SECONDS),
            ):
                clock = trio.testing.MockClock(autojump_threshold=0)
                trio.run(self.sim.main, self._next, clock=clock)
        except BaseException as error:
            self._answers.put((None, error))
        else:
            self._answers.put((None, None))

    def _next(self) -> Awaitable[None] | None:
        """Blocks the loop, on purpose: nothing happens between two commands."""
        command = self._commands.get()
        return None if command is None else self._perform(command)

    async def _perform(self, command: Callable[[], Awaitable[Any]]) -> None:
        self._answers.put((await command(), None))
