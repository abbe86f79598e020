"""The watch of all containers of this machine: Podman's events, and lists.

One stream of events names the containers that may have changed; each of them is then
inspected, and the result is reported. If the stream ends (Podman's service was restarted),
it is opened again and all containers are listed. They are also listed every
:data:`LIST_SECONDS`, since Podman has no event for some changes: a volume removed by hand, a
container whose conmon was killed and whose end is not noticed. Disks that Podman does not
know are listed, too, so that those without a record are deleted.

Podman does not answer about a container while it works on it, and filling new volumes
takes as long as its user has given it to copy. So each container is inspected by a task
of its own, with a deadline, and again if there was no answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import trio

from control.compute.backend import LABEL_CONTAINER, LABEL_USER, BackendUnavailable, Watch
from control.compute.podman.deaths import Deaths
from control.compute.podman.engine import (
    KINDS,
    Api,
    Body,
    Inspected,
    Refused,
    Service,
    has_ended,
    listeners,
)
from control.compute.podman.shapes import RESTART_GRACE_SECONDS, resource_name, sighting
from gfs.errors import innermost

log = logging.getLogger("control.compute")

SSH = 22
LIST_SECONDS = 60.0
#: More than the driver's concurrent calls (16), each of which may delay an inspection.
LOOKS_AT_ONCE = 32
#: Threads that wait for SSH servers.
ASKS_AT_ONCE = 4
#: A list leaves room for containers with events.
LISTED_AT_ONCE = 4
#: How long one call of an inspection may take; normally a hundredth of a second.
LOOK_SECONDS = 5.0
#: The pause after a list that failed.
LIST_AGAIN_SECONDS = 2.0
#: The pause before the stream is opened again.
AGAIN_SECONDS = 0.2
AGAIN_SECONDS_MAX = 10.0
#: The pause before a container that could not be inspected is inspected again.
LOOK_AGAIN_SECONDS = 0.5
AS_ROOT = "its root is root of this machine, as in an older version: stop and start it"
EVENT_BYTES_MAX = 1024 * 1024
#: If Podman does not notice an end within this time, it never will.
UNNOTICED_SECONDS = 5.0
#: How long to wait for the SSH server of a new run: an image may have none.
ANSWER_SECONDS = 10.0


class _Actor(msgspec.Struct, rename="pascal"):
    attributes: dict[str, str] | None = None


class _Event(msgspec.Struct, rename="pascal"):
    actor: _Actor | None = None
    action: str = ""


class Watching:
    """Reports to ``watch`` all containers of an installation.

    Args:
        ports: Returns the address of a container's ports, and a remark about them.
        disks: Returns the containers that have disks.
    """

    def __init__(
        self,
        service: Service,
        api: Api,
        cluster: str,
        watch: Watch,
        ports: Callable[[str], tuple[str, str]],
        disks: Callable[[], Awaitable[set[str]]],
    ) -> None:
        self._service = service
        self._api = api
        self._cluster = cluster
        self._watch = watch
        self._ports = ports
        self._disks = disks
        self._users: dict[str, str] = {}
        #: The containers to inspect -> when, by trio's clock.
        self._due: dict[str, float] = {}
        self._due_changed = trio.Event()
        self._looking: set[str] = set()
        self._looks = trio.CapacityLimiter(LOOKS_AT_ONCE)
        self._asks = trio.CapacityLimiter(ASKS_AT_ONCE)
        #: Set at the end of the next inspection.
        self._looked: dict[str, trio.Event] = {}
        #: The containers that were reported to ``watch``.
        self._reported: set[str] = set()
        self._deaths = Deaths(self.touch)
        #: The run (and its start) whose SSH server answers, or is no longer waited for.
        self._answering: dict[str, tuple[str, int]] = {}
        self._asking: dict[str, tuple[str, int]] = {}
        self._addresses: dict[str, str] = {}
        #: First processes that have ended, though Podman says they run, and since when.
        self._dead: dict[str, tuple[int, float]] = {}

    def address(self, container_id: str) -> str:
        """The address of a running container; "" otherwise."""
        return self._addresses.get(container_id, "")

    def present(self) -> set[str]:
        return set(self._users)

    def touch(self, container_id: str, after: float = 0.0) -> None:
        """Inspect it in ``after`` seconds at the latest."""
        due = trio.current_time() + after
        self._due[container_id] = min(due, self._due.get(container_id, math.inf))
        self._due_changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled. Started after the first list."""
        started = False
        failures = 0

        def synced() -> None:
            nonlocal started, failures
            failures = 0
            if not started:
                started = True
                task_status.started()

        while True:
            try:
                await self._once(synced)
            except* (BackendUnavailable, Refused) as group:
                failures += 1
                level = logging.WARNING if failures in (1, 10) else logging.DEBUG
                log.log(level, "podman: restarting the watch: %s", innermost(group))
            await trio.sleep(min(AGAIN_SECONDS * 2 ** min(failures, 10), AGAIN_SECONDS_MAX))

    async def _once(self, synced: Callable[[], None]) -> None:
        await self._service.ensure()
        # A second early, since the clock is read before the stream is open.
        since = time.time() - 1
        async with self._api.events(self._cluster, since) as body, trio.open_nursery() as nursery:
            nursery.start_soon(self._read, body)
            nursery.start_soon(self._deaths.run)
            nursery.start_soon(self._look_when_due, nursery)
            while True:
                try:
                    await self._list()
                    synced()
                    self._service.trim_log()
                    await trio.sleep(LIST_SECONDS)
                except BackendUnavailable as error:
                    await self._unless_gone(error)
                    await trio.sleep(LIST_AGAIN_SECONDS)

    async def _read(self, body: Body) -> None:
        async for line in _lines(body):
            try:
                event = msgspec.json.decode(line, type=_Event)
            except msgspec.MsgspecError:
                continue
            if event.action.startswith("exec") or event.actor is None:
                continue  # terminals and log readers come and go
            container_id = (event.actor.attributes or {}).get(LABEL_CONTAINER)
            if container_id:
                self.touch(container_id)
        raise BackendUnavailable("Podman ended its stream of events.")

    async def _list(self) -> None:
        """Inspect all containers that exist, then report that all are known."""
        users: dict[str, str] = {}
        for kind in KINDS:
            for found in await self._api.find(kind, self._cluster):
                users[found.labels[LABEL_CONTAINER]] = found.labels.get(LABEL_USER, "")
        for container_id in await self._disks():
            users.setdefault(container_id, self._users.get(container_id, ""))
        self._users = {**self._users, **users}
        limiter = trio.CapacityLimiter(LISTED_AT_ONCE)

        async def look(container_id: str) -> None:
            async with limiter:
                await self._next_look(container_id)
            # A container that exists and was not reported would count as lost.
            while container_id in self._users.keys() - self._reported:
                await self._next_look(container_id, LOOK_AGAIN_SECONDS)

        async with trio.open_nursery() as looks:
            for container_id in list(self._users):
                looks.start_soon(look, container_id)
        self._reported &= self._users.keys()
        self._watch.synced(set(self._users))

    async def _next_look(self, container_id: str, after: float = 0.0) -> None:
        looked = self._looked.setdefault(container_id, trio.Event())
        self.touch(container_id, after)
        await looked.wait()

    async def _look_when_due(self, nursery: trio.Nursery) -> None:
        self._looking.clear()
        while True:
            self._due_changed = trio.Event()
            now = trio.current_time()
            due = {each: at for each, at in self._due.items() if each not in self._looking}
            for container_id, at in due.items():
                if at <= now:
                    del self._due[container_id]
                    self._looking.add(container_id)
                    nursery.start_soon(self._look_once, container_id, nursery)
            later = (at for at in due.values() if at > now)
            with trio.move_on_at(min(later, default=math.inf)):
                await self._due_changed.wait()

    async def _look_once(self, container_id: str, nursery: trio.Nursery) -> None:
        try:
            async with self._looks:
                await self._look(container_id, nursery)
            self._reported.add(container_id)
        except Refused:
            # It is being removed or created.
            self.touch(container_id, LOOK_AGAIN_SECONDS)
        except BackendUnavailable as error:
            await self._unless_gone(error)
            self.touch(container_id, LOOK_AGAIN_SECONDS)
        self._looking.discard(container_id)
        self._due_changed.set()
        if (looked := self._looked.pop(container_id, None)) is not None:
            looked.set()

    async def _unless_gone(self, error: BackendUnavailable) -> None:
        """Ignore that one call had no answer, if Podman answers another."""
        log.debug("podman: %s", error)
        if not await self._service.answers():
            raise error

    async def _look(self, container_id: str, nursery: trio.Nursery) -> None:
        name = resource_name(self._cluster, container_id)
        seen = await self._api.inspect(name, LOOK_SECONDS)
        unnoticed = False
        if seen is None:
            self._deaths.forget(container_id)
            self._dead.pop(container_id, None)
            self._addresses.pop(container_id, None)
            self._answering.pop(container_id, None)
            if not await self._left(container_id):
                if self._users.pop(container_id, None) is not None:
                    self._watch.gone(container_id)
                return
        else:
            labels = seen.config.labels or {}
            self._users[container_id] = labels.get(LABEL_USER, "")
            unnoticed = self._is_unnoticed(container_id, seen)
            self._note_run(container_id, seen, nursery, unnoticed=unnoticed)
        external_ip, remark = self._ports(container_id)
        report = sighting(
            container_id,
            self._users.get(container_id, ""),
            seen,
            answering=seen is not None and self._answering.get(container_id) == _run(seen),
            unnoticed=unnoticed,
            seconds_since_end=_seconds_since(seen.state.finished_at) if seen else 0.0,
            external_ip=external_ip,
        )
        if report.phase == "initializing" and report.reason:
            self.touch(container_id, RESTART_GRACE_SECONDS)
        if report.phase == "running":
            remarks = [remark, "" if seen is None or seen.has_own_users else AS_ROOT]
            report = msgspec.structs.replace(report, reason="; ".join(filter(None, remarks)))
        self._watch.seen(report)

    async def _left(self, container_id: str) -> bool:
        for kind in KINDS:
            for found in await self._api.find(kind, self._cluster, container_id, LOOK_SECONDS):
                self._users[container_id] = found.labels.get(LABEL_USER, "")
                return True
        return container_id in await self._disks()

    def _is_unnoticed(self, container_id: str, seen: Inspected) -> bool:
        pid, now = seen.state.pid, trio.current_time()
        if not seen.runs or not has_ended(pid):
            self._dead.pop(container_id, None)
            return False
        known, since = self._dead.get(container_id, (0, 0.0))
        if known != pid:
            self._dead[container_id] = known, since = pid, now
        if now - since < UNNOTICED_SECONDS:
            self.touch(container_id, since + UNNOTICED_SECONDS - now)
            return False
        return True

    def _note_run(
        self, container_id: str, seen: Inspected, nursery: trio.Nursery, *, unnoticed: bool
    ) -> None:
        if unnoticed or not seen.runs:
            self._addresses.pop(container_id, None)
            self._answering.pop(container_id, None)
            self._deaths.forget(container_id)
            return
        self._addresses[container_id] = seen.address
        self._deaths.expect(container_id, seen.state.pid)
        run = _run(seen)
        if run not in (self._answering.get(container_id), self._asking.get(container_id)):
            if not seen.has_own_users:
                log.warning("podman: %s: %s", container_id, AS_ROOT)
            self._asking[container_id] = run
            nursery.start_soon(self._await_answer, container_id, run)

    async def _await_answer(self, container_id: str, run: tuple[str, int]) -> None:
        """Wait for the SSH server: a run counts as running when users can log in. This looks
        for its socket, since a connection would show in its log."""
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                while self._asking.get(container_id) == run:
                    if await self._listens(run[1]):
                        break
                    await trio.sleep(0.05)
            if container_id in self._addresses:
                self._answering[container_id] = run
                self.touch(container_id)
        finally:
            if self._asking.get(container_id) == run:
                del self._asking[container_id]

    async def _listens(self, pid: int) -> bool:
        """Whether its SSH server listens. The tenant determines how long this takes, so neither
        the loop nor the inspections of other containers wait for it."""
        found = await trio.to_thread.run_sync(
            listeners, pid, limiter=self._asks, abandon_on_cancel=True
        )
        return any(port == SSH for _, port in found)


def _run(seen: Inspected) -> tuple[str, int]:
    return seen.id, seen.state.pid


async def _lines(body: Body) -> AsyncGenerator[bytes, None]:
    rest = b""
    while piece := await body.receive():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > EVENT_BYTES_MAX:
            raise BackendUnavailable("Podman sends an event without an end.")
        for line in lines:
            if line:
                yield line


def _seconds_since(time_text: str) -> float:
    try:
        ended = datetime.fromisoformat(time_text)
    except ValueError:
        return math.inf
    if ended.tzinfo is None:
        ended = ended.replace(tzinfo=UTC)
    return time.time() - ended.timestamp()
