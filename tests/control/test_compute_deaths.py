"""The control plane is killed in the middle of what it does with containers.

Each call is held up where the death is to hit: before it does anything, when it has done
half, and when it is done and nobody has written that down. Whoever comes after finishes
what was begun, or undoes it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import trio
from alone import Alone
from checks import PLAIN, bearer, ok, refused, wait_for, with_token
from compute_cloud import ED25519, ComputeCloud
from limits import HANG_SECONDS
from msgspec.structs import replace
from outside import PLACES
from signals import send

from control.compute.rows import KEYS_MAX
from control.quota.limits import Limits

pytestmark = pytest.mark.real


class Mortal(Alone, ComputeCloud):
    """With containers that are files."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    made = Mortal(tmp_path_factory.mktemp("mortal"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def token(mortal: Mortal) -> str:
    """A user's. Clients do not outlive the control plane."""
    return bearer(mortal.make_user()[0])


def die(cloud: Mortal, place: str) -> None:
    """Kill the control plane when a call has come to ``place``, and start it again."""
    assert cloud.process is not None
    assert cloud.world.wait_held(place) == cloud.process.pid
    cloud.kill()
    cloud.world.let_go(place)
    cloud.start()


Act = Callable[[httpx.Client, str], httpx.Response]
ACTS: dict[str, Act] = {
    "stop": lambda client, path: client.post(f"{path}/stop"),
    "delete": lambda client, path: client.delete(path),
    "expose": lambda client, path: client.put(f"{path}/ssh", json={"ssh_enabled": True}),
    "start": lambda client, path: client.put(f"{path}/mounts", json={"mount_paths": ["/srv"]}),
}


def clean(cloud: ComputeCloud, client: httpx.Client) -> None:
    for each in ok(client.get("/compute/containers"))["containers"]:
        ok(client.delete(f"/compute/containers/{each['id']}"))
    wait_for(lambda: not cloud.world.things(), "empty world")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", ["create", "start", "expose"])
def test_killed_while_a_container_is_made(
    mortal: Mortal, token: str, step: str, place: str
) -> None:
    mortal.world.hold(f"{step}-{place}")
    with with_token(mortal.url, token) as client:
        made = mortal.container(client, ssh_enabled=True)
    die(mortal, f"{step}-{place}")
    with with_token(mortal.url, token) as client:
        mortal.until(client, made["id"], "running")
        thing = wait_for(lambda: exposed(mortal, made["id"]), "SSH")
        assert (thing.parts, thing.generation) == (2, 1)
        assert list(mortal.world.things()) == [made["id"]]
        clean(mortal, client)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", ACTS)
def test_killed_while_a_container_is_changed(
    mortal: Mortal, token: str, step: str, place: str
) -> None:
    with with_token(mortal.url, token) as client:
        made = mortal.running(client)
        # What its creation leads to is over: what is held up is what follows now.
        wait_for(lambda: exposed(mortal, made["id"], ssh_enabled=False), "its rules")
        mortal.world.hold(f"{step}-{place}")
        ok(ACTS[step](client, f"/compute/containers/{made['id']}"))
    die(mortal, f"{step}-{place}")
    with with_token(mortal.url, token) as client:
        if step == "delete":
            mortal.until_gone(made["id"])
            assert ok(client.get("/compute/containers"))["containers"] == []
        elif step == "stop":
            wait_for(lambda: mortal.world.phase(made["id"]) == "stopped", "stop")
            assert ok(client.get(f"/compute/containers/{made['id']}"))["status"] == "stopped"
        else:
            wait_for(lambda: mortal.world.phase(made["id"]) == "running", "start")
            mortal.until(client, made["id"], "running")
            thing = wait_for(
                lambda: exposed(mortal, made["id"], ssh_enabled=step == "expose"), "SSH"
            )
            expected = ("/srv",) if step == "start" else ("/root",)
            assert thing.spec.mount_paths == expected
        clean(mortal, client)


def exposed(cloud: ComputeCloud, container_id: str, *, ssh_enabled: bool = True) -> Any:
    thing = cloud.world.thing(container_id)
    found = thing.exposed if thing is not None else None
    return thing if found is not None and found.ssh_enabled == ssh_enabled else None


def test_what_happened_while_nobody_was_there(mortal: Mortal, token: str) -> None:
    """Containers that are gone, that failed, that stopped; and one that is nobody's."""
    with with_token(mortal.url, token) as client:
        lost, failed, ended = (mortal.running(client)["id"] for _ in range(3))
        orphan = mortal.world.thing(lost)
        mortal.kill()
    assert orphan is not None
    mortal.world.remove(lost)
    mortal.world.move(failed, "failed", "it would not stay up")
    mortal.world.move(ended, "stopped")
    orphan.spec = replace(orphan.spec, id="0badbeef")
    mortal.world.put(orphan)
    mortal.start()
    with with_token(mortal.url, token) as client:
        mortal.until_gone("0badbeef")
        reason = mortal.until(client, lost, "failed")["reason"]
        assert "the backend does not have it any more" in reason
        assert mortal.until(client, failed, "failed")["reason"] == "it would not stay up"
        mortal.until(client, ended, "running")
        # What is lost can be made anew.
        ok(client.post(f"/compute/containers/{lost}/start"))
        mortal.until(client, lost, "running")
        clean(mortal, client)


# --- several workers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    made = ComputeCloud(
        tmp_path_factory.mktemp("several"), environment={"GFS_CONTROL_WORKERS": "3"}
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_another_worker_takes_over_from_the_one_that_leads(several: ComputeCloud) -> None:
    client, _ = several.make_user()
    first = several.running(client)
    leader = several.world.calls()[-1][2]
    assert {pid for _, _, pid in several.world.calls()} == {leader}, "two lead"
    several.world.hold("stop-half")
    ok(client.post(f"/compute/containers/{first['id']}/stop"))
    assert several.world.wait_held("stop-half") == leader
    send(leader, signal.SIGKILL)
    several.world.let_go("stop-half")
    wait_for(lambda: several.world.phase(first["id"]) == "stopped", "stop by another")
    calls = several.world.calls()
    assert calls[-1][2] != leader
    assert len({pid for _, _, pid in calls}) == 2


async def ask_all(
    cloud: ComputeCloud, client: httpx.Client, paths: list[str], body: dict[str, Any]
) -> list[httpx.Response]:
    """At once, over connections of their own, so that all workers get some."""
    answers: list[httpx.Response] = []
    headers = {"Authorization": f"Bearer {bearer(client)}"}

    async def ask(path: str) -> None:
        async with httpx.AsyncClient(base_url=cloud.url, timeout=HANG_SECONDS, **PLAIN) as own:
            answers.append(await own.post(path, json=body, headers=headers))

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(ask, path)
    return sorted(answers, key=lambda answer: answer.status_code)


async def test_limits_hold_for_requests_at_once(several: ComputeCloud) -> None:
    client, user_id = several.make_user()
    body = {"name": "key", "public_key": ED25519}
    answers = await ask_all(several, client, ["/compute/ssh-keys"] * 30, body)
    assert [each.status_code for each in answers] == [200] * KEYS_MAX + [400] * (30 - KEYS_MAX)
    assert len(ok(client.get("/compute/ssh-keys"))["ssh_keys"]) == KEYS_MAX
    body = {"name": "box", "ssh_key_ids": [several.first_key(client)]}
    answers = await ask_all(several, client, ["/compute/containers"] * 30, body)
    most = Limits().containers
    assert [each.status_code for each in answers] == [200] * most + [400] * (30 - most)
    assert len(ok(client.get("/compute/containers"))["containers"]) == most
    ok(several.admin.delete("/admin/users", params={"id": user_id}))


async def test_quotas_hold_for_requests_at_once(several: ComputeCloud) -> None:
    client, user_id = several.make_user()
    key = several.key(client)

    def allow(**limits: int) -> None:
        ok(several.admin.put("/admin/quotas", params={"id": user_id}, json=limits))

    box = {"name": "box", "ssh_key_ids": [key], "memory_mb": 500, "storage_gb": 10}
    allow(containers=20, memory_mb=2200, storage_gb=1000)
    answers = await ask_all(several, client, ["/compute/containers"] * 20, box)
    assert [answer.status_code for answer in answers] == [200] * 4 + [507] * 16
    assert "2200" in refused(answers[-1], 507, "memory")
    allow(storage_gb=65, memory_mb=10_000)
    more = await ask_all(several, client, ["/compute/containers"] * 10, box)
    assert [answer.status_code for answer in more] == [200] * 2 + [507] * 8
    refused(more[-1], 507, "storage", "65")
    refused(client.post("/compute/containers", json={**box, "storage_gb": 66}), 413, "66", "65")

    # What is stopped has no memory; what is started needs it again.
    ids = [answer.json()["id"] for answer in (*answers[:4], *more[:2])]
    for id_ in ids:
        ok(client.post(f"/compute/containers/{id_}/stop"))
    allow(memory_mb=1700)
    assert ok(client.get("/api/quota"))["memory_mb"] == {"used": 0, "limit": 1700}
    started = await ask_all(
        several, client, [f"/compute/containers/{id_}/start" for id_ in ids] * 3, {}
    )
    assert {answer.status_code for answer in started} == {200, 507}
    quota = ok(client.get("/api/quota"))
    assert quota["memory_mb"]["used"] == 1500
    assert quota["containers"]["used"] == 6
    assert quota["storage_gb"]["used"] == 60
    for id_ in ids:
        ok(client.delete(f"/compute/containers/{id_}"))
    assert ok(client.get("/api/quota"))["storage_gb"]["used"] == 0
