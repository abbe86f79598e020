"""Single servers without a supervisor: whoever is killed stays dead."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import forks
import limits
from forks import Command
from harness import PATIENT, environment, runs
from limits import HANG_SECONDS, wait_for

from gfs.client import Client
from gfs.errors import GfsError
from gfs.state import make_key

T = TypeVar("T")

#: Below those that the kernel gives to whoever listens at port 0: a chunkserver that starts sooner
#: than the master would now and then get the master's. And below those of containers
#: (``tests/podman``).
PORTS = range(10_000, 20_000)
#: ``gfs up`` uses some that follow the one that it is given.
FOLLOWING = 16
WORKERS_MAX = 4


def _ports() -> Iterator[int]:
    """Each worker has its own, and none comes again soon: who gets one listens a while later."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = PORTS[worker * FOLLOWING :: WORKERS_MAX * FOLLOWING]
    # Not the order of a test that has a seed: two runs of it at once would want the same ports.
    yield from itertools.cycle(random.SystemRandom().sample(mine, len(mine)))


_candidates = _ports()


def free_port() -> int:
    for port in _candidates:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError


class Processes:
    """``gfs master`` and ``gfs chunkserver`` processes with a state directory."""

    def __init__(
        self, directory: Path, chunkservers: int, dead_seconds: float = 15.0, **settings: str
    ) -> None:
        defaults = {
            "GFS_MASTER_DEAD_SECONDS": str(dead_seconds),
            # A restarted master copies no chunk that may be under an older lease.
            "GFS_MASTER_LEASE_SECONDS": "10",
        }
        self.environment = environment(**(PATIENT | defaults | settings))
        self.state = directory / "state"
        self.state.mkdir(parents=True)
        self.key = make_key(self.state / "cluster.key")
        self.master_address = f"127.0.0.1:{free_port()}"
        self.log = open(directory / "log", "ab")  # noqa: SIM115 - closed in stop
        self.processes: dict[str, Command] = {}
        self.start_master()
        for number in range(1, chunkservers + 1):
            self.start_chunkserver(f"chunkserver-{number}")

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = self._command(arguments, self.log)

    def _command(self, arguments: Sequence[str], log: BinaryIO) -> Command:
        return Command(arguments, stdout=log.fileno(), stderr=log.fileno(), env=self.environment)

    def start_master(self) -> None:
        self._start(
            "master", "master", "--state", str(self.state), "--address", self.master_address
        )

    def start_chunkserver(self, name: str) -> None:
        self._start(
            name, "chunkserver", "--dir", str(self.state / name), "--master", self.master_address,
            "--key-file", str(self.state / "cluster.key"),
        )  # fmt: skip

    def gfs(self, *arguments: str, code: int | None = 0, master: str = "") -> str:
        """What a command prints; or, if it is to fail, what it complains of."""
        variables = {
            "GFS_MASTER": master or self.master_address,
            "GFS_STATE": str(self.state),
            "GFS_KEY_FILE": str(self.state / "cluster.key"),
        }
        done = forks.run(arguments, env=self.environment | variables, text=True)
        assert code is None or done.returncode == code, (arguments, done.stdout, done.stderr)
        return str(done.stderr if code else done.stdout)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()
            del self.processes[name]

    def stop_chunkserver(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(HANG_SECONDS)

    def kill_all(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(HANG_SECONDS)
            finally:
                process.kill()
                process.wait()
        wait_for(lambda: not any(runs(p.pid) for p in self.processes.values()), "the end")
        self.log.close()


async def wait_until(condition: Callable[[], Awaitable[T]], what: str) -> T:
    """As :func:`limits.wait_until`; a cluster that does not answer yet is waited for, too."""

    async def met() -> T | None:
        with suppress(GfsError):
            return await condition()
        return None

    found = await limits.wait_until(met, what)
    assert found is not None
    return found


async def wait_live(fs: Client, count: int) -> None:
    """Before that, what is written may get fewer replicas than its goal."""

    async def live() -> bool:
        return sum(server.state == "live" for server in (await fs.status()).servers) >= count

    await wait_until(live, f"{count} live chunkservers")


async def wait_whole(fs: Client) -> None:
    """Every file at its goal, every replica good."""

    async def whole() -> bool:
        return not (await fs.fsck()).damaged

    await wait_until(whole, "clean fsck")
