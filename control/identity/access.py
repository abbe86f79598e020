"""The one decision: may this credential do that.

A route declares a :class:`Need`. Before a handler runs, and again when it knows
what the request is about (a :class:`Target`), :func:`decide` is asked. Nothing
else in the control plane looks at scopes, owners or ``is_admin`` to let a
request pass.

=====================  ==========  =====================  ====================
need                   anonymous   session                API token
=====================  ==========  =====================  ====================
PUBLIC, ANYBODY        yes         yes                    yes
LOGGED_IN              401         yes                    yes
SESSION                401         yes                    403
ADMIN                  401         admins, else 403       403
SERVICE                by X-Service-Key alone
scoped(…)              401         yes                    with the scope
scoped(…, public)      the target decides
=====================  ==========  =====================  ====================

``ANYBODY`` is ``PUBLIC`` for a handler that wants to know who it is.

With a target, besides: reading what is public or visible needs nothing; what is
private only its owner may read, and only he may write. What has no owner any
more belongs to the administrators, unless it is ``shared``: then everybody who
is logged in may act, and only the scope is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from control.errors import Forbidden, Unauthorized
from control.identity.scopes import grants_allow

PRIVATE = 0
VISIBLE = 1
PUBLIC_VISIBILITY = 2


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The user whose credential came with a request. Made by
    :mod:`control.identity.credentials` alone."""

    user_id: str
    username: str
    display_name: str
    is_admin: bool = False
    #: The session's or the token's id.
    credential_id: str
    #: What an API token was granted; None for a session, which may do all its user may.
    grants: Mapping[str, list[str]] | None = None

    @property
    def is_session(self) -> bool:
        return self.grants is None


@dataclass(frozen=True)
class Need:
    """What a route asks of a credential."""

    kind: str  # "public" | "anybody" | "logged_in" | "session" | "admin" | "service" | "scoped"
    root: str = ""
    resource: str = ""
    action: str = ""
    #: Anonymous requests reach the handler, which decides by the target.
    is_open: bool = False
    #: The path or query parameter whose value is the scope's last part.
    parameter: str = ""
    #: Its value when it is left out.
    fallback: str = ""
    #: The cookie ``token`` is accepted, too.
    takes_cookie: bool = False

    @property
    def scope(self) -> str:
        """For people: ``storage.files: read``."""
        return f"{self.root}.{self.resource}: {self.action}" if self.root else self.kind


PUBLIC = Need("public")
ANYBODY = Need("anybody", takes_cookie=True)
LOGGED_IN = Need("logged_in")
LOGGED_IN_OR_COOKIE = Need("logged_in", takes_cookie=True)
SESSION = Need("session")
ADMIN = Need("admin")
SERVICE = Need("service")


def scoped(
    root: str,
    resource: str,
    action: str,
    *,
    parameter: str = "",
    fallback: str = "",
    is_open: bool = False,
) -> Need:
    """The need for a credential of the owner whose grants cover the action."""
    return Need("scoped", root, resource, action, is_open, parameter, fallback)


@dataclass(frozen=True)
class Target:
    """What a request is about, once it is known."""

    #: None: nobody's.
    owner_id: str | None
    #: The scope's last part: a storage namespace's name, a container's id.
    name: str = ""
    visibility: int = PRIVATE
    #: It has no owner and is for all who are logged in.
    is_shared: bool = False
    #: What it is called in a refusal.
    noun: str = "this"


def decide(principal: Principal | None, need: Need, name: str = "") -> None:
    """Check the need before anything is looked up. Raises Unauthorized or Forbidden.

    ``name`` is the scope's last part as the request gives it.
    """
    if need.kind in ("public", "anybody", "service") or need.is_open:
        return
    if principal is None:
        raise Unauthorized()
    if need.kind == "logged_in":
        return
    if need.kind == "scoped":
        _check_grants(principal, need, name)
        return
    if not principal.is_session:
        raise Forbidden("an API token may not do this: log in and use the session's token")
    if need.kind == "admin" and not principal.is_admin:
        raise Forbidden("only an administrator may do this")


def decide_target(
    principal: Principal | None, need: Need, target: Target, *, reading: bool = False
) -> None:
    """Check the owner and the scope of a known target. Raises Unauthorized or Forbidden."""
    if reading and target.visibility != PRIVATE:
        return
    if principal is None:
        raise Unauthorized()
    _check_owner(principal, target)
    if need.kind == "scoped":
        _check_grants(principal, need, target.name)


def _check_owner(principal: Principal, target: Target) -> None:
    if target.owner_id is not None:
        if target.owner_id != principal.user_id:
            raise Forbidden(f"{target.noun} belongs to another user")
    elif not target.is_shared and not (principal.is_admin and principal.is_session):
        raise Forbidden(f"{target.noun} has no owner: only an administrator may do this")


def _check_grants(principal: Principal, need: Need, name: str) -> None:
    if principal.grants is None:
        return
    if not grants_allow(
        principal.grants, principal.user_id, need.root, need.resource, need.action, name
    ):
        scope = f"{need.root}.{principal.user_id}.{need.resource}"
        raise Forbidden(f"this token was not granted {need.action!r} on {scope}")
