"""Locks that belong to an open file: the kernel gives them up with the process."""

from __future__ import annotations

import fcntl


def try_flock(descriptor: int, shared: bool = False) -> bool:
    """Take the lock of the open file (``flock``), for this process alone or ``shared``; false
    if another open file has it. Does not wait. Raises ``OSError`` where there are no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
