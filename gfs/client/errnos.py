"""Which errno a failure is, and which ``OSError``: for programs that know no other errors."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from gfs.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    DirectoryNotEmpty,
    DiskFull,
    FileChanged,
    GfsError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    MasterUnavailable,
    NotADirectory,
    NotEnoughChunkservers,
    NotFound,
    NotTheMaster,
    ReplicaUnavailable,
    TlsRefused,
    WrongCluster,
    WrongClusterKey,
)

T = TypeVar("T")

#: The first that fits. What is not here is EIO: bytes that no replica has, or a bug.
ERRNOS: list[tuple[type[GfsError], int]] = [
    (NotFound, errno.ENOENT),
    (AlreadyExists, errno.EEXIST),
    (IsADirectory, errno.EISDIR),
    (NotADirectory, errno.ENOTDIR),
    (DirectoryNotEmpty, errno.ENOTEMPTY),
    (InvalidName, errno.EINVAL),
    (InvalidArgument, errno.EINVAL),
    # Another client replaced or deleted it: as with NFS, and the kernel then looks again.
    (FileChanged, errno.ESTALE),
    (DiskFull, errno.ENOSPC),
    # Only a shadow master answers.
    (NotTheMaster, errno.EROFS),
    # These were waited for already.
    (MasterUnavailable, errno.ETIMEDOUT),
    (ReplicaUnavailable, errno.ETIMEDOUT),
    (NotEnoughChunkservers, errno.ETIMEDOUT),
    (DeadlineExceeded, errno.ETIMEDOUT),
    (Busy, errno.EBUSY),
    (TlsRefused, errno.EACCES),
    (WrongCluster, errno.EACCES),
    (WrongClusterKey, errno.EACCES),
]


def errno_of(error: GfsError) -> int:
    return next((number for kind, number in ERRNOS if isinstance(error, kind)), errno.EIO)


def as_built_in(error: T) -> T:
    """The same error as one that ``except OSError`` catches, with its errno; one that is a
    ValueError, or no GfsError, as it is. It is still of the class that it was of."""
    if not isinstance(error, GfsError) or isinstance(error, ValueError):
        return error
    found: Any = error
    if not isinstance(error, OSError):
        found = _os_error(found.__class__)(*error.args)
        found.__dict__.update(error.__dict__)
    found.errno = errno_of(error)
    return cast("T", found)


@cache
def _os_error(kind: type[GfsError]) -> type[Any]:
    """Not in the tree of the errors itself: there, the servers and the client would catch it
    with those of sockets and disks."""
    return type(kind.__name__, (kind, OSError), {"__module__": __name__, "__reduce__": _pickled})


def _pickled(error: GfsError) -> tuple[Callable[..., Any], tuple[GfsError]]:
    before: GfsError = type(error).__bases__[0](*error.args)
    before.__dict__.update(error.__dict__)
    return as_built_in, (before,)
