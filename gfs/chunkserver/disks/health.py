"""What calls to a disk say about it: which errors are its own, and which of them fail it."""

from __future__ import annotations

import errno

from gfs.chunkserver.disks.calls import TICK_SECONDS
from gfs.errors import Busy, CorruptReplica, DiskFailed, DiskFull, GfsError, NotFound
from gfs.io import ReadFailed

#: Errors of a process, or a machine, that has too little of something for the moment: the next
#: call may succeed.
_PASSING = frozenset((errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
#: Errors that are about space, one name, or this process, and not about the disk.
HARMLESS = _PASSING | {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EBADF,
}

#: As many as ZFS takes for a device that fails: bad sectors come one by one.
UNREAD_MAX = 10
UNREAD_SECONDS = 600.0


class Health:
    """The errors of one disk, and what they mean for it."""

    def __init__(self) -> None:
        #: Calls that the disk answered with an error, or not at all.
        self.errors = 0
        #: Why it is not used.
        self.reason = ""
        #: Failed by a call that did not return: it may come back when all have.
        self.hung = False
        #: Whether it could not be opened for want of space.
        self.lacks_room = False
        #: Whether a call had an error of the disk, also after it was abandoned.
        self.has_refused = False
        #: The disk failed: its contents may be older than those of the page cache, now or before
        #: (see gfs.chunkserver.disks.loading).
        self.is_suspect = False
        #: Places that could not be read, and when, in ticks: see ReadFailed.
        self._unread: dict[object, int] = {}
        self.ticks = 0

    @property
    def may_have_lost(self) -> bool:
        """Whether an unused disk may have lost writes that were not synced. One whose calls
        only took too long has lost none."""
        return not self.hung or self.has_refused

    def count(self, error: OSError) -> str | None:
        """Count an error of the disk; returns the reason if the disk has failed with it."""
        self.errors += 1
        if not isinstance(error, ReadFailed):
            return describe(error)
        since = self.ticks - UNREAD_SECONDS / TICK_SECONDS
        self._unread[error.place or error.filename] = self.ticks
        self._unread = {place: at for place, at in self._unread.items() if at > since}
        if len(self._unread) < UNREAD_MAX:
            return None
        minutes = UNREAD_SECONDS / 60
        return f"{UNREAD_MAX} places on it could not be read within {minutes:g} minutes"


def is_of_disk(error: OSError) -> bool:
    """Whether the error is about the disk, and not about space, one name or this process."""
    return not isinstance(error, (GfsError, ConnectionError)) and error.errno not in HARMLESS


def describe(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    text = error.strerror or str(error)
    return f"{text} ({name})" if name else text


def map_read_error(error: OSError, what: str) -> GfsError:
    """As :func:`map_disk_error`, for a read of a replica by a disk's ``run``: of which a sector
    cannot be read is damaged."""
    if isinstance(error, ReadFailed):
        return CorruptReplica(f"{what}: {describe(error)}")
    return map_disk_error(error, what)


def map_disk_error(error: OSError, what: str) -> GfsError:
    """The error a client gets for a failure of a local disk."""
    if isinstance(error, GfsError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: no space left on the chunkserver's disk")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: the chunk file is gone")
    if error.errno in _PASSING:
        # A replica is not damaged for it: the scrub had the good ones of a server that was short
        # of descriptors replaced.
        return Busy(f"{what}: {error.strerror or error}")
    return DiskFailed(f"{what}: {error.strerror or error}")
