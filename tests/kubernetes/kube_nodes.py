"""Nodes whose pods are real processes: see :mod:`kube_containers`.

The API server, the controllers and the scheduler are real, and see what they would see of
kubelets: a pod that starts, is probed as its manifest says, becomes ready, is deleted with the
time to end. How long any of that takes is no matter. Each run of a pod has another address.
"""

from __future__ import annotations

import http.client
import itertools
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import kube_acts as acts
import trio
from kube_acts import Run
from kube_api import Api, Object, insist
from kube_containers import (
    Container,
    Image,
    Volume,
    expanded,
    give_to_group,
    variables_of,
    write_secret,
)
from kube_here import Kubernetes
from limits import HANG_SECONDS

ZONE = "topology.kubernetes.io/zone"
#: Pods of nodes with this label are processes.
LABEL = "gfs-tests-processes"
RESTART_SECONDS = 1.0
POLL_SECONDS = 0.2


class Nodes:
    """Nodes, one in each of the zones, for one namespace. ``run`` must be running."""

    def __init__(
        self, kubernetes: Kubernetes, api: Api, directory: Path, namespace: str, zones: list[str]
    ) -> None:
        self._kubernetes = kubernetes
        self._api = api
        self._directory = directory
        self.namespace = namespace
        self.zones = {f"{namespace}-{zone}": zone for zone in zones}
        directory.mkdir()
        hosts = directory / "hosts"
        hosts.touch()
        host, port = kubernetes.admin.server.removeprefix("https://").split(":")
        self.image = Image(
            hosts, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        )
        self._names: dict[str, str] = {}
        self._addresses = (f"127.86.{i // 250}.{i % 250 + 1}" for i in itertools.count())
        self._known: dict[str, Object] = {}
        self._gone: dict[str, trio.Event] = {}
        #: What went wrong with containers: probes of liveness, ends that nobody ordered.
        self.faults: list[str] = []
        #: Pod → why it is not ready.
        self.unready: dict[str, str] = {}
        #: Names of pods in the order in which they ended.
        self.ended: list[str] = []

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        for name, zone in self.zones.items():
            node = acts.node(name, "amd64")
            node["metadata"]["labels"] |= {LABEL: self.namespace, ZONE: zone}
            await self._api.create("/api/v1/nodes", node)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._beat)
                nursery.start_soon(
                    self._api.observe, f"/api/v1/namespaces/{self.namespace}/pods", self._look
                )
                task_status.started()
        finally:
            with trio.move_on_after(30, shield=True):
                for name in self.zones:
                    await self._api.delete(f"/api/v1/nodes/{name}")

    def address_of(self, pod: str) -> str:
        return self._names[pod]

    async def _beat(self) -> None:
        while True:
            for name in self.zones:
                status = acts.node_status(name, "amd64", 1)
                await insist(
                    lambda name=name, status=status: self._api.patch(  # type: ignore[misc]
                        f"/api/v1/nodes/{name}/status", {"status": status}
                    )
                )
            await trio.sleep(5)

    def _look(self, present: dict[str, Object]) -> bool:
        for uid, pod in present.items():
            if pod["spec"].get("nodeName") not in self.zones:
                continue
            if uid not in self._known:
                self._gone[uid] = trio.Event()
                self._nursery.start_soon(self._keep, uid)
            self._known[uid] = pod
            if pod["metadata"].get("deletionTimestamp"):
                self._gone[uid].set()
        for uid in self._gone.keys() - present.keys():
            self._gone[uid].set()
        return False

    async def _keep(self, uid: str) -> None:
        """All of a pod's time on its node."""
        pod = self._known[uid]
        keeper = PodKeeper(self, uid, pod, next(self._addresses))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.run)
                await self._gone[uid].wait()
                nursery.cancel_scope.cancel()
            await keeper.stop()
        finally:
            keeper.kill()
        self.ended.append(pod["metadata"]["name"])
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"
        await insist(lambda: self._api.delete(path, options))

    def name(self, pod: Object, address: str) -> None:
        """As the DNS of a cluster does, and the kubelet for the pod itself."""
        about = pod["metadata"]
        self._names[about["name"]] = address
        lines = [
            f"{each} {name}.{name.rpartition('-')[0]}.{self.namespace}.svc.cluster.local {name}\n"
            for name, each in self._names.items()
        ]
        # In place, since it is mounted.
        self.image.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))

    async def prepare(self, uid: str, pod: Object, address: str) -> tuple[Container, Object]:
        """The first container of a pod, started, and its part of the manifest."""
        spec, base = pod["spec"], f"/api/v1/namespaces/{self.namespace}"
        (manifest,) = spec["containers"]
        configs = {
            each["metadata"]["name"]: each for each in await self._api.items(f"{base}/configmaps")
        }
        secrets = {
            each["metadata"]["name"]: each for each in await self._api.items(f"{base}/secrets")
        }
        labels = {**pod["metadata"]["labels"], ZONE: self.zones[spec["nodeName"]]}
        labelled = {**pod, "metadata": {**pod["metadata"], "labels": labels}}
        variables = variables_of(manifest, labelled, address, configs, secrets)
        user, group = (spec["securityContext"][each] for each in ("runAsUser", "fsGroup"))
        directory = self._directory / uid
        volumes = []
        sources = {each["name"]: each for each in spec["volumes"]}
        for mount in manifest["volumeMounts"]:
            source = sources[mount["name"]]
            target = directory / mount["name"]
            if secret := source.get("secret"):
                write_secret(target, secrets[secret["secretName"]], group, secret["defaultMode"])
            elif claim := source.get("persistentVolumeClaim"):
                target = await self._volume(claim["claimName"])
                give_to_group(target, group)
            else:
                assert source["emptyDir"] == {}
                give_to_group(target, group)
            volumes.append(Volume(target, mount["mountPath"]))
        command = ["gfs", *(expanded(each, variables) for each in manifest["args"])]
        started = await trio.to_thread.run_sync(
            lambda: Container(self.image, directory, command, variables, volumes, user)
        )
        return started, manifest

    async def _volume(self, claim: str) -> Path:
        while True:
            with suppress(LookupError):
                return self._kubernetes.kubelet.volume(self.namespace, claim)
            await trio.sleep(POLL_SECONDS)

    async def write_status(self, uid: str, run: Run) -> None:
        about = run.pod["metadata"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{about['name']}/status"
        body = {"status": run.status(), "metadata": {"uid": uid}}
        await insist(lambda: self._api.patch(path, body))

    def remove(self, uid: str) -> None:
        shutil.rmtree(self._directory / uid, ignore_errors=True)


class PodKeeper:
    """One pod: its container, run again when it ends, and the probes."""

    def __init__(self, nodes: Nodes, uid: str, pod: Object, address: str) -> None:
        self._nodes = nodes
        self._uid = uid
        self._run = Run(pod, address, acts.now())
        self._address = address
        self._name = pod["metadata"]["name"]
        self._container: Container | None = None
        self._manifest: Object = {}

    async def run(self) -> None:
        self._nodes.name(self._run.pod, self._address)
        while True:
            self._container, self._manifest = await self._nodes.prepare(
                self._uid, self._run.pod, self._address
            )
            self._run.runs()
            self._run.ready = False
            await self._nodes.write_status(self._uid, self._run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe_all)
                await self._container.wait()
                nursery.cancel_scope.cancel()
            self._fault("ended")
            self._run.crashes(1)
            await self._nodes.write_status(self._uid, self._run)
            await trio.sleep(RESTART_SECONDS)

    async def stop(self) -> None:
        with trio.CancelScope(shield=True):
            container = self._container
            if container is None:
                return
            hook = self._manifest.get("lifecycle", {}).get("preStop")
            if hook:
                await trio.to_thread.run_sync(container.run, hook["exec"]["command"])
            if not await trio.to_thread.run_sync(container.stop):
                self._fault("no end after SIGTERM")

    def kill(self) -> None:
        if self._container is not None:
            self._container.kill()
        self._nodes.remove(self._uid)

    async def _probe_all(self) -> None:
        startup = self._manifest["startupProbe"]
        for _ in range(startup["failureThreshold"]):
            if not await self._probe(startup):
                break
            await trio.sleep(startup["periodSeconds"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_readiness)
            nursery.start_soon(self._watch_liveness)

    async def _watch_readiness(self) -> None:
        probe = self._manifest["readinessProbe"]
        failures = 0
        await trio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            why = await self._probe(probe)
            self._nodes.unready[self._name] = why or ""
            failures = failures + 1 if why else 0
            ready = not failures or (self._run.ready and failures < probe["failureThreshold"])
            if ready != self._run.ready:
                self._run.ready = ready
                await self._nodes.write_status(self._uid, self._run)
            await trio.sleep(probe["periodSeconds"])

    async def _watch_liveness(self) -> None:
        probe = self._manifest["livenessProbe"]
        while True:
            why = await self._probe(probe)
            if why:
                self._fault(f"liveness: {why}")
            await trio.sleep(probe["periodSeconds"])

    async def _probe(self, probe: Object) -> str | None:
        """Why it fails."""
        assert self._container is not None
        if "exec" in probe:
            code, said = await trio.to_thread.run_sync(
                self._container.run, probe["exec"]["command"], abandon_on_cancel=True
            )
            return (said or "failed") if code else None
        how: Callable[[], str | None]
        if "httpGet" in probe:
            port, path = self._port(probe["httpGet"]["port"]), probe["httpGet"]["path"]
            how = lambda: get(self._address, port, path)  # noqa: E731
        else:
            port = self._port(probe["tcpSocket"]["port"])
            how = lambda: connect(self._address, port)  # noqa: E731
        return await trio.to_thread.run_sync(how, abandon_on_cancel=True)

    def _port(self, name: str) -> int:
        (port,) = (
            each["containerPort"] for each in self._manifest["ports"] if each["name"] == name
        )
        return int(port)

    def _fault(self, what: str) -> None:
        assert self._container is not None
        said = self._container.log.read_text(errors="replace")[-1500:]
        self._nodes.faults.append(f"{self._name}: {what}\n{said}")


def get(address: str, port: int, path: str) -> str | None:
    connection = http.client.HTTPConnection(address, port, timeout=HANG_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return None if answer.status < 400 else f"HTTP {answer.status}"
    except OSError as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()


def connect(address: str, port: int) -> str | None:
    try:
        socket.create_connection((address, port), timeout=HANG_SECONDS).close()
    except OSError as error:
        return str(error) or type(error).__name__
    return None
