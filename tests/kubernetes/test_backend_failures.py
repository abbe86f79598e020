"""What goes wrong in a cluster, and what users hear of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from kube_acts import Act, Held, PullFails
from kube_api import Api
from kube_backend import Running, limit, name_of, path_of, running, spec
from kube_here import Kubernetes
from limits import HANG_SECONDS
from msgspec.structs import replace

from control.compute.backend import BackendUnavailable, Impossible, Port, Spec
from control.compute.kubernetes import watching

POD = "container-0"


@pytest.mark.parametrize(
    ("act", "phase", "reason"),
    [
        (PullFails("no such tag"), "failed", "ImagePullBackOff: no such tag"),
        (Held(), "initializing", ""),
    ],
)
async def test_a_start_that_gets_nowhere_says_why_and_heals(
    kubernetes: Kubernetes, here: Running, one: Spec, act: Act, phase: str, reason: str
) -> None:
    """What any other status of a pod means is in test_compute_kubernetes."""
    with kubernetes.kubelet.acting(act, name_of(one)):
        await here.backend.create(one)
        await here.backend.start(one)
        assert (await here.seen.phase(one, phase, reason)).reason == reason
    await here.seen.phase(one, "running")


async def test_one_end_is_followed_by_another_run(
    here: Running, kubernetes: Kubernetes, kube: Api, one: Spec
) -> None:
    await here.start(one)
    here.seen.all.clear()
    kubernetes.kubelet.crash(name_of(one), POD)
    await kube.wait_one(
        path_of(one, f"/pods/{POD}"),
        lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1,
    )
    await here.seen.phase(one, "running")
    assert {each.phase for each in here.seen.all} <= {"initializing", "running"}


async def test_a_start_that_waits_for_a_machine_says_so(here: Running) -> None:
    one = spec(cpus=100_000)
    await here.backend.create(one)
    await here.backend.start(one)
    seen = await here.seen.phase(one, "pending", "Insufficient cpu")
    assert seen.reason.startswith("Unschedulable: ")
    less = replace(one, cpus=1, generation=2)
    await here.backend.start(less)
    await here.seen.phase(less, "running")


async def test_the_architecture_is_waited_for(here: Running, kube: Api) -> None:
    one, two = spec(architecture="arm64"), spec(architecture="amd64")
    for each, node in ((one, "node-arm64"), (two, "node-amd64")):
        await here.start(each)
        pod = await kube.get(path_of(each, f"/pods/{POD}"))
        assert pod["spec"]["nodeName"] == node


async def test_a_volume_that_nobody_makes_is_reported(kubernetes: Kubernetes, one: Spec) -> None:
    async with running(kubernetes.admin, storage_class="none-such") as here:
        await here.backend.create(one)
        await here.backend.start(one)
        await here.seen.phase(one, "pending", "PersistentVolumeClaim")


async def test_a_volume_may_wait_for_its_first_pod(kubernetes: Kubernetes, one: Spec) -> None:
    async with running(kubernetes.admin, storage_class="late") as here:
        await here.start(one)


@pytest.mark.usefixtures("looks_soon")
async def test_a_quota_on_pods_is_reported(here: Running, kube: Api, one: Spec) -> None:
    """Nothing but an event of the StatefulSet says why no pod comes."""
    await here.backend.create(one)
    await limit(kube, name_of(one), pods="0")
    await here.backend.start(one)
    await here.seen.phase(one, "pending", "exceeded quota: tests")
    await kube.delete(path_of(one, "/resourcequotas/tests"))
    await here.seen.phase(one, "running")


@pytest.mark.usefixtures("looks_soon")
async def test_a_warning_about_an_earlier_start_is_not_reported_for_a_later_one(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch, one: Spec
) -> None:
    """But one about a start that another process reported, it may have died since, is."""
    monkeypatch.setattr(watching, "CLOCK_SECONDS", 0.0)
    async with running(kubernetes.admin, "complaints") as here:
        await here.backend.create(one)
        await limit(kube, name_of(one), pods="0")
        await here.backend.start(one)
        await here.seen.phase(one, "pending", "exceeded quota: tests")
    async with running(kubernetes.admin, "complaints") as here:
        await here.seen.phase(one, "pending", "exceeded quota: tests")
        await kube.delete(path_of(one, "/resourcequotas/tests"))
        await here.seen.phase(one, "running")
        looked, looks = trio.Event(), 0
        warnings = here.backend._api.warnings

        async def looking(namespace: str) -> Any:
            nonlocal looks
            looks += 1
            if looks > 2:  # what came of the first has been reported
                looked.set()
            return await warnings(namespace)

        again = replace(one, generation=2)
        with kubernetes.kubelet.acting(Held(), name_of(one)):
            await here.backend.start(again)
            await here.seen.phase(again, "initializing")
            monkeypatch.setattr(here.backend._api, "warnings", looking)
            with trio.fail_after(HANG_SECONDS):
                await looked.wait()
            # Of its own there may be some: a busy API server asks to try again.
            reported = [each.reason for each in here.seen.all if each.generation == 2]
            assert reported
            assert not [reason for reason in reported if "exceeded quota: tests" in reason]
        await here.seen.phase(again, "running")


async def test_a_quota_on_what_is_made_is_reported_and_final(here: Running, kube: Api) -> None:
    one = spec(ports=())
    await here.backend.create(one)
    await limit(kube, name_of(one), services="0")
    with pytest.raises(Impossible, match="exceeded quota: tests"):
        await here.backend.start(one)


async def test_it_is_not_called_running_while_the_old_run_is(
    here: Running, kubernetes: Kubernetes, one: Spec
) -> None:
    """A start after another: what is seen of the first is of the past."""
    await here.start(one)
    with kubernetes.kubelet.acting(Held(), name_of(one)):
        again = replace(one, generation=2)
        await here.backend.start(again)
        await here.seen.phase(again, "initializing")
        # Before it there is "pending", which may have ended before this task saw it.
        assert "running" not in here.seen.phases(again)
    await here.seen.phase(again, "running")


async def test_what_the_cluster_refuses_is_final(here: Running) -> None:
    """A port that there is not stands for all that it does not take."""
    one = spec(ports=(Port(8080, 70_000),))
    with pytest.raises(Impossible, match="must be between 1 and 65535"):
        await here.backend.create(one)


async def test_a_cluster_that_is_down_is_unavailable(
    here: Running, kubernetes: Kubernetes, one: Spec
) -> None:
    await here.start(one)
    kubernetes.server.kill()
    backend = here.backend
    for call in (
        *(backend.start(one), backend.stop(one), backend.expose(one), backend.check()),
        *(backend.delete(one.id, one.user_id), anext(backend.logs(one, 1, follow=False))),
    ):
        with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1(:[0-9]+)? does not answer"):
            await call
    with pytest.raises(BackendUnavailable, match="does not answer"):
        async with backend.exec(one, ["true"]):
            pass
