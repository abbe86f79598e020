"""The rows of users and of their credentials.

Times are unix seconds. Rows are only ever extended: new fields last, with a
default. Of a token only its SHA-256 is stored.
"""

from __future__ import annotations

import unicodedata

import msgspec

from control.records import Schema, Table


class User(msgspec.Struct, array_like=True, frozen=True):
    id: str
    username: str
    display_name: str
    #: Argon2id, in its own format.
    password: str
    is_admin: bool
    created_at: int


class Session(msgspec.Struct, array_like=True, frozen=True):
    """One login. Deleting it ends the session before its token expires."""

    id: str
    user_id: str
    created_at: int
    expires_at: int
    address: str


class Places(msgspec.Struct, array_like=True, frozen=True):
    """The networks from which a user has logged in, each with the last time."""

    user_id: str
    last: dict[str, int]


class Token(msgspec.Struct, array_like=True, frozen=True):
    """An API token of a user, or of one of the user's service accounts."""

    id: str
    user_id: str
    name: str
    #: Empty for a token of a service account: the account has them.
    scopes: dict[str, list[str]]
    digest: str
    created_at: int
    expires_at: int  # 0: never
    last_used_at: int  # 0: never
    #: When it was written, in unix nanoseconds (in old rows: a number). It orders tokens
    #: of the same second, and creating a token need not read other rows.
    serial: int
    account_id: str = ""
    #: What it is the credential of, beside a text: ``s3`` for an access key. Empty: an API token.
    purpose: str = ""


class ServiceAccount(msgspec.Struct, array_like=True, frozen=True):
    id: str
    user_id: str
    name: str
    scopes: dict[str, list[str]]
    created_at: int
    serial: int


class Secret(msgspec.Struct, array_like=True, frozen=True):
    """The content of a file with secrets, where several machines share the records."""

    name: str
    text: str


def folded(username: str) -> str:
    """The form of a username that is equal for names that people read as the same."""
    return unicodedata.normalize("NFKC", username).casefold()


users: Table[User] = Table(
    "users",
    User,
    key=lambda u: u.id,
    indexes={
        "username": lambda u: [u.username],
        "folded": lambda u: [folded(u.username)],
        "admin": lambda u: ["yes"] if u.is_admin else [],
    },
    unique=["username"],
)
sessions: Table[Session] = Table(
    "sessions", Session, key=lambda s: s.id, indexes={"user": lambda s: [s.user_id]}
)
places: Table[Places] = Table("places", Places, key=lambda p: p.user_id)
tokens: Table[Token] = Table(
    "tokens",
    Token,
    key=lambda t: t.id,
    indexes={
        "digest": lambda t: [t.digest],
        "user": lambda t: [] if t.account_id else [t.user_id],
        "owner": lambda t: [t.user_id],
        "account": lambda t: [t.account_id] if t.account_id else [],
    },
    unique=["digest"],
)
accounts: Table[ServiceAccount] = Table(
    "accounts", ServiceAccount, key=lambda a: a.id, indexes={"user": lambda a: [a.user_id]}
)

IDENTITY = Schema("identity", 1, [users, sessions, places, tokens, accounts])

secrets: Table[Secret] = Table("secrets", Secret, key=lambda s: s.name)
#: Only of records that several machines share.
SECRETS = Schema("secrets", 1, [secrets])
