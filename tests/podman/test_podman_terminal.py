"""Terminals: the backend's, and through the WebSocket down to a slow browser."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
from pathlib import Path

import pytest
import sockets
import trio
import trio.testing
from checks import wait_for
from limits import HANG_SECONDS
from podman_here import Here, User, name_of, processes, runs_in
from podman_shell import Shell, prints, shell
from podman_stage import Stage, until, until_done
from signals import send

from control.compute.backend import BackendUnavailable, Impossible, Spec
from control.compute.podman import terminal

MIB = 1024**2


# --- the backend's ----------------------------------------------------------------------


async def test_a_command_has_a_terminal_of_the_size_one_gives_it(spec: Spec, here: Stage) -> None:
    # The size comes another way than what is typed, so it is not there with the answer.
    shows = "stty size; kill $!; exit 7"
    script = f"trap '{shows}' WINCH; stty size; echo $TERM; sleep 999 & wait"
    command = ["/bin/sh", "-c", script]
    with trio.fail_after(HANG_SECONDS):
        async with here.backend.exec(spec, command, columns=91, rows=17) as terminal:
            output = b""
            while b"xterm-256color" not in output:
                output += await terminal.receive()
            assert b"17 91\r\n" in output
            await terminal.resize(123, 45)
            while piece := await terminal.receive():
                output += piece
            assert b"45 123\r\n" in output
            assert terminal.exit_code == 7
            # Whoever goes on typing does no harm.
            await terminal.send(b"more\n")
            assert await terminal.receive() == b""


async def test_every_byte_typed_arrives_and_none_means_anything_to_us(
    spec: Spec, here: Stage
) -> None:
    """Podman would take Ctrl-P Ctrl-Q for itself."""
    typed = bytes(range(256)) * 8 + b"\x10\x11" * 8
    command = ["/bin/sh", "-c", f"stty raw -echo; echo ready; head -c {len(typed)} | sha256sum"]
    with trio.fail_after(HANG_SECONDS):
        async with here.backend.exec(spec, command) as terminal:
            output = b""
            while b"ready" not in output:
                output += await terminal.receive()
            await terminal.send(typed)
            while piece := await terminal.receive():
                output += piece
    assert hashlib.sha256(typed).hexdigest().encode() in output


async def test_more_input_than_a_terminal_has_room_for_waits_and_holds_nothing_up(
    spec: Spec, here: Stage
) -> None:
    size = 300_000
    # It prints more than a terminal holds before it reads anything.
    talks = (
        "stty raw -echo; echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; "
        f"head -c {size} /dev/zero | tr '\\0' y; exec head -c {size}"
    )
    with trio.fail_after(HANG_SECONDS):
        async with (
            here.backend.exec(spec, ["/bin/sh", "-c", talks]) as terminal,
            trio.open_nursery() as nursery,
        ):
            assert b"ready" in await terminal.receive()
            nursery.start_soon(terminal.send, b"x" * size)
            await trio.testing.wait_all_tasks_blocked(0.2)
            await here.shell(spec, "touch /tmp/go")
            printed = bytearray()
            while piece := await terminal.receive():
                printed += piece
    assert (printed.count(b"y"), printed.count(b"x")) == (size, size)
    deaf = ["/bin/sh", "-c", "stty raw -echo; echo ready; exec sleep 7654"]
    with trio.fail_after(HANG_SECONDS):
        async with here.backend.exec(spec, deaf) as terminal, trio.open_nursery() as nursery:
            assert b"ready" in await terminal.receive()
            nursery.start_soon(terminal.send, b"x" * size)
            await trio.testing.wait_all_tasks_blocked(0.2)
            nursery.cancel_scope.cancel()
    # Not even as one that nobody has waited for: its place among the terminals is free now.
    assert not runs_in(spec.id, "sleep\0007654")
    assert not held(here)
    assert not conmons_of_commands(spec.id)


async def test_a_container_is_removed_whose_terminal_is_blocked_by_its_input(
    spec: Spec, here: Stage
) -> None:
    """As Podman's own clients, and those of an older version of ours, can block it."""
    api = here.backend._api
    command = ["/bin/sh", "-c", "stty raw -echo; echo ready; exec sleep 6789"]
    with trio.fail_after(HANG_SECONDS):
        exec_id = await api.create_exec(name_of(spec.id), command, [])
        async with api.start_exec(exec_id, 80, 24, HANG_SECONDS) as (stream, printed):
            while b"ready" not in printed:
                printed += await stream.receive_some()
            await stream.send_all(b"x" * 100_000)
            [conmon] = conmons_of_commands(spec.id)
            await until(lambda: is_blocked(conmon), "full queue")
        await until_done(here.backend.delete, spec.id, spec.user_id)
    assert not conmons_of_commands(spec.id)
    assert not list((here.directory / "disks").glob(f"{spec.id}*"))


def is_blocked(conmon: int) -> bool:
    """Whether it waits in the kernel's code of terminals, and not for whatever comes next."""
    return Path(f"/proc/{conmon}/wchan").read_text() == "wait_woken"


async def test_a_command_ends_with_its_terminal_however_it_is_left(spec: Spec, here: Stage) -> None:
    deaf = "trap '' HUP; echo ready; while :; do sleep 4321; done"
    for command in ("echo ready; exec sleep 4321", deaf):
        with trio.fail_after(HANG_SECONDS):
            async with here.backend.exec(spec, ["/bin/sh", "-c", command]) as terminal:
                await terminal.receive()
            listed = await here.shell(spec, "ps -o args= -e")
        assert f"-c {command}" not in listed
        assert "sshd" in listed
    for seconds in (0.0, 0.02, 0.05, 0.1, 0.2):
        with trio.move_on_after(seconds):
            async with here.backend.exec(spec, ["sleep", "5432"]) as terminal:
                await trio.sleep_forever()
    await until(lambda: not runs_in(spec.id, "sleep\0005432"), "end of the commands")


async def test_twenty_at_once_all_open_and_leave_nothing(spec: Spec, here: Stage) -> None:
    opened = 0
    everybody, leave = trio.Event(), trio.Event()

    async def open_one(here: Stage, spec: Spec) -> None:
        nonlocal opened
        async with here.backend.exec(spec, ["sh", "-c", "echo on; read -r line"]) as terminal:
            assert b"on" in await terminal.receive()
            opened += 1
            if opened == 20:
                everybody.set()
            await leave.wait()

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one, here, spec)
            await everybody.wait()
            assert len(runs_in(spec.id, "sh\0-c\0echo on")) == 20
            leave.set()
    await until(lambda: not runs_in(spec.id, "sh\0-c\0echo on"), "end of the commands")
    await until(lambda: held(here) == [], "end of what is known of them")
    await until(lambda: not conmons_of_commands(spec.id), "end of what ran them")


async def test_a_command_that_podman_lost_sight_of_is_ended(
    spec: Spec, here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says of one whose start was not waited for that it does not run."""
    for seconds in (0.0, 0.02, 0.04, 0.08, 0.16):
        monkeypatch.setattr(terminal, "START_SECONDS", seconds)
        with contextlib.suppress(BackendUnavailable):
            async with here.backend.exec(spec, ["sleep", "8765"]):
                pass
    await until(lambda: not held(here), "end of what is known of them")
    await until(lambda: not runs_in(spec.id, "sleep\0008765"), "end of the commands")
    monkeypatch.undo()
    assert await here.shell(spec, "echo again") == "again\n"


async def test_one_whose_turn_does_not_come_is_refused_with_the_reason(
    spec: Spec, here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "TURN_SECONDS", 0.0)
    others = [object() for _ in range(terminal.STARTS_AT_ONCE)]
    starts = here.backend._terminals._starts
    for other in others:
        starts.acquire_on_behalf_of_nowait(other)
    with pytest.raises(BackendUnavailable, match="try again"):
        await here.execute(spec, ["true"])
    for other in others:
        starts.release_on_behalf_of(other)
    monkeypatch.undo()
    await here.execute(spec, ["true"])


def held(here: Stage) -> list[str]:
    """Commands that are not known to have ended."""
    return [name for name in os.listdir(here.directory / "terminals") if name != ".lock"]


def conmons_of_commands(container: str) -> list[int]:
    named = f"-{container}\0".encode()

    def is_it(entry: Path) -> bool:
        line = (entry / "cmdline").read_bytes()
        return named in line and b"\0--exec-attach\0" in line

    return processes(is_it)


async def test_without_a_run_there_is_no_terminal(spec: Spec, here: Stage) -> None:
    await here.backend.stop(spec)
    with pytest.raises(Impossible):
        await here.execute(spec, ["true"])
    never = here.spec()
    with pytest.raises(Impossible):
        await here.execute(never, ["true"])


async def test_a_terminal_ends_when_its_container_does_or_podman_dies(
    spec: Spec, here: Stage
) -> None:
    for end in ("stop", "service"):
        with trio.fail_after(HANG_SECONDS):
            async with here.backend.exec(spec, ["sh", "-c", "echo on; sleep 99"]) as terminal:
                assert b"on" in await terminal.receive()
                times = len(here.seen.syncs)
                if end == "stop":
                    await here.backend.stop(spec)
                    await here.backend.start(spec)
                else:
                    send(await here.service(), signal.SIGKILL)
                while await terminal.receive():
                    pass
        await here.seen.phase(spec, "running")
    await here.seen.until(lambda: len(here.seen.syncs) > times)
    await until(lambda: not runs_in(spec.id, "sleep\00099"), "end of the commands")
    assert await here.shell(spec, "echo again") == "again\n"


# --- through the WebSocket --------------------------------------------------------------


async def test_a_shell_in_a_browser(user: User) -> None:
    made = user.run()
    async with shell(user, made) as terminal:
        assert prints(await terminal.run("echo $((6*7)); tty; pwd; echo $TERM; stty size"), "42")
        assert prints(await terminal.run("stty size"), "24 80")
        await terminal.client.send('{"type":"resize","cols":132,"rows":43}')
        # Podman takes it another way than what is typed.
        with trio.fail_after(HANG_SECONDS):
            while not prints(await terminal.run("stty size"), "43 132"):
                pass
        await terminal.client.send(b"echo binary frames too\n")
        await terminal.until("\rbinary frames too")
        await terminal.client.send("exit\n")
        while await terminal.client.receive() is not None:
            pass
        assert terminal.client.close_code == 1000


async def test_a_shell_ends_with_its_browser(user: User) -> None:
    made = user.run()
    async with shell(user, made) as terminal:
        await terminal.run("(sleep 6543 &)")
        wait_for(lambda: runs_in(made, "sleep\0006543"), "command in the background")
    wait_for(lambda: not runs_in(made, "bash"), "end of the shell")


async def test_much_output_for_a_slow_reader_is_held_back_and_arrives_whole(
    cloud: Here, user: User
) -> None:
    made = user.run(mount_paths=["/data"], instance_type="small")
    size = 16 * MIB
    async with shell(user, made) as terminal:
        await terminal.run(f"head -c {size * 3 // 4} /dev/urandom | base64 -w 0 > /data/text")
        digest = await terminal.run("sha256sum < /data/text")
    (wanted,) = re.findall(r"\b[0-9a-f]{64}\b", digest)
    path = f"/compute/containers/{made}/terminal"
    before = resident(cloud)
    async with sockets.websocket(cloud.port, path, user.token, small=True) as client:
        terminal = Shell(client)
        await terminal.run("stty -opost")
        await client.send("cat /data/text; echo THE' 'END\n")
        (pid,) = await until(lambda: runs_in(made, "cat\0/data/text"), "the command")
        held = await until_it_rests(pid)
        # What the system's own buffers take, of which a connection has 4 MiB at most.
        assert held < 8 * MIB, "the command was not held back"
        assert resident(cloud) - before < 16 * MIB
        # With as little as before it would take a minute.
        client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4 * MIB)
        (text,) = re.findall(r"[A-Za-z0-9+/=]{10000,}", await terminal.until("THE END"))
        assert hashlib.sha256(text.encode()).hexdigest() == wanted
        assert resident(cloud) - before < 16 * MIB


def resident(here: Here) -> int:
    status = Path(f"/proc/{here.cloud.cluster.pid('control')}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


async def until_it_rests(pid: int) -> int:
    """How much a process has written when it sleeps and has written no more meanwhile."""
    before = -1
    with trio.fail_after(HANG_SECONDS):
        while True:
            state, written = written_by(pid)
            if state == "S" and written == before:
                return before
            before = written
            await trio.sleep(0.2)


def written_by(pid: int) -> tuple[str, int]:
    (written,) = re.findall(r"wchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state, int(written)


async def test_letters_beyond_ascii_are_letters_in_a_terminal_and_by_ssh(user: User) -> None:
    made = user.run(ssh_enabled=True)
    async with shell(user, made) as terminal:
        assert prints(await terminal.run("touch Grüße; ls"), "Grüße")
    # What ls shows to people, not to programs.
    assert user.ssh(made, "ls --quoting-style=shell-escape") == "Grüße\n"
    assert user.ssh(made, "locale charmap") == "UTF-8\n"


async def test_a_terminal_whose_container_is_stopped_says_so(cloud: Here, user: User) -> None:
    made = user.run()
    path = f"/compute/containers/{made}/terminal"
    async with sockets.websocket(cloud.port, path, user.token) as client:
        await Shell(client).run("true")
        user.act(made, "stop")
        with trio.fail_after(HANG_SECONDS):
            while await client.receive() is not None:
                pass
        assert client.close_code == 1011
        assert "the container was stopped" in (client.close_reason or "")


#: A second server with the image's settings, and its keys in such a directory.
SECOND_SERVER = """\
set -e
mkdir -m 1777 /tmp/keys && ssh-keygen -q -t ed25519 -N '' -f /tmp/id
cp /tmp/id.pub /tmp/keys/authorized_keys && chmod 0400 /tmp/keys/authorized_keys
sed s,/etc/gfs/keys,/tmp/keys, /etc/ssh/sshd_config.d/00-gfs.conf > /tmp/settings
/usr/sbin/sshd -f /tmp/settings -p 2222 -o PidFile=none
enter() {
    ssh -o BatchMode=yes -o StrictHostKeyChecking=no -i /tmp/id -p 2222 127.0.0.1 true 2>/dev/null
}
enter && echo in
: > /tmp/keys/authorized_keys && enter || echo out
"""


async def test_keys_are_read_at_each_login_also_where_all_might_write(here: Stage) -> None:
    """As a volume of Kubernetes' is, which shows changes in a running pod: of the mode 1777,
    though nobody can write to it."""
    assert await here.shell(await here.run(), SECOND_SERVER) == "in\nout\n"
