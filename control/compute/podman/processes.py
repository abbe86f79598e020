"""Processes that are not our children, held by descriptors: a number may be another's by
the time a signal is sent to it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

import trio

__all__ = ["children", "end", "has_ended", "held", "listens", "running"]

#: Of a socket, in the kernel's table: it listens.
_LISTEN = "0A"


def held(pid: int) -> int | None:
    """A descriptor of the process; None if it has ended. The caller closes it, or :func:`end`."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def has_ended(pid: int) -> bool:
    """Also if nobody has asked yet how."""
    descriptor = held(pid)
    if descriptor is None:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


def listens(pid: int, port: int) -> bool:
    """Whether anybody listens on this TCP port in the network that the process is in."""
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN and local.endswith(wanted):
                return True
    return False


def running(program: str, word: str) -> list[int]:
    """Processes of this machine that run ``program`` with ``word`` as an argument."""
    wanted = word.encode()
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() != program:
                continue
            if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def children(parent: int) -> list[int]:
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):
            # The name before it may have spaces and brackets.
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(state[1]) == parent:
                found.append(pid)
    return found


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


async def end(descriptor: int, gently: signal.Signals, seconds: float) -> None:
    """Send ``gently``, and SIGKILL to one that is still there after ``seconds``. Closes
    the descriptor. Cannot be cancelled; takes twice ``seconds`` at most."""
    try:
        for number in (gently, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(descriptor, number)
            except OSError:
                return
            with trio.move_on_after(seconds, shield=True):
                await trio.lowlevel.wait_readable(descriptor)
                return
    finally:
        os.close(descriptor)
