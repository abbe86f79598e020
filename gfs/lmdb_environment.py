"""Opening a database of LMDB on a disk that may be full, and finding out that it is.

The master's metadata, the control plane's records and the facts that its processes share are each
an environment of LMDB: a directory with ``data.mdb`` and ``lock.mdb``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil

import lmdb

DATA_NAME, LMDB_LOCK_NAME = "data.mdb", "lock.mdb"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: A disk on which only a part of a write found room has less than this left.
LEFT_BYTES = 1 << 20
#: Transactions that have ended and are kept for the next ones.
SPARE_TRANSACTIONS = 8


def open_environment(
    directory: str,
    *,
    map_bytes: int,
    readers_max: int,
    databases_max: int = 0,
    sync: bool,
) -> lmdb.Environment:
    """Open the environment in a directory that exists; a new one leaves no file if that fails.

    The caller must let nobody else open it meanwhile. ``map_bytes``: the size that the file can
    grow to. ``sync``: whether a commit waits for the disk. Blocks. Raises lmdb.Error, OSError,
    OverflowError or MemoryError; see :func:`is_full`.
    """
    data = os.path.join(directory, DATA_NAME)
    is_new = not (os.path.exists(data) and os.path.getsize(data))
    try:
        _reserve_lock(os.path.join(directory, LMDB_LOCK_NAME), readers_max)
        environment = lmdb.open(
            directory,
            map_size=map_bytes,
            max_dbs=databases_max,
            max_readers=readers_max,
            max_spare_txns=SPARE_TRANSACTIONS,
            sync=sync,
            metasync=sync,
            mode=0o600,
        )
    except BaseException:
        if is_new:
            # With one of its first two pages, all that had room, LMDB would never open it again.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(data)
        raise
    try:
        # Slots of readers that were killed would prevent the reuse of old pages.
        environment.reader_check()
    except BaseException:
        environment.close()
        raise
    return environment


def is_full(error: lmdb.Error | OSError, directory: str | os.PathLike[str]) -> bool:
    """Whether an error of the environment in ``directory`` says that its disk has no room; then it
    can still be used."""
    code = error.errno if isinstance(error, OSError) else getattr(error, "code", 0)
    if code == errno.EIO:  # which LMDB also says when only a part of a write found room
        with contextlib.suppress(OSError):
            return shutil.disk_usage(directory).free < LEFT_BYTES
    return isinstance(error, lmdb.DiskError) or code in NO_ROOM


def _reserve_lock(path: str, readers_max: int) -> None:
    """LMDB writes to this file in memory. If the disk had no room for what is written, the kernel
    would end the process, by SIGBUS. Nobody may have it open in this process, or would lose his
    locks on it."""
    # A cache line for each reader, and some for its head.
    size = 64 * (readers_max + 64)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        # A file system that reserves nothing.
    finally:
        os.close(descriptor)
