"""Containers in Kubernetes, from the REST API down to pods, with real processes."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import kube_control  # first: it says where the others are
import pytest
import trio
from checks import ok, wait_for
from kube_control import Control
from kube_here import Kubernetes
from kube_rights import account_of_file
from limits import HANG_SECONDS
from sockets import websocket

from control.compute.kubernetes.manifests import namespace_name
from control.compute.reconcile import machine

NETWORK = "/apis/networking.k8s.io/v1"


@pytest.fixture(scope="module")
def shared(
    running_kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Control]:
    """One control plane for the tests that do not kill it; it chooses Kubernetes itself,
    and has no more rights than rbac.yaml gives."""
    account = account_of_file(running_kubernetes.server)
    control = Control(tmp_path_factory.mktemp("shared"), account, "auto")
    try:
        control.start()
        yield control
    finally:
        control.end()


@pytest.fixture(scope="module")
def mortal(
    running_kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Control]:
    account = account_of_file(running_kubernetes.server)
    control = Control(tmp_path_factory.mktemp("mortal"), account, "kube_held:make")
    try:
        control.start()
        yield control
    finally:
        control.end()


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

    def namespace(self, container_id: str) -> str:
        (found,) = self.of(container_id)
        return str(found["metadata"]["name"])

    def pod(self, container_id: str) -> dict[str, Any]:
        (found,) = self.of(container_id, "/api/v1/pods")
        return found

    def copy(self, container_id: str, new: str, installation: str = "") -> None:
        """A namespace as if the container's control plane, or another, had made it."""
        (found,) = self.of(container_id)
        labels = found["metadata"]["labels"] | {"gfs.control/container": new}
        if installation:
            labels["gfs.control/cluster"] = installation
        name = namespace_name(labels["gfs.control/user"], new)
        body = {"metadata": {"name": name, "labels": labels}}
        self.http.post("/api/v1/namespaces", json=body).raise_for_status()

    def until_gone(self, container_id: str) -> None:
        wait_for(lambda: not self.of(container_id), "end of the namespace")

    def ports(self, container_id: str) -> set[int]:
        services = self.of(container_id, "/api/v1/services")
        return {port["port"] for each in services for port in each["spec"]["ports"]}


async def statuses(listener: Any, until: str) -> list[dict[str, Any]]:
    """What is reported of a container's status, up to this one."""
    reported: list[dict[str, Any]] = []
    with trio.fail_after(HANG_SECONDS):
        while not reported or reported[-1]["status"] != until:
            message = await listener.json()
            assert message["type"] == "container_status", message
            reported.append(message["data"])
    return reported


async def typed(port: int, container_id: str, token: str, line: str, answer: bytes) -> None:
    """Type a line into a terminal and read what it answers."""
    path = f"/compute/containers/{container_id}/terminal"
    async with websocket(port, path, token) as terminal:
        await terminal.send(f"{line}\n".encode())
        shown = b""
        with trio.fail_after(HANG_SECONDS):
            while answer not in shown:
                output = await terminal.receive()
                assert isinstance(output, bytes), (shown, output)
                shown += output


async def test_the_whole_life_of_a_container(
    shared: Control, kubernetes: Kubernetes, cluster: Cluster
) -> None:
    port, token = shared.port, shared.token()
    in_thread = trio.to_thread.run_sync
    with shared.client() as user:
        async with websocket(port, "/compute/ws", token) as listener:
            assert await listener.json() == {"type": "containers", "data": []}
            sizes = {"instance_type": "nano", "memory_mb": 300, "storage_gb": 7}
            one = await in_thread(
                lambda: user.create(ssh_enabled=True, mount_paths=["/srv"], **sizes)
            )
            about = f"/compute/containers/{one}"
            reported = await statuses(listener, "running")
            came = [each["status"] for each in reported]
            assert list(dict.fromkeys(came)) == ["pending", "initializing", "running"]
            assert {each["container_id"] for each in reported} == {one}
            pod = cluster.pod(one)
            assert pod["spec"]["nodeName"] == "node-arm64"
            limits = pod["spec"]["containers"][0]["resources"]["limits"]
            assert (limits["cpu"], limits["memory"]) == ("500m", "300Mi")
            (claim,) = cluster.of(one, "/api/v1/persistentvolumeclaims")
            assert claim["status"]["capacity"]["storage"] == "7Gi"
            (keys,) = cluster.of(one, "/api/v1/secrets")
            assert (
                base64.b64decode(keys["data"]["authorized_keys"])
                == f"{kube_control.KEY}\n".encode()
            )

            address = wait_for(lambda: user.get(one).get("ssh_command"), "SSH command")
            service = cluster.of(one, "/api/v1/services")[0]
            external_ip = service["status"]["loadBalancer"]["ingress"][0]["ip"]
            wait_for(
                lambda: user.get(one)["ssh_command"] == f"ssh root@{external_ip}",
                f"address in {address}",
            )

            await typed(port, one, token, "echo $((6*7))", b"42\r\n")
            await typed(port, one, token, 'echo kept > "$ROOT/srv/f" && echo d$((1+1))e', b"d2e")
            logs = await in_thread(lambda: user.http.get(f"{about}/logs"))
            assert logs.status_code == 200
            assert "started 0" in logs.text

            user.http.put(f"{about}/ssh", json={"ssh_enabled": False}).raise_for_status()
            wait_for(lambda: cluster.ports(one) == set(), "closed SSH")
            rule = {"port": 443, "target_port": 8443}
            user.http.post(f"{about}/ingress", json=rule).raise_for_status()
            (ingress,) = wait_for(lambda: cluster.of(one, f"{NETWORK}/ingresses"), "Ingress")
            assert ingress["spec"]["tls"] == [{"hosts": [f"{one}.compute.example.org"]}]
            assert user.get(one)["https_enabled"] is True

            before = cluster.pod(one)["metadata"]["uid"]
            paths = {"mount_paths": ["/srv", "/opt/app"]}
            changed = user.http.put(f"{about}/mounts", json=paths).json()
            assert changed == {**paths, "restarted": True}
            reported += await statuses(listener, "pending")
            assert external_ip in {each.get("external_ip") for each in reported}
            await statuses(listener, "running")
            pod = cluster.pod(one)
            assert pod["metadata"]["uid"] != before
            mounts = pod["spec"]["containers"][0]["volumeMounts"]
            assert {"/srv", "/opt/app"} <= {each["mountPath"] for each in mounts}
            await typed(port, one, token, 'cat "$ROOT/srv/f"', b"kept\r\n")

            user.post(one, "stop")
            came = {each["status"] for each in await statuses(listener, "stopped")}
            assert came <= {"running", "stopped"}
            wait_for(lambda: not cluster.of(one, "/api/v1/pods"), "end of the pod")
            assert cluster.of(one, "/api/v1/persistentvolumeclaims")
            user.post(one, "start")
            await statuses(listener, "running")
            await typed(port, one, token, 'cat "$ROOT/srv/f"', b"kept\r\n")

            await in_thread(user.delete, one)
            await statuses(listener, "deleting")
            assert (await listener.json())["type"] == "container_deleted"
            cluster.until_gone(one)
    assert "compute uses kubernetes" in shared.output.read_text()


@pytest.mark.parametrize(("how", "code"), [("exit", 1000), ("pod", 1011), ("connection", 1011)])
async def test_how_a_terminal_ended_is_reported(
    shared: Control, kubernetes: Kubernetes, cluster: Cluster, how: str, code: int
) -> None:
    in_thread = trio.to_thread.run_sync
    with shared.client() as user:
        one = await in_thread(user.create)
        await in_thread(user.until, one, "running")
        path = f"/compute/containers/{one}/terminal"
        async with websocket(shared.port, path, shared.token()) as terminal:
            shown = b""
            await terminal.send(b"echo $((6*7))\n")
            with trio.fail_after(HANG_SECONDS):
                while b"42\r\n" not in shown:
                    output = await terminal.receive()
                    assert isinstance(output, bytes), (shown, output)
                    shown += output
            match how:
                case "exit":
                    await terminal.send(b"exit 3\n")
                case "pod":
                    pod = f"/api/v1/namespaces/{cluster.namespace(one)}/pods/container-0"
                    cluster.http.delete(pod).raise_for_status()
                case "connection":
                    await in_thread(kubernetes.kubelet.drop_connections)
            with trio.fail_after(HANG_SECONDS):
                while await terminal.receive() is not None:
                    pass
            assert terminal.close_code == code
            assert bool(terminal.close_reason) == (code != 1000)
        await in_thread(user.delete, one)
        await in_thread(cluster.until_gone, one)


def test_a_start_makes_cluster_and_records_agree(
    mortal: Control, shared: Control, kubernetes: Kubernetes, cluster: Cluster
) -> None:
    """What was lost while nobody looked has failed, and an orphan is removed; but nothing of
    another control plane in the same cluster, which does the same."""
    with mortal.client() as user, shared.client() as neighbour:
        lost, kept, other = user.create(), user.create(), neighbour.create()
        user.until(lost, "running")
        user.until(kept, "running")
        neighbour.until(other, "running")
        uid = cluster.pod(kept)["metadata"]["uid"]
        others = cluster.pod(other)["metadata"]["uid"]
    mortal.end()
    name = cluster.namespace(lost)
    cluster.http.delete(f"/api/v1/namespaces/{name}").raise_for_status()
    cluster.until_gone(lost)
    cluster.copy(kept, "0000cccc")
    cluster.copy(other, "0000dddd")
    mortal.start()
    cluster.until_gone("0000cccc")
    cluster.until_gone("0000dddd")
    with mortal.client() as user, shared.client() as neighbour:
        assert user.until(lost, "failed")["reason"] == machine.LOST
        assert user.get(kept)["status"] == "running"
        assert neighbour.get(other)["status"] == "running"
        assert cluster.pod(kept)["metadata"]["uid"] == uid
        assert cluster.pod(other)["metadata"]["uid"] == others
        for who, each in ((user, lost), (user, kept), (neighbour, other)):
            who.delete(each)
            cluster.until_gone(each)


#: The calls of the API server, one after the other; "after" one is before the next.
CREATING = (
    "create_namespace-Namespace-before",
    "create_namespace-Namespace-after",
    "apply-NetworkPolicy-after",
    "apply-Secret-after",
    "apply-PersistentVolumeClaim-after",
)
STARTING = (
    "apply_namespace-Namespace-after",
    "apply-Service-after",
    "apply-Ingress-after",
    "apply-StatefulSet-after",
)
STOPPING = ("apply_namespace-Namespace-before", "apply_namespace-Namespace-after")
DELETING = ("delete_namespace-Namespace-before", "delete_namespace-Namespace-after")


def die_at_each(control: Control, *places: str) -> None:
    """It is held at the first. What each kill leaves is what the next process begins with."""
    for place, then in itertools.zip_longest(places, places[1:], fillvalue=""):
        control.die(place, then)


def test_killed_at_every_step_of_a_containers_life(
    mortal: Control, kubernetes: Kubernetes, cluster: Cluster
) -> None:
    """Whoever comes after finishes it: it ends as it was wished, once, with its volume."""
    mortal.hold(CREATING[0])
    with mortal.client() as user:
        one = user.create(ssh_enabled=True, ingress_rules=[{"port": 443}])
    die_at_each(mortal, *CREATING, *STARTING)
    with mortal.client() as user:
        user.until(one, "running")
    assert len(cluster.of(one)) == 1
    assert len(cluster.of(one, "/api/v1/pods")) == 1
    (claim,) = cluster.of(one, "/api/v1/persistentvolumeclaims")

    # The steps of a start between its first and its last were those of the creation.
    for stopping, starting in zip(STOPPING, (STARTING[0], STARTING[-1]), strict=True):
        for action, place in (("stop", stopping), ("start", starting)):
            mortal.hold(place)
            with mortal.client() as user:
                user.post(one, action)
            mortal.die(place)
            with mortal.client() as user:
                if action == "start":
                    user.until(one, "running")
                    assert len(cluster.of(one, "/api/v1/pods")) == 1
                else:
                    assert user.get(one)["status"] == "stopped"
                    wait_for(lambda: not cluster.of(one, "/api/v1/pods"), "end of it")
    (after,) = cluster.of(one, "/api/v1/persistentvolumeclaims")
    assert after["metadata"]["uid"] == claim["metadata"]["uid"]

    mortal.hold(DELETING[0])
    with mortal.client() as user:
        user.delete(one)
    die_at_each(mortal, *DELETING)
    cluster.until_gone(one)
    with mortal.client() as user:
        path = f"/compute/containers/{one}"
        wait_for(lambda: user.http.get(path).status_code == 404, "end of the record")


@pytest.mark.parametrize("place", ["apply-NetworkPolicy-after", "apply-StatefulSet-after"])
def test_killed_while_a_container_is_made_that_is_not_wanted_any_more(
    mortal: Control, kubernetes: Kubernetes, cluster: Cluster, place: str
) -> None:
    mortal.hold(place)
    with mortal.client() as user:
        one = user.create()
        wait_for((mortal.holds / f"held-{place}").exists, "held call")
        user.delete(one)
    mortal.die(place)
    cluster.until_gone(one)


def test_a_state_that_is_desired_while_the_api_server_is_away_is_reached(
    mortal: Control, shared: Control, kubernetes: Kubernetes, cluster: Cluster
) -> None:
    """It dies right after a creation, while that is under way; a stop, a start and a
    deletion are wished before it comes back. A control plane that starts meanwhile says
    what is missing, and the rest of it works."""
    with shared.client() as user, mortal.client() as neighbour:
        user.make_room()
        stopping, starting, deleting = user.create(), user.create(), neighbour.create()
        user.until(stopping, "running")
        user.until(starting, "running")
        neighbour.until(deleting, "running")
        user.post(starting, "stop")
        wait_for(lambda: not cluster.of(starting, "/api/v1/pods"), "end of the pod")
        creating = user.create()
        kubernetes.server.kill()
        user.post(stopping, "stop")
        user.post(starting, "start")
        assert user.get(stopping)["status"] == "stopped"
        assert user.get(starting)["status"] == "pending"
    mortal.end()
    mortal.start()
    with shared.client() as user, mortal.client() as neighbour:
        keys = ok(neighbour.http.get("/compute/ssh-keys"))["ssh_keys"]
        body = {"name": "box", "ssh_key_ids": [keys[0]["id"]]}
        refused = neighbour.http.post("/compute/containers", json=body)
        assert refused.status_code == 503
        assert "does not answer" in refused.json()["error"]
        neighbour.delete(deleting)
        kubernetes.server.restart()
        cluster.until_gone(deleting)
        new = neighbour.create()
        for who, each in ((user, creating), (user, starting), (neighbour, new)):
            who.until(each, "running")
        wait_for(lambda: not cluster.of(stopping, "/api/v1/pods"), "end of the pod")
        for who, each in ((user, creating), (user, starting), (user, stopping), (neighbour, new)):
            who.delete(each)
            cluster.until_gone(each)
