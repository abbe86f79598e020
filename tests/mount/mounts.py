"""``gfs mount`` processes of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forks import Command
from limits import HANG_SECONDS, wait_for
from needs import need, need_modules

PROGRAMS = ("fusermount3", "mountpoint")


def need_mounts() -> None:
    """End the test if nothing can be mounted here."""
    need_modules("pyfuse3", install="make install-mount")
    gone = [program for program in PROGRAMS if shutil.which(program) is None]
    need(f"not installed: {', '.join(gone)} (fuse3 util-linux)" if gone else "")
    need("" if os.geteuid() == 0 else "the mounts of these tests are made as root")
    done = subprocess.run(["stat", "/dev/fuse"], capture_output=True, text=True, check=False)
    need(f"no FUSE here: {done.stderr.strip()}" if done.returncode else "")


def sh(command: str, where: Path, *, code: int = 0) -> str:
    """What a shell prints; it ends with ``code``."""
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{command}"],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Mount:
    """One mount, at ``path``; it can be stopped or killed and started again."""

    def __init__(self, path: Path, environment: dict[str, str], source: str = "/") -> None:
        self.path = path
        self.environment = environment
        self.source = source
        self.output = path.with_name(f"{path.name}.out")
        self.process: Command | None = None

    def start(self) -> Mount:
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab") as output:
            self.process = Command(
                ["mount", self.source, self.path, "--allow-other"],
                stdout=output.fileno(),
                stderr=output.fileno(),
                env=self.environment,
            )

        def is_there() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended: {self.output.read_text()}"
            return subprocess.run(["mountpoint", "-q", self.path], check=False).returncode == 0

        wait_for(is_there, "mount")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        assert self.process is not None
        code = self.process.wait(HANG_SECONDS)
        self.process = None
        return int(code)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None
        self.unmount()

    def unmount(self) -> None:
        subprocess.run(["fusermount3", "-uz", self.path], capture_output=True, check=False)

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(Exception):
                self.stop()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.unmount()


@contextmanager
def mounted(path: Path, environment: dict[str, str], source: str = "/") -> Iterator[Mount]:
    need_mounts()
    made = Mount(path, environment, source)
    try:
        yield made.start()
    finally:
        made.close()
