"""The containers of the API, row by row, over real HTTP against real processes."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest
from checks import ok, refused, wait_for
from compute_cloud import ComputeCloud
from outside import IP

from control.compute.names import INSTANCE_TYPES

ALWAYS = {
    *("id", "name", "status", "hostname", "memory_mb", "storage_gb", "instance_type"),
    *("created_at", "ssh_enabled", "https_enabled"),
}
STATUSES = {"pending", "initializing", "running", "stopped", "failed"}
#: As the reference has it.
ARCHITECTURES = {
    "nano": ("arm64", 0.5),
    "micro": ("arm64", 1),
    "mini": ("arm64", 2),
    "tiny": ("amd64", 1),
    "small": ("amd64", 2),
    "medium": ("amd64", 4),
}


@pytest.fixture
def user(computing: ComputeCloud) -> httpx.Client:
    """One who has nothing yet."""
    return computing.make_user()[0]


@pytest.fixture(scope="module")
def poor(computing: ComputeCloud) -> tuple[httpx.Client, int]:
    """One who never gets a container, and the id of his key."""
    client, _ = computing.make_user()
    return client, computing.key(client)


def check_container(found: dict[str, Any]) -> None:
    """Every field with its type, and those that depend on others."""
    for name, kind in {
        **dict.fromkeys(("id", "name", "status", "hostname", "instance_type", "created_at"), str),
        **dict.fromkeys(("memory_mb", "storage_gb"), int),
        **dict.fromkeys(("ssh_enabled", "https_enabled"), bool),
    }.items():
        assert type(found[name]) is kind, name
    assert re.fullmatch(r"[0-9a-f]{8}", found["id"])
    assert found["status"] in STATUSES
    assert found["hostname"] == f"{found['id']}.compute.eddisonso.com"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["created_at"])
    expected = set(ALWAYS)
    if found["ssh_enabled"]:
        expected.add("ssh_command")
        assert found["ssh_command"] == f"ssh root@{found['hostname']}"
    if found["status"] == "running":
        expected |= {"memory_used_mb", "storage_used_gb", "external_ip"}
        assert found["external_ip"] == IP
        assert (found["memory_used_mb"], found["storage_used_gb"]) == (128, 1.2)
    if found["status"] == "failed" or "reason" in found:
        expected.add("reason")
        assert found["reason"].strip()
    assert set(found) == expected


def one(client: httpx.Client, container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = ok(client.get(f"/compute/containers/{container_id}"))
    check_container(found)
    return found


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    answer = ok(client.get("/compute/containers"))
    assert set(answer) == {"containers"}
    for each in answer["containers"]:
        check_container(each)
    found: list[dict[str, Any]] = answer["containers"]
    return found


# --- creating ---------------------------------------------------------------------------


def test_who_has_none_gets_an_empty_list(user: httpx.Client) -> None:
    assert listed(user) == []


def test_a_container_with_all_fields(computing: ComputeCloud, user: httpx.Client) -> None:
    began = int(time.time())
    # Which is only ever a name.
    name = "<b>'$(reboot)`x`\"; ../a: {b: c} {{ .V }} %s\\ 日\u202e🐳 -rf"
    made = computing.container(
        user,
        name=f"  {name}\t",
        instance_type="small",
        memory_mb=2048,
        storage_gb=20,
        ssh_enabled=True,
        mount_paths=["/root", "/var/data"],
        unknown={"is": "ignored"},
    )
    check_container(made)
    assert made["status"] == "pending"
    assert made["name"] == name
    assert (made["memory_mb"], made["storage_gb"]) == (2048, 20)
    assert made["instance_type"] == "small"
    assert (made["ssh_enabled"], made["https_enabled"]) == (True, False)
    created = time.strptime(made["created_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert time.strftime("%FT%TZ", time.gmtime(began)) <= made["created_at"], created
    computing.until(user, made["id"], "running")
    assert {**one(user, made["id"]), "status": "pending"}.items() >= made.items()
    thing = computing.world.thing(made["id"])
    assert thing is not None
    assert (thing.spec.architecture, thing.spec.cpus) == ("amd64", 2)
    assert (thing.spec.memory_mb, thing.spec.storage_gb) == (2048, 20)
    assert thing.spec.mount_paths == ("/root", "/var/data")
    assert thing.spec.name == name


@pytest.mark.parametrize(
    "more", [{}, {"mount_paths": []}, {"mount_paths": None}], ids=["absent", "empty", "null"]
)
def test_a_container_with_the_required_fields_only(
    computing: ComputeCloud, user: httpx.Client, more: dict[str, Any]
) -> None:
    made = computing.container(user, **more)
    assert (made["memory_mb"], made["storage_gb"], made["instance_type"]) == (512, 5, "nano")
    assert (made["ssh_enabled"], made["https_enabled"]) == (False, False)
    assert "ssh_command" not in made
    path = f"/compute/containers/{made['id']}"
    assert ok(user.get(f"{path}/mounts")) == {"mount_paths": ["/root"]}
    assert ok(user.get(f"{path}/ingress")) == {"rules": []}
    assert ok(user.get(f"{path}/ssh")) == {"ssh_enabled": False}


def test_ssh_and_rules_may_be_given_at_once(computing: ComputeCloud, user: httpx.Client) -> None:
    rules = [{"port": 8080, "target_port": 80}, {"port": 443}, {"port": 8080, "target_port": 81}]
    made = computing.container(user, enable_ssh=True, ingress_rules=rules)
    assert (made["ssh_enabled"], made["https_enabled"]) == (True, True)
    found = ok(user.get(f"/compute/containers/{made['id']}/ingress"))["rules"]
    assert [(rule["port"], rule["target_port"]) for rule in found] == [(443, 443), (8080, 81)]
    assert len({rule["id"] for rule in found}) == 2


def test_a_container_has_a_bounded_number_of_rules(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    made = computing.container(user, ingress_rules=[{"port": 8000 + each} for each in range(32)])
    path = f"/compute/containers/{made['id']}/ingress"
    refused(user.post(path, json={"port": 8032}), 400, "32 ingress rules")
    assert ok(user.post(path, json={"port": 8031, "target_port": 80}))["target_port"] == 80
    ok(user.delete(f"{path}/8000"))
    ok(user.post(path, json={"port": 8032}))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_instance_types_are_what_the_reference_says(
    computing: ComputeCloud, user: httpx.Client, name: str
) -> None:
    assert set(INSTANCE_TYPES) == set(ARCHITECTURES)
    made = computing.running(user, instance_type=name)
    thing = computing.world.thing(made["id"])
    assert thing is not None
    assert (thing.spec.architecture, thing.spec.cpus) == ARCHITECTURES[name]


@pytest.mark.parametrize("size", [(128, 1), (65536, 1000)])
def test_sizes_at_their_bounds(
    computing: ComputeCloud, user: httpx.Client, size: tuple[int, int]
) -> None:
    made = computing.container(user, memory_mb=size[0], storage_gb=size[1])
    assert (made["memory_mb"], made["storage_gb"]) == size


#: In the order in which they are looked at: what is wrong, and what must be named.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": 7}, "name"),
    ({"name": "   "}, "name"),
    ({"ssh_key_ids": []}, "ssh_key_ids"),
    ({"ssh_key_ids": [999_999_999]}, "ssh_key_ids"),
    ({"instance_type": "huge"}, "instance_type"),
    ({"memory_mb": 127}, "memory_mb"),
    ({"storage_gb": 1001}, "storage_gb"),
    ({"mount_paths": ["root"]}, "mount_paths"),
]


@pytest.mark.parametrize("first", range(len(WRONG)))
def test_the_first_thing_that_is_wrong_is_reported(
    poor: tuple[httpx.Client, int], first: int
) -> None:
    """All of what comes later is wrong, too."""
    user, key = poor
    body: dict[str, Any] = {"name": "box", "ssh_key_ids": [key]}
    for more, _ in reversed(WRONG[first:]):
        body |= more
    refused(user.post("/compute/containers", json=body), 400, WRONG[first][1])
    assert listed(user) == []


#: Field → what it cannot be.
CANNOT_BE: dict[str, list[Any]] = {
    "name": [None, "x" * 65, "\t\n", "a\0b"],
    "ssh_key_ids": [None, "1", ["1"], [True], [-1], [2**64]],
    "instance_type": ["", "Nano", 1],
    "memory_mb": [65537, 0, "512", 512.5],
    "storage_gb": [0, None],
    "ssh_enabled": ["yes"],
    "enable_ssh": [1],
    "mount_paths": ["/root", [1], ["/etc"]],
    "ingress_rules": [{"port": 80}],
}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        *(({name: value}, name) for name, values in CANNOT_BE.items() for value in values),
        ({"ingress_rules": [{"port": 22}]}, "port"),
        ({"ingress_rules": [{"port": 80, "target_port": 0}]}, "target_port"),
        ({"ingress_rules": [{}]}, "port"),
        ({"ingress_rules": [{"port": port} for port in range(8000, 8033)]}, "32 ingress rules"),
    ],
)
def test_what_a_container_cannot_have(
    poor: tuple[httpx.Client, int], more: dict[str, Any], word: str
) -> None:
    user, key = poor
    body = {"name": "box", "ssh_key_ids": [key], **more}
    refused(user.post("/compute/containers", json=body), 400, word)
    assert listed(user) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"name=box", b'{"name":"\xff"}'])
def test_a_body_that_is_no_json_object(poor: tuple[httpx.Client, int], body: bytes) -> None:
    refused(poor[0].post("/compute/containers", content=body), 400)


@pytest.mark.parametrize("missing", ["name", "ssh_key_ids"])
def test_required_fields(poor: tuple[httpx.Client, int], missing: str) -> None:
    body = {"name": "box", "ssh_key_ids": [poor[1]]}
    del body[missing]
    refused(poor[0].post("/compute/containers", json=body), 400, missing)


def test_keys_must_be_ones_own_and_each_given_once(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    other, _ = computing.make_user()
    own, foreign = computing.key(user), computing.key(other)
    for ids in ([foreign], [own, foreign], [own, own]):
        answer = user.post("/compute/containers", json={"name": "box", "ssh_key_ids": ids})
        refused(answer, 400, "ssh_key_ids")
    assert listed(user) == []


def test_three_containers_and_no_more(computing: ComputeCloud, user: httpx.Client) -> None:
    made = [computing.container(user, name=f"box {number}") for number in range(3)]
    assert [each["name"] for each in listed(user)] == ["box 2", "box 1", "box 0"]
    ok(user.post(f"/compute/containers/{made[0]['id']}/stop"))
    # The limit comes before what is wrong with keys, and after a bad name.
    for body in ({"ssh_key_ids": []}, {}):
        for name, word in (("box", "3"), ("", "name")):
            answer = user.post("/compute/containers", json={"name": name, **body})
            assert "ssh_key_ids" not in refused(answer, 400, word)
    ok(user.delete(f"/compute/containers/{made[1]['id']}"))
    computing.container(user, name="box 3")
    assert [each["name"] for each in listed(user)] == ["box 3", "box 2", "box 0"]


def test_what_runs_containers_is_down(computing: ComputeCloud, user: httpx.Client) -> None:
    body = {"name": "box", "ssh_key_ids": [computing.key(user)]}
    computing.world.fail("check", "unavailable")
    try:
        answer = user.post("/compute/containers", json=body)
        bad = user.post("/compute/containers", json={**body, "name": ""})
        wait_for(lambda: user.get("/readyz").status_code == 503, "unreadiness")
        ready = user.get("/readyz")
    finally:
        computing.world.work("check")
    refused(answer, 503, "the world is down")
    assert answer.headers["Retry-After"] == "5"
    refused(bad, 400, "name")
    refused(ready, 503, "compute")
    assert listed(user) == []


# --- its life ---------------------------------------------------------------------------


@pytest.mark.thin
def test_from_its_creation_to_its_end(computing: ComputeCloud, user: httpx.Client) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    assert [each["id"] for each in listed(user)] == [made["id"]]

    stopped = ok(user.post(f"{path}/stop"))
    check_container(stopped)
    assert stopped["status"] == "stopped"
    assert ok(user.post(f"{path}/stop"))["status"] == "stopped"
    wait_for(lambda: computing.world.phase(made["id"]) == "stopped", "stop")

    started = ok(user.post(f"{path}/start"))
    check_container(started)
    assert started["status"] == "pending"
    computing.until(user, made["id"], "running")
    again = ok(user.post(f"{path}/start"))
    check_container(again)
    assert again["status"] == "running"
    assert {**again, "status": ""}.items() == {**made, "status": ""}.items()

    assert ok(user.delete(path)) == {"status": "ok"}
    assert listed(user) == []
    for method, more in ALL_OF_ONE:
        refused(user.request(method, path + more, json={}), 404)
    computing.until_gone(made["id"])


ALL_OF_ONE = [
    *(("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop"), ("GET", "/ssh")),
    *(("GET", "/ingress"), ("DELETE", "/ingress/80"), ("GET", "/mounts"), ("GET", "/logs")),
]


def test_what_the_backend_cannot_do_fails_with_its_reason(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    computing.world.fail("start", "impossible")
    try:
        made = computing.container(user)
        failed = computing.until(user, made["id"], "failed")
    finally:
        computing.world.work("start")
    check_container(failed)
    assert failed["reason"] == "no such thing can be in this world"
    assert ok(user.post(f"/compute/containers/{made['id']}/start"))["status"] == "pending"
    assert "reason" not in computing.until(user, made["id"], "running")


def test_a_failed_container_can_be_stopped_and_deleted(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    made = computing.running(user)
    computing.world.move(made["id"], "failed", "it would not stay up")
    assert computing.until(user, made["id"], "failed")["reason"] == "it would not stay up"
    stopped = ok(user.post(f"/compute/containers/{made['id']}/stop"))
    assert stopped["status"] == "stopped"
    check_container(stopped)
    ok(user.delete(f"/compute/containers/{made['id']}"))
    computing.until_gone(made["id"])


def test_what_it_uses_is_left_out_when_it_is_not_known(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    computing.world.fail("usage", "unavailable")
    try:
        made = computing.running(user)
    finally:
        computing.world.work("usage")
    assert not {"memory_used_mb", "storage_used_gb"} & set(made)


@pytest.mark.parametrize("id_", ["00000000", "nope", "0", "%00", "a" * 500, "..%2f", "é"])
@pytest.mark.parametrize(("method", "more"), ALL_OF_ONE)
def test_containers_that_do_not_exist(
    poor: tuple[httpx.Client, int], id_: str, method: str, more: str
) -> None:
    refused(poor[0].request(method, f"/compute/containers/{id_}{more}"), 404)


# --- what administrators see ------------------------------------------------------------


def test_administrators_see_all_containers(computing: ComputeCloud, user: httpx.Client) -> None:
    other, other_id = computing.make_user()
    first, second = computing.container(user), computing.running(other, name="other's")
    answer = ok(computing.admin.get("/compute/admin/containers"))
    # A bare array, as the other administrators' lists are.
    assert isinstance(answer, list)
    found = {each["id"]: each for each in answer}
    assert list(found).index(second["id"]) < list(found).index(first["id"])
    shown = found[second["id"]]
    username = ok(other.get("/api/session"))["username"]
    assert (shown["owner_id"], shown["owner"]) == (other_id, username)
    assert set(shown) == ALWAYS | {"external_ip", "owner_id", "owner"}
    refused(user.get("/compute/admin/containers"), 403)

    # Page by page, and when one that was shown is gone meanwhile.
    path, seen = "/compute/admin/containers?limit=1", []
    while path:
        page = computing.admin.get(path)
        seen += [each["id"] for each in ok(page)]
        assert len(ok(page)) == 1
        if seen[-1] == second["id"]:
            ok(other.delete(f"/compute/containers/{second['id']}"))
        path = page.links["next"]["url"] if page.links else ""
    assert seen == list(found)


def test_administrators_stop_start_and_delete_what_is_others(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    id_ = computing.running(user)["id"]
    one = f"/compute/admin/containers/{id_}"
    assert ok(computing.admin.post(f"{one}/stop"))["id"] == id_
    computing.until(user, id_, "stopped")
    ok(computing.admin.post(f"{one}/start"))
    computing.until(user, id_, "running")
    ok(computing.admin.delete(one))
    refused(user.get(f"/compute/containers/{id_}"), 404)
    refused(computing.admin.post(f"{one}/stop"), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("PUT", "/compute/ssh-keys"), ("POST", "/compute/ws"), ("PUT", "/compute/containers")),
        *(
            (method, f"/compute/containers/00000000{more}")
            for method, more in (("POST", ""), ("GET", "/start"), ("DELETE", "/ssh"))
        ),
        ("GET", "/compute/admin/containers/00000000"),
    ],
)
def test_methods_that_are_not_offered(
    poor: tuple[httpx.Client, int], method: str, path: str
) -> None:
    answer = poor[0].request(method, path)
    refused(answer, 405)
    assert "OPTIONS" in answer.headers["Allow"]


def test_a_deleted_user_leaves_no_container_and_no_key(computing: ComputeCloud) -> None:
    client, user_id = computing.make_user()
    made = [computing.running(client), computing.container(client)]
    ok(computing.admin.delete("/admin/users", params={"id": user_id}))
    for each in made:
        computing.until_gone(each["id"])
    left = ok(computing.admin.get("/compute/admin/containers"))
    assert user_id not in [each["owner_id"] for each in left]
    refused(client.get("/compute/ssh-keys"), 401)
