"""The life of a container on a real API server, as the backend leads it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Awaitable, Callable
from operator import methodcaller
from typing import Any

import msgspec
import pytest
import trio
from kube_acts import Held
from kube_api import Api, Refused
from kube_backend import KEY, SHELL, Running, labelled, made, name_of, path_of, running, spec
from kube_here import Kubernetes
from limits import HANG_SECONDS
from msgspec.structs import replace

from control.compute.backend import BackendUnavailable, Impossible, Port, Spec
from control.compute.kubernetes import Kubernetes as Backend
from control.compute.kubernetes.manifests import PREPARE, Manifest, sub_path
from control.compute.kubernetes.shapes import Workload

NETWORK = "/apis/networking.k8s.io/v1"
APPS = "/apis/apps/v1"
KINDS = (
    "/api/v1/namespaces",
    "/api/v1/pods",
    "/api/v1/secrets",
    "/api/v1/persistentvolumeclaims",
    "/api/v1/resourcequotas",
    "/api/v1/services",
    f"{APPS}/statefulsets",
    f"{NETWORK}/networkpolicies",
    f"{NETWORK}/ingresses",
)


@pytest.mark.smoke
async def test_a_container_comes_up_step_by_step_and_leaves_nothing(
    here: Running, kube: Api
) -> None:
    one = spec(ports=(Port(8080, 80), Port(443, 8443)))
    await here.backend.check()
    await here.backend.create(one)
    await here.seen.phase(one, "stopped")
    await here.backend.start(one)
    await here.seen.phase(one, "running")
    assert here.seen.phases(one) == ["stopped", "pending", "initializing", "running"]
    for kind in KINDS:
        assert await labelled(kube, kind, one), kind
    with trio.fail_after(HANG_SECONDS):
        await here.backend.delete(one.id, one.user_id)
    await here.seen.until(lambda: one.id in here.seen.was_gone)
    for kind in KINDS:
        assert not await labelled(kube, kind, one), kind


class Cut(Exception):
    """A process died in the middle of a call."""


@pytest.mark.parametrize("is_sent", [False, True])
async def test_what_was_cut_off_anywhere_is_finished_by_the_next_process(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    """At each question to the API server, before it is sent or after it was answered."""
    one = spec(ports=(Port(443, 8443),))

    async def is_finished(act: Callable[[Backend], Awaitable[None]], questions: int) -> bool:
        backend = made(kubernetes.admin, "cut")
        ask, left = backend._api._ask, itertools.count(questions, -1)

        async def asking(call: Any) -> bytes:
            is_last = next(left) == 0
            if is_last and not is_sent:
                raise Cut
            answer = await ask(call)
            if is_last:
                raise Cut
            return answer

        monkeypatch.setattr(backend._api, "_ask", asking)
        try:
            await act(backend)
        except Cut:
            return False
        return True

    async def finish(act: Callable[[Backend], Awaitable[None]]) -> None:
        questions = 0
        while not await is_finished(act, questions):
            questions += 1

    async with running(kubernetes.admin, "cut") as here:
        monkeypatch.setattr("control.compute.kubernetes.backend.LOOK_SECONDS", 0.1)
        claims = set()
        for generation in (1, 2):
            again = replace(one, generation=generation)
            await finish(methodcaller("create", again))
            await finish(methodcaller("start", again))
            await here.seen.phase(again, "running")
            assert len(await labelled(kube, "/api/v1/pods", one)) == 1
            (claim,) = await labelled(kube, "/api/v1/persistentvolumeclaims", one)
            claims.add(claim["metadata"]["uid"])
            await finish(methodcaller("stop", again))
            await here.seen.phase(again, "stopped")
        assert len(claims) == 1
        await finish(methodcaller("delete", one.id, one.user_id))
        await here.seen.until(lambda: one.id in here.seen.was_gone)


async def test_it_has_an_address_while_it_runs(one: Spec, here: Running, kube: Api) -> None:
    await here.start(one)
    await here.seen.until(lambda: here.seen.now[one.id].external_ip)
    service = await kube.get(path_of(one, "/services/container"))
    address = service["status"]["loadBalancer"]["ingress"][0]["ip"]
    seen = here.seen.now[one.id]
    assert seen.external_ip == address
    reached = replace(one, external_ip=seen.external_ip)
    assert here.backend.ssh_command(reached) == f"ssh root@{address}"
    await here.backend.stop(one)
    assert (await here.seen.phase(one, "stopped")).external_ip == ""
    assert here.backend.ssh_command(one) == f"ssh root@{one.id}.compute.example.org"


async def test_a_pod_takes_nothing_of_its_node_and_no_more_than_its_own(
    here: Running, kube: Api
) -> None:
    """What the cluster has made of the manifests: fields that it does not know it drops."""
    one = spec(memory_mb=256, storage_gb=3)
    await here.start(one)
    pod = await kube.get(path_of(one, "/pods/container-0"))
    assert pod["spec"]["hostUsers"] is False
    assert pod["spec"]["automountServiceAccountToken"] is False
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["ephemeral-storage"] == "3Gi"
    used = (await kube.get(path_of(one, "/resourcequotas/container")))["status"]["used"]
    assert used["pods"] == "1"
    assert (used["limits.memory"], used["requests.storage"]) == ("256Mi", "3Gi")
    second = {"metadata": {"name": "second"}, "spec": {**pod["spec"], "nodeName": None}}
    with pytest.raises(Refused, match="exceeded quota: container"):
        await kube.create(path_of(one, "/pods"), second)


async def test_without_user_namespaces_nothing_runs_unless_a_setting_allows_it(
    one: Spec, kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(kubernetes.admin) as here:

        async def dropping(workload: Manifest) -> Workload:
            """As a cluster answers that does not know the field."""
            answer = msgspec.convert(workload, Workload)
            answer.spec.template.spec.host_users = None
            return answer

        monkeypatch.setattr(here.backend._api, "rehearse", dropping)
        with pytest.raises(Impossible, match=r"no user namespaces.*user_namespaces = false"):
            await here.backend.start(one)
        assert not await kube.items(path_of(one, "/statefulsets", api=APPS))
    async with running(kubernetes.admin, user_namespaces=False) as here:
        await here.start(two := spec())
        assert "hostUsers" not in (await kube.get(path_of(two, "/pods/container-0")))["spec"]


async def test_a_deleted_key_leaves_a_running_pod(here: Running, kube: Api) -> None:
    """The kubelet brings a Secret that is mounted as a directory up to date."""
    one = spec(ssh_keys=(KEY, KEY.replace("ZWVSbC", "ZWVSbD")))
    await here.start(one)
    before = await kube.get(path_of(one, "/pods/container-0"))
    await here.backend.expose(replace(one, ssh_keys=(KEY,)))
    secret = await kube.get(path_of(one, "/secrets/keys"))
    assert base64.b64decode(secret["data"]["authorized_keys"]).decode() == f"{KEY}\n"
    after = await kube.get(path_of(one, "/pods/container-0"))
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_nodes_are_refused_to_containers_and_so_is_one_that_comes_later(
    one: Spec, here: Running, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def refused() -> set[str]:
        policy = await kube.get(path_of(one, "/networkpolicies/container", api=NETWORK))
        blocks = [to.get("ipBlock", {}) for rule in policy["spec"]["egress"] for to in rule["to"]]
        return {net for block in blocks for net in block.get("except", ())}

    await here.backend.create(one)
    assert "169.254.0.0/16" in await refused()
    node = {"metadata": {"name": f"node-{one.id}"}, "spec": {"podCIDR": "2a01:4f8:2::/64"}}
    await kube.create("/api/v1/nodes", node)
    try:
        addresses = [{"type": "ExternalIP", "address": "5.9.0.7"}]
        body = {"status": {"addresses": addresses}}
        await kube.patch(f"/api/v1/nodes/node-{one.id}/status", body)
        await here.backend.expose(one)
        assert "5.9.0.7/32" not in await refused()
        monkeypatch.setattr(here.backend, "_nodes_until", 0.0)
        await here.backend.expose(one)
        assert {"5.9.0.7/32", "2a01:4f8:2::/64", "64:ff9b::509:7/128"} <= await refused()
    finally:
        await kube.delete(f"/api/v1/nodes/node-{one.id}")


async def test_the_same_start_again_changes_nothing(one: Spec, here: Running, kube: Api) -> None:
    await here.start(one)
    before = await kube.get(path_of(one, "/pods/container-0"))
    workload = await kube.get(path_of(one, "/statefulsets/container", api=APPS))
    await here.backend.create(one)
    await here.backend.start(one)
    after = await kube.get(path_of(one, "/statefulsets/container", api=APPS))
    assert after["metadata"]["generation"] == workload["metadata"]["generation"]
    pod = await kube.get(path_of(one, "/pods/container-0"))
    assert pod["metadata"]["uid"] == before["metadata"]["uid"]


async def test_what_is_opened_and_closed_is_so_at_once(here: Running, kube: Api) -> None:
    one = spec(ssh_enabled=False, ports=())

    async def opened() -> set[int]:
        policy = await kube.get(path_of(one, "/networkpolicies/container", api=NETWORK))
        rules = policy["spec"].get("ingress") or []
        return {port["port"] for rule in rules for port in rule["ports"]}

    async def served() -> dict[int, int]:
        found: dict[int, int] = {}
        for service in await kube.items(path_of(one, "/services")):
            found |= {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
        return found

    async def hosts() -> list[str]:
        ingresses = await kube.items(path_of(one, "/ingresses", api=NETWORK))
        return [rule["host"] for each in ingresses for rule in each["spec"]["rules"]]

    await here.start(one)
    pod = await kube.get(path_of(one, "/pods/container-0"))
    assert (await opened(), await served(), await hosts()) == (set(), {}, [])
    steps: list[tuple[bool, dict[int, int]]] = [
        (True, {}),
        (True, {8080: 80, 443: 8443}),
        (True, {8080: 81, 443: 8443, 8999: 8999}),
        (True, {80: 80, 443: 8443}),
        (True, {80: 81}),
        (False, {8999: 8999}),
        (False, {}),
    ]
    for ssh_enabled, rules in steps:
        ports = tuple(Port(port, target) for port, target in rules.items())
        await here.backend.expose(replace(one, ssh_enabled=ssh_enabled, ports=ports))
        targets = set(rules.values()) | ({22} if ssh_enabled else set())
        assert await opened() == targets
        assert await served() == rules | ({22: 22} if ssh_enabled else {})
        is_web = bool({443, 80} & rules.keys())
        assert await hosts() == ([f"{one.id}.compute.example.org"] if is_web else [])
    after = await kube.get(path_of(one, "/pods/container-0"))
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]


async def test_a_node_port_stays_when_another_port_is_opened(here: Running, kube: Api) -> None:
    """Whoever is connected to a port must not notice that another is opened."""
    one = spec(ports=())

    async def node_port() -> int:
        service = await kube.get(path_of(one, "/services/container"))
        return next(
            int(each["nodePort"]) for each in service["spec"]["ports"] if each["port"] == 22
        )

    await here.start(one)
    before = await node_port()
    await here.backend.expose(replace(one, ports=(Port(80, 80), Port(8001, 1))))
    assert await node_port() == before


async def test_what_was_deleted_by_hand_is_made_again(here: Running, kube: Api) -> None:
    """While it runs, and by a start."""
    one = spec(ports=(Port(443, 8443),))
    workload = path_of(one, "/statefulsets/container", api=APPS)
    parts = (
        path_of(one, "/networkpolicies/container", api=NETWORK),
        path_of(one, "/ingresses/web", api=NETWORK),
        path_of(one, "/services/web"),
        path_of(one, "/services/container"),
        path_of(one, "/secrets/keys"),
    )
    await here.start(one)
    pod = await kube.get(path_of(one, "/pods/container-0"))
    assert not here.seen.lost_exposure
    for part in parts:
        await kube.delete(part)
    await here.seen.until(lambda: here.seen.lost_exposure == {one.id})
    await here.backend.expose(one)
    for part in parts:
        await kube.get(part)
    after = await kube.get(path_of(one, "/pods/container-0"))
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    for part in (*parts, workload):
        await kube.delete(part)
    again = replace(one, generation=2)
    await here.backend.start(again)
    await here.seen.phase(again, "running")
    for part in (*parts, workload):
        await kube.get(part)


@pytest.mark.usefixtures("looks_soon")
async def test_a_workload_that_is_gone_is_seen_as_stopped(
    one: Spec, here: Running, kube: Api
) -> None:
    """So the driver runs it again, instead of waiting for a pod that nobody makes."""
    await here.start(one)
    await kube.delete(path_of(one, "/statefulsets/container", api=APPS))
    await here.seen.phase(one, "stopped")
    again = replace(one, generation=2)
    await here.backend.start(again)
    await here.seen.phase(again, "running")
    assert "stopped" not in here.seen.phases(again), "it would be run once more"
    await kube.delete(path_of(one, "/statefulsets/container", api=APPS))
    await here.seen.phase(again, "stopped")
    await here.backend.start(again)
    assert here.seen.now[one.id].phase != "stopped", "it would be run once more"


@pytest.mark.usefixtures("looks_soon")
async def test_a_remark_about_the_previous_run_is_not_reported_for_a_new_one(
    one: Spec, here: Running, kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes when the next start is done."""
    await here.start(one)
    has_workload, answered, go_on = here.backend._api.has_workload, trio.Event(), trio.Event()

    async def late(*what: str) -> bool:
        found = await has_workload(*what)
        if not found:
            answered.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(here.backend._api, "has_workload", late)
    await kube.delete(path_of(one, "/statefulsets/container", api=APPS))
    with trio.fail_after(HANG_SECONDS):
        await answered.wait()
    again = replace(one, generation=2)
    with kubernetes.kubelet.acting(Held(), name_of(one)):
        await here.backend.start(again)
        go_on.set()
        await here.seen.phase(again, "initializing")
    await here.seen.phase(again, "running")
    assert "stopped" not in here.seen.phases(again)


async def test_a_pod_that_is_moved_is_followed(one: Spec, here: Running, kube: Api) -> None:
    await here.start(one)
    before = await kube.get(path_of(one, "/pods/container-0"))
    here.seen.all.clear()
    await kube.delete(path_of(one, "/pods/container-0"))
    await here.seen.until(lambda: "running" in here.seen.phases(one)[1:])
    assert here.seen.now[one.id].generation == one.generation
    pod = await kube.get(path_of(one, "/pods/container-0"))
    assert pod["metadata"]["uid"] != before["metadata"]["uid"]


async def test_a_namespace_that_somebody_deletes_is_reported(
    one: Spec, here: Running, kube: Api
) -> None:
    await here.start(one)
    await kube.delete(path_of(one))
    await here.seen.until(lambda: one.id in here.seen.was_gone)
    assert here.seen.phases(one)[-1] == "failed"
    assert name_of(one) in here.seen.all[-1].reason
    again = replace(one, generation=2)
    await here.backend.start(again)
    await here.seen.phase(again, "running")


async def test_a_stop_before_anything_was_made_makes_nothing(
    one: Spec, here: Running, kube: Api
) -> None:
    await here.backend.stop(one)
    await here.backend.delete(one.id, one.user_id)
    assert not await labelled(kube, "/api/v1/namespaces", one)


async def test_a_namespace_that_ends_takes_nothing_and_says_what_is_in_its_way(
    one: Spec, here: Running, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.compute.kubernetes.backend.DELETE_SECONDS", 0.0)
    monkeypatch.setattr("control.compute.kubernetes.backend.LOOK_SECONDS", 0.1)
    merge = "application/merge-patch+json"
    await here.backend.create(one)
    claim = path_of(one, "/persistentvolumeclaims/data")
    await kube.patch(claim, {"metadata": {"finalizers": ["tests/wait"]}}, merge)
    with pytest.raises(BackendUnavailable, match=name_of(one)):
        await here.backend.delete(one.id, one.user_id)
    with pytest.raises(BackendUnavailable, match="still being deleted"):
        await here.backend.start(one)
    await kube.wait_one(path_of(one), lambda found: "tests/wait" in str(found["status"]))
    with pytest.raises(BackendUnavailable, match="tests/wait"):
        await here.backend.delete(one.id, one.user_id)
    await kube.patch(claim, {"metadata": {"finalizers": None}}, merge)
    await here.seen.until(lambda: one.id in here.seen.was_gone)


HOSTILE_NAMES = (
    "'\"; rm -rf / #",
    "$(HOME) ${HOME} `id` %s {{.Values}}",
    "a: b\n- c: &x *x\n---\nkind: Pod",
    "../../etc/passwd",
    "gfs.control/managed=false,x",
    # What YAML takes for ends of lines, or not at all.
    "\u202e\ud800 \U0001f600\U0010ffff\x7f\x85\u2028\u2029\ufeff\ufffe\uffff \\ud83d\\ude00",
)
#: As the REST API lets them through, and worse.
HOSTILE_PATHS = (
    "/srv/a\u20ac\U0001f600",
    "/srv/-rf",
    "/srv/$(POD)$$x`id`${HOME}",
    '/srv/it\'s "quoted"; touch x #',
    "/srv/{{.Values}}, b",
)


async def test_whatever_a_user_writes_stays_what_it_is(kubernetes: Kubernetes, kube: Api) -> None:
    """The API server takes it, makes one namespace with one pod, and reads nothing into it.

    Some of it once was refused: an apply is YAML, where an emoji is not two escapes.
    """
    keys = (*(f"{KEY} {name}" for name in HOSTILE_NAMES if name.isprintable()), KEY)
    ones = [spec(name=name, mount_paths=HOSTILE_PATHS, ssh_keys=keys) for name in HOSTILE_NAMES]

    async def live(here: Running, one: Spec) -> None:
        await here.start(one)
        found = await kube.get(path_of(one))
        about = found["metadata"]
        assert about["annotations"]["gfs.control/name"] == one.name.replace("\ud800", "?")
        ours = {k: v for k, v in about["labels"].items() if k.startswith("gfs.control/")}
        assert ours == {
            "gfs.control/managed": "true",
            "gfs.control/cluster": "hostile",
            "gfs.control/user": one.user_id,
            "gfs.control/container": one.id,
        }
        secret = await kube.get(path_of(one, "/secrets/keys"))
        written = base64.b64decode(secret["data"]["authorized_keys"]).decode()
        assert written.splitlines() == list(keys)
        pod = await kube.get(path_of(one, "/pods/container-0"))
        (prepare,), (container,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
        mounts = [each for each in container["volumeMounts"] if each["name"] == "data"]
        assert [each["mountPath"] for each in mounts[:-1]] == list(HOSTILE_PATHS)
        assert prepare["command"][:3] == ["/bin/sh", "-c", PREPARE]
        assert len(prepare["command"]) == 5 + 2 * len(HOSTILE_PATHS)
        # Each path has a directory of its own in the volume, and no other has come.
        write = 'for each; do echo "$each" > "$ROOT$each/file"; done'
        async with here.backend.exec(one, [*SHELL, write, "sh", *HOSTILE_PATHS]) as terminal:
            assert await terminal.receive() == b""
            assert terminal.exit_code == 0
        volume = kubernetes.kubelet.volume(name_of(one), "data")
        for path in HOSTILE_PATHS:
            assert (volume / sub_path(path) / "file").read_text() == f"{path}\n"
        assert {each.name for each in volume.iterdir()} == {"mounts", "host_keys"}

    async with running(kubernetes.admin, "hostile") as here:
        async with trio.open_nursery() as nursery:
            for one in ones:
                nursery.start_soon(live, here, one)
        mine = await kube.items("/api/v1/namespaces", labelSelector="gfs.control/cluster=hostile")
        assert {each["metadata"]["name"] for each in mine} == {name_of(one) for one in ones}
        pods = await kube.items("/api/v1/pods", labelSelector="gfs.control/cluster=hostile")
        assert len(pods) == len(ones)


async def test_another_installations_containers_are_not_seen_and_not_touched(
    one: Spec, kubernetes: Kubernetes, kube: Api
) -> None:
    async with running(kubernetes.admin) as here, running(kubernetes.admin) as there:
        await here.start(one)
        other = spec()
        await there.start(other)
        assert set(here.seen.now) == {one.id}
        assert set(there.seen.now) == {other.id}
        await there.backend.delete(one.id, one.user_id)
        with pytest.raises(Impossible, match="belongs to somebody else"):
            await there.backend.create(one)
        with pytest.raises(Impossible, match="belongs to somebody else"):
            await there.backend.start(replace(one, generation=7))
        with pytest.raises(Impossible, match="belongs to somebody else"):
            await there.backend.stop(one)
        assert here.seen.now[one.id].phase == "running"
        found = await kube.get(path_of(one))
        assert not found["metadata"].get("deletionTimestamp")


async def test_a_namespace_that_was_labelled_by_hand_is_not_deleted(
    one: Spec, kubernetes: Kubernetes, kube: Api
) -> None:
    other = spec()
    async with running(kubernetes.admin, "hands") as here:
        labels = {
            "gfs.control/managed": "true",
            "gfs.control/cluster": "hands",
            "gfs.control/container": other.id,
            "gfs.control/user": other.user_id,
        }
        theirs = {"metadata": {"name": f"theirs-{other.id}", "labels": labels}}
        await kube.create("/api/v1/namespaces", theirs)
        await here.start(one)
        assert {each.id for each in here.seen.all} == {one.id}
        await here.backend.delete(other.id, other.user_id)
        found = await kube.get(f"/api/v1/namespaces/theirs-{other.id}")
        assert not found["metadata"].get("deletionTimestamp")


async def test_an_orphan_is_seen_even_without_a_pod(kubernetes: Kubernetes) -> None:
    one, two = spec(), spec()
    async with running(kubernetes.admin, "orphans") as here:
        await here.backend.create(one)
        await here.start(two)
    async with running(kubernetes.admin, "orphans") as after:
        assert after.seen.syncs == [{one.id, two.id}]
        assert {each.user_id for each in after.seen.all} == {one.user_id, two.user_id}
