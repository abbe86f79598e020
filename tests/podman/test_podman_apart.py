"""What a container may not: reach this machine or others, gain rights, speak to Podman."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from checks import unique, wait_for
from limits import HANG_SECONDS
from neighbours import place
from podman_here import Here, User, inspect, left_of, remove
from podman_image import image, podman
from podman_outside import outside, run
from podman_stage import Stage, stage, until
from processes import free_port

from control.compute.backend import (
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    BackendUnavailable,
    Port,
    Spec,
)
from control.compute.podman import shapes, watching
from control.compute.podman.network import fence

pytestmark = pytest.mark.usefixtures("containers_work")

#: This and the next one are those of other services of this machine, too, in some tests.
PORT = 8200 + 2 * place(900)


async def fetched(here: Stage, spec: Spec, *urls: str, seconds: float = 1) -> list[str]:
    """For each what curl printed in the container, or the code it ended with. It gives up after
    some time, which is short for who is not to be reached."""
    found = []
    for url in urls:
        command = ["curl", "-s", "--connect-timeout", str(seconds), url]
        output, code = await here.execute(spec, command)
        found.append(output.strip() if code == 0 else str(code))
    return found


async def reached(here: Stage, spec: Spec, *urls: str) -> list[str]:
    return await fetched(here, spec, *urls, seconds=HANG_SECONDS)


@contextmanager
def link_local_server() -> Iterator[tuple[str, str]]:
    """The address of a neighbour of this machine's that serves a page on ports 80 and 53, and
    where this machine serves one at its own address there."""
    with outside(1) as there, contextlib.ExitStack() as stack:
        (theirs,), port = there.addresses, free_port()
        python = (sys.executable, "-c", SERVES)
        for command in (
            *(there.command(*python, theirs, number) for number in ("80", "53")),
            [*python, there.here, str(port)],
        ):
            server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == b"serves\n"
        yield theirs, f"{there.here}:{port}"


SERVES = """
import contextlib, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("serves", flush=True)
while True:
    stream = listener.accept()[0]
    with stream, contextlib.suppress(OSError):
        stream.recv(4096)
        stream.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nsecret\\n")
"""


async def test_secrets_that_a_cloud_gives_this_machine_do_not_reach_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(fence, "RESOLVERS", (resolv_conf, tmp_path / "none"))
    with link_local_server() as (host, own):
        # Others on this machine are none of our concern, and show that there is a way.
        curl = ("curl", "-sS", f"http://{host}/")
        assert podman("run", "--rm", "--network", "podman", image(), *curl).stdout == "secret\n"
        async with stage(tmp_path / "stage") as here:
            spec = await here.run()
            urls = (f"http://{host}/", f"http://{own}/", f"http://{host}:53/")
            assert await fetched(here, spec, *urls) == ["28", "28", "28"]
            run("nft", "delete", "table", "inet", fence.table_name(here.cluster))
            await until(lambda: stands(here), "firewall, back by itself")
            assert await fetched(here, spec, urls[0]) == ["28"]
            # Names are asked for where this machine asks, and nothing else there.
            resolv_conf.write_text(f"nameserver 127.0.0.53\nnameserver {host}\n")
            await here.backend._fence.ensure()
            assert await fetched(here, spec, *urls[:2]) == ["28", "28"]
            assert await reached(here, spec, urls[2]) == ["secret"]
        # An operator may open networks.
        async with stage(
            tmp_path / "open", open_networks=f"{host}/32, {own.partition(':')[0]}/32"
        ) as here:
            spec = await here.run()
            assert await reached(here, spec, *urls) == ["secret"] * 3


@pytest.mark.parametrize("stands_again", [False, True])
async def test_what_a_container_began_while_all_tables_were_flushed_goes_on_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_again: bool
) -> None:
    monkeypatch.setattr(fence, "AGAIN_SECONDS", 3600)
    monkeypatch.setattr(fence, "LOOK_SECONDS", 3600)
    with link_local_server() as (host, _):
        async with stage(tmp_path / "stage") as here:
            spec = await here.run()
            run("nft", "delete", "table", "inet", fence.table_name(here.cluster))
            seconds = 5 if stands_again else int(HANG_SECONDS)
            talk = (
                f"exec 3<>/dev/tcp/{host}/80; touch /tmp/open; "
                "until [ -e /tmp/go ]; do sleep 0.1; done; "
                # The server ends when it has answered, and may reset the connection.
                f"printf x >&3; timeout {seconds} cat <&3 2>/dev/null | tail -n 1"
            )
            heard: list[str] = []

            async def begin() -> None:
                heard.append(await here.shell(spec, f"bash -c '{talk}'"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin)
                await here.shell(spec, "until [ -e /tmp/open ]; do sleep 0.1; done")
                if stands_again:
                    await here.backend._fence.ensure()
                await here.shell(spec, "touch /tmp/go")
    assert heard == ["" if stands_again else "secret\n"]


def stands(here: Stage) -> bool:
    command = ["nft", "list", "table", "inet", fence.table_name(here.cluster)]
    return subprocess.run(command, capture_output=True, timeout=HANG_SECONDS).returncode == 0


async def test_without_a_fence_no_container_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "rules", lambda *_: "no rules of nft\n")
    async with stage(tmp_path / "stage") as here:
        spec = here.spec()
        with pytest.raises(
            BackendUnavailable, match=r"private networks.*nft failed.*Install nftables"
        ):
            await here.backend.start(spec)
        assert inspect(spec.id)["State"]["Status"] == "created"
        monkeypatch.undo()
        await here.backend.start(spec)
        await here.seen.phase(spec, "running")


async def test_a_container_has_no_more_rights_than_it_needs(here: Stage) -> None:
    spec = await here.run(ssh_enabled=True)
    pid = inspect(spec.id)["State"]["Pid"]
    words = status_of(pid)
    wanted = sum(1 << CAPABILITIES[name] for name in shapes.CAPABILITIES)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(words[name], 16) == wanted
    assert int(words["CapInh"], 16) == int(words["CapAmb"], 16) == 0
    assert words["NoNewPrivs"].strip() == "1"
    assert words["Seccomp"].strip() == "2"
    for kind in ("mnt", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


#: linux/capability.h
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
}


def test_the_socket_is_ours_alone_and_podman_gets_none_of_our_settings(cloud: Here) -> None:
    directory = cloud.control / "compute"
    wait_for((directory / "podman.sock").exists, "service of Podman's")
    service = wait_for(cloud.service, "its process")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_ISSOCK((directory / "podman.sock").stat().st_mode)
    names = {
        entry.partition(b"=")[0]
        for entry in Path(f"/proc/{service}/environ").read_bytes().split(b"\0")
    }
    assert not [name for name in names if name.startswith(b"GFS_")]


async def test_who_has_made_all_files_of_his_disk_starts_again_and_loses_deleted_keys(
    here: Stage,
) -> None:
    spec = await here.run(ssh_keys=("first", "second"))
    make = "for ($i = 0; open(F, q(>), qq(/root/$i)); $i++) {} exit($!{ENOSPC} ? 0 : 1)"
    await here.shell(spec, f"perl -MErrno -e '{make}'")
    await here.backend.expose(spec_with(spec, ssh_keys=("first",)))
    read = "cat /etc/gfs/keys/*"
    assert await here.shell(spec, read) == "first\n"
    await here.backend.stop(spec)
    again = spec_with(spec, ssh_keys=(), generation=2)
    await here.backend.start(again)
    await here.seen.phase(again, "running")
    assert await here.shell(again, read) == ""


async def test_hostile_words_are_only_words(tmp_path: Path) -> None:
    """Names and keys are checked before they come here; should one slip through, it is
    in no command and in no path."""
    marker = tmp_path / "marker"
    hostile = f"'; touch {marker}; $(touch {marker}) `touch {marker}` \\\" \n --privileged {{}}"
    async with stage(tmp_path / "stage") as here:
        spec = await here.run(
            name=hostile,
            ssh_keys=(hostile.replace("\n", " "),),
            mount_paths=("/srv/with space; $(x) 'quotes'", "/srv/ünïcode-✓"),
        )
        keys = await here.shell(spec, "cat /etc/gfs/keys/authorized_keys")
        assert keys == hostile.replace("\n", " ") + "\n"
        assert (await here.shell(spec, "ls /srv | cat")).splitlines() == [
            "with space; $(x) 'quotes'",
            "ünïcode-✓",
        ]
        assert inspect(spec.id)["HostConfig"]["Privileged"] is False
    assert not marker.exists()


# --- others on the machine --------------------------------------------------------------


def make_things(cluster: str, container: str, name: str) -> list[str]:
    """A container, a volume and a network, by hand, with the labels of compute."""
    labels = {
        LABEL_MANAGED: "true",
        LABEL_CLUSTER: cluster,
        LABEL_CONTAINER: container,
        LABEL_USER: "aZ09bY",
    }
    flags = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    podman("volume", "create", *flags, name)
    podman("network", "create", *flags, name)
    podman("create", *flags, "--name", name, "-v", f"{name}:/srv", "--network", name, image())
    return [f"{kind} {name}" for kind in ("container", "volume", "network")]


def test_only_what_is_ours_and_in_no_record_is_removed(cloud: Here, user: User) -> None:
    made = user.run()
    ours, foreign = cloud.installation(), secrets.token_hex(8)
    try:
        # Another installation may have a container of the same id.
        kept = make_things(foreign, made, f"gfs-{foreign[:12]}-{made}")
        orphans = [secrets.token_hex(4) for _ in range(2)]
        make_things(ours, orphans[0], f"gfs-{ours[:12]}-{orphans[0]}")
        make_things(ours, orphans[1], unique("by-another-name"))
        for orphan in orphans:
            wait_for(lambda orphan=orphan: not left_of(LABEL_CONTAINER, orphan), "end of it")
        user.act(made, "stop")
        user.delete(made)
        assert sorted(left_of(LABEL_CLUSTER, foreign)) == sorted(kept)
    finally:
        remove(left_of(LABEL_CLUSTER, foreign))


async def test_a_disk_that_podman_knows_nothing_of_is_seen_and_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LIST_SECONDS", 0.5)
    disks = tmp_path / "stage" / "disks"
    async with stage(tmp_path / "stage") as here:
        disks.mkdir(exist_ok=True)
        ours = f"gfs-{here.cluster[:12]}"
        for name, label in (("0badcafe", ours), ("0badf00d", f"gfs-{secrets.token_hex(6)}")):
            run("mkfs.ext4", "-q", "-L", label, str(disks / f"{name}.1.ext4"), "2M")
        await here.seen.until(lambda: "0badcafe" in here.seen.now)
        assert here.seen.now["0badcafe"].phase == "stopped"
        await here.backend.delete("0badcafe", "")
        await here.seen.until(lambda: "0badcafe" not in here.seen.now)
        assert "0badf00d" not in here.seen.now
        # Another installation's.
        assert os.listdir(disks) == ["0badf00d.1.ext4"]


async def test_a_container_of_an_older_version_whose_root_is_this_machines_is_named(
    here: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body = shapes.container_body

    def as_before(*words: Any) -> dict[str, Any]:
        made = body(*words)
        del made["userns"], made["idmappings"]
        return made

    with monkeypatch.context() as patched:
        patched.setattr(shapes, "container_body", as_before)
        spec = await here.run()
    assert here.seen.now[spec.id].reason == watching.AS_ROOT
    assert caplog.text.count(f"{spec.id}: {watching.AS_ROOT}") == 1
    other = await here.run()
    assert here.seen.now[other.id].reason == ""


async def test_several_containers_have_the_same_port_each_on_its_own_address(here: Stage) -> None:
    specs = [await here.run(ports=(Port(PORT, 80),)) for _ in range(2)]
    addresses = []
    for number, spec in enumerate(specs):
        await here.shell(spec, f"mkdir /web; echo {number} > /web/index.html")
        await here.shell(spec, "busybox httpd -p 80 -h /web")
        sighting = await here.seen.phase(spec, "running")
        assert sighting.reason == ""
        addresses.append(sighting.external_ip)
    assert len(set(addresses)) == 2
    for number, host in enumerate(addresses):
        assert await page_of(host, PORT) == f"{number}\n"
    # Other services' address is none of theirs.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", PORT))


async def test_two_installations_on_one_machine_have_addresses_of_their_own(tmp_path: Path) -> None:
    async with (
        stage(tmp_path / "one", cluster=f"0{secrets.token_hex(8)[1:]}") as one,
        stage(tmp_path / "two", cluster=f"1{secrets.token_hex(8)[1:]}") as two,
    ):
        for number, here in enumerate((one, two)):
            spec = await here.run(ports=(Port(PORT, 80),))
            await here.shell(spec, f"mkdir /web; echo {number} > /web/index.html")
            await here.shell(spec, "busybox httpd -p 80 -h /web")
        for number, here in enumerate((one, two)):
            (seen,) = here.seen.now.values()
            assert (seen.phase, seen.reason) == ("running", "")
            assert await page_of(seen.external_ip, PORT) == f"{number}\n"


async def page_of(host: str, port: int) -> str:
    with trio.fail_after(HANG_SECONDS):
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := await stream.receive_some():
                answer += piece
    return answer.partition(b"\r\n\r\n")[2].decode()


async def test_a_container_never_gets_the_port_of_another_service_also_after_its_restart(
    tmp_path: Path,
) -> None:
    """What a tenant would receive there are others' logins."""
    taken, partly = PORT, PORT + 1
    wanted = (Port(taken, 80), Port(partly, 80))
    async with contextlib.AsyncExitStack() as stack:
        with socket.create_server(("0.0.0.0", taken)), socket.create_server(("127.0.0.1", partly)):
            here = await stack.enter_async_context(stage(tmp_path / "stage"))
            spec = await here.run(ports=wanted)
            seen = await here.seen.phase(spec, "running")
            assert f"port {taken}" in seen.reason
            assert "another service of this machine has it" in seen.reason
            assert "another service" in here.backend.port_refusal(taken)
            assert here.backend.port_refusal(partly) == ""
        # Both are down for a moment, and the tenant asks again.
        await here.backend.expose(spec_with(spec, ports=()))
        await here.backend.expose(spec)
        for port in (taken, partly):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        with socket.create_server(("0.0.0.0", taken)), socket.create_server(("127.0.0.1", partly)):
            pass
        # The other of the two is only on one address, and the container has its own.
        await here.shell(spec, "mkdir /web; echo mine > /web/index.html")
        await here.shell(spec, "busybox httpd -p 80 -h /web")
        assert await page_of(seen.external_ip, partly) == "mine\n"


async def test_a_container_whose_ssh_port_another_service_took_gets_another(here: Stage) -> None:
    spec = here.spec(ssh_enabled=True)
    await here.backend.create(spec)
    port = here.backend._slots.ssh_port(spec.id)
    with socket.create_server(("127.0.0.1", port)):
        await here.backend.start(spec)
        assert (await here.seen.phase(spec, "running")).reason == ""
    command = here.backend.ssh_command(spec)
    assert f"-p {port} " not in command
    with trio.fail_after(HANG_SECONDS):
        async with await trio.open_tcp_stream("127.0.0.1", int(command.split()[2])) as stream:
            assert (await stream.receive_some()).startswith(b"SSH-")


def spec_with(spec: Spec, **changes: object) -> Spec:
    return msgspec.structs.replace(spec, **changes)
