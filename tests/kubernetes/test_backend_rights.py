"""The rights of rbac.yaml are enough, and none of them can be left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from apiserver import Identity, place_of
from kube_api import Api
from kube_applied import custom_resource, establish
from kube_backend import SHELL, Running, made, path_of, running, spec
from kube_here import Kubernetes
from kube_rights import Rules, account_of_file, rules_of_file
from limits import HANG_SECONDS
from msgspec.structs import replace

from control.compute.backend import BackendUnavailable, Port, Spec
from control.compute.kubernetes import Kubernetes as Backend
from control.compute.kubernetes import watching
from control.compute.kubernetes.client.refusals import Refused
from control.compute.kubernetes.client.streams import open_stream
from control.compute.kubernetes.permissions import NEEDED, Permission
from control.compute.kubernetes.shapes import Namespace, Node, Pod, Rights, Service

MakeIdentity = Callable[[Rules], Identity]

#: Newer API servers ask for it where older ones ask for "get".
OF_NEWER = ("", "pods/exec", "create")
METRICS = ("metrics.k8s.io", "pods", "get")
LISTED = {"namespaces": Namespace, "nodes": Node, "pods": Pod, "services": Service}


def rules_of(permissions: set[Permission]) -> Rules:
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for group, resource, verb in sorted(permissions)
    ]


def permissions_of_file() -> set[Permission]:
    return {
        (group, resource, verb)
        for rule in rules_of_file()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_what_is_asked_for_is_what_the_file_grants() -> None:
    # Usage is left out where it may not be asked for, so that alone is not needed.
    assert permissions_of_file() == {*NEEDED, METRICS}


async def live(here: Running, one: Spec) -> None:
    """All that the backend ever does with a container."""
    backend = here.backend
    await backend.check()
    await here.start(one)
    await backend.expose(replace(one, ports=(Port(443, 1), Port(80, 2))))
    await backend.expose(replace(one, ssh_enabled=False, ports=()))
    await backend.usage(one)
    async with backend.exec(one, [*SHELL, "echo fine"]) as terminal:
        assert await terminal.receive() == b"fine\r\n"
    assert [line async for line in backend.logs(one, 10, follow=False)]
    again = replace(one, generation=2, mount_paths=("/opt/other",))
    await backend.start(again)
    await here.seen.phase(again, "running")
    await backend.stop(again)
    await here.seen.phase(again, "stopped")
    await backend.delete(one.id, one.user_id)
    await here.seen.until(lambda: one.id in here.seen.was_gone)


async def test_everything_works_with_exactly_these_rights(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the account that the file makes."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.1)
    identity = account_of_file(kubernetes.server)
    one, two = spec(), spec()
    async with running(identity) as here:
        await live(here, one)
        # And what is looked into when a start gets nowhere.
        await here.backend.create(two)
        quotas = path_of(two, "/resourcequotas")
        hard = {"pods": "0"}
        await kube.create(quotas, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
        await kube.wait_one(f"{quotas}/none", lambda found: found["status"].get("hard") == hard)
        await here.backend.start(two)
        await here.seen.phase(two, "pending", "exceeded quota")


@pytest.mark.parametrize(
    "missing", [each for each in NEEDED if each != OF_NEWER], ids=lambda each: "-".join(each)
)
async def test_without_one_of_them_something_does_not_work(
    kube_identity: MakeIdentity, missing: Permission
) -> None:
    identity = kube_identity(rules_of(set(NEEDED) - {missing}))
    backend = made(identity)
    _, resource, verb = missing
    with pytest.raises(BackendUnavailable, match=f"does not let us {verb} {resource}: grant"):
        await backend.check()
    with pytest.raises((BackendUnavailable, Refused), match=r"let us|cannot"):
        await use(backend, resource, verb)


@pytest.mark.parametrize("missing", [None, ("", "pods/log", "get"), ("", "services", "delete")])
async def test_rights_that_the_cluster_cannot_list_are_asked_for_one_by_one(
    kube_identity: MakeIdentity, monkeypatch: pytest.MonkeyPatch, missing: Permission | None
) -> None:
    """Where a cloud decides beside RBAC, the list is incomplete, or even empty."""
    identity = kube_identity(rules_of(set(NEEDED) - {missing}))
    backend = made(identity)

    async def nothing_listed(namespace: str) -> Rights:
        return Rights(incomplete=True)

    monkeypatch.setattr(backend._api, "rights", nothing_listed)
    if missing is None:
        await backend.check()
    else:
        reported = f"does not let us {missing[2]} {missing[1]}: grant"
        with pytest.raises(BackendUnavailable, match=reported):
            await backend.check()


async def use(backend: Backend, resource: str, verb: str) -> None:
    """All that this right may be for, as the backend does it."""
    api = backend._api
    one = spec(ports=(Port(443, 1), Port(80, 80)))
    if resource == "events":
        await api.warnings("default")
    elif resource == "statefulsets" and verb == "get":
        await api.has_workload("default", "any")
    elif verb == "list":
        await api.list(LISTED[resource], "none=such")
    elif verb == "watch":
        path = f"/api/v1/{resource}"
        async with open_stream(api, path, [("watch", "true")], message_bytes_max=1):
            pass
    elif resource == "pods/exec":
        async with backend.exec(one, ["true"]):
            pass
    elif resource == "pods/log":
        async with open_stream(api, path_of(one, "/pods/container-0/log"), [], message_bytes_max=1):
            pass
    else:
        await backend.create(one)
        await backend.start(one)
        await backend.expose(replace(one, ssh_enabled=False, ports=()))
        await backend.stop(one)
        await backend.delete(one.id, one.user_id)


async def test_secrets_cannot_be_read_with_them(one: Spec, kube_identity: MakeIdentity) -> None:
    identity = kube_identity(rules_of_file())
    async with running(identity) as here:
        await here.backend.create(one)
    with identity.client() as client:
        assert client.get(path_of(one, "/secrets/keys")).status_code == 403
        assert client.get("/api/v1/secrets").status_code == 403
        assert client.get("/api/v1/nodes/node-amd64").status_code == 403


async def test_memory_is_reported_where_there_is_a_metrics_server(
    one: Spec, kube: Api, kube_identity: MakeIdentity
) -> None:
    """A custom resource in the very place of the metrics API stands for the server."""
    identity = kube_identity(rules_of_file())
    backend = made(identity)
    group, version = "metrics.k8s.io", "v1beta1"
    await backend.create(one)
    assert (await backend.usage(one)).memory_mb is None
    crd = custom_resource(group, version, "PodMetrics", "pods")
    await establish(kube, crd)
    body = {
        "apiVersion": f"{group}/{version}",
        "kind": "PodMetrics",
        "metadata": {"name": "container-0"},
        "containers": [{"name": "container", "usage": {"cpu": "1m", "memory": "130000Ki"}}],
    }
    with trio.fail_after(HANG_SECONDS):
        await kube.create(path_of(one, "/pods", api=f"/apis/{group}/{version}"), body)
    assert (await backend.usage(one)).memory_mb == 127
    assert (await backend.usage(spec())).memory_mb is None
    await kube.delete(place_of(crd))
