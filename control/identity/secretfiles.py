"""Files with secrets. They are written in one step and readable by their owner alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gfs.errors import StartupError
from gfs.io import sync_directory, try_flock

#: A holder of the lock writes a file or two; if that takes longer, it hangs.
LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.01


def make_private_directory(path: Path) -> None:
    """Create ``path`` with mode 0700. Raises StartupError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise StartupError(f"{path}: cannot be used for secrets: {error}") from None
    if mode & 0o077:
        raise StartupError(f"{path}: others can read it: chmod 700 {path}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which all processes of this machine use.

    Blocks while another process holds it; raises StartupError after 10 s. The kernel
    releases the lock of a process that dies.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        give_up = time.monotonic() + LOCK_SECONDS
        while not try_flock(descriptor):
            if time.monotonic() > give_up:
                raise StartupError(f"{path}: another process has held this for {LOCK_SECONDS:g} s")
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def write_secret(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of ``data``, mode 0600. It is on the disk on return.

    Readers see the old file or the new one, whole. There must be one writer at a time,
    since the temporary file has a fixed name, so that a crash leaves no more than one.
    """
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_directory(path.parent)


def read_secret(path: Path, bytes_max: int) -> bytes | None:
    """The content of ``path``; None if there is no such file. Raises StartupError."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(bytes_max)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error}") from None
    if mode & 0o077:
        raise StartupError(f"{path}: others can read this secret: chmod 600 {path}")
    return data
