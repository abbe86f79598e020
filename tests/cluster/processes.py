"""Single servers without a supervisor: whoever is killed stays dead."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from harness import GFS, STOP_SECONDS, environment, runs, wait_for

from gfs.state import make_key


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Processes:
    """``gfs master`` and ``gfs chunkserver`` processes with a state directory."""

    def __init__(self, directory: Path, chunkservers: int, dead_seconds: float = 15.0) -> None:
        self.environment = environment(
            GFS_MASTER_DEAD_SECONDS=str(dead_seconds),
            # A restarted master copies no chunk that may be under an older lease.
            GFS_MASTER_LEASE_SECONDS="10",
        )
        self.state = directory / "state"
        self.state.mkdir(parents=True)
        self.key = make_key(self.state / "cluster.key")
        self.master_address = f"127.0.0.1:{free_port()}"
        self.log = open(directory / "log", "ab")  # noqa: SIM115 - closed in stop
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_master()
        for number in range(1, chunkservers + 1):
            self.start_chunkserver(f"chunkserver-{number}")

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = subprocess.Popen(
            [*GFS, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=self.environment,
        )

    def start_master(self) -> None:
        self._start(
            "master", "master", "--state", str(self.state), "--address", self.master_address
        )

    def start_chunkserver(self, name: str) -> None:
        self._start(
            name, "chunkserver", "--dir", str(self.state / name), "--master", self.master_address,
            "--key-file", str(self.state / "cluster.key"),
        )  # fmt: skip

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()
            del self.processes[name]

    def kill_all(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        for process in self.processes.values():
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
                process.wait()
        wait_for(
            lambda: not any(runs(p.pid) for p in self.processes.values()), STOP_SECONDS, "the end"
        )
        self.log.close()
