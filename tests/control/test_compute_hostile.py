"""Input of people who mean no good, over HTTP: one clear error, and nothing is made."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from checks import PLAIN, bearer, ok, refused
from compute_cloud import ED25519, ComputeCloud
from raw import Connection, head

#: Within the largest body that is taken.
DEEP = 25_000


@pytest.fixture(scope="module")
def victim(computing: ComputeCloud) -> tuple[httpx.Client, dict[str, Any], int]:
    """A user, his container, his key."""
    client, _ = computing.make_user()
    key = computing.key(client)
    return client, computing.running(client, ssh_key_ids=[key]), key


def view(victim: tuple[httpx.Client, dict[str, Any], int]) -> list[Any]:
    client, container, _ = victim
    path = f"/compute/containers/{container['id']}"
    return [
        ok(client.get(each))
        for each in (path, f"{path}/ssh", f"{path}/ingress", f"{path}/mounts",
                     "/compute/ssh-keys", "/compute/containers")
    ]  # fmt: skip


def bodies(key: int) -> dict[str, bytes]:
    """Bodies that no route takes, in JSON or nearly."""
    container = f'"name": "box", "ssh_key_ids": [{key}]'
    huge = "9" * 5000
    return {
        "deep list": b"[" * DEEP,
        "deep object": b'{"":' * DEEP,
        "deep value": b'{"name":' + b"[" * DEEP + b"]" * DEEP + b"}",
        "deep unknown": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
        "huge key id": f'{{"name": "box", "ssh_key_ids": [{huge}]}}'.encode(),
        "huge key id, 64 bit": b'{"name": "box", "ssh_key_ids": [18446744073709551616]}',
        "huge memory": f'{{{container}, "memory_mb": {huge}}}'.encode(),
        "tiny memory": f'{{{container}, "memory_mb": -{huge}}}'.encode(),
        "exponent": f'{{{container}, "memory_mb": 1e999999}}'.encode(),
        "surrogate": f'{{"name": "\\ud800", "ssh_key_ids": [{key}]}}'.encode(),
        "latin": f'{{"name": "\xe9", "ssh_key_ids": [{key}]}}'.encode("latin-1"),
        "utf-16": f"{{{container}}}".encode("utf-16"),
        "nul": f'{{"name": "a\\u0000b", "ssh_key_ids": [{key}]}}'.encode(),
        "two values": f"{{{container}}} {{}}".encode(),
        "nan": f'{{{container}, "memory_mb": NaN}}'.encode(),
        "huge port": f'{{"port": {huge}, "ssh_enabled": {huge}, "mount_paths": {huge}}}'.encode(),
    }


ROUTES = [
    ("POST", "/compute/containers"),
    ("POST", "/compute/ssh-keys"),
    ("PUT", "/compute/containers/{id}/ssh"),
    ("POST", "/compute/containers/{id}/ingress"),
    ("PUT", "/compute/containers/{id}/mounts"),
]


@pytest.mark.parametrize("what", bodies(0))
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_bodies_that_are_not_what_they_seem(
    victim: tuple[httpx.Client, dict[str, Any], int], method: str, path: str, what: str
) -> None:
    client, container, key = victim
    before = view(victim)
    answer = client.request(
        method, path.replace("{id}", container["id"]), content=bodies(key)[what]
    )
    refused(answer, 400)
    assert view(victim) == before


def test_a_body_that_is_too_large(victim: tuple[httpx.Client, dict[str, Any], int]) -> None:
    body = {"name": "x" * (2 * 1024 * 1024), "public_key": ED25519}
    refused(victim[0].post("/compute/ssh-keys", json=body), 413)


NAMES = [
    *("; rm -rf /", "$(reboot)", "`reboot`", "'; DROP TABLE containers; --", "../../etc/passwd"),
    *("a: {b: c}", "- x", "!!python/object:os.system", "*anchor", "{{ .Values }}", "%s%n", "null"),
    *(
        "<script>alert(1)</script>",
        '"quoted"',
        "\\",
        "é" * 64,
        "日本",
        "🐳" * 64,
        "a\u202eb",
        "-rf",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_ever_a_name(
    computing: ComputeCloud, victim: tuple[httpx.Client, dict[str, Any], int], name: str
) -> None:
    client, _, key = victim
    made = computing.container(client, name=name, ssh_key_ids=[key])
    try:
        assert made["name"] == name
        assert ok(client.get(f"/compute/containers/{made['id']}"))["name"] == name
        computing.until(client, made["id"], "running")
        thing = computing.world.thing(made["id"])
        assert thing is not None
        assert thing.spec.name == name
    finally:
        ok(client.delete(f"/compute/containers/{made['id']}"))


@pytest.mark.parametrize(
    "target",
    [
        "/compute/containers/../containers/{id}",
        "/compute/containers/%2e%2e/{id}",
        "/compute//containers/{id}",
        "/compute/containers/{id}%00",
        "/compute/containers/{id}/../../admin/containers",
        "/compute/containers/ {id}",
        "/compute/containers/{id};x",
        "/COMPUTE/containers/{id}",
    ],
)
def test_paths_that_are_not_those_of_a_container(
    computing: ComputeCloud, victim: tuple[httpx.Client, dict[str, Any], int], target: str
) -> None:
    """As they stand, which a client library would tidy up."""
    id_ = victim[1]["id"]
    path = target.replace("{id}", id_)
    authorization = {"Authorization": f"Bearer {bearer(victim[0])}"}
    with Connection(computing.url) as connection:
        connection.send(head("DELETE", path, connection.host, authorization))
        assert connection.answer().status in (400, 404)
    assert ok(victim[0].get(f"/compute/containers/{id_}"))["id"] == id_


def test_only_json_is_looked_at(victim: tuple[httpx.Client, dict[str, Any], int]) -> None:
    """A form of another site can send no JSON, and nobody's cookie is a credential here."""
    client, container, _ = victim
    path = f"/compute/containers/{container['id']}/stop"
    token = client.headers["Authorization"][7:]
    with httpx.Client(base_url=client.base_url, **PLAIN) as other:
        refused(other.post(path, headers={"Cookie": f"token={token}"}), 401)
    assert ok(client.get(f"/compute/containers/{container['id']}"))["status"] == "running"
