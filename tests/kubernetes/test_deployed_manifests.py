"""The manifests of deploy/kubernetes on a real API server."""

from __future__ import annotations

from collections.abc import Iterator

from kube_api import Api, Object, Refused
from kube_applied import apply, custom_resource, establish
from kube_here import Kubernetes
from kustomized import of_kind, rendered

NAMESPACE = "gfs-applied"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


async def test_a_real_api_server_takes_them_and_drops_nothing(kube: Api) -> None:
    group = "monitoring.coreos.com"
    await establish(kube, custom_resource(group, "v1", "ServiceMonitor", "servicemonitors"))
    # Of a second time it makes nothing new.
    for _ in range(2):
        for manifest in rendered(NAMESPACE):
            stored = await apply(kube, manifest)
            assert not list(_dropped({**manifest, "apiVersion": stored["apiVersion"]}, stored))


async def test_masters_may_do_what_they_do_and_nothing_else(
    kubernetes: Kubernetes, kube: Api
) -> None:
    manifests = rendered(NAMESPACE)
    for kind in ("Namespace", "ServiceAccount", "Role", "RoleBinding"):
        for manifest in of_kind(kind, manifests).values():
            await apply(kube, manifest)
    lease = {"metadata": {"name": "gfs-masters"}, "spec": {"holderIdentity": "a"}}
    other = {"metadata": {"name": "other"}, "spec": {"holderIdentity": "a"}}
    (role,) = of_kind("Role", manifests).values()
    async with Api(kubernetes.server.account(NAMESPACE, "gfs-master", role["rules"][1:])) as master:
        for made in (lease, other):
            await master.create(LEASES, made)
        found = await master.get(f"{LEASES}/gfs-masters")
        await master._call("PUT", f"{LEASES}/gfs-masters", json=found)
        for path in (
            LEASES,
            f"{LEASES}/other",
            f"/api/v1/namespaces/{NAMESPACE}/pods",
            f"/api/v1/namespaces/{NAMESPACE}/secrets/gfs-key",
            "/api/v1/nodes",
        ):
            assert await _refused(master, path), path
    async with Api(kubernetes.server.account(NAMESPACE, "gfs-control")) as control:
        assert await _refused(control, f"{LEASES}/gfs-masters")


async def _refused(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except Refused as error:
        return error.status == 403
    return False


def _dropped(sent: Object, stored: Object, at: str = "") -> Iterator[str]:
    """The fields of what was sent that the API server has not stored."""
    for name, value in sent.items():
        here = f"{at}.{name}"
        if name not in stored:
            yield here
        elif isinstance(value, dict):
            yield from _dropped(value, stored[name], here)
        elif isinstance(value, list):
            for number, (one, other) in enumerate(zip(value, stored[name], strict=False)):
                if isinstance(one, dict):
                    yield from _dropped(one, other, f"{here}[{number}]")
