"""Scopes: the rights that an API token can be granted.

A scope is ``<root>.<user_id>[.<resource>[.<id>]]``. It is split three times at
most, since the name of a storage namespace may have dots. A grant covers everything
below it and nothing above; a scope with the ``user_id`` of another user is never granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from control.errors import BadRequest
from gfs.blocks import KIB

#: root -> resource -> actions.
ScopeTable = Mapping[str, Mapping[str, frozenset[str]]]
#: scope -> actions, as granted to a token.
Grants = Mapping[str, Iterable[str]]

#: Every host that creates tokens knows these, also if it does not serve their modules.
SEED_SCOPES: ScopeTable = {
    # Only those of administrators are of use.
    "cluster": {
        "status": frozenset({"read"}),
        "servers": frozenset({"update", "delete"}),
        "masters": frozenset({"update", "delete"}),
        "repair": frozenset({"update"}),
    },
    "compute": {
        "containers": frozenset({"create", "read", "update", "delete", "start", "stop"}),
        "keys": frozenset({"create", "read", "delete"}),
    },
    "storage": {
        "namespaces": frozenset({"create", "read", "update", "delete"}),
        "files": frozenset({"create", "read", "delete"}),
    },
}

#: An action (with root and resource) -> another action that grants it, too.
_IMPLIED = {
    ("compute", "containers", "start"): "update",
    ("compute", "containers", "stop"): "update",
}

SCOPES_MAX = 64
SCOPE_BYTES_MAX = 256
#: The scopes of a token or an account as JSON. Every request with the token has them, and so
#: do lists of a thousand tokens.
SCOPES_BYTES_MAX = 8 * KIB


def merge(tables: Iterable[ScopeTable]) -> dict[str, dict[str, frozenset[str]]]:
    """The union of ``tables``."""
    merged: dict[str, dict[str, frozenset[str]]] = {}
    for table in tables:
        for root, resources in table.items():
            known = merged.setdefault(root, {})
            for resource, actions in resources.items():
                known[resource] = known.get(resource, frozenset()) | actions
    return merged


def check_grants(table: ScopeTable, user_id: str, grants: Grants) -> dict[str, list[str]]:
    """``grants`` in order, if ``user_id`` may give them. Raises BadRequest."""
    if not grants:
        raise BadRequest("scopes: give at least one")
    if len(grants) > SCOPES_MAX:
        raise BadRequest(f"scopes: at most {SCOPES_MAX}")
    kept = {
        scope: _check_grant(table, user_id, scope, list(actions))
        for scope, actions in sorted(grants.items())
    }
    size = len(msgspec.json.encode(kept))
    if size > SCOPES_BYTES_MAX:
        raise BadRequest(
            f"scopes: {size} bytes of JSON, at most {SCOPES_BYTES_MAX}: leave out the last part "
            "to grant the same on all of a kind"
        )
    return kept


def _check_grant(table: ScopeTable, user_id: str, scope: str, actions: list[str]) -> list[str]:
    if len(scope.encode(errors="replace")) > SCOPE_BYTES_MAX:
        raise BadRequest(f"scopes: {scope[:50]}… is longer than {SCOPE_BYTES_MAX} bytes")
    if not (scope.isascii() and scope.isprintable()):
        # In a token, which must fit in a header, each other character takes six.
        raise BadRequest(f"scopes: {scope!a}: only letters, digits and signs of ASCII")
    root, owner, resource, name = split(scope)
    if root not in table:
        raise BadRequest(f"scopes: {scope}: begins with one of {', '.join(sorted(table))}")
    if owner != user_id:
        raise BadRequest(f"scopes: {scope}: the second part must be your user_id, {user_id}")
    if resource is not None and resource not in table[root]:
        known = ", ".join(sorted(table[root]))
        raise BadRequest(f"scopes: {scope}: the third part is one of {known}")
    if name == "":
        raise BadRequest(f"scopes: {scope}: ends with a dot")
    if not actions:
        raise BadRequest(f"scopes: {scope}: give at least one action")
    allowed = (
        table[root][resource] if resource is not None else frozenset().union(*table[root].values())
    )
    for action in actions:
        if action not in allowed:
            known = ", ".join(sorted(allowed))
            raise BadRequest(f"scopes: {scope}: {action[:40]!r} is not one of its actions: {known}")
    return sorted(set(actions))


def split(scope: str) -> tuple[str, str, str | None, str | None]:
    """root, user id, resource, id; a missing part is None (of the first two: empty)."""
    root, _, rest = scope.partition(".")
    owner, dot, rest = rest.partition(".")
    if not dot:
        return root, owner, None, None
    resource, dot, name = rest.partition(".")
    return root, owner, resource, name if dot else None


def grants_allow(
    grants: Grants, user_id: str, root: str, resource: str, action: str, name: str
) -> bool:
    """Whether ``grants`` cover ``action`` on ``<root>.<user_id>.<resource>[.<name>]``."""
    wanted = {action, _IMPLIED.get((root, resource, action), action)}
    covering = [f"{root}.{user_id}", f"{root}.{user_id}.{resource}"]
    if name:
        covering.append(f"{root}.{user_id}.{resource}.{name}")
    return any(wanted.intersection(grants.get(scope, ())) for scope in covering)
