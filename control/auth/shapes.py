"""What the routes of auth take and give, as JSON. Times are unix seconds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from control.identity.passwords import PASSWORD_BYTES_MAX
from control.identity.scopes import SCOPES_MAX
from control.identity.users import DISPLAY_NAME_BYTES_MAX, NAME_BYTES_MAX

#: The bounds are of bytes and are checked as such; these are for the documentation.
Name = Annotated[str, Meta(min_length=1, description=f"At most {NAME_BYTES_MAX} bytes, trimmed")]
Password = Annotated[
    str, Meta(min_length=1, max_length=PASSWORD_BYTES_MAX, description="Taken as it is")
]
DisplayName = Annotated[
    str, Meta(description=f"At most {DISPLAY_NAME_BYTES_MAX} bytes, trimmed; empty: the username")
]
UserId = Annotated[str, Meta(pattern="^[0-9A-Za-z]{6}$", examples=["XyZ123"])]
Scopes = Annotated[
    dict[str, Annotated[list[str], Meta(min_length=1)]],
    Meta(
        min_length=1,
        max_length=SCOPES_MAX,
        description=(
            "`<root>.<user_id>[.<resource>[.<id>]]` → actions. A grant covers everything "
            "below it and nothing above"
        ),
        examples=[{"storage.XyZ123.files": ["read"]}],
    ),
]
ExpiresIn = Literal["30d", "90d", "365d", "never"]


class Status(msgspec.Struct):
    status: Literal["ok"] = "ok"


class Validity(msgspec.Struct):
    status: Literal["valid"] = "valid"


class LoginBody(msgspec.Struct):
    username: Name
    password: Password


class SessionInfo(msgspec.Struct):
    username: str
    display_name: str
    user_id: UserId
    is_admin: bool


class LoginAnswer(msgspec.Struct):
    username: str
    display_name: str
    user_id: UserId
    is_admin: bool
    token: Annotated[str, Meta(description="A session JWT, for `Authorization: Bearer`")]


class TokenBody(msgspec.Struct):
    name: Name
    scopes: Scopes
    expires_in: ExpiresIn = "never"


class TokenInfo(msgspec.Struct):
    id: str
    name: str
    scopes: dict[str, list[str]]
    expires_at: Annotated[int, Meta(description="0: never")]
    created_at: int
    last_used_at: Annotated[int, Meta(description="0: never; may lag a minute")]


class NewToken(msgspec.Struct):
    id: str
    name: str
    scopes: dict[str, list[str]]
    expires_at: Annotated[int, Meta(description="0: never")]
    created_at: int
    last_used_at: Annotated[int, Meta(description="0: never; may lag a minute")]
    token: Annotated[str, Meta(description="`ecloud_` and a JWT; shown only here")]


class AccountBody(msgspec.Struct):
    name: Name
    scopes: Scopes


class ScopesBody(msgspec.Struct):
    scopes: Scopes


class AccountTokenBody(msgspec.Struct):
    name: Name
    expires_in: ExpiresIn = "never"


class AccountInfo(msgspec.Struct):
    id: str
    name: str
    scopes: dict[str, list[str]]
    created_at: int


class UserBody(msgspec.Struct):
    username: Name
    password: Password
    display_name: DisplayName = ""
    is_admin: bool = False


class UserQuery(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, description="The user's id")]


class UserInfo(msgspec.Struct):
    id: UserId
    username: str
    display_name: str
    is_admin: bool
    created_at: int


class SessionRow(msgspec.Struct):
    id: str
    user_id: UserId
    username: str
    created_at: int
    expires_at: int
    address: str
