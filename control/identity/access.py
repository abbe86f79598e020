"""The one decision: whether a credential allows a request.

A route declares a :class:`Need`. :func:`decide` is called before a handler runs, and
:func:`decide_target` when the handler knows what the request is about (a
:class:`Target`). Nothing else in the control plane decides by scopes, owners or
``is_admin``.

=====================  ==========  =====================  ====================
need                   anonymous   session                API token
=====================  ==========  =====================  ====================
PUBLIC, ANYBODY        yes         yes                    yes
LOGGED_IN              401         yes                    yes
SESSION                401         yes                    403
ADMIN                  401         admins, else 403       403
admins(…)              401         admins, else 403       admins' with the scope
SERVICE                by X-Service-Key alone
scoped(…)              401         yes                    with the scope
scoped(…, public)      the target decides
=====================  ==========  =====================  ====================

``ANYBODY`` is ``PUBLIC`` for a handler that needs to know the user, if there is one.

A target adds to this: anybody may read a public or visible one; only its owner may read
a private one, or write any. One without an owner belongs to the administrators, unless it
is ``shared``: then everybody who is logged in may use it, and only the scope is checked.
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
    """The user whose credential came with a request. Only
    :mod:`control.identity.credentials` creates it."""

    user_id: str
    username: str
    display_name: str
    is_admin: bool = False
    #: The id of the session or token.
    credential_id: str
    #: The scopes of an API token; None for a session, which may do all that its user may.
    grants: Mapping[str, list[str]] | None = None

    @property
    def is_session(self) -> bool:
        return self.grants is None


@dataclass(frozen=True)
class Need:
    """What a route requires of a credential."""

    kind: str  # "public" | "anybody" | "logged_in" | "session" | "admin" | "service" | "scoped"
    root: str = ""
    resource: str = ""
    action: str = ""
    #: Whether anonymous requests reach the handler, which decides by the target.
    is_open: bool = False
    #: The path or query parameter whose value is the scope's last part.
    parameter: str = ""
    #: The value of that parameter if it is left out.
    fallback: str = ""
    #: Whether reads accept the cookie ``token``, too.
    takes_cookie: bool = False
    #: Of a route that answers with one file: the parameters that name it, after
    #: ``parameter``. A ticket for that file is accepted, too.
    file: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """For people: ``storage.files: read``."""
        return f"{self.root}.{self.resource}: {self.action}" if self.root else self.kind

    def name_in(self, path: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The last part of the scope that a request with these parameters needs."""
        if not self.parameter:
            return ""
        return path.get(self.parameter) or query.get(self.parameter) or self.fallback

    def file_in(self, path: Mapping[str, str], query: Mapping[str, str]) -> list[str]:
        """The names of the file that a request with these parameters is for."""
        others = [path.get(each) or query.get(each, "") for each in self.file]
        return [self.name_in(path, query), *others]


PUBLIC = Need("public")
ANYBODY = Need("anybody")
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


def admins(root: str, resource: str, action: str) -> Need:
    """The need for an administrator's session, or API token whose grants cover the action."""
    return Need("admin", root, resource, action)


@dataclass(frozen=True)
class Target:
    """What a request is about: a storage namespace, a container, a file."""

    #: None: it has no owner.
    owner_id: str | None
    #: The scope's last part: a storage namespace's name, a container's id.
    name: str = ""
    visibility: int = PRIVATE
    #: Whether all users who are logged in may use it; then it has no owner.
    is_shared: bool = False
    #: Its name in a refusal.
    noun: str = "this"


def decide(principal: Principal | None, need: Need, name: str = "") -> None:
    """Check a need before anything is looked up. Raises Unauthorized or Forbidden.

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
    if not (principal.is_session or need.root):
        raise Forbidden("an API token may not do this: log in and use the session's token")
    if need.kind == "admin" and not principal.is_admin:
        raise Forbidden("only an administrator may do this")
    if need.root:
        _check_grants(principal, need, name)


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
