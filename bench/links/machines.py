"""A cluster and its clients, each process on a machine of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import cluster
from bench.links.network import Network
from gfs.state import make_key

LOG_CHARACTERS = 4000


class Machines:
    """A cluster as an operator starts it, and clients that wait for orders."""

    def __init__(self, network: Network, directory: Path, servers: int, clients: int) -> None:
        self.network = network
        self._directory = directory
        self._processes: list[subprocess.Popen[str]] = []
        self.servers = [f"s{number}" for number in range(servers)]
        self.clients: list[subprocess.Popen[str]] = []
        key = directory / "cluster.key"
        make_key(key)
        try:
            master = f"{network.add('master', 'servers')}:9400"
            self._start("master", "gfs.cli", "master", "--state", directory, "--address", master)
            for name in self.servers:
                address = f"{network.add(name, 'servers')}:9401"
                self._start(
                    name, "gfs.cli", "chunkserver", "--dir", directory / name,
                    "--master", master, "--address", address, "--key-file", key,
                )  # fmt: skip
            for number in range(clients):
                network.add(f"c{number}", "clients")
                client = self._start(f"c{number}", "bench.links.client", master, key)
                self.clients.append(client)
            self.order("wait", servers, time.monotonic(), time.monotonic())
            self.results(1)
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, *arguments: str | Path) -> subprocess.Popen[str]:
        is_client = arguments[0] == "bench.links.client"
        with open(self._directory / ("clients.log" if is_client else "servers.log"), "ab") as log:
            process = subprocess.Popen(
                self.network.command(name, *map(str, arguments)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE if is_client else log, stderr=log,
                text=True, env=cluster.ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def order(self, load: str, clients: int, begin: float, end: float) -> None:
        for number, process in enumerate(self.clients[: 1 if load == "wait" else clients]):
            assert process.stdin is not None
            process.stdin.write(json.dumps([load, number, clients, begin, end]) + "\n")
            process.stdin.flush()

    def results(self, clients: int) -> int:
        """All the bytes that they counted."""
        total = 0
        for process in self.clients[:clients]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said = self._directory.joinpath("clients.log").read_text(errors="replace")
                raise RuntimeError(f"a client failed: {said[-LOG_CHARACTERS:]}")
            total += int(line)
        return total

    def scheduled(self) -> tuple[float, float]:
        """Seconds so far that all processes ran, and that they waited for a core."""
        ran = waited = 0
        for process in self._processes:
            for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                with suppress(OSError):
                    each = path.read_text().split()
                    ran, waited = ran + int(each[0]), waited + int(each[1])
        return ran / 1e9, waited / 1e9

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(cluster.STOP_SECONDS)
            process.kill()
            process.wait()


@contextmanager
def running(rate: int, servers: int, clients: int, folder: str | None) -> Iterator[Machines]:
    network, directory = Network(rate), Path(tempfile.mkdtemp(prefix="gfs-links-", dir=folder))
    try:
        network.build()
        machines = Machines(network, directory, servers, clients)
        try:
            yield machines
        finally:
            machines.stop()
    finally:
        network.remove()
        shutil.rmtree(directory, ignore_errors=True)
