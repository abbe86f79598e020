"""What goes wrong in a cluster, and what users hear of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from kube_acts import CrashLoops, Held, PullFails
from kube_api import Api
from kube_backend import name_of, path_of, running, spec
from kube_here import Kubernetes
from kubelet import in_namespace
from limits import HANG_SECONDS
from msgspec.structs import replace

from control.compute.backend import BackendUnavailable, Impossible, Port
from control.compute.kubernetes import watching

POD = "container-0"


async def test_an_image_that_cannot_be_had_fails_and_heals(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        with kubernetes.kubelet.acting(PullFails("no such tag"), in_namespace(name_of(one))):
            await here.backend.create(one)
            await here.backend.start(one)
            await here.seen.phase(one, "failed", "ImagePullBackOff: no such tag")
        await here.seen.phase(one, "running")


async def test_a_crash_loop_fails_with_how_it_ended(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        with kubernetes.kubelet.acting(CrashLoops(exit_code=3), in_namespace(name_of(one))):
            await here.backend.create(one)
            await here.backend.start(one)
            seen = await here.seen.phase(one, "failed", "3 times")
            assert seen.reason == "CrashLoopBackOff: it ended with code 3, 3 times"
        await here.seen.phase(one, "running")


async def test_too_little_memory_is_reported(kubernetes: Kubernetes) -> None:
    one = spec()
    act = CrashLoops(exit_code=137, reason="OOMKilled")
    async with running(kubernetes.admin) as here:
        with kubernetes.kubelet.acting(act, in_namespace(name_of(one))):
            await here.backend.create(one)
            await here.backend.start(one)
            await here.seen.phase(one, "failed", "OOMKilled: it needed more memory than it has")


async def test_one_end_is_followed_by_another_run(kubernetes: Kubernetes, kube: Api) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        await here.start(one)
        here.seen.all.clear()
        kubernetes.kubelet.crash(name_of(one), POD, exit_code=4)
        await kube.wait_one(
            path_of(one, f"/pods/{POD}"),
            lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1,
        )
        await here.seen.phase(one, "running")
        assert {each.phase for each in here.seen.all} <= {"initializing", "running"}


async def test_a_start_that_waits_for_a_machine_says_so(kubernetes: Kubernetes) -> None:
    one = spec(cpus=100_000)
    async with running(kubernetes.admin) as here:
        await here.backend.create(one)
        await here.backend.start(one)
        seen = await here.seen.phase(one, "pending", "Insufficient cpu")
        assert seen.reason.startswith("Unschedulable: ")
        less = replace(one, cpus=1, generation=2)
        await here.backend.start(less)
        await here.seen.phase(less, "running")


async def test_the_architecture_is_waited_for(kubernetes: Kubernetes, kube: Api) -> None:
    one, two = spec(architecture="arm64"), spec(architecture="amd64")
    async with running(kubernetes.admin) as here:
        for each, node in ((one, "node-arm64"), (two, "node-amd64")):
            await here.start(each)
            pod = await kube.get(path_of(each, f"/pods/{POD}"))
            assert pod["spec"]["nodeName"] == node


async def test_a_volume_that_nobody_makes_is_reported(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin, storage_class="none-such") as here:
        await here.backend.create(one)
        await here.backend.start(one)
        await here.seen.phase(one, "pending", "PersistentVolumeClaim")


async def test_a_volume_may_wait_for_its_first_pod(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin, storage_class="late") as here:
        await here.start(one)


async def test_a_quota_on_pods_is_reported(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but an event of the StatefulSet says why no pod comes."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.1)
    one = spec()
    async with running(kubernetes.admin) as here:
        await here.backend.create(one)
        await limit(kube, name_of(one), pods="0")
        await here.backend.start(one)
        await here.seen.phase(one, "pending", "exceeded quota: tests")
        await kube.delete(path_of(one, "/resourcequotas/tests"))
        await here.seen.phase(one, "running")


async def test_a_warning_about_an_earlier_start_is_not_reported_for_a_later_one(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one about a start that another process reported, it may have died since, is."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(watching, "CLOCK_SECONDS", 0.0)
    one = spec()
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
        with kubernetes.kubelet.acting(Held(), in_namespace(name_of(one))):
            await here.backend.start(again)
            await here.seen.phase(again, "initializing")
            monkeypatch.setattr(here.backend._api, "warnings", looking)
            with trio.fail_after(HANG_SECONDS):
                await looked.wait()
            # Of its own there may be some: a busy API server asks to try again.
            reported = [each.reason for each in here.seen.all if each.generation == 2]
            assert reported
            assert not [reason for reason in reported if "exceeded quota" in reason]
        await here.seen.phase(again, "running")


async def test_a_quota_on_what_is_made_is_reported_and_final(
    kubernetes: Kubernetes, kube: Api
) -> None:
    one = spec(ports=())
    async with running(kubernetes.admin) as here:
        await here.backend.create(one)
        await limit(kube, name_of(one), services="0")
        with pytest.raises(Impossible, match="exceeded quota: tests"):
            await here.backend.start(one)


async def limit(kube: Api, namespace: str, **hard: str) -> None:
    """A quota that holds already."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    await kube.create(quotas, {"metadata": {"name": "tests"}, "spec": {"hard": hard}})
    await kube.wait_one(f"{quotas}/tests", lambda found: found["status"].get("hard") == hard)


async def test_a_slow_start_is_initializing(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        with kubernetes.kubelet.acting(Held(), in_namespace(name_of(one))):
            await here.backend.create(one)
            await here.backend.start(one)
            assert (await here.seen.phase(one, "initializing")).reason == ""
        await here.seen.phase(one, "running")


async def test_it_is_not_called_running_while_the_old_run_is(kubernetes: Kubernetes) -> None:
    """A start after another: what is seen of the first is of the past."""
    one = spec()
    async with running(kubernetes.admin) as here:
        await here.start(one)
        with kubernetes.kubelet.acting(Held(), in_namespace(name_of(one))):
            again = replace(one, generation=2)
            await here.backend.start(again)
            await here.seen.phase(again, "initializing")
            # Before it there is "pending", which may have ended before this task saw it.
            assert "running" not in here.seen.phases(again)
        await here.seen.phase(again, "running")


async def test_what_the_cluster_refuses_is_final(kubernetes: Kubernetes) -> None:
    """A port that there is not stands for all that it does not take."""
    one = spec(ports=(Port(8080, 70_000),))
    async with running(kubernetes.admin) as here:
        with pytest.raises(Impossible, match="must be between 1 and 65535"):
            await here.backend.create(one)


async def test_a_cluster_that_is_down_is_unavailable(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        await here.start(one)
        kubernetes.server.kill()
        for call in (here.backend.start(one), here.backend.stop(one), here.backend.expose(one)):
            with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:[0-9]+ does not answer"):
                await call
        with pytest.raises(BackendUnavailable, match="does not answer"):
            await here.backend.delete(one.id, one.user_id)
        with pytest.raises(BackendUnavailable, match="does not answer"):
            await here.backend.check()
        with pytest.raises(BackendUnavailable, match="does not answer"):
            async with here.backend.exec(one, ["true"]):
                pass
        with pytest.raises(BackendUnavailable, match="does not answer"):
            async for _ in here.backend.logs(one, 1, follow=False):
                pass
