"""The first administrator, and how the operator gets the password.

The first administrator is made when there is no user. The password is taken from the
environment, or generated; then it is in ``control/first-password`` (0600) until the
command that started the server prints it, once, and removes the file.

The file is written inside the transaction that adds the user, before it commits.
Only one process can be in this transaction, so one of several workers writes file and
user, and the others see the user. A crash in between leaves a file without a user: the
next start overwrites it.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from control.api import ApiError, Records, Txn
from control.api.internals import Passwords, new_password, people, read_secret, users, write_secret
from gfs.errors import StartupError
from gfs.variables import admin_password

FILE_NAME = "first-password"
#: 24 characters of 31, in groups of four: 118 bits, without characters that look alike.
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS = 6
_GROUP_LENGTH = 4


def take_first_password(control_directory: Path) -> str | None:
    """The generated password of the first administrator, if it was not printed yet.

    The file is removed when this returns: the caller must print the password.
    """
    path = control_directory / FILE_NAME
    data = read_secret(path, 1024)
    if data is None:
        return None
    try:
        path.unlink()
    except FileNotFoundError:
        return None  # another process was quicker and prints it
    return data.decode("ascii", "replace").strip()


def generate_password() -> str:
    """A password that is easy to copy and to type."""
    return "-".join(
        "".join(secrets.choice(_LETTERS) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS)
    )


async def make_first_admin(
    records: Records, passwords: Passwords, directory: Path, username: str
) -> bool:
    """Make the administrator; False if there are users already.

    Raises StartupError if the name or the given password cannot be used.
    """
    with records.read() as txn:
        if users.count(txn):
            return False
    given = admin_password()
    try:
        username = people.new_username(username)
        password = new_password(given or generate_password(), username)
    except ApiError as error:
        raise StartupError(f"the first administrator cannot be made: {error}") from None
    hashed = await passwords.hash(password)
    path = directory / FILE_NAME

    def decide(txn: Txn) -> bool:
        if users.count(txn):
            return False
        if given:
            path.unlink(missing_ok=True)
        else:
            write_secret(path, password.encode() + b"\n")
        people.create(
            txn,
            username=username,
            display_name=username,
            password=hashed,
            is_admin=True,
            now=int(time.time()),
        )
        return True

    try:
        return await records.write(decide)
    except OSError as error:
        raise StartupError(f"{path}: the first password cannot be kept: {error}") from None
