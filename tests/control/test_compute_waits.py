"""What runs containers may be slow, or broken: whoever asks is answered all the same."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any
from unittest import mock

import pytest
import trio
from checks import ok, refused
from computing import Computing, Who

from control.compute.backend import BackendUnavailable, Room, Spec, Usage
from control.compute.backend.answers import for_users
from control.compute.podman.background import Background
from control.compute.reconcile.machine import one_line
from control.compute.requests import containers


class Asked:
    """Takes the place of a backend's ``usage``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times = 0
        self._error = error

    async def __call__(self, spec: Spec) -> Usage:
        self.times += 1
        if self._error is not None:
            raise self._error
        await trio.sleep_forever()
        raise AssertionError


USED = {"memory_used_mb", "storage_used_gb"}


async def test_a_creation_is_refused_by_what_does_not_answer(c: Computing) -> None:
    key = await c.key(c.ada)
    body = {"name": "box", "ssh_key_ids": [key["id"]]}
    with (
        mock.patch.object(containers, "CHECK_SECONDS", 0.05),
        mock.patch.object(c.module.backend, "check", trio.sleep_forever),
    ):
        answer = await c.call("POST", "/compute/containers", c.ada, **body)
        wrong = await c.call("POST", "/compute/containers", c.ada, **{**body, "memory_mb": 1})
    refused(answer, 503, "does not answer in time")
    assert answer.headers["Retry-After"] == "5"
    refused(wrong, 400, "memory_mb")  # which takes nobody to say
    assert ok(await c.call("GET", "/compute/containers", c.ada)) == {"containers": []}
    assert c.rows() == []


async def test_a_list_waits_for_nobody_who_does_not_say_what_is_used(c: Computing) -> None:
    made = [await c.running(c.ada) for _ in range(3)]
    c.module.containers._usages.clear()
    usage = Asked()
    with (
        mock.patch.object(containers, "USAGE_SECONDS", 0.05),
        mock.patch.object(containers, "USAGE_KEPT_SECONDS", 1000.0),
        mock.patch.object(c.module.backend, "usage", usage),
    ):
        listed = ok(await c.call("GET", "/compute/containers", c.ada))["containers"]
        # Nor is it asked again with every look.
        one = ok(await c.call("GET", f"/compute/containers/{made[0]['id']}", c.ada))
    assert [each["id"] for each in listed] == [each["id"] for each in made[::-1]]
    for each in [*listed, one]:
        assert each["status"] == "running"
        assert not USED & set(each)
    assert usage.times == 3


async def test_what_is_used_may_be_reported_wrong(
    c: Computing, caplog: pytest.LogCaptureFixture
) -> None:
    made = await c.running(c.ada)
    c.module.containers._usages.clear()
    with mock.patch.object(c.module.backend, "usage", Asked(LookupError("a bug"))):
        one = ok(await c.call("GET", f"/compute/containers/{made['id']}", c.ada))
    assert one["status"] == "running"
    assert not USED & set(one)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [made["id"] in record.getMessage() for record in errors] == [True]


async def test_little_is_remembered_of_what_is_used(c: Computing) -> None:
    made = [await c.running(c.ada) for _ in range(3)]
    c.module.containers._usages.clear()
    with mock.patch.object(containers, "USAGE_KEPT", 2):
        for _ in range(2):
            for each in made:
                found = ok(await c.call("GET", f"/compute/containers/{each['id']}", c.ada))
                assert set(found) >= USED
                assert len(c.module.containers._usages) <= 2


async def test_a_machine_without_room_says_so_before_anything_is_made(c: Computing) -> None:
    c.world.room = Room(memory_mb=1024, storage_gb=20)
    made = await c.running(c.ada, memory_mb=512, storage_gb=5)
    key = await c.key(c.bob)
    path, body = "/compute/containers", {"name": "box", "ssh_key_ids": [key["id"]]}
    calls = len(c.world.calls)
    for size, says in (
        ({"memory_mb": 513}, "of 1024 MB of memory for containers 512 are taken, and it needs 513"),
        ({"storage_gb": 16}, "of 20 GB of disk for containers 5 are taken, and it needs 16"),
    ):
        refused(await c.call("POST", path, c.bob, **body, **size), 503, says)
    assert len(c.world.calls) == calls
    assert [row.id for row in c.rows()] == [made["id"]]

    # Of many at once as many as there is room for.
    answers: list[int] = []

    async def create(who: Who, **words: Any) -> None:
        answer = await c.call("POST", path, who, **words, memory_mb=128)
        answers.append(answer.status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(partial(create, c.bob, **body, storage_gb=6))
    assert sorted(answers) == [200, 200, 503]


async def test_a_stopped_container_keeps_its_disk_and_starts_when_there_is_memory(
    c: Computing,
) -> None:
    c.world.room = Room(memory_mb=1024, storage_gb=20)
    stopped = await c.running(c.ada, memory_mb=1024, storage_gb=5)
    start = f"/compute/containers/{stopped['id']}/start"
    ok(await c.call("POST", f"/compute/containers/{stopped['id']}/stop", c.ada))
    other = await c.running(c.bob, memory_mb=128)
    refused(await c.call("POST", start, c.ada), 503, "no room", "memory")
    ok(await c.call("POST", f"/compute/containers/{other['id']}/stop", c.bob))
    ok(await c.call("POST", start, c.ada))
    await c.until(c.ada, stopped["id"], "running")
    # One that runs is not in its own way.
    ok(await c.call("POST", start, c.ada))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("statfs /var/lib/gfs/control/x: no such file", "statfs …: no such file"),
        ("podman build -t localhost/a/b:1 /opt/gfs/image", "podman build -t localhost/a/b:1 …"),
        ("(see '/etc/containers/registries.conf')", "(see '…')"),
        ("pull docker.io/library/debian:trixie, https://a.example/b/c", None),
        ("port 8080 of 127.0.0.1: memory/disk, 1/2", None),
    ],
)
def test_users_see_no_paths_of_the_machine(text: str, shown: str | None) -> None:
    assert for_users(text) == (shown or text)
    assert one_line(text) == (shown or text)


async def test_an_error_of_what_runs_containers_is_reported_without_paths_and_logged_with_them(
    c: Computing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        raise BackendUnavailable("no disk at /srv/secret/place: make room")

    key = await c.key(c.ada)
    monkeypatch.setattr(c.module.backend, "check", check)
    body = {"name": "box", "ssh_key_ids": [key["id"]]}
    answer = await c.call("POST", "/compute/containers", c.ada, **body)
    refused(answer, 503, "no disk at …: make room")
    assert "/srv/secret/place" in caplog.text


async def test_a_container_counts_and_is_listed_until_nothing_is_left_of_it(
    c: Computing,
) -> None:
    made = await c.running(c.ada, storage_gb=7)
    path = f"/compute/containers/{made['id']}"

    def fail(when: str, call: str, container_id: str) -> None:
        if call == "delete":
            raise BackendUnavailable("a process of it does not end")

    c.world.hooks.append(fail)
    with mock.patch.object(containers, "DELETE_SECONDS", 0.01):
        for _ in range(2):
            assert ok(await c.call("DELETE", path, c.ada)) == {"status": "ok"}
    shown = await c.until(c.ada, made["id"], "deleting")
    while "reason" not in shown:
        await trio.sleep(0.005)
        shown = ok(await c.call("GET", path, c.ada))
    assert shown["reason"] == "it cannot be deleted yet: a process of it does not end"
    assert "external_ip" not in shown
    listed = ok(await c.call("GET", "/compute/containers", c.ada))["containers"]
    assert [each["status"] for each in listed] == ["deleting"]
    quota = ok(await c.call("GET", "/api/quota", c.ada))
    used = {name: quota[name]["used"] for name in ("containers", "memory_mb", "storage_gb")}
    assert used == {"containers": 1, "memory_mb": made["memory_mb"], "storage_gb": 7}
    for method, more in (("POST", "/start"), ("POST", "/stop"), ("PUT", "/ssh")):
        answer = await c.call(method, path + more, c.ada, ssh_enabled=True)
        refused(answer, 400, "is being deleted")

    c.world.hooks.clear()
    assert ok(await c.call("DELETE", path, c.ada)) == {"status": "ok"}
    refused(await c.call("GET", path, c.ada), 404)
    assert c.rows() == []
    assert ok(await c.call("GET", "/api/quota", c.ada))["storage_gb"]["used"] == 0


async def test_a_port_that_no_container_can_have_is_refused_and_in_no_rule(c: Computing) -> None:
    made = await c.running(c.ada)
    c.world.ports_refused = {8080}
    path = f"/compute/containers/{made['id']}/ingress"
    refused(await c.call("POST", path, c.ada, port=8080), 400, "port 8080: somebody has it")
    ok(await c.call("POST", path, c.ada, port=8081))
    assert [rule["port"] for rule in ok(await c.call("GET", path, c.ada))["rules"]] == [8081]
    key = (await c.key(c.bob))["id"]
    body = {"name": "box", "ssh_key_ids": [key], "ingress_rules": [{"port": 8080}]}
    refused(await c.call("POST", "/compute/containers", c.bob, **body), 400, "port 8080")


async def test_a_failure_that_comes_again_and_again_is_logged_once(
    c: Computing, caplog: pytest.LogCaptureFixture
) -> None:
    failures = ["no registry", "no registry", "no room", "no room"]
    create = c.module.backend.create

    async def refuse(spec: Spec) -> None:
        if failures:
            raise BackendUnavailable(failures.pop(0))
        await create(spec)

    with caplog.at_level(logging.INFO), mock.patch.object(c.module.backend, "create", refuse):
        row = await c.running(c.ada)
    said = [message for message in caplog.messages if f"container {row['id']}: " in message]
    assert [message.rpartition(": ")[2] for message in said] == [
        *("no registry", "no room", "works again")
    ]


async def test_a_failure_of_background_work_is_logged_once(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    background = Background()

    async def attempt(failure: str) -> str:
        async def work() -> None:
            if failure:
                raise BackendUnavailable(failure)

        try:
            await background.do("image x", work, 10.0, busy="busy", idle="not yet")
        except BackendUnavailable as error:
            return str(error)
        return ""

    assert await attempt("") == "not yet"
    await nursery.start(background.run)
    with caplog.at_level(logging.INFO):
        for failure in ("no registry", "no registry", "no room", "", "", "no room"):
            assert await attempt(failure) == failure
    said = [message.rpartition(": ")[2] for message in caplog.messages]
    assert said == ["no registry", "no room", "succeeded after failures", "no room"]
    nursery.cancel_scope.cancel()
