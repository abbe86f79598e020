"""The cluster for tests leaves nothing that runs on, however a session of tests ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kube_here import Kubernetes
from limits import HANG_SECONDS, wait_for
from signals import send

STUCK = """
import time

def test_stuck(kubernetes):
    print("READY", flush=True)
    time.sleep(600)
"""


def test_nothing_runs_on_after_a_session_that_was_interrupted(
    running_kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """Every program of a cluster has a path below its directory in its arguments, and a
    keeper."""
    here = Path(__file__).parent
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(here / "conftest.py", tests)
    (tests / "test_stuck.py").write_text(STUCK)
    base = tmp_path / "base"
    session = subprocess.Popen(
        [
            # In the background of a shell we would hand down that it is ignored.
            *("env", "--default-signal=INT"),
            *(sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider"),
            *("-o", "trio_mode=true", f"--basetemp={base}", f"--rootdir={tests}", str(tests)),
        ],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert session.stdout is not None
    with session, _killed_after(session):
        said = ""
        for line in session.stdout:
            said += line
            if "READY" in line:
                break
        assert "READY" in said, said
        programs = _programs(base)
        assert {"etcd", "kube-apiserver", "kube-scheduler"} <= programs.keys()
        for program, pid in programs.items():
            assert b"lifeline.py" in _command(_parent(pid)), f"nobody keeps {program}"
        session.send_signal(signal.SIGINT)
        session.stdout.read()
        session.wait()
    wait_for(lambda: not _programs(base), "end of all")
    assert not [*base.glob("*/etcd"), *base.glob("*/nodes")]


KEEPS = """
import sys, time
from pathlib import Path
from typing import Any
from lifeline import Lifeline

here = Path(sys.argv[1])
kept = Lifeline(["tail", "-f", str(here / "log")], log=here / "log", directory=here)
print(kept.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("who", ["session", "keeper"])
def test_nothing_runs_on_after_a_session_or_a_keeper_that_was_killed(
    tmp_path: Path, who: str
) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
    )
    assert session.stdout is not None
    with session, _killed_after(session):
        pid = int(session.stdout.readline())
        assert _programs(tmp_path) == {"tail": pid}
        send(session.pid if who == "session" else _parent(pid), signal.SIGKILL)
        wait_for(lambda: not _programs(tmp_path), "end of all")


@contextmanager
def _killed_after(process: subprocess.Popen[Any]) -> Iterator[None]:
    """However the block ends, and if it hangs."""
    timer = threading.Timer(HANG_SECONDS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()


def _programs(directory: Path) -> dict[str, int]:
    """Those that run with something of ``directory`` in their arguments, by name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        words = _command(int(path.name)).split(b"\0")
        program = Path(words[0].decode()).name
        if str(directory).encode() in b"\0".join(words[1:]) and "python" not in program:
            found[program] = int(path.name)
    return found


def _command(pid: int) -> bytes:
    """b"" if there is no such process any more."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
