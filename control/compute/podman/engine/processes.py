"""Processes that are not our children. They are held by descriptors, since a process id may
belong to another process by the time a signal is sent."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import os
import select
import signal
import sys
from collections.abc import Collection
from pathlib import Path

import trio

_libc = ctypes.CDLL(None, use_errno=True)
#: The kernel reports the end of a process, but not that its parent has noticed it.
REAPED_POLL_SECONDS = 0.01
#: The number of pidfd_getfd(2), on every architecture; Linux has it since 5.6.
_PIDFD_GETFD = 438

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


def running(program: str, words: Collection[str]) -> list[int]:
    """The processes of this machine that run ``program`` with one of ``words`` as an argument."""
    wanted = {word.encode() for word in words}
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):
            if _program(pid) != program:
                continue
            if wanted.intersection(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")):
                found.append(pid)
    return found


def children(parent: int) -> list[int]:
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):
            if _parent(pid) == parent:
                found.append(pid)
    return found


def parent(process: int, program: str) -> int | None:
    """A descriptor of the parent of a process, if the parent runs ``program``.

    Args:
        process: A descriptor; the process may have ended.
    """
    with contextlib.suppress(OSError):
        pid = _pid(process)
        above = _parent(pid)
        found = held(above)
        if found is not None:
            # While the process is not reaped its number is not another's, and nor is its parent's.
            if _program(above) == program and _parent(pid) == above and not _is_reaped(process):
                return found
            os.close(found)
    return None


def copy_descriptor(process: int, name: str) -> int:
    """Our own descriptor of an open file of another process: the first with this name, in any
    directory. Raises OSError.

    Args:
        process: A descriptor of the process.
    """
    pid = _pid(process)
    for entry in os.listdir(f"/proc/{pid}/fd"):
        if os.path.basename(os.readlink(f"/proc/{pid}/fd/{entry}")) == name:
            # It is closed in programs that we run, as all descriptors of ours are.
            copied = int(_libc.syscall(_PIDFD_GETFD, process, int(entry), 0))
            if copied < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return copied
    raise FileNotFoundError(f"process {pid} has no file {name}")


def _pid(process: int) -> int:
    """The number of the process that a descriptor is of; -1 if it was reaped."""
    info = Path(f"/proc/self/fdinfo/{process}").read_text()
    return int(info.partition("\nPid:")[2].split()[0])


def _is_reaped(process: int) -> bool:
    return _pid(process) < 0


def _program(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _parent(pid: int) -> int:
    # The program's name may have spaces and brackets.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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


async def reaped(process: int, seconds: float) -> bool:
    """Whether the parent of a process that has ended has noticed it, within ``seconds``: until
    then its number is taken, and Podman says that it runs. Cannot be cancelled."""
    with trio.move_on_after(seconds, shield=True):
        while True:
            if _is_reaped(process):
                return True
            await trio.sleep(REAPED_POLL_SECONDS)
    return False
