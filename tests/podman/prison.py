"""Tries to get out of a container; prints, as JSON, what came of each try.

    python prison.py DIRECTORY

In a network namespace of its own, which stands for a whole machine: what is tried are real
addresses of clouds' metadata, and no packet leaves this machine. Beside the prisoner's
container there is another tenant's. See ``test_podman_escapes.py``, which runs this.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

from escapes import (
    ESCAPES,
    FLOOD,
    HERE,
    MANY_CONNECTIONS,
    OUTSIDE,
    OUTSIDE_ADDRESSES,
    PERMITTED,
    PUBLIC,
    RESOLVER,
)
from limits import HANG_SECONDS
from podman_here import inspect, runs_in
from podman_stage import Stage, stage, until
from signals import send

from control.compute.backend import BackendUnavailable, Port, Spec
from control.compute.podman import shapes
from control.compute.podman.network import fence
from control.compute.podman.shapes import interface_prefix

#: In a container.
SERVE = "mkdir /web; echo theirs > /web/index.html; busybox httpd -p 80 -h /web"
CLONE_NEWNET = 0x40000000

#: Serves a page on every address, at ports 80 and 53.
SERVES = """
import socket, threading
def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        stream = listener.accept()[0]
        with stream:
            stream.recv(4096)
            stream.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nsecret\\n")
for port in (80, 53):
    threading.Thread(target=serve, args=(port,)).start()
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=HANG_SECONDS)


@contextlib.contextmanager
def machine() -> Iterator[None]:
    """Our own network from here on, with a way to another namespace that is the world."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    run("ip", "link", "set", "lo", "up")
    world = f"gfs-tests-world-{os.getpid()}"
    run("ip", "netns", "add", world)
    try:
        run("ip", "link", "add", "world", "type", "veth", "peer", "name", "eth0", "netns", world)
        for address in HERE:
            add(address, "world")
        run("ip", "link", "set", "world", "up")
        inside = ("ip", "-n", world)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        for address in (*OUTSIDE, *OUTSIDE_ADDRESSES):
            add(address, "eth0", *inside[1:])
        for address in OUTSIDE:
            family = "-6" if ":" in address else "-4"
            run("ip", family, "route", "add", "default", "via", address.partition("/")[0])
        with contextlib.ExitStack() as stack:
            command = [sys.executable, "-c", SERVES]
            for prefix in ([], ["ip", "netns", "exec", world]):
                server = stack.enter_context(subprocess.Popen([*prefix, *command]))
                stack.callback(server.kill)
            yield
    finally:
        run("ip", "netns", "delete", world)


def add(address: str, device: str, *options: str) -> None:
    flags = ["nodad"] if ":" in address else []
    run("ip", *options, "address", "add", address, "dev", device, *flags)


async def reached(address: str, port: int) -> bool:
    """Whether this machine itself gets the page: then a container could."""
    with trio.move_on_after(HANG_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                async with await trio.open_tcp_stream(address, port) as stream:
                    await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                    return bool(await stream.receive_some())
            await trio.sleep(0.05)
    return False


async def tried(here: Stage, prisoner: Spec, other: Spec) -> dict[str, object]:
    """Escape -> how it ended: code 0 is an escape."""
    words = {
        "OTHER": address_of(other),
        "OTHERS": here.seen.now[other.id].external_ip,
        "GATEWAY": gateway_of(prisoner),
        "LINK": link_of(prisoner, here),
        "PID": str(inspect(other.id)["State"]["Pid"]),
        "STATE": str(here.directory),
    }
    found: dict[str, object] = {}
    for escape in (*PERMITTED, *ESCAPES):
        command = escape.command
        for word, value in words.items():
            command = command.replace(f"@{word}@", value)
        output, code = await here.execute(prisoner, ["/bin/sh", "-c", command])
        found[escape.name] = [code, output[-500:]]
    return found


async def flooded(here: Stage, prisoner: Spec, other: Spec) -> dict[str, Any]:
    """What is left for others when the prisoner has taken what he gets."""
    story: dict[str, Any] = {"taken": await here.shell(prisoner, FLOOD)}
    story["other"] = await here.shell(other, "tty")
    instance = ctypes.CDLL(None).inotify_init()
    story["machine"] = instance >= 0
    if instance >= 0:
        os.close(instance)
    try:
        await here.shell(prisoner, "tty")
        story["prisoner"] = "has a terminal"
    except BackendUnavailable as error:
        story["prisoner"] = str(error)
    for pid in runs_in(prisoner.id, "perl"):
        send(pid, signal.SIGKILL)
    await until(lambda: not runs_in(prisoner.id, "perl"), "end of the flood")
    return story


def network(spec: Spec) -> dict[str, str]:
    (found,) = inspect(spec.id)["NetworkSettings"]["Networks"].values()
    return dict(found)


def address_of(spec: Spec) -> str:
    return network(spec)["IPAddress"]


def gateway_of(spec: Spec) -> str:
    return network(spec)["Gateway"]


def link_of(spec: Spec, here: Stage) -> str:
    """This machine's IPv6 address on the container's network, which nobody gave it."""
    interface = f"{interface_prefix(here.cluster)}{spec.id}"
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        words = line.split()
        if words[-1] == interface and words[0].startswith("fe80"):
            return str(ipaddress.IPv6Address(int(words[0], 16)))
    raise AssertionError(f"no address of {interface}")


def connections() -> int:
    """That this machine follows: some for all that goes on here, too."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def users_of(spec: Spec) -> list[int]:
    pid = inspect(spec.id)["State"]["Pid"]
    return [int(word) for word in Path(f"/proc/{pid}/uid_map").read_text().split()]


async def main(directory: Path) -> None:
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text(f"nameserver {RESOLVER}\n")
    fence.RESOLVERS = (resolv_conf,)
    story: dict[str, Any] = {}
    # Ours have IPv4 alone, and what keeps IPv6 from them shall be tried all the same.
    body = shapes.network_body
    shapes.network_body = lambda *words, **more: {**body(*words, **more), "ipv6_enabled": True}
    with machine():
        async with (
            stage(directory / "stage") as here,
            # Another installation, whose ports are at an address of this machine's.
            stage(directory / "public", gateway_host=PUBLIC, cluster="f" * 16) as public,
        ):
            open_to_all = await public.run(ports=(Port(80, 80), Port(8098, 80)))
            await public.shell(open_to_all, SERVE)
            seen = await public.seen.phase(open_to_all, "running")
            story["public"] = [seen.external_ip, seen.reason, await reached(PUBLIC, 8098)]
            other = await here.run(ports=(Port(8099, 80),))
            await here.shell(other, f"{SERVE}; echo theirs > /root/file")
            prisoner = await here.run(memory_mb=256, storage_gb=1)
            addresses = [each.partition("/")[0] for each in (*OUTSIDE_ADDRESSES, *HERE)]
            story["reached"] = {each: await reached(each, 80) for each in addresses}
            link = f"{link_of(prisoner, here)}%{interface_prefix(here.cluster)}{prisoner.id}"
            story["reached"] |= {"link": await reached(link, 80)}
            story["others"] = await reached(here.seen.now[other.id].external_ip, 8099)
            (disk,) = (directory / "stage" / "disks").glob(f"{prisoner.id}.*.ext4")
            story["disk"] = disk.stat().st_size
            story["tried"] = await tried(here, prisoner, other)
            story["flood"] = await flooded(here, prisoner, other)
            await here.execute(prisoner, ["/bin/sh", "-c", MANY_CONNECTIONS])
            story["connections"] = connections()
            await here.backend._fence.ensure()
            await here.execute(prisoner, ["/bin/sh", "-c", MANY_CONNECTIONS])
            story["connections_later"] = connections()
            story["disk_after"] = disk.stat().st_size
            story["file"] = await here.shell(other, "cat /root/file")
            story["users"] = [users_of(prisoner), users_of(other)]
    print(json.dumps(story))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
