"""SSH keys, SSH access, ingress rules and mount paths: the API's contract, row by row."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import httpx
import pytest
from checks import ok, refused, wait_for
from compute_cloud import ED25519, ComputeCloud
from compute_inputs import TYPES, blob, new_key
from outside import Thing

from control.compute.backend import Port
from control.compute.names import fingerprint


@pytest.fixture
def user(computing: ComputeCloud) -> httpx.Client:
    return computing.make_user()[0]


@pytest.fixture(scope="module")
def owner(computing: ComputeCloud) -> tuple[httpx.Client, dict[str, Any]]:
    """One with a container that runs, for tests that leave it as it is or put it back."""
    client, _ = computing.make_user()
    return client, computing.running(client)


def keys(client: httpx.Client) -> list[dict[str, Any]]:
    answer = ok(client.get("/compute/ssh-keys"))
    assert set(answer) == {"ssh_keys"}
    found: list[dict[str, Any]] = answer["ssh_keys"]
    return found


def add(client: httpx.Client, line: Any, name: Any = "laptop") -> httpx.Response:
    return client.post("/compute/ssh-keys", json={"name": name, "public_key": line})


# --- SSH keys ---------------------------------------------------------------------------


def test_who_has_no_keys_gets_an_empty_list(user: httpx.Client) -> None:
    assert keys(user) == []


@pytest.mark.parametrize("comment", ["", " ada@laptop", "  a comment of, several: words "])
@pytest.mark.parametrize("kind", TYPES)
def test_a_key_of_each_type(owner: tuple[httpx.Client, Any], kind: str, comment: str) -> None:
    user, line = owner[0], new_key(kind)
    made = ok(add(user, f" {line}{comment}\n", "  laptop "))
    assert set(made) == {"id", "name", "public_key", "fingerprint", "created_at"}
    assert type(made["id"]) is int
    assert made["fingerprint"] == fingerprint(line)
    assert made["name"] == "laptop"
    assert made["public_key"] == f"{line} {comment.strip()}".strip()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["created_at"])
    assert made in keys(user)
    assert ok(user.delete(f"/compute/ssh-keys/{made['id']}")) == {"status": "ok"}
    assert made not in keys(user)
    refused(user.delete(f"/compute/ssh-keys/{made['id']}"), 404)


def test_the_key_of_a_container_is_what_it_was_given(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    lines = [new_key("ssh-ed25519"), new_key("ecdsa-sha2-nistp256")]
    ids = [ok(add(user, line))["id"] for line in lines]
    made = computing.running(user, ssh_key_ids=ids[::-1])
    thing = computing.world.thing(made["id"])
    assert thing is not None
    assert thing.spec.ssh_keys == (lines[1], lines[0])


def test_a_deleted_key_is_withdrawn_from_running_and_stopped_containers(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    lines = [new_key("ssh-ed25519"), new_key("ecdsa-sha2-nistp256")]
    ids = [ok(add(user, line))["id"] for line in (*lines, lines[0])]
    runs, rests = (computing.running(user, ssh_key_ids=ids[:2]) for _ in range(2))
    ok(user.post(f"/compute/containers/{rests['id']}/stop"))
    computing.until(user, rests["id"], "stopped")

    def lets_in(lines: tuple[str, ...]) -> bool:
        thing = computing.world.thing(runs["id"])
        return thing is not None and thing.exposed is not None and thing.exposed.ssh_keys == lines

    # The same line was added twice, and the other is left.
    ok(user.delete(f"/compute/ssh-keys/{ids[2]}"))
    ok(user.delete(f"/compute/ssh-keys/{ids[1]}"))
    wait_for(lambda: lets_in((lines[0],)), "key that is withdrawn live")
    ok(user.delete(f"/compute/ssh-keys/{ids[0]}"))
    wait_for(lambda: lets_in(()), "last key that is withdrawn live")
    ok(user.post(f"/compute/containers/{rests['id']}/start"))
    started = wait_for(lambda: generation(computing, rests["id"], 2), "start")
    assert started.spec.ssh_keys == ()


def test_ten_keys_and_no_more(user: httpx.Client) -> None:
    made = [ok(add(user, ED25519, f"key {number}")) for number in range(10)]
    assert keys(user) == made
    refused(add(user, ED25519), 400, "10")
    ok(user.delete(f"/compute/ssh-keys/{made[4]['id']}"))
    assert ok(add(user, ED25519))["id"] not in [each["id"] for each in made]


@pytest.mark.parametrize("id_", ["0", "999999999", "-1", "nope", "1" * 40, "1.0", "%00", "٣"])
def test_keys_that_do_not_exist(owner: tuple[httpx.Client, Any], id_: str) -> None:
    refused(owner[0].delete(f"/compute/ssh-keys/{id_}"), 404)


def test_anothers_key_is_not_there(computing: ComputeCloud, user: httpx.Client) -> None:
    other, _ = computing.make_user()
    id_ = computing.key(other)
    refused(user.delete(f"/compute/ssh-keys/{id_}"), 404)
    assert [each["id"] for each in keys(other)] == [id_]


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, None, 7, ["laptop"]])
def test_names_that_no_key_can_have(owner: tuple[httpx.Client, Any], name: Any) -> None:
    before = keys(owner[0])
    refused(add(owner[0], ED25519, name), 400, "name")
    assert keys(owner[0]) == before


_BLOB = ED25519.split()[1]
_POINT = base64.b64decode(_BLOB)[-32:]
_OFF_THE_CURVE = blob(b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\1" * 64)
NO_KEYS = [
    *(None, 7, "", " ", "ssh-ed25519", "ssh-ed25519 ", _BLOB, "ssh-dss " + _BLOB),
    *(f"SSH-ED25519 {_BLOB}", f"sk-ssh-ed25519@openssh.com {_BLOB}", "ssh-ed25519 !!!!"),
    *(f"ssh-rsa {_BLOB}", f"ecdsa-sha2-nistp256 {_BLOB}", f"ssh-ed25519 {_BLOB[:-4]}"),
    *(f"ssh-ed25519 {_BLOB}AAAA", f"ssh-ed25519 {_BLOB}=", "ssh-ed25519 AAAA"),
    f"ssh-ed25519 {blob(b'ssh-ed25519', _POINT[:31])}",
    f"ssh-ed25519 {blob(b'ssh-ed25519', _POINT, b'')}",
    f"ssh-ed25519 {blob(b'ssh-ed25519')}",
    f"ssh-ed25519 {blob(b'ssh-rsa', _POINT)}",
    f"ssh-ed25519 {_BLOB.replace('A', '-', 1)}",
    f"ecdsa-sha2-nistp256 {_OFF_THE_CURVE}",
    f"ecdsa-sha2-nistp384 {blob(b'ecdsa-sha2-nistp384', b'nistp256', bytes([4]) + bytes(96))}",
    f"ecdsa-sha2-nistp256 {blob(b'ecdsa-sha2-nistp256', b'nistp256', bytes([2]) + bytes(32))}",
    f"ssh-rsa {blob(b'ssh-rsa', bytes([3]), bytes([0x7F]) * 64)}",  # 511 bits
    f"ssh-rsa {blob(b'ssh-rsa', bytes([3]), bytes([0x81]) * 256)}",  # below 0
    f"ssh-rsa {blob(b'ssh-rsa', bytes([2]), bytes([0x7F]) * 256)}",  # an even exponent
    f"ssh-rsa {blob(b'ssh-rsa', bytes([3]), bytes([0x7F]) * 4096)}",  # 32767 bits
    # What ends elsewhere than in a key:
    f'command="/bin/sh" {ED25519}',
    f"no-pty {ED25519}",
    f"{ED25519}\n{ED25519}",
    f"{ED25519}\r\ncommand=evil {ED25519}",
    f"# {ED25519}",
    f"{ED25519} a\0b",
    f"{ED25519} a\u2028b",
    f"{ED25519} \x1b[31m",
    f"{ED25519} {'x' * 17000}",
]


@pytest.mark.parametrize("line", NO_KEYS, ids=lambda line: ascii(line)[:40])
def test_what_is_no_key(owner: tuple[httpx.Client, Any], line: Any) -> None:
    before = keys(owner[0])
    refused(add(owner[0], line), 400, "public_key")
    assert keys(owner[0]) == before


@pytest.mark.parametrize("missing", ["name", "public_key"])
def test_what_a_key_must_have(owner: tuple[httpx.Client, Any], missing: str) -> None:
    body = {"name": "laptop", "public_key": ED25519}
    del body[missing]
    refused(owner[0].post("/compute/ssh-keys", json=body), 400, missing)


# --- SSH access -------------------------------------------------------------------------


def generation(computing: ComputeCloud, container_id: str, least: int) -> Thing | None:
    """What the world has of it, once a run of this generation goes."""
    thing = computing.world.thing(container_id)
    if thing is not None and thing.phase == "running" and thing.generation >= least:
        return thing
    return None


def exposed(computing: ComputeCloud, container_id: str) -> tuple[bool, tuple[Port, ...]] | None:
    """What is open: SSH, and ports."""
    thing = computing.world.thing(container_id)
    spec = thing.exposed if thing is not None else None
    return None if spec is None else (spec.ssh_enabled, spec.ports)


def until_exposed(
    computing: ComputeCloud, container_id: str, ssh_enabled: bool, *ports: Port
) -> None:
    wait_for(
        lambda: exposed(computing, container_id) == (ssh_enabled, ports),
        f"{ssh_enabled}, {ports}; there is {exposed(computing, container_id)}",
    )


def test_ssh_is_switched_live(computing: ComputeCloud, user: httpx.Client) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    assert ok(user.get(f"{path}/ssh")) == {"ssh_enabled": False}
    until_exposed(computing, made["id"], False)
    for wanted in (True, True, False):
        answer = ok(user.put(f"{path}/ssh", json={"ssh_enabled": wanted}))
        assert answer == {"ssh_enabled": wanted}
        assert ok(user.get(f"{path}/ssh")) == {"ssh_enabled": wanted}
        found = ok(user.get(path))
        assert (found["ssh_enabled"], "ssh_command" in found) == (wanted, wanted)
        assert found["status"] == "running"
        until_exposed(computing, made["id"], wanted)
    assert computing.world.thing(made["id"]) == generation(computing, made["id"], 1)


@pytest.mark.parametrize("body", [{}, {"ssh_enabled": 1}, {"ssh_enabled": None}, [], "true"])
def test_ssh_is_on_or_off(owner: tuple[httpx.Client, dict[str, Any]], body: Any) -> None:
    user, made = owner
    refused(user.put(f"/compute/containers/{made['id']}/ssh", json=body), 400)
    assert ok(user.get(f"/compute/containers/{made['id']}/ssh")) == {"ssh_enabled": False}


# --- ingress rules ----------------------------------------------------------------------


def test_rules_come_change_and_go_live(computing: ComputeCloud, user: httpx.Client) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}/ingress"
    began = int(time.time())
    rules = [
        ok(user.post(path, json={"port": 8999, "target_port": 65535})),
        ok(user.post(path, json={"port": 80, "target_port": 1})),
        ok(user.post(path, json={"port": 8000})),
    ]
    assert [(rule["port"], rule["target_port"]) for rule in rules] == [
        *((8999, 65535), (80, 1), (8000, 8000))
    ]
    for rule in rules:
        assert set(rule) == {"id", "port", "target_port", "created_at"}
        assert all(type(value) is int for value in rule.values())
        assert began <= rule["created_at"] <= time.time()
    assert ok(user.get(path)) == {"rules": sorted(rules, key=lambda rule: rule["port"])}
    until_exposed(computing, made["id"], False, Port(80, 1), Port(8000, 8000), Port(8999, 65535))

    # The same port again: another target, the same rule.
    changed = ok(user.post(path, json={"port": 8000, "target_port": 9}))
    assert changed == {**rules[2], "target_port": 9}
    assert ok(user.delete(f"{path}/8999")) == {"status": "ok"}
    assert ok(user.delete(f"{path}/8999")) == {"status": "ok"}
    until_exposed(computing, made["id"], False, Port(80, 1), Port(8000, 9))
    again = ok(user.post(path, json={"port": 8999}))
    assert again["id"] not in [rule["id"] for rule in rules]
    assert ok(user.get(f"/compute/containers/{made['id']}"))["status"] == "running"


def test_port_443_is_https(computing: ComputeCloud, user: httpx.Client) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    ok(user.post(f"{path}/ingress", json={"port": 443, "target_port": 8443}))
    assert ok(user.get(path))["https_enabled"] is True
    ok(user.delete(f"{path}/ingress/443"))
    assert ok(user.get(path))["https_enabled"] is False


def test_a_stopped_container_opens_its_ports_when_it_is_started(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    ok(user.post(f"{path}/stop"))
    ok(user.post(f"{path}/ingress", json={"port": 80}))
    ok(user.put(f"{path}/ssh", json={"ssh_enabled": True}))
    wait_for(lambda: exposed(computing, made["id"]) is None, "stop")
    ok(user.post(f"{path}/start"))
    until_exposed(computing, made["id"], True, Port(80, 80))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        *(({"port": port}, "port") for port in (22, 10**30, "80", 80.5, None, True, [80])),
        ({}, "port"),
        *(({"port": 80, "target_port": target}, "target_port") for target in (0, "80", 1.5, True)),
    ],
)
def test_rules_that_cannot_be(
    owner: tuple[httpx.Client, dict[str, Any]], body: dict[str, Any], word: str
) -> None:
    user, made = owner
    refused(user.post(f"/compute/containers/{made['id']}/ingress", json=body), 400, word)
    assert ok(user.get(f"/compute/containers/{made['id']}/ingress")) == {"rules": []}


@pytest.mark.parametrize("port", ["http", "80x", "-80", "8e1", "٨٠", "%20", "8" * 5000])
def test_no_port_to_close(owner: tuple[httpx.Client, dict[str, Any]], port: str) -> None:
    user, made = owner
    refused(user.delete(f"/compute/containers/{made['id']}/ingress/{port}"), 400, "port")


# --- mount paths ------------------------------------------------------------------------


def test_new_mount_paths_restart_what_runs(computing: ComputeCloud, user: httpx.Client) -> None:
    made = computing.running(user, mount_paths=["/root", "/var/data"])
    path = f"/compute/containers/{made['id']}"
    assert ok(user.get(f"{path}/mounts")) == {"mount_paths": ["/root", "/var/data"]}
    wanted = ["/root", "/var/data", "/opt/app"]
    answer = ok(user.put(f"{path}/mounts", json={"mount_paths": wanted}))
    assert answer == {"mount_paths": wanted, "restarted": True}
    restarted = wait_for(lambda: generation(computing, made["id"], 2), "restart")
    assert restarted.spec.mount_paths == tuple(wanted)
    computing.until(user, made["id"], "running")


def test_new_mount_paths_restart_what_is_initializing(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    computing.world.move(made["id"], "initializing")
    computing.until(user, made["id"], "initializing")
    computing.world.hold("start-before")
    try:
        answer = ok(user.put(f"{path}/mounts", json={"mount_paths": ["/srv"]}))
        assert answer == {"mount_paths": ["/srv"], "restarted": True}
        assert ok(user.get(path))["status"] == "pending"
        # Now it has not begun: there is nothing to restart.
        answer = ok(user.put(f"{path}/mounts", json={"mount_paths": ["/opt"]}))
        assert answer == {"mount_paths": ["/opt"], "restarted": False}
    finally:
        computing.world.let_go("start-before")
    restarted = wait_for(lambda: generation(computing, made["id"], 3), "restart")
    assert restarted.spec.mount_paths == ("/opt",)
    computing.until(user, made["id"], "running")


def test_new_mount_paths_wait_for_the_start_of_what_does_not_run(
    computing: ComputeCloud, user: httpx.Client
) -> None:
    made = computing.running(user)
    path = f"/compute/containers/{made['id']}"
    ok(user.post(f"{path}/stop"))
    answer = ok(user.put(f"{path}/mounts", json={"mount_paths": ["/srv"]}))
    assert answer == {"mount_paths": ["/srv"], "restarted": False}
    assert ok(user.get(path))["status"] == "stopped"
    ok(user.post(f"{path}/start"))
    restarted = wait_for(lambda: generation(computing, made["id"], 2), "restart")
    assert restarted.spec.mount_paths == ("/srv",)


@pytest.mark.parametrize("paths", [[], None, "/root", [1], {"0": "/a"}, ["/etc"]], ids=ascii)
def test_mount_paths_that_cannot_be(owner: tuple[httpx.Client, dict[str, Any]], paths: Any) -> None:
    """All others that cannot are in test_compute_names."""
    user, made = owner
    target = f"/compute/containers/{made['id']}/mounts"
    before = ok(user.get(target))
    refused(user.put(target, json={"mount_paths": paths}), 400, "mount_paths")
    assert ok(user.get(target)) == before
