"""Locks that belong to an open file, which the kernel releases when the process ends; and names
that outlive a power cut. For what is in the files of this process alone: chunks and their disks
are behind :class:`gfs.io.FileSystem`."""

from __future__ import annotations

import fcntl
import os
import struct


def try_flock(descriptor: int, shared: bool = False) -> bool:
    """Take the lock of the open file (``flock``), for this process alone or ``shared``; false
    if another open file has it. Does not wait. Raises ``OSError`` where there are no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable. Blocks. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock_byte(descriptor: int, at: int) -> bool:
    """Take the lock of one byte, which need not be there, of the open file, as :func:`try_flock`
    takes that of all of it."""
    wanted = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True
