"""Signals to processes that tests know by number."""

from __future__ import annotations

import os
import signal


def send(pid: int, number: int) -> None:
    """Send signal ``number`` to the process ``pid``, and to nobody else: 0 and what is negative
    would be whole process groups, that of the tests among them, and 1 is the system's.

    Raises :class:`ProcessLookupError` if there is none.
    """
    if pid <= 1:
        raise ValueError(f"{pid} is no process of a test")
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
