"""Podman's backend as far as it needs no Podman: what it asks for and what answers mean, its
HTTP over a real socket, and the files by which commands of dead processes are found."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import tty
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from backend_seen import spec
from limits import HANG_SECONDS

from control.compute.backend import BackendUnavailable, Port
from control.compute.podman import terminal as terminal_module
from control.compute.podman.engine import LABEL_GENERATION, Inspected, Refused, State
from control.compute.podman.engine import http as module
from control.compute.podman.engine.answers import Config, NetworkSettings
from control.compute.podman.engine.api import Execution
from control.compute.podman.engine.http import Client
from control.compute.podman.engine.service import environment
from control.compute.podman.logs import Lines
from control.compute.podman.shapes import (
    PTYS,
    RESTARTS,
    container_body,
    has_ended_for_good,
    network_body,
    sighting,
)
from control.compute.podman.store import Disk
from control.compute.podman.store.images import REASON_LENGTH, _cannot
from control.compute.podman.terminal import Leashes, PodmanTerminal

SPEC = spec(id="1f2e3d4c", memory_mb=512, mount_paths=("/root", "/srv"), ports=(Port(80, 8080),))


# --- what is asked for, and what it means ------------------------------------------------


def test_a_container_is_alone_and_has_no_more_than_it_needs() -> None:
    disk = Disk(Path("/f"), Path("/disk"), 70000)
    body = container_body("c" * 16, SPEC, disk, (7, 5), Path("/calls"))
    users = [{"container_id": 0, "host_id": 70000, "size": 65536}]
    alone = {
        "userns": {"nsmode": "private"},
        "idmappings": {"UIDMap": users, "GIDMap": users},
        "netns": {"nsmode": "bridge"},
        "networks": {"gfs-cccccccccccc-1f2e3d4c": {}},
        "cap_drop": ["ALL"],
        "no_new_privileges": True,
        "seccomp_profile_path": "/calls",
        "httpproxy": False,
        "restart_tries": RESTARTS,
    }
    assert {name: body[name] for name in alone} == alone
    assert "CAP_SYS_ADMIN" not in body["cap_add"]
    limits = body["resource_limits"]
    throttled = limits.pop("blockIO")
    assert sorted(throttled) == sorted(
        f"throttle{way}{unit}Device" for way in ("Read", "Write") for unit in ("Bps", "IOPS")
    )
    for [rate] in throttled.values():
        assert (rate["major"], rate["minor"]) == (7, 5)
        assert rate["rate"] > 0
    assert limits == {
        "cpu": {"period": 100_000, "quota": 50_000},
        "memory": {"limit": 512 << 20, "swap": 512 << 20},
        "pids": {"limit": 1024},
    }
    assert {"type": "core", "hard": 0, "soft": 0} in body["r_limits"]
    *mounts, ptys = body["mounts"]
    assert (ptys["type"], ptys["destination"]) == ("devpts", "/dev/pts")
    assert f"max={PTYS}" in ptys["options"]
    for mount in mounts:
        assert {"bind", "rprivate", "nosuid", "nodev"} < set(mount["options"])
        assert mount["source"].startswith("/disk/")
        is_own = mount["destination"] in ("/root", "/srv", "/etc/gfs/host_keys")
        assert is_own != ("noexec" in mount["options"])
        assert ("ro" in mount["options"]) == (mount["destination"] == "/etc/gfs/keys")
    network = network_body("c" * 16, SPEC)
    assert network["options"] == {"isolate": "strict"}
    assert network["dns_enabled"] is False
    assert len(network["network_interface"]) <= 15


@pytest.mark.parametrize(
    ("state", "more", "phase", "reason"),
    [
        (None, {}, "stopped", ""),
        (State("running"), {}, "running", ""),
        (State("paused"), {}, "running", ""),
        (State("running"), {"answering": False}, "initializing", ""),
        (State("running"), {"unnoticed": True}, "failed", "its conmon process had ended before"),
        (State("created"), {}, "initializing", ""),
        (State("stopping"), {}, "stopped", ""),
        (State("exited", stopped_by_user=True, exit_code=137), {}, "stopped", "outside of this"),
        (State("exited"), {}, "stopped", "It ended by itself."),
        (
            State("exited", exit_code=3),
            {"restarts": RESTARTS - 1, "seconds_since_end": 9.0},
            "initializing",
            "Its first process ended with code 3. It is started again.",
        ),
        (State("exited", exit_code=3), {"restarts": RESTARTS}, "failed", "ended with code 3."),
        (State("exited", exit_code=3), {"seconds_since_end": 10.0}, "failed", "with code 3."),
        (
            State("exited", exit_code=137, oom_killed=True, error="killed"),
            {"restarts": RESTARTS},
            "failed",
            "It ran out of memory.",
        ),
        (
            State("exited", exit_code=127, error="no\n such  file"),
            {"restarts": RESTARTS},
            "failed",
            "no such file",
        ),
    ],
)
def test_what_a_run_of_podman_means(
    state: State | None, more: dict[str, Any], phase: str, reason: str
) -> None:
    config = Config(labels={LABEL_GENERATION: "3"})
    restarts = more.pop("restarts", 0) if "restarts" in (more := dict(more)) else 0
    seen = state and Inspected("id", state, config, NetworkSettings(), restarts)
    known = {"answering": True, "unnoticed": False, "seconds_since_end": 0.0, **more}
    found = sighting(SPEC.id, SPEC.user_id, seen, external_ip="192.0.2.7", **known)
    assert (found.phase, found.generation) == (phase, 0 if state is None else 3)
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)
    assert found.external_ip == ("192.0.2.7" if phase == "running" else "")


@pytest.mark.parametrize(
    ("state", "restarts", "ended"),
    [
        (State("running", stopped_by_user=True), 0, False),
        (State("exited", exit_code=137, stopped_by_user=True), 0, True),
        (State("exited"), 0, True),
        (State("exited", exit_code=3), RESTARTS - 1, False),
        (State("exited", exit_code=3), RESTARTS, True),
        (State("created"), 0, False),
    ],
)
def test_which_run_is_not_started_again_by_podman(state: State, restarts: int, ended: bool) -> None:
    seen = Inspected("id", state, Config(), NetworkSettings(), restarts)
    assert has_ended_for_good(seen) is ended


def test_of_what_podman_says_of_an_image_the_end_is_shown() -> None:
    image = "example.org/image:1"
    room = REASON_LENGTH - len(_cannot(image, ""))
    assert _cannot(image, "x" * room).endswith(f"says: {'x' * room}")
    assert _cannot(image, "x" * room + "y").endswith(f"says: …{'x' * (room - 2)}y")
    assert "podman build -t localhost" in _cannot("localhost/gfs-compute:1", "")


# --- HTTP ---------------------------------------------------------------------------------


@asynccontextmanager
async def answering(
    directory: Path, answer: bytes
) -> AsyncGenerator[tuple[Client, list[bytes]], None]:
    """A service that answers every request with these bytes, and what it was asked."""
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            asked.append(bytes(await stream.receive_some()))
            await stream.send_all(answer)
            if b" 101 " in answer:
                await stream.send_all(await stream.receive_some())

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "sock"))
        listening.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield Client(str(directory), "sock"), asked
            nursery.cancel_scope.cancel()


def http(status: str, body: bytes = b"", *, missing: int = 0) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) + missing}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http("200 OK", b"{}"), b"{}"),
        (http("204 No Content"), b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + http("200 OK", b"[]"), b"[]"),
        (http("409 Conflict", b'{"message": "the name\\n is  used"}'), "409: the name is used"),
        (http("500 Internal Server Error"), "500: status 500"),
        (http("404 Not Found", b"<p>no page"), "404: <p>no page"),
        (http("200 OK", b"{", missing=1), "hung up in its answer"),
        (b"", "hung up in its answer"),
        (http("200 OK", bytes(1001)), "answer is too long"),
    ],
)
async def test_an_answer_is_whole_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, expected: bytes | str
) -> None:
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 1000)
    async with answering(tmp_path, answer) as (client, asked):
        try:
            found: bytes | str = (await client.ask("POST", "/a b", {"t": "1"}, json=[1])).body
        except Refused as error:
            found = f"{error.status}: {error}"
        except BackendUnavailable as error:
            found = str(error)
    assert (found == expected) if isinstance(expected, bytes) else (str(expected) in str(found))
    assert asked[0].startswith(b"POST /v4.0.0/libpod/a%20b?t=1 HTTP/1.1\r\n")
    assert asked[0].endswith(b"\r\n\r\n[1]")


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_what_a_container_says_comes_in_lines_of_each_stream(step: int) -> None:
    frames = [(1, b"one\ntw"), (2, b"wrong\r\n"), (1, b"o\nend"), (2, b"half")]
    sent = b"".join(
        bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for stream, text in frames
    )
    lines = Lines()
    found = [line for at in range(0, len(sent), step) for line in lines.feed(sent[at : at + step])]
    assert found == ["one", "wrong", "two"]
    assert [*lines.end(), *lines.end()] == ["end", "half"]


async def test_a_stream_is_read_as_it_comes_or_refused(tmp_path: Path) -> None:
    async with (
        answering(tmp_path, http("200 OK", b"some")) as (client, _),
        client.stream("/logs") as body,
    ):
        assert [await body.receive(), await body.receive()] == [b"some", b""]
    (tmp_path / "sock").unlink()
    async with answering(tmp_path, http("404 Not Found", b"{}")) as (client, _):
        with pytest.raises(Refused):
            async with client.stream("/logs"):
                pass


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst", "first"),
        (http("200 OK", b"{}"), "did not open a stream for /exec"),
        (http("409 Conflict", b"{}"), "status 409"),
    ],
)
async def test_a_raw_stream_is_opened_or_refused(
    tmp_path: Path, answer: bytes, expected: str
) -> None:
    async with answering(tmp_path, answer) as (client, asked):
        try:
            async with client.hijack("/exec", {}, seconds=10.0) as (stream, first):
                await stream.send_all(b"typed")
                assert await stream.receive_some() == b"typed"
                found = first.decode()
        except (Refused, BackendUnavailable) as error:
            found = str(error)
    assert expected in found
    assert b"\r\nUpgrade: tcp\r\n" in asked[0]


async def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    client = Client(str(tmp_path), "sock")
    with pytest.raises(BackendUnavailable, match="service does not answer"):
        await client.ask("GET", "/info")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "sock"))
        silent.listen()
        with pytest.raises(BackendUnavailable, match="did not answer GET /info"):
            await client.ask("GET", "/info", seconds=0.01)


# --- terminals ----------------------------------------------------------------------------


async def test_a_terminal_has_all_output_and_then_the_exit_code() -> None:
    near, far = socket.socketpair()
    with near, far:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        seen = [Execution(running=True), Execution(running=False, exit_code=7)]
        api = mock.Mock(inspect_exec=mock.AsyncMock(side_effect=seen))
        terminal = PodmanTerminal(api, "an id", stream, b"first", None)
        with trio.testing.assert_checkpoints():
            assert await terminal.receive() == b"first"
        far.send(b"last")
        assert await terminal.receive() == b"last"
        assert terminal.exit_code is None
        far.close()
        assert await terminal.receive() == b""
        assert terminal.exit_code == 7
        await terminal.send(b"typed after the end")


async def test_what_is_typed_waits_for_room_and_is_dropped_after_the_end() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    terminal = PodmanTerminal(mock.Mock(), "an id", mock.Mock(), b"", master)
    typed = bytes(range(256)) * 400
    read = b""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminal.send, typed)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(HANG_SECONDS):
                while len(read) < len(typed):
                    await trio.lowlevel.wait_readable(slave)
                    read += os.read(slave, 4096)
        assert read == typed
        with trio.move_on_after(0.0):
            await terminal.send(typed)
    finally:
        os.close(slave)
    with trio.fail_after(HANG_SECONDS), trio.testing.assert_checkpoints():
        await terminal.send(typed)
    os.close(master)


@pytest.mark.real
def test_a_command_whose_conmon_does_not_notice_its_end_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_module, "REAP_SECONDS", 0.05)
    (tmp_path / "conmon").symlink_to("/bin/sh")
    # A shell that reads does not look after its children. After `echo` it would.
    command = [tmp_path / "conmon", "-c", "sh -c 'echo $$; exec sleep 999' & read -r line"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as conmon:
        assert conmon.stdout is not None
        trio.run(terminal_module._end, os.pidfd_open(int(conmon.stdout.readline())))
        assert conmon.wait(HANG_SECONDS) == -signal.SIGKILL


def test_a_command_whose_process_died_is_found_once(tmp_path: Path) -> None:
    leashes, others = Leashes(tmp_path / "terminals"), Leashes(tmp_path / "terminals")
    kept, lost = leashes.take("kept"), leashes.take("lost")
    assert others.dropped() == []
    lost.let_go()
    [found] = others.dropped()
    assert found.exec_id == "lost"
    assert leashes.dropped() == []
    found.remove()
    found.let_go()
    assert leashes.dropped() == []
    kept.let_go()
    assert [each.exec_id for each in others.dropped()] == ["kept"]


def test_what_runs_containers_gets_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GFS_ADMIN_PASSWORD", "GFS_CONTROL_RECORDS", "PGPASSWORD"):
        monkeypatch.setenv(name, "a secret 4713")
    found = environment({"MORE": "1"})
    assert "a secret 4713" not in found.values()
    assert found["PATH"] == os.environ["PATH"]
