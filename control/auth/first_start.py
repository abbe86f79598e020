"""The first administrator, and how his password gets to a person.

Made when there is no user at all. His password is taken from the environment, or
made up; then it lies in ``control/first-password`` (0600) until the command
that started the server shows it, once, and takes the file away.

The file is written inside the transaction that adds the user, before it commits.
That transaction is one at a time over all processes, so of several workers one
writes file and user, and the others see the user. A crash in between leaves a
file of no user: the next start writes another over it.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from control.errors import ApiError
from control.identity import users as people
from control.identity.passwords import Passwords, new_password
from control.identity.rows import users
from control.identity.secretfiles import read_secret, write_secret
from control.records import Records, Txn
from gfs.errors import StartupError

VARIABLE = "GFS_ADMIN_PASSWORD"
FILE_NAME = "first-password"
#: 24 letters of 31, in fours: 118 bits, and none that looks like another.
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS = 6
_GROUP_LENGTH = 4


def take_first_password(control_directory: Path) -> str | None:
    """The generated password of the first administrator, if nobody was shown it yet.

    The file is gone when this returns: whoever calls shows it to the person now.
    """
    path = control_directory / FILE_NAME
    data = read_secret(path, 1024)
    if data is None:
        return None
    try:
        path.unlink()
    except FileNotFoundError:
        return None  # another was quicker, and shows it
    return data.decode("ascii", "replace").strip()


def generate_password() -> str:
    """Easy to copy and to type."""
    return "-".join(
        "".join(secrets.choice(_LETTERS) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS)
    )


async def make_first_admin(
    records: Records, passwords: Passwords, directory: Path, username: str
) -> bool:
    """Whether this call made him; False if there are users already.

    Raises StartupError if the name or the given password cannot be used.
    """
    with records.read() as txn:
        if users.count(txn):
            return False
    given = os.environ.get(VARIABLE, "")
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
