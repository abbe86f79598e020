"""The watch of all containers of a cluster: three streams.

The state of a container is derived from its namespace (whether it exists, and its desired
state), its pod (its phase) and its Service (its address). All of
them have our labels, so one watch of each kind, across all namespaces, shows every
container of this installation, also one without a record or without a pod, and
no container of others. This is enough: a pod shows which volumes and images it waits for.

If a start makes no progress for :data:`LOOK_SECONDS`, the events of its namespace are read,
since Kubernetes reports nowhere else why it created no pod (a quota, or the StatefulSet is
gone), or why the pod does not start (a volume that cannot be attached).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import trio

from control.compute.backend import LABEL_CONTAINER, Sighting, Watch
from control.compute.kubernetes.client import Api, translated
from control.compute.kubernetes.manifests import CONTAINER
from control.compute.kubernetes.mirror import Mirror
from control.compute.kubernetes.shapes import (
    Namespace,
    Pod,
    Service,
    address,
    is_ours,
    last_warning,
    sighting,
)
from gfs.errors import GfsError

log = logging.getLogger("control.compute")

LOOK_SECONDS = 10.0
#: How many starts are examined in one round.
LOOKS_MAX = 50
#: An event this long before a start may still be about that start: clocks differ.
CLOCK_SECONDS = 30.0


class Watching:
    """Reports to ``watch`` all containers of an installation, chosen by ``labels``."""

    def __init__(self, api: Api, installation_id: str, labels: str, watch: Watch) -> None:
        self._api = api
        self._installation_id = installation_id
        self._watch = watch
        self._namespaces = Mirror(
            api, "/api/v1/namespaces", Namespace, labels, self._namespaces_changed
        )
        self._pods = Mirror(api, "/api/v1/pods", Pod, labels, self._changed)
        self._services = Mirror(api, "/api/v1/services", Service, labels, self._services_changed)
        self._synced = trio.Event()
        #: The containers that were reported, by namespace.
        self._reported: dict[str, str] = {}
        #: Their Services, by namespace.
        self._served: dict[str, set[str]] = {}
        self._starting: set[str] = set()
        #: When a start was reported, in seconds since 1970, by namespace.
        self._begun: dict[str, float] = {}
        #: Starts without progress, by namespace, and since when.
        self._silent: dict[str, float] = {}
        self._remarks: dict[str, str] = {}
        self._without_workload: set[str] = set()
        #: Set and replaced when a namespace is gone.
        self._gone = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled. Started when all existing containers were reported."""
        async with trio.open_nursery() as nursery:
            for mirror in (self._namespaces, self._pods, self._services):
                nursery.start_soon(mirror.run)
            await self._synced.wait()
            task_status.started()
            while True:
                await trio.sleep(LOOK_SECONDS)
                await self._look()

    async def something_gone(self) -> None:
        """Return when any namespace is gone."""
        await self._gone.wait()

    @contextlib.contextmanager
    def starting(self, namespace: str) -> Iterator[None]:
        """The container is started within this block. Earlier remarks about it are dropped, so
        that they do not count for this start, and none is looked for before all objects of
        the start exist."""
        self._begun[namespace] = time.time()
        self._starting.add(namespace)
        self._forget(namespace)
        try:
            yield
        finally:
            self._starting.discard(namespace)
            if namespace in self._silent:
                self._silent[namespace] = trio.current_time()
            if namespace in self._reported:
                self._report(namespace)

    def _note_change(self, namespace: str) -> None:
        """Note a change of the namespace: its start makes progress."""
        self._silent.pop(namespace, None)
        self._forget(namespace)

    def _forget(self, namespace: str) -> None:
        self._remarks.pop(namespace, None)
        self._without_workload.discard(namespace)

    # --- reports of the mirrors ---------------------------------------------------------

    def _changed(self, namespaces: set[str], listed: bool) -> None:
        if self._synced.is_set():
            for name in namespaces:
                self._report(name)
        elif all(each.is_listed for each in (self._namespaces, self._pods, self._services)):
            # A missing object means nothing before all three are listed.
            self._synced.set()
            self._namespaces_changed(self._namespaces.namespaces, True)

    def _namespaces_changed(self, namespaces: set[str], listed: bool) -> None:
        was_synced = self._synced.is_set()
        self._changed(namespaces, listed)
        if listed and was_synced:
            self._watch.synced(set(self._reported.values()))

    def _services_changed(self, namespaces: set[str], listed: bool) -> None:
        self._changed(namespaces, listed)
        for name in namespaces:
            now = {service.metadata.name for service in self._services.of(name)}
            lost = self._served.pop(name, set()) - now
            if now:
                self._served[name] = now
            if lost and (container_id := self._reported.get(name)) is not None:
                self._watch.exposure_lost(container_id)

    def _report(self, name: str) -> None:
        found = self._namespaces.of(name)
        if found and is_ours(found[0], self._installation_id):
            self._reported[name] = found[0].metadata.label(LABEL_CONTAINER)
            self._watch.seen(self._sighting(name, found[0]))
            return
        if found:
            log.warning("kubernetes: namespace %s has our labels and does not belong to us", name)
        self._note_change(name)
        self._begun.pop(name, None)
        if (container_id := self._reported.pop(name, None)) is not None:
            self._watch.gone(container_id)
            self._gone.set()
            self._gone = trio.Event()

    def _sighting(self, name: str, namespace: Namespace) -> Sighting:
        pods = self._pods.of(name)
        seen = sighting(namespace, pods, address(self._services.of(name)))
        if seen.phase not in ("pending", "initializing") or seen.reason:
            self._note_change(name)
            return seen
        self._silent.setdefault(name, trio.current_time())
        return sighting(
            namespace,
            pods,
            remark=self._remarks.get(name, ""),
            has_workload=name not in self._without_workload,
        )

    # --- starts without progress -------------------------------------------------------

    async def _look(self) -> None:
        before = trio.current_time() - LOOK_SECONDS
        silent = [
            (name, since)
            for name, since in self._silent.items()
            if since < before and name not in self._starting
        ]
        for name, since in silent[:LOOKS_MAX]:
            try:
                with translated():
                    await self._look_into(name, since)
            except GfsError as error:
                log.debug("kubernetes: the events of %s cannot be read: %s", name, error)
                return

    async def _look_into(self, name: str, since: float) -> None:
        has_workload = await self._api.has_workload(name, CONTAINER)
        warnings = await self._api.warnings(name)
        if self._silent.get(name) != since or name in self._starting:
            # It has made progress meanwhile, or was started again.
            return
        # A warning may be about a start that another process has reported.
        self._remarks[name] = last_warning(warnings, self._begun.get(name, 0.0) - CLOCK_SECONDS)
        # The containers that have waited longest are checked next.
        self._silent[name] = self._silent.pop(name)
        if not has_workload and not self._pods.of(name):
            self._without_workload.add(name)
        self._report(name)
