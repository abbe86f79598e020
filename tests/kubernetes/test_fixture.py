"""The cluster for tests: its API server, controllers and scheduler are the real ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import kube_acts as acts
import pytest
import trio
from apiserver import Identity
from kube_api import Api, Object, Refused, condition, is_ready, owned
from kube_here import Kubernetes
from kube_pods import pod_body, pods_in, start
from kubelet import in_namespace
from limits import HANG_SECONDS, wait_for
from signals import send


def reason(pod: Object) -> str:
    """Why its container waits."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    return str(statuses[0].get("state", {}).get("waiting", {}).get("reason", ""))


async def test_a_pod_runs(kube: Api, namespace: str) -> None:
    pod = await start(kube, namespace)
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert pod["status"]["podIP"]


async def test_a_deployment_comes_up_on_the_node_it_selects(kube: Api, namespace: str) -> None:
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    labels = {"app": "web"}
    template = {
        "metadata": {"labels": labels},
        "spec": {
            **pod_body()["spec"],
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
        },
    }
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    made = await kube.create(deployments, {"metadata": {"name": "web"}, "spec": spec})
    await kube.wait_one(f"{deployments}/web", lambda found: found["status"].get("readyReplicas"))

    replicas = await kube.items(f"/apis/apps/v1/namespaces/{namespace}/replicasets")
    [replica] = owned(replicas, made["metadata"]["uid"])
    [pod] = owned(await kube.items(pods_in(namespace)), replica["metadata"]["uid"])
    assert pod["spec"]["nodeName"] == "node-arm64"

    # Another pod takes the place of one that is deleted, and none that of the last.
    await kube.delete(f"{pods_in(namespace)}/{pod['metadata']['name']}")
    uid = pod["metadata"]["uid"]
    await kube.wait(
        pods_in(namespace),
        lambda pods: [each for each in pods if is_ready(each) and each["metadata"]["uid"] != uid],
    )
    await kube.patch(f"{deployments}/web", {"spec": {"replicas": 0}})
    await kube.wait(pods_in(namespace), lambda pods: not pods)


async def test_a_pod_that_fits_no_node_is_unschedulable(kube: Api, namespace: str) -> None:
    body = pod_body(nodeSelector={"kubernetes.io/arch": "riscv64"})
    await kube.create(pods_in(namespace), body)
    pod = await kube.wait_one(
        f"{pods_in(namespace)}/one", lambda found: condition(found, "PodScheduled") == "False"
    )
    [why] = [each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled"]
    assert why["reason"] == "Unschedulable"


async def test_a_node_that_is_not_ready_gets_no_pods(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    kubernetes.kubelet.set_node_ready("arm64", False)
    try:
        await kube.wait_one("/api/v1/nodes/node-arm64", lambda node: not is_ready(node))
        # The controller taints it, and the scheduler goes by that.
        await kube.wait_one("/api/v1/nodes/node-arm64", lambda node: node["spec"].get("taints"))
        body = pod_body(nodeSelector={"kubernetes.io/arch": "arm64"})
        await kube.create(pods_in(namespace), body)
        path = f"{pods_in(namespace)}/one"
        await kube.wait_one(path, lambda found: condition(found, "PodScheduled") == "False")
    finally:
        kubernetes.kubelet.set_node_ready("arm64", True)
    await kube.wait_one(path, is_ready)


async def test_a_namespace_goes_with_all_that_is_in_it(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    here = f"/api/v1/namespaces/{namespace}"
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    await kube.create(
        f"{here}/persistentvolumeclaims", {"metadata": {"name": "disk"}, "spec": claim}
    )
    await kube.create(f"{here}/secrets", {"metadata": {"name": "key"}, "stringData": {"a": "b"}})
    volume = {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}
    await start(kube, namespace, volumes=[volume])
    bound = await kube.get(f"{here}/persistentvolumeclaims/disk")
    disk = f"/api/v1/persistentvolumes/{bound['spec']['volumeName']}"
    directory = kubernetes.kubelet.volume(namespace, "disk")
    assert directory.is_dir()

    await kube.delete(here)
    await kube.wait_gone(here)
    await kube.wait_gone(disk)
    assert not await kube.items(pods_in(namespace))
    assert not await kube.items(f"{here}/secrets")


async def test_a_service_and_an_ingress_get_addresses(kube: Api, namespace: str) -> None:
    services = f"/api/v1/namespaces/{namespace}/services"
    spec = {"type": "LoadBalancer", "ports": [{"port": 22}], "selector": {"app": "web"}}
    await kube.create(services, {"metadata": {"name": "ssh"}, "spec": spec})
    await kube.wait_one(
        f"{services}/ssh", lambda found: found["status"]["loadBalancer"].get("ingress")
    )
    ingresses = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"
    backend = {"service": {"name": "ssh", "port": {"number": 22}}}
    body = {"metadata": {"name": "web"}, "spec": {"defaultBackend": backend}}
    await kube.create(ingresses, body)
    await kube.wait_one(
        f"{ingresses}/web", lambda found: found["status"]["loadBalancer"].get("ingress")
    )


async def test_nobody_has_more_rights_than_his_role(
    kubernetes: Kubernetes,
    kube_identity: Callable[..., Identity],
    namespace: str,
) -> None:
    identity = kube_identity([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
    async with Api(identity) as limited:
        assert await limited.items(pods_in(namespace)) == []
        with pytest.raises(Refused) as refused:
            await limited.create(pods_in(namespace), pod_body())
        assert refused.value.status == 403
        with pytest.raises(Refused) as refused:
            await limited.items(f"/api/v1/namespaces/{namespace}/secrets")
        assert refused.value.status == 403


def test_a_stranger_is_not_known(kubernetes: Kubernetes) -> None:
    with kubernetes.admin.client() as client:
        for credentials in ("", "Bearer wrong"):
            answer = client.get("/api/v1/pods", headers={"Authorization": credentials})
            assert answer.status_code == 401


async def test_writing_over_what_changed_is_a_conflict(kube: Api, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    made = await kube.create(maps, {"metadata": {"name": "one"}})
    with pytest.raises(Refused) as refused:
        await kube.create(maps, {"metadata": {"name": "one"}})
    assert refused.value.reason == "AlreadyExists"
    await kube.patch(f"{maps}/one", {"data": {"a": "1"}})
    stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}}
    with pytest.raises(Refused) as refused:
        await kube.patch(f"{maps}/one", {**stale, "data": {"a": "2"}})
    assert refused.value.reason == "Conflict"


async def test_while_it_is_dead_nobody_answers_and_then_nothing_was_missed(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    listening = trio.Event()

    def both(items: list[Object]) -> bool:
        listening.set()
        return {"one", "two"} <= {each["metadata"]["name"] for each in items}

    await start(kube, namespace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kube.wait, maps, both)
        await listening.wait()
        await kube.create(maps, {"metadata": {"name": "one"}})
        await trio.to_thread.run_sync(kubernetes.server.kill)
        with pytest.raises(httpx.TransportError):
            await kube.get("/readyz")
        await trio.to_thread.run_sync(kubernetes.server.restart)
        await kube.create(maps, {"metadata": {"name": "two"}})
    await start(kube, namespace, "two")


async def test_what_it_has_forgotten_is_gone(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    """Both a watch from before, and the next page of a list; but nothing that there is."""
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    version = (await kube.get(maps))["metadata"]["resourceVersion"]
    for name in ("one", "two"):
        await kube.create(maps, {"metadata": {"name": name}})
    page = await kube.get(maps, limit="1")
    await trio.to_thread.run_sync(kubernetes.server.forget)
    with pytest.raises(Refused) as refused, trio.fail_after(HANG_SECONDS):
        await kube.watch(maps, version, lambda kind, item: False)
    assert refused.value.status == 410
    with pytest.raises(Refused) as refused:
        await kube.get(maps, limit="1", **{"continue": page["metadata"]["continue"]})
    assert refused.value.status == 410
    assert {"one", "two"} <= {each["metadata"]["name"] for each in await kube.items(maps)}


async def test_a_frozen_server_keeps_its_connections_and_is_silent(
    kubernetes: Kubernetes, kube: Api
) -> None:
    await kube.get("/api/v1/nodes")
    kubernetes.server.freeze()
    answered = trio.Event()

    async def ask() -> None:
        await kube.get("/api/v1/nodes")
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        # All there is to see of silence is that others are done before.
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not answered.is_set()
        kubernetes.server.thaw()
        with trio.fail_after(HANG_SECONDS):
            await answered.wait()


async def test_an_image_that_cannot_be_had(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    path = f"{pods_in(namespace)}/one"
    with kubernetes.kubelet.acting(acts.PullFails("no such image"), in_namespace(namespace)):
        await kube.create(pods_in(namespace), pod_body())
        pod = await kube.wait_one(path, lambda found: reason(found) == "ImagePullBackOff")
        assert pod["status"]["phase"] == "Pending"
        state = pod["status"]["containerStatuses"][0]["state"]
        assert state["waiting"]["message"] == "no such image"
    await kube.wait_one(path, is_ready)


@pytest.mark.parametrize(("exit_code", "word"), [(1, "Error"), (137, "OOMKilled")])
async def test_a_container_that_does_not_stay_up(
    kubernetes: Kubernetes, kube: Api, namespace: str, exit_code: int, word: str
) -> None:
    path = f"{pods_in(namespace)}/one"
    act = acts.CrashLoops(exit_code=exit_code, reason=word, restarts=2)
    with kubernetes.kubelet.acting(act, in_namespace(namespace)):
        await kube.create(pods_in(namespace), pod_body())
        pod = await kube.wait_one(
            path,
            lambda found: (
                reason(found) == "CrashLoopBackOff"
                and found["status"]["containerStatuses"][0]["restartCount"] == 2
            ),
        )
        last = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert (last["exitCode"], last["reason"]) == (exit_code, word)
    await kube.wait_one(path, is_ready)


async def test_a_container_that_ends_later(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    await start(kube, namespace)
    kubernetes.kubelet.crash(namespace, "one", exit_code=137, reason="OOMKilled")
    pod = await kube.wait_one(
        f"{pods_in(namespace)}/one",
        lambda found: (
            is_ready(found) and found["status"]["containerStatuses"][0]["restartCount"] == 1
        ),
    )
    last = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["reason"] == "OOMKilled"

    await start(kube, namespace, "once", restartPolicy="Never")
    kubernetes.kubelet.crash(namespace, "once", exit_code=3)
    await kube.wait_one(
        f"{pods_in(namespace)}/once", lambda found: found["status"]["phase"] == "Failed"
    )


async def test_a_pod_waits_and_lingers_as_long_as_ordered(
    kubernetes: Kubernetes, kube: Api, namespace: str
) -> None:
    path = f"{pods_in(namespace)}/one"
    with kubernetes.kubelet.acting(acts.Held(), in_namespace(namespace)):
        await kube.create(pods_in(namespace), pod_body())
        await kube.wait_one(path, lambda found: reason(found) == "ContainerCreating")
    await kube.wait_one(path, is_ready)
    with kubernetes.kubelet.acting(acts.Lingers(), in_namespace(namespace)):
        await kube.delete(path)
        # Its end is up to the kubelet, so it is there as long as that says nothing.
        await start(kube, namespace, "two")
        assert (await kube.get(path))["metadata"]["deletionTimestamp"]
    await kube.wait_gone(path)


STUCK = """
import time

def test_stuck(kubernetes):
    print("READY", flush=True)
    time.sleep(600)
"""


def test_nothing_runs_on_after_a_session_that_was_interrupted(
    running_kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """Every program of a cluster has a path below its directory in its arguments, and a
    keeper."""
    here = Path(__file__).parent
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(here / "conftest.py", tests)
    (tests / "test_stuck.py").write_text(STUCK)
    base = tmp_path / "base"
    session = subprocess.Popen(
        [
            # In the background of a shell we would hand down that it is ignored.
            *("env", "--default-signal=INT"),
            *(sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider"),
            *("-o", "trio_mode=true", f"--basetemp={base}", f"--rootdir={tests}", str(tests)),
        ],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert session.stdout is not None
    with session, _killed_after(session):
        said = ""
        for line in session.stdout:
            said += line
            if "READY" in line:
                break
        assert "READY" in said, said
        programs = _programs(base)
        assert {"etcd", "kube-apiserver", "kube-scheduler"} <= programs.keys()
        for program, pid in programs.items():
            assert b"lifeline.py" in _command(_parent(pid)), f"nobody keeps {program}"
        session.send_signal(signal.SIGINT)
        session.stdout.read()
        session.wait()
    wait_for(lambda: not _programs(base), "end of all")
    assert not [*base.glob("*/etcd"), *base.glob("*/nodes")]


KEEPS = """
import sys, time
from pathlib import Path
from typing import Any
from lifeline import Lifeline

here = Path(sys.argv[1])
kept = Lifeline(["tail", "-f", str(here / "log")], log=here / "log", directory=here)
print(kept.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("who", ["session", "keeper"])
def test_nothing_runs_on_after_a_session_or_a_keeper_that_was_killed(
    tmp_path: Path, who: str
) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
    )
    assert session.stdout is not None
    with session, _killed_after(session):
        pid = int(session.stdout.readline())
        assert _programs(tmp_path) == {"tail": pid}
        send(session.pid if who == "session" else _parent(pid), signal.SIGKILL)
        wait_for(lambda: not _programs(tmp_path), "end of all")


@contextmanager
def _killed_after(process: subprocess.Popen[Any]) -> Iterator[None]:
    """However the block ends, and if it hangs."""
    timer = threading.Timer(HANG_SECONDS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()


def _programs(directory: Path) -> dict[str, int]:
    """Those that run with something of ``directory`` in their arguments, by name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        words = _command(int(path.name)).split(b"\0")
        program = Path(words[0].decode()).name
        if str(directory).encode() in b"\0".join(words[1:]) and "python" not in program:
            found[program] = int(path.name)
    return found


def _command(pid: int) -> bytes:
    """b"" if there is no such process any more."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
