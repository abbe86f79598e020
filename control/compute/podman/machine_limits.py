"""What the kernel counts for a whole machine, so that one container could take all of it.

===================  ===============================================================
what                 how a container is kept from taking it
===================  ===============================================================
PTYs                 its ``/dev/pts`` has a bound (``shapes.PTYS``); the machine has as many
                     for as many containers as there can be
inotify, open files  the kernel counts those of all containers as those of root of this
                     machine, and has no bound for one container; but each costs the
                     container memory, so the machine's bound is raised to a number for
                     which there is not enough memory
AIO contexts         refused (:mod:`control.compute.podman.syscalls`): the kernel has room
                     for few of them, and a container could take it at no cost
===================  ===============================================================
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from control.compute.podman.network import SLOTS_MAX
from control.compute.podman.shapes import PTYS

SYSCTLS = Path("/proc/sys")
#: The memory that each takes at the least, of its container. Measured with Linux 6.18: 950 bytes
#: for an instance of inotify, 500 for a watch with its file, 256 for an open file.
INSTANCE_BYTES = 512
WATCH_BYTES = 64
FILE_BYTES = 256
#: The kernel keeps these numbers as int.
NUMBER_MAX = 2**31 - 1


def wanted(memory_bytes: int, reserved_ptys: int) -> dict[str, int]:
    """Sysctl -> the least value with which no container takes anything from others."""
    return {
        "kernel.pty.max": reserved_ptys + SLOTS_MAX * PTYS,
        "fs.inotify.max_user_instances": min(memory_bytes // INSTANCE_BYTES, NUMBER_MAX),
        "fs.inotify.max_user_watches": min(memory_bytes // WATCH_BYTES, NUMBER_MAX),
        "fs.file-max": memory_bytes // FILE_BYTES,
    }


def raise_limits() -> list[str]:
    """Raise the sysctls that are too low, until the machine is started again. Returns those that
    cannot be raised, each as "name=value"."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    reserved = 0
    with contextlib.suppress(OSError):
        reserved = _read("kernel.pty.reserve")
    left = []
    for name, value in wanted(memory, reserved).items():
        try:
            if _read(name) < value:
                _path(name).write_text(str(value))
        except OSError:
            left.append(f"{name}={value}")
    return left


def has_free_pty() -> bool:
    """Whether this machine has a PTY for another container, as far as is known."""
    with contextlib.suppress(OSError):
        used, most = _read("kernel.pty.nr"), _read("kernel.pty.max")
        return used < most - _read("kernel.pty.reserve")
    return True


def _read(name: str) -> int:
    """Raises OSError."""
    return int(_path(name).read_text())


def _path(name: str) -> Path:
    return SYSCTLS / name.replace(".", "/")
