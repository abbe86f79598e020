"""The state directory of ``gfs up``: its lock, its contents, its running processes.

Beside what :mod:`gfs.state` lists::

    DIR/up.json          lasting settings from the flags of earlier starts
    DIR/control/         the control plane's users, keys, namespaces
    DIR/log/NAME.log     the processes' logs; NAME.log.1 is the older half

All functions block only for the local disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfs.errors import GfsError, StartupError
from gfs.io import try_flock
from gfs.state import LOCK_NAME, READY_NAME, make_key

LOG_BYTES_MAX = 10 * 1024 * 1024
#: Where a free port is looked for.
FREE_PORTS = range(10_240, 20_000)
_CHUNKSERVER = re.compile(r"chunkserver-([1-9][0-9]{0,5})")


class StateDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock = self.path / LOCK_NAME
        self.ready = self.path / READY_NAME
        self.logs = self.path / "log"
        self.master = self.path / "master"
        self.stored = self.path / "up.json"

    def chunkserver(self, number: int) -> Path:
        return self.path / f"chunkserver-{number}"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def chunkservers(self) -> list[int]:
        """The numbers of the chunkservers with a directory here."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        return sorted(int(found[1]) for name in names if (found := _CHUNKSERVER.fullmatch(name)))

    def read_stored(self) -> dict[str, Any]:
        """Lasting settings from earlier starts; empty if there are none."""
        try:
            values = json.loads(self.stored.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StartupError(f"{self.stored}: cannot be read: {error}") from None
        return values if isinstance(values, dict) else {}

    def take_first_password(self) -> str | None:
        """The password that the control plane generated for its first admin.

        It is in ``control/first-password`` (one line, mode 0600) until it is printed
        once: this function removes the file.
        """
        path = self.path / "control" / "first-password"
        try:
            password = path.read_text(encoding="utf-8").strip()
            path.unlink()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise GfsError(f"{path}: cannot be read and removed: {error}") from None
        return password or None

    def prepare(self, chunkservers: Sequence[int]) -> None:
        """Make the directories of a start and check that each can be written."""
        numbered = (self.chunkserver(number) for number in chunkservers)
        for directory in (self.path, self.logs, self.master, *numbered):
            _make_writable(directory)
        try:
            make_key(self.path / "cluster.key")
        except OSError as error:
            raise StartupError(f"{self.path}: {error.strerror}") from None


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"gfs")
    except OSError as error:
        raise StartupError(f"{directory}: cannot be written: {error.strerror}") from None


def missing_directories(path: Path) -> list[Path]:
    """``path`` and those above it that do not exist, the innermost first."""
    return [place for place in (path, *path.parents) if not place.exists()]


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove the directories of a refused start."""
    for place in directories:
        with contextlib.suppress(OSError):
            place.rmdir()


# --- the lock -----------------------------------------------------------------


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another cluster has it.

    Raises StartupError if there can be no lock file.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StartupError(f"{path.parent}: cannot be written: {error.strerror}") from None
        if not try_flock(descriptor):
            os.close(descriptor)
            return None
        # A refused start removes its lock file: then this lock is on a deleted file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a cluster, or a part of one, runs on this state.

    The check takes a shared lock for a moment; a start that fails because of it tries again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
    try:
        return not try_flock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def supervisor_pid(path: Path) -> int | None:
    """The supervisor whose pid is in the lock file, if it still runs."""
    try:
        pid = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if _holds_open(pid, path) else None


def _holds_open(pid: int, path: Path) -> bool:
    """Whether ``pid`` runs and has ``path`` open.

    A pid alone is no proof: it may belong to a zombie, or to another process by now.
    Without access to /proc (another user's process) a live process is enough.
    """
    if not Path("/proc/self/fd").exists():
        return _is_alive(pid)
    try:
        wanted = path.stat()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                    return True
    except PermissionError:
        return _is_alive(pid)
    except OSError:
        return False
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- ports ----------------------------------------------------------------------


def check_port(host: str, port: int, option: str) -> None:
    """Raise StartupError, which names ``option``, if the port cannot be used."""
    try:
        with _socket(host) as probe:
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"port {port} on {host} is taken: stop what listens there or choose "
                f"another with {option}"
            ) from None
        raise StartupError(
            f"cannot listen on port {port} of {host} ({error.strerror}): choose another "
            f"address with {option}"
        ) from None


def free_ports(host: str, count: int) -> list[int]:
    """Free ports; each is held until all are found. They are below those that Linux gives to
    outgoing connections, of which one might take a port before the server listens there."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
            if len(found) == count:
                return found
            probe = held.enter_context(_socket(host))
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                found.append(port)
    raise StartupError(
        f"{count} ports on {host} between {FREE_PORTS.start} and {FREE_PORTS.stop} are not free: "
        "stop what listens there"
    )


def _socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As the servers do, so that lingering connections of the last run do not matter.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


# --- files ----------------------------------------------------------------------


def write_atomically(path: Path, value: object) -> None:
    """``value`` as JSON under ``path``: readers see the old file or the new."""
    text = json.dumps(value, indent=2) + "\n"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def open_log(path: Path) -> int:
    """A descriptor that appends to ``path``, cut first if it has grown too long."""
    bound_log(path)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise StartupError(f"{path}: cannot be written: {error.strerror}") from None


def bound_log(path: Path) -> None:
    """Keep the log at ``path`` below its bound, also while it is being written.

    The file is copied and emptied, not renamed: its writer appends, and goes
    on at the new end. A line that comes in between may be lost.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            os.truncate(path, 0)
