"""Passwords that come in variables of the environment, and which processes get them.

What a process was started with stays readable in /proc/PID/environ, by root and the same user,
for as long as it lives: also when it is taken out of ``os.environ``. So the first administrator's
password is overwritten there as soon as the command line begins, kept in memory, and given to the
control plane's processes alone, which do the same. PostgreSQL's library looks for its password in
the environment at each connection: that variable stays, in the control plane's processes alone.
"""

from __future__ import annotations

import os

#: The first administrator's password.
ADMIN_PASSWORD = "GFS_ADMIN_PASSWORD"
#: That of the records in PostgreSQL, if it is in no file.
RECORDS_PASSWORD = "PGPASSWORD"

_kept = ""


def hide_admin_password() -> None:
    """Keep the first administrator's password in memory, and nowhere else."""
    global _kept
    value = os.environ.get(ADMIN_PASSWORD)
    if value is None:
        return
    import ctypes  # takes some milliseconds, which most commands need not spend

    _kept = value
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(ADMIN_PASSWORD.encode())
    if address:
        # What the kernel shows of a process is this memory.
        ctypes.memset(address, 0, len(ctypes.string_at(address)))
    del os.environ[ADMIN_PASSWORD]


def admin_password() -> str:
    """The first administrator's password; empty if none was given."""
    return os.environ.get(ADMIN_PASSWORD, _kept)


def environment_of_child(*, is_control: bool) -> dict[str, str]:
    """This process's environment, with the passwords if the child is of the control plane."""
    found = {
        name: value
        for name, value in os.environ.items()
        if is_control or name not in (ADMIN_PASSWORD, RECORDS_PASSWORD)
    }
    if is_control and admin_password():
        found[ADMIN_PASSWORD] = admin_password()
    return found
