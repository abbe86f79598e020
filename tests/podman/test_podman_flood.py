"""Strangers who hold connections to a container's ports, from outside of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from neighbours import place
from podman_here import make_key
from podman_outside import Outside, outside
from podman_stage import Stage, stage

from control.compute.backend import Port, Spec

pytestmark = pytest.mark.usefixtures("containers_work")

PORT = 8100 + place(90)
STRANGERS = 4
#: From each stranger to each port: all together are more than there are places.
EACH = 80
#: Of those who are in the middle of a login.
BANNER = "SSH-2.0-Stranger\\r\\n"

FLOOD = """
import select, socket, sys, time
host, word, each, ports, sources = sys.argv[1:]
word, held = word.encode().decode("unicode_escape").encode(), {}

def connect(source, port):
    stream = socket.socket()
    stream.bind((source, 0))
    stream.setblocking(False)
    stream.connect_ex((host, port))
    held[stream] = source, port
    poll.register(stream, select.EPOLLIN | select.EPOLLRDHUP)
    waiting.add(stream)

poll, waiting = select.epoll(), set()

for source in sources.split(","):
    for port in map(int, ports.split(",")):
        for _ in range(int(each)):
            connect(source, port)
print("floods", flush=True)
while True:
    ready = select.select([], list(waiting), [], 0.05)[1] if waiting else []
    for stream in ready:
        waiting.discard(stream)
        try:
            stream.send(word)
        except OSError:
            pass
    by_number, ended = {stream.fileno(): stream for stream in held}, []
    for number, _ in poll.poll(0.05):
        stream = by_number[number]
        try:
            if stream.recv(4096):
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        poll.unregister(stream)
        waiting.discard(stream)
        ended.append(held.pop(stream))
        stream.close()
    time.sleep(0.5 if ended else 0)
    for source, port in ended:
        connect(source, port)
"""


@contextmanager
def flooded(there: Outside, sources: Sequence[str], login: int, page: int) -> Iterator[None]:
    """Each source holds connections to each port, and makes others for those that are ended."""
    with ExitStack() as stack:
        for word, ports in (("", f"{login},{page}"), (BANNER, f"{login}")):
            words = (there.here, word, str(EACH), ports, ",".join(sources))
            process = stack.enter_context(
                subprocess.Popen(
                    there.command(sys.executable, "-c", FLOOD, *words), stdout=subprocess.PIPE
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"floods\n"
        yield


async def logs_in(there: Outside, source: str, key: Path, port: int) -> str:
    """What a login says that failed; empty if it did not."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    words = [word for option in options for word in ("-o", option)]
    command = ["ssh", "-F", "none", "-q", "-b", source, "-i", str(key), *words]
    command += ["-p", str(port), f"root@{there.here}", "echo in"]
    done = await trio.run_process(
        there.command(*command), capture_stdout=True, capture_stderr=True, check=False
    )
    return "" if done.stdout == b"in\n" else f"{done.returncode} {done.stderr.decode()}"


async def page(there: Outside, source: str) -> bytes:
    command = there.command("curl", "-sS", "--interface", source, f"http://{there.here}:{PORT}/")
    done = await trio.run_process(command, capture_stdout=True, check=False)
    return done.stdout


async def served(here: Stage, key: Path) -> tuple[Spec, int]:
    """A container with SSH and a page; its port for SSH."""
    public = key.with_suffix(".pub").read_text().strip()
    spec = await here.run(
        ssh_enabled=True, ssh_keys=(public,), ports=(Port(PORT, 80),), memory_mb=512
    )
    await here.shell(spec, "mkdir /srv/www; echo page > /srv/www/index.html")
    await here.shell(spec, "busybox httpd -p 80 -h /srv/www")
    return spec, int(here.backend.ssh_command(spec).split()[2])


async def test_strangers_who_hold_connections_keep_nobody_out(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    key = tmp_path / "key"
    with outside(STRANGERS + 1) as there:
        *strangers, user = there.addresses
        async with stage(tmp_path / "stage", gateway_host=there.here) as here:
            spec, port = await served(here, key)
            assert await logs_in(there, user, key, port) == ""
            with flooded(there, strangers, port, PORT):
                await trio.sleep(2)
                for _ in range(10):
                    assert await logs_in(there, user, key, port) == ""
                    assert await page(there, user) == b"page\n"
                used = (await here.backend.usage(spec)).memory_mb
                assert used is not None
                assert used < spec.memory_mb
                print(f"the container has {used} of {spec.memory_mb} MiB")
            # Nothing of them is left that would have to end first.
            assert await logs_in(there, user, key, port) == ""
            assert await page(there, user) == b"page\n"
            assert here.seen.now[spec.id].phase == "running"
