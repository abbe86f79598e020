"""Requests of people who mean no good, over HTTP: one clear error, and nothing is made. What they
write into bodies is in test_compute_names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from checks import PLAIN, bearer, ok, refused
from compute_cloud import ED25519, ComputeCloud
from raw import Connection, head


@pytest.fixture(scope="module")
def victim(computing: ComputeCloud) -> tuple[httpx.Client, dict[str, Any], int]:
    """A user, his container, his key."""
    client, _ = computing.make_user()
    key = computing.key(client)
    return client, computing.running(client, ssh_key_ids=[key]), key


def test_a_body_that_is_too_large(victim: tuple[httpx.Client, dict[str, Any], int]) -> None:
    body = {"name": "x" * (2 * 1024 * 1024), "public_key": ED25519}
    refused(victim[0].post("/compute/ssh-keys", json=body), 413)


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
