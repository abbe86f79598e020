"""Set a new password for a user who has lost the old one, without a server.

It needs write permission for the state directory and no other credential. Processes
share the records, so a server may run meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from control.auth import FILE_NAME
from control.errors import ApiError
from control.identity import users as people
from control.identity.opening import open_records
from control.identity.passwords import make_hasher, new_password
from control.identity.rows import IDENTITY, User, users
from control.records import Txn
from control.settings import ControlSettings
from gfs.errors import SettingsError


async def replace_password(
    directory: Path, username: str, password: str, settings: ControlSettings
) -> None:
    """Replace the password of ``username`` by ``password``, and end the user's sessions.

    API tokens stay valid. ``directory`` is ``STATE/control``. Durable on return.
    Raises SettingsError for a user who does not exist, or a password that nobody may have.
    """
    try:
        new_password(password, username.strip())
    except ApiError as error:
        raise SettingsError(str(error)) from None
    records = open_records(settings, directory, [IDENTITY])
    try:
        hashed = make_hasher(settings).hash(password)
        await records.write(
            lambda txn: people.set_password(txn, _user(txn, username.strip()), hashed)
        )
    finally:
        records.close()
    if username.strip() == settings.admin_username:
        # The password of the first start is not valid any more.
        (directory / FILE_NAME).unlink(missing_ok=True)


def _user(txn: Txn, username: str) -> User:
    user = users.find(txn, "username", username)
    if user is None:
        known = ", ".join(sorted(row.username for row in users.scan(txn))[:10])
        raise SettingsError(f"there is no user {username!r}, only: {known}")
    return user
