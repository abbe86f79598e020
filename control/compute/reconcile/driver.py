"""The driver makes the backend follow the rows: one per machine, in whichever process.

The rows have the desired state, the backend's watch reports the observed one. For each
container with a change the driver runs a task that asks
:func:`control.compute.reconcile.machine.plan` for the next step and takes it, until
none is left: so calls for one container are never concurrent, and those for all
containers are bounded together. No state that matters is only in memory. After the
death of a driver there are revisions that are not applied, and objects in the backend
that no row asks for; the next driver applies the former (every call may be repeated)
and deletes the latter.

*Failures.* A call to a backend that does not answer is repeated, at growing intervals,
as long as the revision is the last. If the backend cannot do something, the container
fails with that reason, until the user starts it again.

*The reconciler* runs after every complete list of the watch, and every few minutes, a page of rows
at a time:

==========================  =====================================================
row                         backend shows               what follows
==========================  =====================================================
none                        something                   it is deleted
deleted                     something, or nothing       it is deleted, then the row
any other, was there        nothing, for some seconds   ``failed``: it is lost
running                     an older run, or stopped    it is run again
stopped                     a run                       it is stopped again
revision not applied        anything                    it is applied
==========================  =====================================================

*Exposure.* A sighting does not show everything that isolates containers and lets users
connect, and somebody may remove such an object by hand: so each running container is
exposed again once per interval, one after the other. Ports that were refused are also
tried again in this way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing

import trio

from control.api import Records, RecordsFailed, Txn
from control.api.internals import PAGE_ROWS, in_pages
from control.compute.backend import Backend, BackendUnavailable, Impossible, Sighting
from control.compute.reconcile import machine
from control.compute.reconcile.changes import Changes
from control.compute.reconcile.machine import Step
from control.compute.rows import (
    Container,
    add_event,
    containers,
    events_after,
    last_event,
    remove_deleted,
)
from gfs.errors import GfsError

log = logging.getLogger(__name__)

#: How many calls of the backend run at once.
CALLS_AT_ONCE = 16
#: How long one call may take; then it is cancelled and repeated.
CALL_SECONDS = 120.0
_NO_ANSWER = f"no answer within {CALL_SECONDS:g} s"
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
RECONCILE_SECONDS = 300.0
#: How long a container may be absent before it counts as lost: the end of the old run
#: is reported before the start of the new one.
LOST_SECONDS = 5.0
#: How often a container that ends by itself is run again within the window.
RERUNS_MAX = 5
RERUN_WINDOW_SECONDS = 600.0
#: After so many bugs in a row a call is not repeated any more.
BUGS_MAX = 5


class Driver:
    """See the module. The caller ensures that only one :meth:`run` runs on a machine."""

    def __init__(
        self,
        records: Records,
        changes: Changes,
        backend: Backend,
        image: str,
        *,
        backoff_seconds: float = BACKOFF_SECONDS,
        lost_seconds: float = LOST_SECONDS,
        reconcile_seconds: float = RECONCILE_SECONDS,
    ) -> None:
        self._records = records
        self._changes = changes
        self._backend = backend
        self._image = image
        self._backoff_seconds = backoff_seconds
        self._lost_seconds = lost_seconds
        self._reconcile_seconds = reconcile_seconds
        self._calls = trio.CapacityLimiter(CALLS_AT_ONCE)
        self._nursery: trio.Nursery
        #: The last sighting of each container that exists.
        self._sightings: dict[str, Sighting] = {}
        self._synced = False
        #: Set and replaced when the watch has reported a complete list.
        self._listed = trio.Event()
        #: Since when a container that should exist has been absent.
        self._missing: dict[str, float] = {}
        self._exposed: dict[str, tuple[int, int]] = {}
        #: Containers to expose again, because something of their exposure may be gone.
        self._to_expose: set[str] = set()
        #: Containers whose last step had no effect, so it is repeated.
        self._again: set[str] = set()
        #: Containers with a task during the last comparison: they are compared when it ends.
        self._unchecked: set[str] = set()
        self._reruns: dict[str, list[float]] = {}
        #: Containers with a task; whether there was another change since its last step.
        self._active: dict[str, bool] = {}
        self._woken: dict[str, trio.Event] = {}

    async def run(self) -> None:
        """Drive until cancelled."""
        async with trio.open_nursery() as self._nursery:
            with self._records.read() as txn:
                number = last_event(txn)
            await self._kick_all()
            self._nursery.start_soon(self._watch)
            self._nursery.start_soon(self._reconcile_regularly)
            self._nursery.start_soon(self._expose_regularly)
            await self._follow_changes(number)

    async def _follow_changes(self, number: int) -> None:
        """Start a task for every container whose row was changed."""
        while True:
            await self._changes.after(number)
            with self._records.read() as txn:
                news = events_after(txn, number)
                number = last_event(txn)
            if news is None:
                await self._kick_all()
            for container_id in {event.container_id for event in news or ()}:
                self._kick(container_id)

    async def _kick_all(self) -> None:
        async with aclosing(in_pages(self._records, containers, PAGE_ROWS)) as pages:
            async for page in pages:
                for row in page:
                    self._kick(row.id)

    async def _watch(self) -> None:
        """The backend's watch never returns; it is restarted if it breaks."""
        pause = self._backoff_seconds
        while True:
            began = trio.current_time()
            try:
                await self._backend.run(self)
            except RecordsFailed:
                raise
            except GfsError as error:
                log.warning("%s: the watch ended: %s", self._backend.name, error)
            except Exception:
                log.exception("%s: the watch broke", self._backend.name)
            if trio.current_time() - began > BACKOFF_SECONDS_MAX:
                pause = self._backoff_seconds
            await trio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)

    # --- reports of the backend (Watch) -------------------------------------------------

    def seen(self, sighting: Sighting) -> None:
        if self._sightings.get(sighting.id) != sighting:
            self._sightings[sighting.id] = sighting
            self._kick(sighting.id)

    def gone(self, container_id: str) -> None:
        self._sightings.pop(container_id, None)
        self._kick(container_id)

    def exposure_lost(self, container_id: str) -> None:
        self._to_expose.add(container_id)
        self._kick(container_id)

    def synced(self, present: set[str]) -> None:
        for container_id in [known for known in self._sightings if known not in present]:
            del self._sightings[container_id]
        self._synced = True
        self._listed.set()

    # --- the reconciler -----------------------------------------------------------------

    async def _reconcile_regularly(self) -> None:
        while True:
            with trio.move_on_after(self._reconcile_seconds):
                await self._listed.wait()
            self._listed = trio.Event()
            if self._synced:
                await self.reconcile()

    async def reconcile(self) -> None:
        """Compare all rows with all that is seen."""
        compared: set[str] = set()
        async with aclosing(in_pages(self._records, containers, PAGE_ROWS)) as pages:
            async for page in pages:
                for row in page:
                    compared.add(row.id)
                    self._compare(row)
        known = (self._sightings, self._exposed, self._missing, self._reruns)
        noted = (self._again, self._unchecked, self._to_expose)
        left = {each for ids in (*known, *noted) for each in ids} - compared
        for number, container_id in enumerate(left, 1):
            if self._row(container_id) is None:  # else it came meanwhile
                self._forget(container_id)
                if container_id in self._sightings:
                    self._kick(container_id)
            if number % PAGE_ROWS == 0:
                await trio.lowlevel.checkpoint()

    def _compare(self, row: Container) -> None:
        if row.id in self._active:
            self._unchecked.add(row.id)
        elif machine.has_drifted(row, self._sightings.get(row.id)):
            self._again.add(row.id)
        self._kick(row.id)

    def _forget(self, container_id: str) -> None:
        for known in (self._exposed, self._missing, self._reruns):
            known.pop(container_id, None)
        for noted in (self._again, self._unchecked, self._to_expose):
            noted.discard(container_id)

    async def _expose_regularly(self) -> None:
        """Expose the containers again, evenly spread, so that users' calls need not
        wait behind many of these."""
        while True:
            exposed = list(self._exposed)
            for container_id in exposed:
                await trio.sleep(self._reconcile_seconds / len(exposed))
                self.exposure_lost(container_id)
            if not exposed:
                await trio.sleep(self._reconcile_seconds)

    # --- one container ------------------------------------------------------------------

    def _kick(self, container_id: str) -> None:
        """Something about the container has changed: start its task, or wake it."""
        if container_id in self._active:
            self._active[container_id] = True
            self._woken[container_id].set()
            return
        self._active[container_id] = False
        self._woken[container_id] = trio.Event()
        self._nursery.start_soon(self._work, container_id)

    async def _work(self, container_id: str) -> None:
        """Take steps until none is left and nothing has changed."""
        failures = bugs = 0
        logged = ""
        try:
            while True:
                self._active[container_id] = False
                self._woken[container_id] = trio.Event()
                tried = self._row(container_id)
                try:
                    rests = await self._step(container_id) and not self._active[container_id]
                    if logged:
                        log.info("%s: container %s: works again", self._backend.name, container_id)
                        logged = ""
                    if rests and not self._has_drifted_meanwhile(container_id):
                        return
                    failures = bugs = 0
                except RecordsFailed:
                    raise
                except Exception as error:
                    failures += 1
                    bugs += not isinstance(error, GfsError)
                    if str(error) != logged or not isinstance(error, GfsError):
                        self._log_failure(container_id, error)
                        logged = str(error)
                    await self._note_failure(container_id, error, bugs)
                    pause = self._backoff_seconds * 2 ** min(failures - 1, 16)
                    await self._pause(container_id, tried, min(pause, BACKOFF_SECONDS_MAX))
        finally:
            del self._active[container_id]
            del self._woken[container_id]

    def _has_drifted_meanwhile(self, container_id: str) -> bool:
        """Whether it must be compared because the reconciler found its task running,
        after a restart for example. Sightings may lag behind the last step; then the
        step is repeated."""
        if container_id not in self._unchecked:
            return False
        self._unchecked.discard(container_id)
        row = self._row(container_id)
        if row is None or not machine.has_drifted(row, self._sightings.get(container_id)):
            return False
        self._again.add(container_id)
        return True

    def _log_failure(self, container_id: str, error: Exception) -> None:
        if isinstance(error, GfsError):
            log.warning("%s: container %s: %s", self._backend.name, container_id, error)
        else:
            log.error("%s: container %s", self._backend.name, container_id, exc_info=error)

    async def _note_failure(self, container_id: str, error: Exception, bugs: int) -> None:
        """Show why it is not applied yet; after too many mistakes of ours, that it failed. A
        deletion is tried again until it succeeds."""
        is_ours = not isinstance(error, GfsError)
        reason = "internal error: see the server's log" if is_ours else str(error)

        def decide(now: Container) -> list[Container]:
            if now.wanted == "deleted":
                return [machine.waits_for(now, f"it cannot be deleted yet: {reason}")]
            if now.wanted != "running" or now.applied == now.revision:
                return []
            if bugs >= BUGS_MAX:
                return [machine.fail(now, reason, refused=True)]
            return [machine.waits_for(now, reason)]

        try:
            await self._change(container_id, decide)
        except RecordsFailed:
            raise
        except GfsError as busy:
            log.warning("container %s: %s", container_id, busy)

    async def _pause(self, container_id: str, tried: Container | None, seconds: float) -> None:
        """Wait before the next attempt; a revision newer than the one ``tried`` does not wait."""
        with trio.move_on_after(seconds):
            while True:
                row = self._row(container_id)
                if row is not None and (tried is None or row.revision != tried.revision):
                    return
                await self._woken[container_id].wait()
                self._woken[container_id] = trio.Event()

    def _row(self, container_id: str) -> Container | None:
        with self._records.read() as txn:
            return containers.get(txn, container_id)

    async def _step(self, container_id: str) -> bool:
        """One step; whether it was the last for now."""
        row = self._row(container_id)
        sighting = self._sightings.get(container_id)
        if row is None:
            if sighting is None:
                return True
            log.warning("container %s is in no record: it is deleted", container_id)
            await self._call_delete(container_id, sighting.user_id)
            return False
        if sighting is not None and machine.has_stopped(row, sighting):
            await self._run_again(row)
            return False
        if sighting is not None and await self._follow(row, sighting):
            return False
        if sighting is None and self._synced and machine.is_lost(row):
            return await self._look_for(row)
        self._missing.pop(container_id, None)
        again = container_id in self._again
        exposed = None if container_id in self._to_expose else self._exposed.get(container_id)
        step = machine.plan(row, exposed, again=again)
        if step is Step.NOTHING:
            return True
        await self._take(step, row)
        return False

    async def _take(self, step: Step, row: Container) -> None:
        spec = machine.spec(row, self._image)
        try:
            if step is Step.DELETE:
                await self._call_delete(row.id, row.user_id)
                await self._records.write(lambda txn: remove_deleted(txn, row.id))
                self._changes.poke()
                return
            if step is Step.RUN:
                async with self._calls:
                    with trio.fail_after(CALL_SECONDS):
                        if not row.seen:
                            await self._backend.create(spec)
                        await self._backend.start(spec)
            elif step is Step.STOP:
                async with self._calls:
                    with trio.fail_after(CALL_SECONDS):
                        await self._backend.stop(spec)
            if step in (Step.RUN, Step.STOP):
                self._again.discard(row.id)
                self._exposed.pop(row.id, None)
                await self._change(row.id, lambda now: [machine.applied(now, row.revision)])
            else:
                # It does not count as exposed until this succeeds; if something is lost
                # meanwhile, it is exposed once more.
                self._exposed.pop(row.id, None)
                self._to_expose.discard(row.id)
                async with self._calls:
                    with trio.fail_after(CALL_SECONDS):
                        await self._backend.expose(spec)
                self._exposed[row.id] = machine.exposure(row)
        except trio.TooSlowError:
            raise BackendUnavailable(_NO_ANSWER) from None
        except Impossible as error:
            await self._refused(step, row, str(error))

    async def _call_delete(self, container_id: str, user_id: str) -> None:
        """Delete it. Nothing may be left, so Impossible is treated as a failure to be retried."""
        try:
            async with self._calls:
                with trio.fail_after(CALL_SECONDS):
                    await self._backend.delete(container_id, user_id)
        except trio.TooSlowError:
            raise BackendUnavailable(_NO_ANSWER) from None
        except Impossible as error:
            raise BackendUnavailable(str(error)) from error
        self._sightings.pop(container_id, None)

    async def _refused(self, step: Step, row: Container, reason: str) -> None:
        log.warning("container %s: %s: %s", row.id, step.name.lower(), reason)
        self._again.discard(row.id)
        if step is Step.EXPOSE:
            # It runs nevertheless, and the exposure is tried again from time to time.
            self._exposed[row.id] = machine.exposure(row)
            return
        if step is Step.STOP:
            # It must not be shown as stopped while it runs: this is always retried.
            raise BackendUnavailable(f"it cannot be stopped: {reason}")

        def decide(now: Container) -> list[Container]:
            return [machine.fail(now, reason, refused=True)] if now.revision == row.revision else []

        await self._change(row.id, decide)

    async def _follow(self, row: Container, sighting: Sighting) -> bool:
        """Update the row from the sighting; whether anything changed."""
        if not any(after != row for after in machine.follow(row, sighting)):
            return False
        return await self._change(row.id, lambda now: machine.follow(now, sighting))

    async def _run_again(self, row: Container) -> None:
        now = trio.current_time()
        times = [time for time in self._reruns.get(row.id, []) if now - time < RERUN_WINDOW_SECONDS]
        self._reruns[row.id] = [*times, now]
        if len(times) >= RERUNS_MAX:
            del self._reruns[row.id]
            log.warning("container %s stops again and again by itself", row.id)
            after = machine.fail(row, machine.STOPS_BY_ITSELF, refused=True)
        else:
            log.warning("container %s has stopped by itself: it is run again", row.id)
            after = machine.run_again(row)
        await self._change(row.id, lambda found: [after] if found == row else [])

    async def _look_for(self, row: Container) -> bool:
        """Wait for a container that should exist and is absent. After a while it counts as lost."""
        now = trio.current_time()
        since = self._missing.setdefault(row.id, now)
        left = since + self._lost_seconds - now
        if left > 0:
            with trio.move_on_after(left):
                await self._woken[row.id].wait()
            return False
        del self._missing[row.id]
        log.warning("container %s is lost", row.id)
        await self._change(
            row.id,
            lambda found: [machine.fail(found, machine.LOST)] if machine.is_lost(found) else [],
        )
        return False

    async def _change(
        self, container_id: str, decide: Callable[[Container], list[Container]]
    ) -> bool:
        """Write what ``decide`` makes of the row as it is now, each status as an event;
        whether anything changed."""

        def write(txn: Txn) -> bool:
            now = before = containers.get(txn, container_id)
            if now is None:
                return False
            for after in decide(now):
                containers.put(txn, after)
                if (after.status, after.external_ip) != (now.status, now.external_ip):
                    add_event(txn, after, "status")
                now = after
            return now != before

        changed = await self._records.write(write)
        if changed:
            self._changes.poke()
        return changed
