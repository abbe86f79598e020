"""deploy/kubernetes, applied as ``kubectl apply --server-side`` does it."""

from __future__ import annotations

from kube_api import Api, Object

APPLY = "application/apply-patch+yaml"
#: The API server here is of 1.20, which does not know these yet.
OLDER = {("policy/v1", "PodDisruptionBudget"): "policy/v1beta1"}
PLURALS = {"NetworkPolicy": "networkpolicies"}
#: What makes it know Prometheus' monitors.
MONITORS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {
            "kind": "ServiceMonitor",
            "plural": "servicemonitors",
            "singular": "servicemonitor",
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def path_of(manifest: Object) -> str:
    about, group = manifest["metadata"], manifest["apiVersion"]
    inside = f"namespaces/{about['namespace']}/" if "namespace" in about else ""
    plural = PLURALS.get(manifest["kind"], f"{manifest['kind'].lower()}s")
    return f"/{'apis' if '/' in group else 'api'}/{group}/{inside}{plural}/{about['name']}"


async def apply(api: Api, manifest: Object) -> Object:
    """What the API server has stored."""
    sent = dict(manifest)
    sent["apiVersion"] = OLDER.get((sent["apiVersion"], sent["kind"]), sent["apiVersion"])
    return await api.patch(f"{path_of(sent)}?fieldManager=tests&force=true", sent, APPLY)
