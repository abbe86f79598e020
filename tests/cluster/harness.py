"""A whole cluster of real processes, for tests."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import forks
from limits import HANG_SECONDS, wait_for
from signals import send

GFS = [sys.executable, "-m", "gfs.cli"]
#: A machine may be so busy that it crosses these where nothing has failed.
PATIENT = {
    "GFS_CLIENT_RETRY_SECONDS": f"{HANG_SECONDS:g}",
    "GFS_CHUNKSERVER_DISK_HANG_SECONDS": f"{HANG_SECONDS:g}",
}


def runs(pid: int) -> bool:
    """Whether ``pid`` is a process that has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would point a command at another cluster, or at what runs
    containers: the tests that need some say so. But all of them can be run with all replicas in
    files, by 0."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GFS_") or name == "GFS_CHUNKSERVER_PACKED_BYTES_MAX"
    }
    return {**kept, "GFS_COMPUTE_BACKEND": "none", **changes}


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def python(
    *arguments: str | os.PathLike[str], code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own; fails unless it exits with ``code``."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=env,
        check=False,
    )
    assert done.returncode == code, done.stdout[-5000:] + done.stderr[-3000:]
    return done


class Cluster:
    """``gfs up`` in the foreground, on ports of its own.

    ``start`` and ``stop`` may be called again and again on the same state.
    ``control`` says whether the control plane runs too; most tests do without.
    """

    def __init__(
        self, directory: Path, *arguments: str, chunkservers: int | None = 3, control: bool = False
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.ready_file = directory / "ready.json"
        self.output = directory / "up.out"
        self.arguments = ["--port", "0", *arguments]
        if chunkservers is not None:
            self.arguments += ["--chunkservers", str(chunkservers)]
        if not control:
            self.arguments.append("--no-control")
        self.environment = environment()
        self.process: forks.Command | None = None
        self._seen: set[int] = set()

    def start(self) -> Cluster:
        self.launch()
        assert self.process is not None

        def is_up() -> bool:
            assert self.process.poll() is None, f"gfs up ended: {self.output.read_text()}"
            return self.ready_file.exists()

        wait_for(is_up, "ready file")
        return self

    def launch(self) -> None:
        """Start without waiting."""
        with open(self.output, "ab") as output:
            self.process = forks.Command(
                [*("up", "--state", self.state, "--ready-file", self.ready_file), *self.arguments],
                stdout=output.fileno(),
                stderr=output.fileno(),
                env=self.environment,
            )

    @property
    def ready(self) -> dict[str, Any]:
        """What the ready file says now."""
        facts: dict[str, Any] = json.loads(self.ready_file.read_bytes())
        self._seen.update(_pids(facts))
        return facts

    def pid(self, name: str) -> int:
        """``"master"``, ``"chunkserver-2"``, ``"control"`` or ``"supervisor"``."""
        if name == "supervisor":
            return self.process.pid
        return int(self._facts(name)["pid"])

    def _facts(self, name: str) -> dict[str, Any]:
        ready = self.ready
        if name in ("master", "control"):
            facts: dict[str, Any] = ready[name]
            return facts
        found = [server for server in ready["chunkservers"] if Path(server["dir"]).name == name]
        assert found, f"no {name} in {ready}"
        server: dict[str, Any] = found[0]
        return server

    def pids(self) -> list[int]:
        """All processes but the supervisor."""
        return _pids(self.ready)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal; returns the pid it went to."""
        pid = self.pid(name)
        send(pid, number)
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> int:
        """Wait until another process than ``old_pid`` serves as ``name``; its pid."""

        def restarted() -> int | None:
            pid = self.pid(name)
            return pid if pid != old_pid else None

        pid = wait_for(restarted, f"restart of {name}")
        assert pid is not None
        return pid

    def gfs(
        self,
        *arguments: str | os.PathLike[str],
        input: bytes | None = None,
        code: int | None = 0,
        cwd: Path | None = None,
        retry_seconds: float | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a subcommand on this cluster; fails unless it exits with ``code``. With
        ``retry_seconds`` it does not try for long: it is to find that it cannot."""
        variables = {**self.environment, "GFS_STATE": str(self.state)}
        if retry_seconds is not None:
            variables["GFS_CLIENT_RETRY_SECONDS"] = f"{retry_seconds:g}"
        done = forks.run(
            arguments,
            input=b"" if input is None else input,
            env=variables,
            cwd=cwd,
            timeout=HANG_SECONDS,
        )
        assert code is None or done.returncode == code, (
            f"gfs {' '.join(map(str, arguments))}: exit code {done.returncode}, not {code}\n"
            f"{done.stderr.decode(errors='replace')}"
        )
        return done

    def json(self, *arguments: str | os.PathLike[str], code: int = 0) -> Any:
        return json.loads(self.gfs(*arguments, "--json", code=code).stdout)

    def kill_all(self) -> None:
        """SIGKILL to everything in the ready file at once, and to the supervisor."""
        pids = [self.process.pid, *self.pids()]
        for pid in pids:
            with suppress(ProcessLookupError):  # who has lost its supervisor ends by itself
                send(pid, signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: not any(map(runs, pids)), "end of all processes")

    def stop(self) -> int:
        """Stop cleanly; the exit code of ``gfs up``. Leaves no process, come what may."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if self.ready_file.exists():
            _ = self.ready
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            # Children of a supervisor that was killed end by themselves.
            wait_for(lambda: not any(map(runs, self._seen)), "end of the children")


def _pids(facts: dict[str, Any]) -> list[int]:
    ones = [facts[name]["pid"] for name in ("master", "control") if name in facts]
    return [*ones, *(server["pid"] for server in facts["chunkservers"])]
