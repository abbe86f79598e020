"""Run a program for as long as the process that wants it lives.

    Lifeline(["etcd", …], log=path)

A test run that is killed cleans nothing up, and a server left behind holds memory
and ports for ever. So each server gets a keeper: this file, run as a script, whose
standard input is a pipe that nobody writes to. When the pipe ends, because we closed
it or because we died of whatever, the keeper kills the program and goes. Should the
keeper itself be killed, the kernel kills the program: that is why it is the keeper
that starts it (the kernel's promise is to the *thread* that started a process, and
ours come and go).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1

#: How long a program may take to be gone, or to stand still, once it was asked to: as
#: ``limits.HANG_SECONDS``, which is not to be had where this is a program.
SIGNAL_SECONDS_MAX = 300.0
POLL_SECONDS = 0.002


class Lifeline:
    """A running program. Safe to use from any thread, one at a time."""

    def __init__(self, command: list[str], *, log: Path, directory: Path) -> None:
        """Start ``command``; what it prints is added to ``log``."""
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=directory,
                # Ctrl-C is for us: it is ours to say who stops when.
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        if not said:
            self.kill()
            raise RuntimeError(f"{command[0]} did not start: see {log}")
        self.pid = int(said)

    @property
    def ended(self) -> bool:
        return self._keeper.poll() is not None

    def kill(self) -> None:
        """As by ``kill -9``. Returns when it is gone."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(SIGNAL_SECONDS_MAX)
        self._keeper.stdout.close()

    def freeze(self) -> None:
        """Let it hang: connections stay open, and nothing is answered. Returns when the
        last of its threads has stopped, which a busy machine takes its time for."""
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + SIGNAL_SECONDS_MAX
        while self._runs() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _runs(self) -> bool:
        for task in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                if task.read_bytes().rpartition(b")")[2].split()[0] not in (b"T", b"Z", b"X"):
                    return True
        return False

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        # Its keeper lives as long, so the number is not another's yet.
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _keep(command: list[str]) -> int:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    print(process.pid, flush=True)
    ended = os.pidfd_open(process.pid)
    ready, _, _ = select.select([0, ended], [], [])
    if ended not in ready:
        process.kill()
    return process.wait()


if __name__ == "__main__":
    sys.exit(abs(_keep(sys.argv[1:])))
