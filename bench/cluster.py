"""A cluster of real processes for one measurement, gone afterwards, come what may."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 30.0

#: The figures are those of the defaults, whatever is set where the bench runs.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("GFS_")}
#: Of the administrator of a cluster that lives as long as a measurement.
PASSWORD = secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Running:
    """A cluster that serves. ``pids`` are the file system's own."""

    state: Path
    master: int
    chunkservers: list[int]
    control: int
    #: Where the REST API is, and S3.
    url: str
    s3: str

    @property
    def pids(self) -> list[int]:
        return [self.master, *self.chunkservers]

    def stored_bytes(self) -> int:
        """In the chunk files of all chunkservers."""
        total = 0
        for path in self.state.glob("chunkserver-*/chunks/*/*.chunk"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def cpu_seconds(self) -> float:
        """What all servers together have used of the processors so far."""
        return sum(map(cpu_seconds_of, self.pids))


def cpu_seconds_of(pid: int) -> float:
    """By the process's clock, whose number is what clock_getcpuclockid(3) would return:
    /proc/PID/stat counts in hundredths only."""
    return time.clock_gettime(~pid << 3 | 2)


@contextmanager
def running(
    chunkservers: int = 3,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """``gfs up`` on a fresh state directory, which is deleted in the end.

    ``environment`` is added to its own; nothing runs containers unless it says so.
    """
    directory = Path(tempfile.mkdtemp(prefix="gfs-bench-", dir=folder))
    try:
        process = _start(directory, chunkservers, environment or {})
        try:
            ready = _wait_ready(process, directory)
            yield Running(
                state=directory / "state",
                master=ready["master"]["pid"],
                chunkservers=[server["pid"] for server in ready["chunkservers"]],
                control=ready["control"]["pid"],
                url=ready["control"]["storage"],
                s3=ready["control"]["s3"],
            )
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(
    directory: Path, chunkservers: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with open(directory / "up.log", "wb") as said:
        return subprocess.Popen(
            [
                sys.executable, "-m", "gfs.cli", "up",
                "--state", str(directory / "state"),
                "--chunkservers", str(chunkservers),
                "--port", "0",
                "--ready-file", str(directory / "ready.json"),
            ],
            stdout=said,
            stderr=said,
            env={
                **ENVIRONMENT,
                "GFS_ADMIN_PASSWORD": PASSWORD,
                "GFS_COMPUTE_BACKEND": "none",
                **environment,
            },
            start_new_session=True,  # Ctrl-C is for the bench, which stops the cluster
        )  # fmt: skip


def _wait_ready(process: subprocess.Popen[bytes], directory: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while not (directory / "ready.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            reported = (directory / "up.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the cluster did not start: {reported}")
        time.sleep(0.05)
    ready: dict[str, Any] = json.loads((directory / "ready.json").read_bytes())
    return ready


@contextmanager
def interrupted_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does: everything is put away, then the
    process ends with one line."""

    def as_ctrl_c(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)

    # A shell's background job is started with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, as_ctrl_c)
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; the cluster and its data are gone", file=sys.stderr)
        sys.exit(130)
