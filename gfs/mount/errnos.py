"""Which errno a failure is for the program that made the call."""

from __future__ import annotations

import errno

import trio

from gfs.client import errno_of as errno_of_ours
from gfs.errors import GfsError


def errno_of(error: BaseException) -> int:
    if isinstance(error, GfsError):
        return errno_of_ours(error)
    if isinstance(error, (TimeoutError, trio.TooSlowError)):
        return errno.ETIMEDOUT
    return (error.errno if isinstance(error, OSError) else None) or errno.EIO
