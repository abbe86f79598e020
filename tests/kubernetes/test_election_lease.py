"""A Lease as the election engine, on a real API server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from apiserver import Identity
from kube_api import Api
from kube_here import Kubernetes
from kubernetes.config import ConfigException

from gfs.config import MasterSettings
from gfs.errors import SettingsError
from gfs.master.election import Claim, EngineAway, View
from gfs.master.election.lease import KubernetesLease, from_settings

HOLD = 10.0
RIGHTS = [
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "update"],
    }
]
_NUMBERS = itertools.count()


class Clock:
    now = 1000.0

    def elapsed(self) -> float:
        return self.now


class Stage:
    """Processes ``a`` and ``b`` with clocks of their own, and one Lease."""

    def __init__(self, identity: Identity, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBECONFIG", str(identity.kubeconfig))
        self.name = f"masters-{next(_NUMBERS)}"
        self.api = api
        self.settings = MasterSettings(
            elect=f"kubernetes://default/{self.name}", hold_seconds=HOLD, replicas_before_ack=1
        )
        self.clock_a, self.clock_b = Clock(), Clock()
        self.a, self.b = (
            from_settings(self.settings, clock.elapsed) for clock in (self.clock_a, self.clock_b)
        )

    @property
    def path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/default/leases/{self.name}"

    async def take(self, engine: KubernetesLease, address: str) -> Any:
        return await engine.take(Claim(address, 1_700_000_000_123_456_000), await engine.view())

    async def holder(self, engine: KubernetesLease) -> str:
        claim = (await engine.view()).claim
        return "" if claim is None else claim.address


@pytest.fixture
def stage(
    kubernetes: Kubernetes,
    kube: Api,
    kube_identity: Callable[[list[dict[str, object]]], Identity],
    monkeypatch: pytest.MonkeyPatch,
) -> Stage:
    return Stage(kube_identity(RIGHTS), kube, monkeypatch)  # type: ignore[arg-type]


async def test_one_has_the_hold_until_it_lets_go(stage: Stage) -> None:
    assert await stage.a.view() == View(version=1)
    seen = await stage.b.view()
    hold = await stage.take(stage.a, "a:1")
    # b had seen that nobody has it.
    assert await stage.b.take(Claim("b:1", 1), seen) is None
    claim = (await stage.b.view()).claim
    assert claim == Claim("a:1", 1_700_000_000_123_456_000)
    assert await stage.a.renew(hold)
    await stage.a.release(hold)
    assert await stage.holder(stage.b) == ""
    taken = await stage.take(stage.b, "b:1")
    assert not await stage.a.renew(hold)
    assert await stage.b.renew(taken)


async def test_it_ends_by_what_was_seen_and_by_no_other_clock(stage: Stage) -> None:
    hold = await stage.take(stage.a, "a:1")
    for renewed in ("2000-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"):
        await stage.api.patch(
            stage.path, {"spec": {"renewTime": renewed}}, "application/merge-patch+json"
        )
        assert await stage.holder(stage.b) == "a:1"
        stage.clock_b.now += HOLD - 0.1
        assert await stage.holder(stage.b) == "a:1"
    assert await stage.a.renew(hold)
    stage.clock_b.now += 0.2  # since the last change, and not since this one
    assert await stage.holder(stage.b) == "a:1"
    stage.clock_b.now += HOLD
    assert await stage.holder(stage.b) == ""
    taken = await stage.take(stage.b, "b:1")
    assert taken is not None
    # The one that slept meanwhile learns of it, and takes nothing by what it had seen.
    assert not await stage.a.renew(hold)
    assert await stage.holder(stage.a) == "b:1"


async def test_the_holders_own_time_counts_if_it_is_longer(stage: Stage) -> None:
    """While ``hold_seconds`` is being changed, at one process after the other."""
    shorter = msgspec.structs.replace(stage.settings, hold_seconds=HOLD / 5)
    other = from_settings(shorter, stage.clock_b.elapsed)
    await stage.take(stage.a, "a:1")
    assert await stage.holder(other) == "a:1"
    stage.clock_b.now += HOLD - 0.1
    assert await stage.holder(other) == "a:1"
    stage.clock_b.now += 0.2
    assert await stage.holder(other) == ""


async def test_credentials_that_cannot_be_read_are_no_end(stage: Stage) -> None:
    """A file or a program that gives them is asked again while the master runs."""
    configuration = stage.a._api.api_client.configuration

    def read(configuration: object) -> None:
        raise ConfigException("Token file exists but empty.")

    configuration.refresh_api_key_hook = read
    configuration.api_key["authorization"] = "old"
    for call in (stage.a.view(), stage.a.record("c")):
        with pytest.raises(EngineAway, match="Token file"):
            await call


async def test_an_answer_that_was_lost_does_no_harm(stage: Stage) -> None:
    hold = await stage.take(stage.a, "a:1")
    before = hold.lease
    assert await stage.a.renew(hold)
    hold.lease = before
    assert await stage.a.renew(hold)
    # Another's change that is not of the hold neither.
    await stage.b.record("cluster")
    assert await stage.a.renew(hold)
    assert (await stage.b.view()).cluster == "cluster"


async def test_it_is_offered_to_one(stage: Stage) -> None:
    hold = await stage.take(stage.a, "a:1")
    await stage.a.offer(hold, Claim("a:1", 1, offered_to="b:1"))
    seen = await stage.b.view()
    assert seen.claim is not None
    assert seen.claim.offered_to == "b:1"
    assert await stage.b.take(Claim("b:1", 2), seen) is not None
    claim = (await stage.a.view()).claim
    assert claim is not None
    assert (claim.address, claim.offered_to) == ("b:1", "")
    assert not await stage.a.renew(hold)


async def test_the_first_cluster_is_recorded_for_good(stage: Stage) -> None:
    recorded: list[str] = []

    async def record(engine: KubernetesLease, cluster: str) -> None:
        recorded.append(await engine.record(cluster))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record, stage.a, "one")
        nursery.start_soon(record, stage.b, "two")
    assert recorded[0] == recorded[1]
    hold = await stage.take(stage.a, "a:1")
    await stage.a.release(hold)
    assert await stage.b.record("three") == recorded[0]


async def test_a_lease_that_is_deleted_is_held_for_its_time(stage: Stage) -> None:
    """Its holder, who learns of it when he renews, may answer for so long."""
    hold = await stage.take(stage.a, "a:1")
    assert await stage.holder(stage.b) == "a:1"
    stage.clock_b.now += HOLD - 0.1
    await stage.api.delete(stage.path)
    assert not await stage.a.renew(hold)
    for _ in range(2):
        assert await stage.holder(stage.b) == "a:1"
        stage.clock_b.now += HOLD / 2
    assert await stage.holder(stage.b) == ""
    assert await stage.take(stage.b, "b:1") is not None


async def test_an_api_server_that_hangs_is_away(stage: Stage, kubernetes: Kubernetes) -> None:
    hold = await stage.take(stage.a, "a:1")
    kubernetes.server.freeze()
    try:
        for call in (stage.b.view(), stage.a.renew(hold), stage.b.record("cluster")):
            with trio.fail_after(HOLD), pytest.raises(EngineAway):
                await call
    finally:
        kubernetes.server.thaw()


async def test_without_rights_or_namespace_it_says_so(
    stage: Stage,
    kube_identity: Callable[[list[dict[str, object]]], Identity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nowhere = MasterSettings(elect="kubernetes://nowhere/masters", replicas_before_ack=1)
    engine = from_settings(nowhere, Clock().elapsed)
    with pytest.raises(EngineAway, match='namespaces "nowhere" not found'):
        await engine.take(Claim("a:1", 1), await engine.view())
    monkeypatch.setenv("KUBECONFIG", str(kube_identity([]).kubeconfig))
    engine = from_settings(stage.settings, Clock().elapsed)
    with pytest.raises(EngineAway, match=r"HTTP 403: leases.* is forbidden"):
        await engine.view()


@pytest.mark.parametrize("named", ["kubernetes://", "kubernetes://a", "kubernetes://a/b/c"])
def test_other_urls(named: str) -> None:
    settings = MasterSettings(elect=named, replicas_before_ack=1)
    with pytest.raises(SettingsError, match="kubernetes://NAMESPACE/LEASE"):
        from_settings(settings, Clock().elapsed)
