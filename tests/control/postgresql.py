"""A real PostgreSQL of this machine's packages, on a Unix socket and a free port of loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limits import HANG_SECONDS
from signals import send

START_SECONDS = 60.0
#: It refuses to run as root.
USER = "postgres"


def programs() -> Path | None:
    """The folder of the newest server that is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def missing() -> str:
    if programs() is None:
        return "PostgreSQL is not installed: run  apt-get install postgresql"
    if os.getuid() == 0 and USER not in [each.pw_name for each in pwd.getpwall()]:
        return f"there is no user {USER}, and PostgreSQL does not run as root"
    return ""


class PostgreSQL:
    """One server with one database, whose data is in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam(USER)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(directory, user.pw_uid, user.pw_gid)
        self._run("initdb", "--pgdata=data", "--auth=trust", "--username=gfs", "--encoding=UTF8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"postgresql://gfs@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        program = programs()
        assert program is not None
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    str(program / "postgres"),
                    *("-D", "data", "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-k", str(self.directory), "-c", "shared_buffers=16MB"),
                ],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_user,
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url, connect_timeout=3).close()
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes: each is in a session of its own, as their
        parent is here."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in (self._process.pid, *map(int, children.read_text().split())):
            with contextlib.suppress(ProcessLookupError):
                send(pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(HANG_SECONDS)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(HANG_SECONDS)

    def _run(self, name: str, *arguments: str) -> None:
        program = programs()
        assert program is not None
        done = subprocess.run(
            [str(program / name), *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
            **self._as_user,
        )
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running() -> Iterator[PostgreSQL]:
    """A server for the time of a block. Ends the test if there is none to be had."""
    from needs import need

    need(missing())
    directory = Path(tempfile.mkdtemp(prefix="gfs-postgresql-", dir="/tmp"))
    try:
        server = PostgreSQL(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
