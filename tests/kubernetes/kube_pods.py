"""Pods for the tests of the cluster itself."""

from __future__ import annotations

from kube_api import Object


def pods_in(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def pod_body(name: str = "one", **spec: object) -> Object:
    containers = [{"name": "main", "image": "debian"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}
