"""A new password for a user who lost it, without the server's help.

The permission to write in the state directory is the only proof that is needed.
The records are shared by processes, so it does not matter whether any is serving.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from control.auth.first_start import FILE_NAME
from control.auth.module import Auth
from control.errors import ApiError
from control.identity.passwords import new_password
from control.identity.rows import IDENTITY, User, sessions, users
from control.records import Records, Txn
from control.settings import ControlSettings
from gfs.errors import SettingsError


async def replace_password(
    directory: Path, username: str, password: str, settings: ControlSettings
) -> None:
    """Let ``username`` log in with ``password`` and nothing else; his sessions end.

    His API tokens stay. ``directory`` is ``STATE/control``. On the disk on return.
    Raises SettingsError for a user who does not exist, or a password that nobody may have.
    """
    try:
        new_password(password, username.strip())
    except ApiError as error:
        raise SettingsError(str(error)) from None
    records = Records.open(
        directory / "records", [IDENTITY], map_bytes=settings.map_bytes, sync=settings.sync
    )
    try:
        hashed = Auth.hasher.hash(password)
        await records.write(lambda txn: _replace(txn, username.strip(), hashed))
    finally:
        records.close()
    if username.strip() == settings.admin_username:
        # The password of the first start is not valid any more.
        (directory / FILE_NAME).unlink(missing_ok=True)


def _replace(txn: Txn, username: str, hashed: str) -> User:
    user = users.find(txn, "username", username)
    if user is None:
        known = ", ".join(sorted(row.username for row in users.scan(txn))[:10])
        raise SettingsError(f"there is no user {username!r}, only: {known}")
    changed = msgspec.structs.replace(user, password=hashed)
    users.put(txn, changed)
    for session in list(sessions.by(txn, "user", user.id)):
        sessions.delete(txn, session.id)
    return changed
