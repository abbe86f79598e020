"""What the author of a module needs, in one import. ``docs/modules.md`` shows how.

A :class:`Module` declares its scopes, its rows and its routes (:class:`Route`); a handler gets a
:class:`Call` and, where the route says so, a body; what it may not do is raised as an
:class:`ApiError`. Third parties' packages import this and nothing else of ``control``;
names that are not here may change with any version.

Inside, each file needs only those before it: :mod:`.runtime` (what the modules of a process
share), :mod:`.call`, :mod:`.route`, :mod:`.module`, :mod:`.installed` (which modules there
are, and that none takes another's name). :mod:`.answers` has what handlers return.
"""

from __future__ import annotations

from quart import Response
from werkzeug.routing import BaseConverter

from control.api.answers import (
    JSON,
    NO_STORE,
    in_order,
    json_array,
    json_response,
    stream_response,
)
from control.api.call import Call
from control.api.module import Module
from control.api.route import Content, Route, Upgrade, upgrade_only
from control.api.runtime import Control, UsageOf, UserDeletion
from control.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NoSuchThing,
    QuotaReached,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from control.http import Socket, SocketClosed
from control.identity.access import (
    ADMIN,
    ANYBODY,
    LOGGED_IN,
    PRIVATE,
    PUBLIC,
    PUBLIC_VISIBILITY,
    SERVICE,
    SESSION,
    Need,
    Principal,
    Target,
    scoped,
)
from control.identity.scopes import ScopeTable
from control.records import Records, RecordsFailed, Schema, Table, Taken, Txn
from gfs.config import Settings
from gfs.errors import SettingsError, StartupError

__all__ = [
    "ADMIN",
    "ANYBODY",
    "JSON",
    "LOGGED_IN",
    "NO_STORE",
    "PRIVATE",
    "PUBLIC",
    "PUBLIC_VISIBILITY",
    "SERVICE",
    "SESSION",
    "ApiError",
    "BadRequest",
    "BaseConverter",
    "Call",
    "Conflict",
    "Content",
    "Control",
    "Forbidden",
    "Module",
    "Need",
    "NoSuchThing",
    "Principal",
    "QuotaReached",
    "Records",
    "RecordsFailed",
    "Response",
    "Route",
    "Schema",
    "ScopeTable",
    "Settings",
    "SettingsError",
    "Socket",
    "SocketClosed",
    "StartupError",
    "Table",
    "Taken",
    "Target",
    "TooLarge",
    "TooManyRequests",
    "Txn",
    "Unauthorized",
    "Unavailable",
    "Upgrade",
    "UsageOf",
    "UserDeletion",
    "in_order",
    "json_array",
    "json_response",
    "scoped",
    "stream_response",
    "upgrade_only",
]
