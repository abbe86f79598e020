"""Processes that are not our children. They are held by descriptors, since a process id may
belong to another process by the time a signal is sent."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import select
import signal
import sys
from pathlib import Path

import trio

__all__ = ["children", "end", "has_ended", "held", "listeners", "running"]

#: The state of a listening socket in the kernel's table.
_LISTEN = "0A"
#: A line has 150 bytes, so this is over a thousand sockets.
TABLE_BYTES_MAX = 256 * 1024


def held(pid: int) -> int | None:
    """A descriptor of the process; None if it has ended. The caller or :func:`end` closes it."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def has_ended(pid: int) -> bool:
    """Whether the process has ended, also if its parent has not waited for it yet."""
    descriptor = held(pid)
    if descriptor is None:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


def listeners(process: int | str) -> set[tuple[str, int]]:
    """The addresses and ports of all TCP listeners in the network namespace of a process.

    Call it in a thread, since the processes in that namespace determine how long the tables
    are. Of a container's tables only the first :data:`TABLE_BYTES_MAX` are read; of our own
    ("self") all listeners, since our own must not hide other services. The kernel puts
    listeners first. An IPv4 address that is mapped to IPv6 is returned as IPv4.
    """
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            with Path(f"/proc/{process}/net/{table}").open() as file:
                lines = file if process == "self" else file.read(TABLE_BYTES_MAX).splitlines()
                for line in itertools.islice(lines, 1, None):
                    words = line.split()
                    if len(words) < 4 or words[3] != _LISTEN:
                        break
                    address, _, port = words[1].partition(":")
                    found.add((_address(address), int(port, 16)))
        except OSError:
            continue
    return found


def _address(text: str) -> str:
    """An address of the kernel's table: words of 32 bits in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)


def running(program: str, word: str) -> list[int]:
    """The processes of this machine that run ``program`` with ``word`` as an argument."""
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
            # The program's name may have spaces and brackets.
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(state[1]) == parent:
                found.append(pid)
    return found


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


async def end(descriptor: int, gently: signal.Signals, seconds: float) -> None:
    """Send ``gently``, and SIGKILL if the process still runs after ``seconds``. Closes the
    descriptor. Cannot be cancelled; takes at most twice ``seconds``."""
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
