"""Containers in a Kubernetes cluster; :mod:`.manifests` has the objects of a container.

- **Start.** A start writes the desired generation to the namespace, then applies all other
  objects, the workload last. So missing objects are created again, changes by hand are
  undone, and the watch can distinguish a previous run from the next one. The cluster ends
  the old pod before it starts the new one.
- **Stop.** A stop follows the logs to their end, and keeps the last of them on the StatefulSet,
  whose pod is gone then; the next start removes them.
- **Ownership.** All objects carry the installation's id. A namespace without it is never
  changed, whatever its name: several installations may share a cluster.
- **Deletion.** A container is deleted when its namespace is gone. Kubernetes empties the
  namespace first, volumes included, which takes seconds, or up to half a minute if the pod
  ignores SIGTERM.
- **Addresses.** With a Service of type LoadBalancer a container has an address of its own,
  for SSH and all ports but 443. With ClusterIP a gateway of the operator leads from the host
  name to the Service. The cluster's ingress controller serves the host name, for 443 and 80.
- **Isolation.** A network policy allows incoming connections to opened ports only, and
  outgoing ones to DNS and the internet only, which excludes the cluster's nodes. The
  cluster's network must enforce policies; some do not. Root of a container is in a user
  namespace, and a cluster without user namespaces is refused.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from control.compute.backend import (
    COLUMNS,
    ROWS,
    BackendUnavailable,
    Impossible,
    Installation,
    Network,
    Spec,
    Terminal,
    Usage,
    Watch,
)
from control.compute.kubernetes import logs, manifests
from control.compute.kubernetes import terminal as exec
from control.compute.kubernetes.client import GRANT, Api, Refused, Source, find, translated
from control.compute.kubernetes.permissions import missing
from control.compute.kubernetes.shapes import (
    Namespace,
    Node,
    is_ours,
    memory_bytes,
    networks,
    remaining,
)
from control.compute.kubernetes.watching import Watching
from control.compute.settings import ComputeSettings
from gfs.errors import GfsError

log = logging.getLogger("control.compute")

MIB = 1024**2
#: A namespace that does not exist: our rights in it are those that we have in all namespaces.
ANY_NAMESPACE = "compute-any"
#: After this time a deletion is reported as not yet done. It is shorter than the driver's
#: timeout, so that the reason is shown.
DELETE_SECONDS = 100.0
#: How often a namespace that is being deleted is read, besides the watch.
LOOK_SECONDS = 5.0
#: How long the addresses of nodes are cached; containers may reach a new node for as long,
#: and until the driver next exposes them.
NODES_SECONDS = 300.0


def make(installation: Installation, settings: ComputeSettings) -> Kubernetes:
    return Kubernetes(installation, settings)


class Kubernetes:
    """See :class:`control.compute.backend.Backend`."""

    name = "kubernetes"

    def __init__(self, installation: Installation, settings: ComputeSettings) -> None:
        self._installation = installation
        self._settings = settings
        self._options = manifests.Options(
            storage_class=settings.storage_class,
            ingress_class=settings.ingress_class,
            service_type=settings.service_type,
            tls_issuer=settings.tls_issuer,
            user_namespaces=settings.user_namespaces,
            open_networks=tuple(settings.open_network_list),
        )
        self._has_user_namespaces = False
        self._nodes: tuple[Network, ...] = ()
        self._nodes_until = -math.inf
        self._asking_for_nodes = trio.Lock()
        self._api = Api(self._find)
        self._watching: Watching | None = None

    def _find(self) -> Source:
        return find(self._settings.kubeconfig, self._settings.context)

    async def check(self) -> None:
        with translated():
            rights = await self._api.rights(ANY_NAMESPACE)
            lacking = missing(rights)
            if rights.incomplete:
                lacking = [each for each in lacking if not await self._api.may(*each)]
        if lacking:
            denied = ", ".join(f"{verb} {resource}" for _, resource, verb in lacking)
            raise BackendUnavailable(f"the cluster does not let us {denied}: {GRANT}")

    async def room(self) -> None:
        return None

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        labels = manifests.selector(self._installation)
        watching = Watching(self._api, self._installation.id, labels, watch)
        self._watching = watching
        try:
            await watching.run(task_status=task_status)
        finally:
            self._watching = None
            self._api.close()

    async def create(self, spec: Spec) -> None:
        with translated():
            await self._make_namespace(spec, run=False)
            await self._make_parts(spec)
            await self._make_quota(spec)

    async def start(self, spec: Spec) -> None:
        watching = self._watching
        begun = contextlib.nullcontext() if watching is None else watching.starting(_name(spec))
        with translated(), begun:
            await self._make_namespace(spec, run=True)
            await self._make_parts(spec)
            await self._make_quota(spec)
            await self._open(spec)
            workload = self._workload(spec, run=True)
            await self._check_user_namespaces(workload)
            await self._api.apply(workload)

    async def stop(self, spec: Spec) -> None:
        with translated():
            found = await self._api.namespace(_name(spec))
            if found is None or found.metadata.deletion_timestamp:
                return
            self._check_ours(found)
            await self._mark(spec, run=False)
            before = await self._api.workload(_name(spec), manifests.CONTAINER)
            kept = before.logs if before is not None else ""
            async with logs.last_lines(self._api, _name(spec)) as last:
                await self._api.apply(self._workload(spec, run=False, kept=kept))
        if last.text:
            await self._keep(spec, last.text)

    async def _keep(self, spec: Spec, text: str) -> None:
        """Keep what the run has printed. It is stopped, whether this succeeds or not."""
        try:
            with translated():
                await self._api.apply(self._workload(spec, run=False, kept=text))
        except GfsError as error:
            log.warning("kubernetes: the logs of container %s are not kept: %s", spec.id, error)

    async def delete(self, container_id: str, user_id: str) -> None:
        name = manifests.namespace_name(user_id, container_id)
        deadline = trio.current_time() + DELETE_SECONDS
        with translated():
            while True:
                found = await self._api.namespace(name)
                if found is None or not is_ours(found, self._installation.id):
                    return
                if not found.metadata.deletion_timestamp:
                    await self._api.delete_namespace(name, found.metadata.uid)
                elif trio.current_time() > deadline:
                    raise BackendUnavailable(f"{name} is still there: {remaining(found)}")
                with trio.move_on_after(LOOK_SECONDS):
                    await self._something_gone()

    async def _something_gone(self) -> None:
        if self._watching is None:
            await trio.sleep_forever()
        else:
            await self._watching.something_gone()

    def port_refusal(self, port: int) -> str:
        return ""

    async def expose(self, spec: Spec) -> None:
        with translated():
            await self._make_parts(spec)
            await self._open(spec)

    async def usage(self, spec: Spec) -> Usage:
        with translated():
            try:
                metrics = await self._api.metrics(_name(spec), manifests.POD)
            except Refused as refused:
                if refused.status in (403, 503):
                    # The right is missing or the metrics server fails: the usage is not known.
                    return Usage()
                raise
        used = memory_bytes(metrics) if metrics is not None else None
        return Usage(memory_mb=None if used is None else -(-used // MIB))

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        return self._exec(spec, command, columns, rows)

    @asynccontextmanager
    async def _exec(
        self, spec: Spec, command: list[str], columns: int, rows: int
    ) -> AsyncGenerator[Terminal, None]:
        async with exec.terminal(self._api, _name(spec), command, columns, rows) as opened:
            yield opened

    async def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        lines = logs.logs(self._api, _name(spec), tail, follow=follow)
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield line

    def ssh_command(self, spec: Spec) -> str:
        return f"ssh root@{spec.external_ip or self.hostname(spec)}"

    def hostname(self, spec: Spec) -> str:
        return f"{spec.id}.{self._installation.domain}"

    # --- objects ------------------------------------------------------------------------

    async def _make_namespace(self, spec: Spec, *, run: bool) -> None:
        """Create the namespace if it is missing, check that it is ours, and annotate it with the
        desired state."""
        name = _name(spec)
        found = await self._api.namespace(name)
        if found is None:
            try:
                await self._api.create_namespace(self._namespace(spec, run=run))
                return
            except Refused as refused:
                if refused.status != 409:
                    raise
            found = await self._api.namespace(name)
        if found is None or found.metadata.deletion_timestamp:
            raise BackendUnavailable(f"its namespace {name} is still being deleted")
        self._check_ours(found)
        if run or not found.metadata.desired[0]:
            await self._mark(spec, run=run)

    def _check_ours(self, found: Namespace) -> None:
        if not is_ours(found, self._installation.id):
            raise Impossible(
                f"the namespace {found.metadata.name} of this cluster belongs to somebody else"
            )

    async def _mark(self, spec: Spec, *, run: bool) -> None:
        await self._api.apply_namespace(self._namespace(spec, run=run))

    def _namespace(self, spec: Spec, *, run: bool) -> manifests.Manifest:
        state = manifests.desired(spec.generation, run=run)
        return manifests.namespace(self._installation, spec, state)

    def _workload(self, spec: Spec, *, run: bool, kept: str = "") -> manifests.Manifest:
        return manifests.workload(self._installation, spec, self._options, run=run, logs=kept)

    async def _make_parts(self, spec: Spec) -> None:
        """Create the objects that outlive a run. Those that isolate it come first."""
        here, options = self._installation, self._options
        nodes = await self._node_networks()
        await self._api.apply(manifests.network_policy(here, spec, options, nodes))
        await self._api.apply(manifests.secret(here, spec))
        await self._api.apply(manifests.volume_claim(here, spec, options))

    async def _make_quota(self, spec: Spec) -> None:
        """Create the quota, after the volume: the usage of a new quota is not known yet, and
        objects that it counts cannot be created. It is created only with a run, since a run
        of an older version may need more, and its pod must be created again when it moves."""
        await self._api.apply(manifests.quota(self._installation, spec))

    async def _node_networks(self) -> tuple[Network, ...]:
        """The networks of the nodes, at most :data:`NODES_SECONDS` old."""
        async with self._asking_for_nodes:
            if trio.current_time() >= self._nodes_until:
                nodes, _ = await self._api.list(Node, "")
                self._nodes = networks(nodes)
                self._nodes_until = trio.current_time() + NODES_SECONDS
        return self._nodes

    async def _check_user_namespaces(self, workload: manifests.Manifest) -> None:
        """Refuse a cluster without user namespaces. It ignores the field silently, and root of
        a container would be root of its node. So this checks once."""
        if not self._options.user_namespaces or self._has_user_namespaces:
            return
        if (await self._api.rehearse(workload)).spec.template.spec.host_users is not False:
            raise Impossible(
                "this cluster has no user namespaces, so root of a container would be root of "
                "its node: use Kubernetes 1.33 or newer, or set user_namespaces = false"
            )
        self._has_user_namespaces = True

    async def _open(self, spec: Spec) -> None:
        here, options = self._installation, self._options
        namespace = _name(spec)
        service = manifests.service(here, spec, options)
        if service is None:
            await self._api.delete_service(namespace, manifests.CONTAINER)
        else:
            await self._api.apply(service)
        web = manifests.web_service(here, spec)
        ingress = manifests.ingress(here, spec, options)
        if web is None or ingress is None:
            await self._api.delete_ingress(namespace, manifests.WEB)
            await self._api.delete_service(namespace, manifests.WEB)
        else:
            await self._api.apply(web)
            await self._api.apply(ingress)


def _name(spec: Spec) -> str:
    return manifests.namespace_name(spec.user_id, spec.id)
