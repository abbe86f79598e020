"""Containers in Kubernetes, from the REST API down to pods, with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from checks import bearer, ok, refused, wait_for
from kube_control import Control
from kube_here import Kubernetes
from kube_rights import account_of_file
from limits import HANG_SECONDS
from sockets import websocket

NETWORK = "/apis/networking.k8s.io/v1"


@pytest.fixture
def control(kubernetes: Kubernetes, tmp_path: Path) -> Iterator[Control]:
    """With no more rights than rbac.yaml gives."""
    made = Control(tmp_path, account_of_file(kubernetes.server))
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
def cluster(kubernetes: Kubernetes) -> Iterator[Cluster]:
    with kubernetes.admin.client() as http:
        yield Cluster(http)


class Cluster:
    """What an administrator of the cluster sees."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def of(self, container_id: str, path: str = "/api/v1/namespaces") -> list[dict[str, Any]]:
        """All of a kind that belongs to a container."""
        labels = {"labelSelector": f"gfs.control/container={container_id}"}
        found = self.http.get(path, params=labels).raise_for_status()
        items: list[dict[str, Any]] = found.json()["items"]
        return items

    def pod(self, container_id: str) -> dict[str, Any]:
        (found,) = self.of(container_id, "/api/v1/pods")
        return found

    def until_gone(self, container_id: str, path: str = "/api/v1/namespaces") -> None:
        wait_for(lambda: not self.of(container_id, path), f"end of it in {path}")


async def statuses(listener: Any, until: str) -> list[dict[str, Any]]:
    """What is reported of a container's status, up to this one."""
    reported: list[dict[str, Any]] = []
    with trio.fail_after(HANG_SECONDS):
        while not reported or reported[-1]["status"] != until:
            message = await listener.json()
            assert message["type"] == "container_status", message
            reported.append(message["data"])
    return reported


def port(control: Control) -> int:
    return int(control.url.rpartition(":")[2])


async def typed(control: Control, container_id: str, line: str, answer: bytes) -> None:
    """Type a line into a terminal and read what it answers."""
    path = f"/compute/containers/{container_id}/terminal"
    async with websocket(port(control), path, bearer(control.admin)) as terminal:
        await terminal.send(f"{line}\n".encode())
        shown = b""
        with trio.fail_after(HANG_SECONDS):
            while answer not in shown:
                output = await terminal.receive()
                assert isinstance(output, bytes), (shown, output)
                shown += output


async def test_the_whole_life_of_a_container(control: Control, cluster: Cluster) -> None:
    in_thread = trio.to_thread.run_sync
    async with websocket(port(control), "/compute/ws", bearer(control.admin)) as listener:
        assert await listener.json() == {"type": "containers", "data": []}
        one = await in_thread(lambda: control.create(ssh_enabled=True, mount_paths=["/srv"]))
        about = f"/compute/containers/{one}"
        reported = await statuses(listener, "running")
        came = [each["status"] for each in reported]
        assert list(dict.fromkeys(came)) == ["pending", "initializing", "running"]
        service = cluster.of(one, "/api/v1/services")[0]
        external_ip = service["status"]["loadBalancer"]["ingress"][0]["ip"]
        wait_for(
            lambda: control.get(one)["ssh_command"] == f"ssh root@{external_ip}", "SSH command"
        )
        await typed(control, one, 'echo kept > "$ROOT/srv/f" && echo d$((1+1))e', b"d2e")
        logs = await in_thread(control.admin.get, f"{about}/logs")
        assert "started 0" in logs.text

        ok(control.admin.post(f"{about}/ingress", json={"port": 443, "target_port": 8443}))
        (ingress,) = wait_for(lambda: cluster.of(one, f"{NETWORK}/ingresses"), "Ingress")
        assert ingress["spec"]["tls"] == [{"hosts": [f"{one}.compute.example.org"]}]

        before = cluster.pod(one)["metadata"]["uid"]
        paths = {"mount_paths": ["/srv", "/opt/app"]}
        changed = ok(control.admin.put(f"{about}/mounts", json=paths))
        assert changed == {**paths, "restarted": True}
        reported += await statuses(listener, "pending")
        assert external_ip in {each.get("external_ip") for each in reported}
        await statuses(listener, "running")
        pod = cluster.pod(one)
        assert pod["metadata"]["uid"] != before
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert {"/srv", "/opt/app"} <= {each["mountPath"] for each in mounts}

        control.post(one, "stop")
        assert {each["status"] for each in await statuses(listener, "stopped")} <= {
            "running",
            "stopped",
        }
        cluster.until_gone(one, "/api/v1/pods")
        control.post(one, "start")
        await statuses(listener, "running")
        await typed(control, one, 'cat "$ROOT/srv/f"', b"kept\r\n")

        await in_thread(control.delete, one)
        await statuses(listener, "deleting")
        assert (await listener.json())["type"] == "container_deleted"
        cluster.until_gone(one)


def test_what_is_wished_while_the_api_server_is_away_is_reached(
    control: Control, kubernetes: Kubernetes, cluster: Cluster
) -> None:
    """It dies right after a creation, while that is under way; a stop, a start and a deletion are
    wished before it comes back. The control plane, which is started anew meanwhile, says what is
    missing, and the rest of it works."""
    stopping, starting, deleting = ones = [control.create() for _ in range(3)]
    for each in ones:
        control.until(control.admin, each, "running")
    control.post(starting, "stop")
    cluster.until_gone(starting, "/api/v1/pods")
    creating = control.create()
    kubernetes.server.kill()
    control.post(stopping, "stop")
    control.post(starting, "start")
    control.kill()
    control.start()
    assert control.get(stopping)["status"] == "stopped"
    assert control.get(starting)["status"] == "pending"
    body = {"name": "box", "ssh_key_ids": [control.first_key(control.admin)]}
    refused(control.admin.post("/compute/containers", json=body), 503, "does not answer")
    control.delete(deleting)
    kubernetes.server.restart()
    cluster.until_gone(deleting)
    for each in (creating, starting, control.create()):
        control.until(control.admin, each, "running")
    cluster.until_gone(stopping, "/api/v1/pods")
