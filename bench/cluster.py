"""A cluster of real processes for one measurement, gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 60.0


def free_ports(count: int) -> int:
    """A base port with ``count`` free ones from it on."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            base = first.getsockname()[1]
        if base + count > 65535:
            continue
        try:
            for port in range(base, base + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return int(base)
    raise RuntimeError("no free ports")


@contextmanager
def running(chunkservers: int = 3, folder: str | None = None) -> Iterator[Path]:
    """Start ``gfs up`` in a fresh state directory; yields that directory."""
    state = Path(tempfile.mkdtemp(prefix="gfs-bench-", dir=folder))
    ready = state / "ready.json"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GFS_")}
    process = subprocess.Popen(
        [
            sys.executable, "-m", "gfs.cli", "up",
            "--state", str(state / "state"),
            "--chunkservers", str(chunkservers),
            "--port", str(free_ports(chunkservers + 2)),
            "--ready-file", str(ready),
        ],
        stdout=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the cluster did not start")
            time.sleep(0.05)
        json.loads(ready.read_text())
        yield state / "state"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(state, ignore_errors=True)
