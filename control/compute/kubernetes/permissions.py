"""The rights that we need in a cluster: the same as in rbac.yaml.

A test compares the two, and runs with exactly those rights.
"""

from __future__ import annotations

from control.compute.kubernetes.shapes import Rights

#: API group, resource, verb.
Permission = tuple[str, str, str]

_VERBS: dict[tuple[str, str], str] = {
    ("", "namespaces"): "get list watch create patch delete",
    ("", "pods"): "list watch",
    ("", "pods/exec"): "get create",
    ("", "pods/log"): "get",
    ("", "services"): "list watch create patch delete",
    ("", "secrets"): "create patch",
    ("", "persistentvolumeclaims"): "create patch",
    ("", "resourcequotas"): "create patch",
    ("", "nodes"): "list",
    ("", "events"): "list",
    ("apps", "statefulsets"): "get create patch",
    ("networking.k8s.io", "networkpolicies"): "create patch",
    ("networking.k8s.io", "ingresses"): "create patch delete",
}

NEEDED: tuple[Permission, ...] = tuple(
    (group, resource, verb) for (group, resource), verbs in _VERBS.items() for verb in verbs.split()
)


def missing(rights: Rights) -> list[Permission]:
    """The permissions that are needed and that no rule grants."""
    rules = rights.resource_rules or ()
    return [needed for needed in NEEDED if not any(rule.grants(*needed) for rule in rules)]
