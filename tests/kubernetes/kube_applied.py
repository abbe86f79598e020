"""deploy/kubernetes, applied as ``kubectl apply --server-side`` does it."""

from __future__ import annotations

from apiserver import place_of
from kube_api import Api, Object, condition

APPLY = "application/apply-patch+yaml"
#: The API server here is of 1.20, which does not know these yet.
OLDER = {("policy/v1", "PodDisruptionBudget"): "policy/v1beta1"}


def custom_resource(group: str, version: str, kind: str, plural: str) -> Object:
    """What makes the API server know it, whatever is in it."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [{**served, "schema": {"openAPIV3Schema": anything}}],
        },
    }


async def establish(api: Api, crd: Object) -> None:
    await apply(api, crd)
    # The list of conditions is null at first.
    await api.wait_one(place_of(crd), lambda found: condition(found, "Established") == "True")


async def apply(api: Api, manifest: Object) -> Object:
    """What the API server has stored."""
    sent = dict(manifest)
    sent["apiVersion"] = OLDER.get((sent["apiVersion"], sent["kind"]), sent["apiVersion"])
    return await api.patch(f"{place_of(sent)}?fieldManager=tests&force=true", sent, APPLY)
