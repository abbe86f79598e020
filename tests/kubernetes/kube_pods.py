"""Pods for the tests of the cluster itself."""

from __future__ import annotations

from kube_api import Api, Object, is_ready


def pods_in(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def pod_body(name: str = "one", **spec: object) -> Object:
    containers = [{"name": "main", "image": "debian"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


async def start(kube: Api, namespace: str, name: str = "one", **spec: object) -> Object:
    """A pod that is ready."""
    await kube.create(pods_in(namespace), pod_body(name, **spec))
    return await kube.wait_one(f"{pods_in(namespace)}/{name}", is_ready)
