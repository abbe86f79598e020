"""Users, credentials, scopes, and the one decision whether a request is allowed.

Every module uses it: each can verify credentials by itself, on its own host, from the
records that all processes of a machine share. The application asks :mod:`.access` and
:mod:`.credentials`; ``auth`` also changes the :mod:`.rows` by :mod:`.users`,
:mod:`.passwords` and :mod:`.keys`. Third parties get what they need from
:mod:`control.api`.
"""

__all__ = [
    "access",
    "credentials",
    "ids",
    "keys",
    "opening",
    "passwords",
    "rows",
    "scopes",
    "secretfiles",
    "users",
]
