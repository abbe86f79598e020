"""Uploads in parts, which go on after a lost connection."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from checks import bearer, get, make_namespace, make_token, ok, paths, put, refused, with_token
from cloud import Cloud
from limits import HANG_SECONDS
from storage_people import Who, used

MIB = 1 << 20


@pytest.fixture
def space(owner: Who) -> str:
    return make_namespace(owner[0], "parts")


def at(space: str, upload: str = "") -> str:
    return f"/storage/namespaces/{space}/uploads{upload and f'/{upload}'}"


def begin(client: httpx.Client, space: str, path: str, size: int, **more: bool) -> str:
    made = ok(client.post(at(space), json={"path": path, "size": size, **more}))
    assert (made["offset"], made["size"], made["complete"]) == (0, size, False)
    return str(made["id"])


def send(client: httpx.Client, space: str, upload: str, offset: int, data: bytes) -> httpx.Response:
    return client.put(at(space, upload), params={"offset": offset}, content=data)


def test_a_file_in_parts_is_there_with_the_last_one(owner: Who, space: str) -> None:
    client, _ = owner
    before = used(client)
    data = os.urandom(5 * MIB + 17)
    upload = begin(client, space, "in/ä?.bin", len(data))
    for start in range(0, len(data), 2 * MIB):
        assert "in/ä?.bin" not in paths(client, space)
        answer = ok(send(client, space, upload, start, data[start : start + 2 * MIB]))
        assert answer["offset"] == min(start + 2 * MIB, len(data))
        assert answer["complete"] == (answer["offset"] == len(data))
    assert get(client, space, "in/ä?.bin") == data
    assert paths(client, space) == ["in/ä?.bin"]
    refused(client.get(at(space, upload)), 404)
    assert used(client) == (before[0] + 1, before[1] + len(data))


def test_it_goes_on_after_a_lost_connection(owner: Who, space: str, cloud: Cloud) -> None:
    client, _ = owner
    data = os.urandom(3 * MIB)
    upload = begin(client, space, "big", len(data))
    ok(send(client, space, upload, 0, data[:MIB]))
    url = httpx.URL(cloud.url)
    with socket.create_connection((url.host, url.port or 80), HANG_SECONDS) as broken:
        head = (
            f"PUT {at(space, upload)}?offset={MIB} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {bearer(client)}\r\nContent-Length: {2 * MIB}\r\n\r\n"
        )
        broken.sendall(head.encode() + data[MIB : MIB + 70_000])
    assert ok(client.get(at(space, upload)))["offset"] == MIB
    refused(send(client, space, upload, 2 * MIB, data[2 * MIB :]), 409)
    assert ok(send(client, space, upload, MIB, data[MIB:]))["complete"]
    assert get(client, space, "big") == data


def test_what_is_there_is_replaced_only_if_that_was_asked_for(owner: Who, space: str) -> None:
    client, _ = owner
    put(client, space, "a", b"old")
    refused(client.post(at(space), json={"path": "a", "size": 3}), 409)
    upload = begin(client, space, "b", 3)
    put(client, space, "b", b"first")
    refused(send(client, space, upload, 0, b"new"), 409)
    # Nothing is lost: it can be tried again when the way is free.
    assert ok(client.get(at(space, upload)))["offset"] == 3
    ok(client.delete(f"/storage/{space}/b"))
    assert ok(send(client, space, upload, 3, b""))["complete"]
    assert get(client, space, "b") == b"new"
    upload = begin(client, space, "a", 3, overwrite=True)
    assert ok(send(client, space, upload, 0, b"new"))["complete"]
    assert get(client, space, "a") == b"new"


def test_a_file_that_was_published_before_a_kill_is_not_in_its_own_way(
    owner: Who, space: str, cloud: Cloud
) -> None:
    client, _ = owner
    upload = begin(client, space, "a", 6)
    ok(send(client, space, upload, 0, b"abc"))
    cluster = cloud.cluster
    (directory,) = [
        each["path"]
        for each in cluster.json("ls", "/storage")
        if each["path"].startswith(f"/storage/{space}.")
    ]
    # What a kill between the two steps of the end leaves: the file, and the upload.
    folder = f"{directory}/.s3-uploads/{upload}"
    cluster.gfs("snapshot", folder, f"/kept-{upload}")
    ok(send(client, space, upload, 3, b"def"))
    cluster.gfs("mkdir", "-p", f"{directory}/.s3-uploads")
    cluster.gfs("mv", f"/kept-{upload}", folder)
    cluster.gfs("control", "recount")  # the parts are there without having been stored
    assert ok(send(client, space, upload, 3, b"def"))["complete"]
    refused(client.get(at(space, upload)), 404)
    assert get(client, space, "a") == b"abcdef"


def test_of_two_parts_for_one_place_one_counts(owner: Who, space: str) -> None:
    client, _ = owner
    upload = begin(client, space, "a", 10)

    def late() -> Iterator[bytes]:
        yield b"01234"
        time.sleep(0.5)  # the server waits for the rest
        ok(send(client, space, upload, 0, b"abc"))
        yield b"56789"

    answer = client.put(
        at(space, upload), params={"offset": 0}, content=late(), headers={"Content-Length": "10"}
    )
    refused(answer, 409, "ask how far")
    assert ok(client.get(at(space, upload)))["offset"] == 3
    ok(send(client, space, upload, 3, b"defghij"))
    assert get(client, space, "a") == b"abcdefghij"


def test_one_that_is_given_up_leaves_nothing(owner: Who, space: str) -> None:
    client, _ = owner
    before = used(client)
    upload = begin(client, space, "x", 2 * MIB)
    ok(send(client, space, upload, 0, bytes(MIB)))
    assert used(client) != before
    ok(client.delete(at(space, upload)))
    refused(client.delete(at(space, upload)), 404)
    refused(send(client, space, upload, MIB, bytes(MIB)), 404)
    assert used(client) == before
    assert paths(client, space) == []


def test_only_the_one_who_began_it_goes_on(
    owner: Who, other: Who, space: str, cloud: Cloud
) -> None:
    client, user_id = owner
    stranger = other[0]
    upload = begin(client, space, "x", 10)
    for who, status in ((stranger, 403), (cloud.admin, 403)):
        refused(who.get(at(space, upload)), status)
        refused(send(who, space, upload, 0, b"0123456789"), status)
        refused(who.delete(at(space, upload)), status)
        refused(who.post(at(space), json={"path": "y", "size": 1}), status)
    refused(httpx.get(f"{cloud.url}{at(space, upload)}"), 401)
    token = make_token(client, {f"storage.{user_id}.files": ["read"]})["token"]
    with with_token(cloud.url, token) as reader:
        refused(send(reader, space, upload, 0, b"0123456789"), 403)
    # In the one that is shared by all, everybody sees only their own.
    shared = begin(client, "default", f"of-{user_id}", 10)
    refused(stranger.get(at("default", shared)), 404)
    ok(client.delete(at("default", shared)))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"path": "a", "size": 0}, 400),
        ({"path": "../a", "size": 1}, 400),
        ({"path": ".s3-uploads/a", "size": 1}, 400),
        ({"path": "a", "size": 1 << 45}, 413),
        ({"path": "a"}, 400),
    ],
)
def test_what_cannot_be_is_refused_at_the_beginning(
    owner: Who, space: str, body: dict[str, object], status: int
) -> None:
    refused(owner[0].post(at(space), json=body), status)


def test_parts_that_are_none_are_refused(owner: Who, space: str) -> None:
    client, _ = owner
    upload = begin(client, space, "x", 10)
    refused(send(client, space, upload, 0, bytes(11)), 400)
    refused(send(client, space, upload, 0, b""), 400)
    refused(client.put(at(space, upload), params={"offset": 0}, content=iter([b"a"])), 400)
    refused(client.put(at(space, upload), content=b"a"), 400)
    for name in ("x", "0" * 32, "../x", "%2e%2e"):
        refused(client.get(at(space, name)), 404)
