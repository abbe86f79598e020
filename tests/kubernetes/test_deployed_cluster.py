"""What deploy/kubernetes runs, as processes under the real controllers: started, used, updated."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import postgresql
import pytest
import trio
from kube_api import Api, Object, Refused, is_ready
from kube_applied import apply
from kube_containers import Container, Volume, give_to_group, write_secret
from kube_here import Kubernetes
from kube_nodes import LABEL, Nodes, get
from kustomized import containers, pod_of, rendered
from limits import HANG_SECONDS
from needs import need

NAMESPACE = "gfs-acted"
ZONES = ["east", "north", "west"]
KEY = "ab" * 32
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
LOAD = Path(__file__).parents[1] / "cluster" / "mixed_load.py"


def overlay(image: str) -> list[Object]:
    """On the nodes whose pods are processes, with volumes of the tests' size."""
    found = [each for each in rendered(NAMESPACE, image) if each["kind"] != "ServiceMonitor"]
    for manifest in found:
        if containers(manifest):
            pod_of(manifest)["nodeSelector"] = {LABEL: NAMESPACE}
    return found


class Stage:
    def __init__(self, kube: Api, nodes: Nodes, directory: Path) -> None:
        self.kube = kube
        self.nodes = nodes
        self.directory = directory

    async def apply(self, image: str) -> None:
        for manifest in overlay(image):
            await apply(self.kube, manifest)

    async def wait_ready(self) -> None:
        """Everything is of the newest template, and ready."""

        def settled(found: list[Object]) -> bool:
            return all(
                each["status"].get("observedGeneration") == each["metadata"]["generation"]
                and each["status"].get("updatedReplicas") == each["spec"]["replicas"]
                and each["status"].get("readyReplicas") == each["spec"]["replicas"]
                and each["status"]["replicas"] == each["spec"]["replicas"]
                for each in found
            )

        for path in (SETS, DEPLOYMENTS):
            try:
                await self.kube.wait(path, settled, seconds=3 * HANG_SECONDS)
            except TimeoutError as error:
                raise AssertionError(f"{self.nodes.unready} {self.nodes.faults}") from error

    def client(self, *command: str) -> Container:
        """A pod of a client, in the same network."""
        directory = self.directory / "client"
        key, tmp = directory / "key", directory / "tmp"
        secret = {"data": {"cluster.key": base64_of(KEY)}}
        write_secret(key, secret, 10002, 0o440)
        give_to_group(tmp, 10002)
        masters = ",".join(
            f"gfs-master-{number}.gfs-master.{NAMESPACE}.svc.cluster.local:9400"
            for number in range(3)
        )
        variables = {"GFS_MASTER": masters, "GFS_KEY_FILE": "/etc/gfs/cluster.key"}
        volumes = [Volume(key, "/etc/gfs"), Volume(tmp, "/tmp")]
        return Container(
            self.nodes.image,
            directory,
            [each.replace("MASTERS", masters) for each in command],
            variables,
            volumes,
            10002,
        )

    async def is_served(self) -> None:
        """What the Service sends to control planes that are ready is answered, always. One may
        say that it waits for a master: its probe sees that."""
        while True:
            pods = await self.kube.items(PODS, labelSelector="app.kubernetes.io/component=control")
            ready = [
                pod
                for pod in pods
                if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
            ]
            assert ready
            for pod in ready:
                why = await trio.to_thread.run_sync(get, pod["status"]["podIP"], 8080, "/readyz")
                assert why in (None, "HTTP 503")
            await trio.sleep(0.3)


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
async def stage(
    kubernetes: Kubernetes, kube: Api, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Stage]:
    need("" if os.geteuid() == 0 else "containers are made as root")
    with postgresql.running() as server:
        nodes = Nodes(kubernetes, kube, tmp_path / "pods", NAMESPACE, ZONES)
        stage = Stage(kube, nodes, tmp_path)
        await kube.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        secrets = {
            "gfs-key": {"cluster.key": KEY},
            "gfs-control": {
                "records": server.url,
                "password": "unused: the server trusts all",
                "admin-password": "open sesame",
            },
        }
        for name, data in secrets.items():
            await kube.create(
                f"/api/v1/namespaces/{NAMESPACE}/secrets",
                {"metadata": {"name": name}, "stringData": data},
            )
        async with trio.open_nursery() as inner:
            await inner.start(nodes.run)
            yield stage
            # The controllers make no new pods of what is gone.
            await kube.delete(f"/api/v1/namespaces/{NAMESPACE}")
            inner.cancel_scope.cancel()


async def test_an_update_of_everything_fails_no_call(stage: Stage) -> None:
    await stage.apply("gfs:one")
    await stage.wait_ready()
    client = await trio.to_thread.run_sync(
        stage.client, "python", str(LOAD), "MASTERS", "/etc/gfs/cluster.key", "pod"
    )
    try:
        with trio.fail_after(HANG_SECONDS):
            while "ready" not in client.log.read_text():
                assert not client.ended, client.log.read_text()
                await trio.sleep(0.1)
        status = await reported(client, "gfs", "status", "--json")
        assert sorted(server["rack"] for server in status["servers"]) == ZONES
        assert f"Lease {NAMESPACE}/gfs-masters" in status["election"]["engine"]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.is_served)
            await stage.apply("gfs:two")
            await nobody_else_is_evicted(stage)
            await stage.wait_ready()
            nursery.cancel_scope.cancel()

        for kind in ("master", "chunkserver"):
            ended = [name for name in stage.nodes.ended if name.startswith(f"gfs-{kind}")]
            assert ended == [f"gfs-{kind}-{number}" for number in (2, 1, 0)]
        assert len(stage.nodes.ended) == 8
        assert not client.ended, client.log.read_text()
        client.terminate()
        with trio.fail_after(HANG_SECONDS):
            await client.wait()
        assert "done" in client.log.read_text(), client.log.read_text()
        assert not stage.nodes.faults, "\n".join(stage.nodes.faults)
    finally:
        client.kill()


async def nobody_else_is_evicted(stage: Stage) -> None:
    """While one chunkserver is being replaced, a node with another is not drained."""
    await stage.kube.wait_one(f"{PODS}/gfs-chunkserver-2", lambda pod: not is_ready(pod))
    path = f"{PODS}/gfs-chunkserver-0/eviction"
    body = {"apiVersion": "policy/v1beta1", "metadata": {"name": "gfs-chunkserver-0"}}
    budget = f"/apis/policy/v1beta1/namespaces/{NAMESPACE}/poddisruptionbudgets/gfs-chunkserver"
    await stage.kube.wait_one(budget, lambda found: found["status"]["currentHealthy"] == 2)
    with pytest.raises(Refused, match="disruption budget"):
        await stage.kube.create(path, {**body, "kind": "Eviction"})


async def reported(client: Container, *command: str) -> Object:
    code, said = await trio.to_thread.run_sync(client.run, command)
    assert code == 0, said
    found: Object = json.loads(said)
    return found
