"""Which errno a failure is, and which ``OSError``: for programs that know no other errors."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from gfs import errors
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


def _as_os_errors() -> dict[type[GfsError], type[Any]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {
        kind: type(
            kind.__name__,
            (kind, OSError),
            {"__module__": __name__, "__qualname__": f"OsErrors.{kind.__name__}"},
        )
        for kind in kinds
        if issubclass(kind, GfsError) and not issubclass(kind, (OSError, ValueError))
    }


_AS_OS_ERRORS = _as_os_errors()
#: Not in the tree of the errors itself: there, the servers and the client would catch them with
#: those of sockets and disks. They have names here because processes send one another not only
#: errors but also, as the loaders of torch do, their classes.
OsErrors = SimpleNamespace(**{kind.__name__: made for kind, made in _AS_OS_ERRORS.items()})


def as_built_in(error: T, *paths: str) -> T:
    """The same error as one that ``except OSError`` catches, with its errno; one that is a
    ValueError, or no GfsError, as it is. It is still of the class that it was of. ``paths``, or
    what they were given before, are its ``filename`` and ``filename2``, but of errors that all
    files have in common."""
    if not isinstance(error, GfsError) or isinstance(error, ValueError):
        return error
    found: Any = error
    if not isinstance(error, OSError):
        kind = _AS_OS_ERRORS.get(type(error))
        if kind is None:
            return error  # of a caller's own
        found = kind(*error.args)
        found.__dict__.update(error.__dict__)
    found.errno = errno_of(error)
    if found.filename is None and not isinstance(error, (MasterUnavailable, NotEnoughChunkservers)):
        found.filename, found.filename2 = (*paths, None, None)[:2]
    return cast("T", found)
