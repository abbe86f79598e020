"""The interface for authors of modules, in one import; see ``docs/modules.md``.

A :class:`Module` declares its scopes, its rows and its routes (:class:`Route`); a handler gets a
:class:`Call` and, where the route says so, a body; it refuses a request by raising an
:class:`ApiError`. Third parties' packages import this and nothing else of ``control``;
names that are not here may change with any version.

Inside, each file imports only those before it: :mod:`.workloads` (what runs for users),
:mod:`.runtime` (the state that the modules of a process share), :mod:`.call`, :mod:`.route`,
:mod:`.module`. :mod:`.answers` makes responses. :mod:`.internals` has what the modules that come
with the control plane use beside these names.
:mod:`control.installed` finds modules and checks them. Tests of a module have
:mod:`control.testing`.
"""

from __future__ import annotations

from quart import Response

from control.api.answers import JSON, NO_STORE, in_order, json_array, json_response, stream_response
from control.api.call import Call
from control.api.connection import Connection, within
from control.api.module import Module
from control.api.route import Content, Route, Upgrade, upgrade_only
from control.api.runtime import Control, NamespaceDeletion, QuotaUsage, UserDeletion
from control.api.workloads import Workload, WorkloadsOf
from control.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NoSuchThing,
    QuotaReached,
    TooLarge,
    TooManyRequests,
    TooSlow,
    Unauthorized,
    Unavailable,
)
from control.http import BodyCutShort, Socket, SocketClosed, StreamingRequest
from control.identity.access import (
    ADMIN,
    ANYBODY,
    LOGGED_IN,
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
    scoped,
)
from control.identity.scopes import ScopeTable
from control.quota.limits import Limits
from control.records import (
    Records,
    RecordsBusy,
    RecordsFailed,
    RowUnreadable,
    Schema,
    Table,
    Taken,
    Txn,
)
from control.settings import ControlSettings
from control.volatile import Volatile
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
    "VISIBLE",
    "ApiError",
    "BadRequest",
    "BodyCutShort",
    "Call",
    "Conflict",
    "Connection",
    "Content",
    "Control",
    "ControlSettings",
    "Forbidden",
    "Limits",
    "Module",
    "NamespaceDeletion",
    "Need",
    "NoSuchThing",
    "Principal",
    "QuotaReached",
    "QuotaUsage",
    "Records",
    "RecordsBusy",
    "RecordsFailed",
    "Response",
    "Route",
    "RowUnreadable",
    "Schema",
    "ScopeTable",
    "Settings",
    "SettingsError",
    "Socket",
    "SocketClosed",
    "StartupError",
    "StreamingRequest",
    "Table",
    "Taken",
    "Target",
    "TooLarge",
    "TooManyRequests",
    "TooSlow",
    "Txn",
    "Unauthorized",
    "Unavailable",
    "Upgrade",
    "UserDeletion",
    "Volatile",
    "Workload",
    "WorkloadsOf",
    "admins",
    "in_order",
    "internals",
    "json_array",
    "json_response",
    "scoped",
    "stream_response",
    "upgrade_only",
    "within",
]
