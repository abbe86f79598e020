"""Users, credentials, scopes, and the one decision whether a request is allowed.

Every module uses it: each can verify credentials by itself, on its own host, from the
records that all processes of a machine share. The application asks :mod:`.access` and
:mod:`.credentials`; ``auth`` also changes the :mod:`.rows` by :mod:`.users`,
:mod:`.passwords` and :mod:`.keys`. Third parties get what they need from
:mod:`control.api`.
"""

from control.identity.access import (
    ADMIN,
    ANYBODY,
    LOGGED_IN,
    LOGGED_IN_OR_COOKIE,
    PRIVATE,
    PUBLIC,
    PUBLIC_VISIBILITY,
    SERVICE,
    SESSION,
    VISIBLE,
    Need,
    Principal,
    Target,
    admins,
    decide,
    decide_target,
    scoped,
)
from control.identity.credentials import (
    TICKET_SECONDS,
    Credentials,
    Fault,
    PasswordChanged,
    current_scopes,
    is_live,
)
from control.identity.keys import (
    SigningKeys,
    read_key_files,
    rotate_keys,
    write_key_files,
)
from control.identity.opening import open_records
from control.identity.passwords import (
    PASSWORD_BYTES_MAX,
    PASSWORD_LENGTH_MIN,
    PASSWORD_LETTERS_MIN,
    Passwords,
    check_password,
    make_hasher,
    new_password,
)
from control.identity.scopes import (
    SCOPES_BYTES_MAX,
    SCOPES_MAX,
    SEED_SCOPES,
    ScopeTable,
    check_grants,
    merge,
)
from control.identity.secretfiles import locked, make_private_directory, read_secret, write_secret

__all__ = [
    "ADMIN",
    "ANYBODY",
    "LOGGED_IN",
    "LOGGED_IN_OR_COOKIE",
    "PASSWORD_BYTES_MAX",
    "PASSWORD_LENGTH_MIN",
    "PASSWORD_LETTERS_MIN",
    "PRIVATE",
    "PUBLIC",
    "PUBLIC_VISIBILITY",
    "SCOPES_BYTES_MAX",
    "SCOPES_MAX",
    "SEED_SCOPES",
    "SERVICE",
    "SESSION",
    "TICKET_SECONDS",
    "VISIBLE",
    "Credentials",
    "Fault",
    "Need",
    "PasswordChanged",
    "Passwords",
    "Principal",
    "ScopeTable",
    "SigningKeys",
    "Target",
    "admins",
    "check_grants",
    "check_password",
    "current_scopes",
    "decide",
    "decide_target",
    "ids",
    "is_live",
    "locked",
    "make_hasher",
    "make_private_directory",
    "merge",
    "new_password",
    "open_records",
    "read_key_files",
    "read_secret",
    "rotate_keys",
    "rows",
    "scoped",
    "users",
    "write_key_files",
    "write_secret",
]
