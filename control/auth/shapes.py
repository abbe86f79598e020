"""The JSON of requests and answers of auth. Times are unix seconds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from control.api.internals import (
    DISPLAY_NAME_BYTES_MAX,
    LIMIT_MAX,
    NAME_BYTES_MAX,
    NAME_SIGNS,
    PASSWORD_BYTES_MAX,
    PASSWORD_LENGTH_MIN,
    PASSWORD_RULE,
    SCOPES_BYTES_MAX,
    SCOPES_MAX,
)

#: The limits are in bytes and are checked as such; these texts are for the documentation.
Name = Annotated[str, Meta(min_length=1, description=f"At most {NAME_BYTES_MAX} bytes, trimmed")]
Password = Annotated[
    str, Meta(min_length=1, max_length=PASSWORD_BYTES_MAX, description="Taken as it is")
]
NewPassword = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=PASSWORD_BYTES_MAX,
        description=f"Taken as it is: {PASSWORD_RULE}",
        extra_json_schema={"minLength": PASSWORD_LENGTH_MIN},
    ),
]
NewName = Annotated[
    str,
    Meta(
        min_length=1,
        description=(
            f"At most {NAME_BYTES_MAX} bytes: letters, digits and `{NAME_SIGNS}`, a letter or "
            "digit first. Trimmed"
        ),
    ),
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
            "below it and nothing above. "
            f"All together {SCOPES_BYTES_MAX} bytes at most"
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


class PasswordBody(msgspec.Struct):
    old: Password
    new: NewPassword


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
    service_account_id: Annotated[
        str | UnsetType, Meta(description="Whose token it is; there for service accounts' alone")
    ] = UNSET


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
    token_count: Annotated[int, Meta(description="How many tokens it has")]


class UserBody(msgspec.Struct):
    username: NewName
    password: NewPassword
    display_name: DisplayName = ""
    is_admin: bool = False


class UserChange(msgspec.Struct):
    password: Annotated[NewPassword | UnsetType, Meta(description="It ends the sessions")] = UNSET
    display_name: DisplayName | UnsetType = UNSET
    is_admin: Annotated[bool | UnsetType, Meta(description="A change ends the sessions")] = UNSET


class UserQuery(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, description="The user's id")]


class UserInfo(msgspec.Struct):
    id: UserId
    user_id: Annotated[UserId, Meta(description="The same as `id`")]
    username: str
    display_name: str
    is_admin: bool
    created_at: int


class SessionQuery(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, description="The session's id")]


class SessionRow(msgspec.Struct):
    id: str
    user_id: UserId
    username: str
    display_name: str
    created_at: int
    expires_at: int
    ip_address: Annotated[str, Meta(description="Where it was logged in from")]
    address: Annotated[str, Meta(description="The same as `ip_address`")]


class Quota(msgspec.Struct):
    used: int
    limit: int


class QuotaInfo(msgspec.Struct, kw_only=True):
    bytes: Annotated[Quota, Meta(description="Of the files one has uploaded")]
    files: Annotated[Quota, Meta(description="That one has uploaded")]
    namespaces: Annotated[Quota, Meta(description="Storage namespaces")]
    containers: Annotated[Quota, Meta(description="Stopped ones count")]
    memory_mb: Annotated[Quota, Meta(description="Of containers that are not stopped")]
    storage_gb: Annotated[Quota, Meta(description="Of all containers")]


class UserQuotaInfo(QuotaInfo, kw_only=True):
    user_id: UserId
    username: str
    changed: Annotated[list[str], Meta(description="Limits that are not the default")]


Limit = Annotated[int, Meta(ge=0, le=LIMIT_MAX)] | None | UnsetType


class NewLimits(msgspec.Struct, forbid_unknown_fields=True):
    bytes: Limit = UNSET
    files: Limit = UNSET
    namespaces: Limit = UNSET
    containers: Limit = UNSET
    memory_mb: Limit = UNSET
    storage_gb: Limit = UNSET
