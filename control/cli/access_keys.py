"""Access keys of S3 on the command line, whether a server runs or not. It needs write
permission for the state directory and no other credential."""

from __future__ import annotations

from control.api import Control
from control.identity.rows import users
from control.identity.scopes import SEED_SCOPES
from control.s3 import Keys, NewAccessKey
from gfs.errors import SettingsError


async def make_key(control: Control, username: str, name: str) -> NewAccessKey:
    """A new access key of ``username`` for all of the user's files, which does not expire.
    Durable on return. Raises SettingsError for a user who does not exist."""
    with control.opened():
        with control.records.read() as txn:
            user = users.find(txn, "username", username)
        if user is None:
            raise SettingsError(f"there is no user {username!r}")
        actions = sorted(frozenset().union(*SEED_SCOPES["storage"].values()))
        scopes = {f"storage.{user.id}": actions}
        return await Keys(control).make(user.id, name, scopes, "never")
