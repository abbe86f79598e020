"""What a cloud adds to Kubernetes: disks, and addresses on the internet.

* A PersistentVolume for each claim that the real volume controller hands to our
  provisioner, and its end when the claim is gone. There are two storage classes:
  ``standard``, the default, and ``late``, which waits for the first pod that uses it.
* An address for each Service of type LoadBalancer, and for each Ingress: from
  203.0.113.0/24, which nobody has.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from pathlib import Path

import trio
from kube_api import Api, Object, insist

PROVISIONER = "tests/disks"
CLASSES = {"standard": "Immediate", "late": "WaitForFirstConsumer"}
ASKS = "volume.beta.kubernetes.io/storage-provisioner"
SERVICES = "/api/v1/services"
INGRESSES = "/apis/networking.k8s.io/v1/ingresses"
VOLUMES = "/api/v1/persistentvolumes"


class Cloud:
    def __init__(self, api: Api, directory: Path) -> None:
        self._api = api
        self._directory = directory
        #: The directories of claims, by namespace and name.
        self._claims: dict[tuple[str, str], str] = {}
        self._claims_changed = trio.Event()
        self._under_way: set[str] = set()
        self._addresses = (f"203.0.113.{i % 254 + 1}" for i in itertools.count())

    async def prepare(self) -> None:
        for name, mode in CLASSES.items():
            default = str(name == "standard").lower()
            note = {"storageclass.kubernetes.io/is-default-class": default}
            await self._api.create(
                "/apis/storage.k8s.io/v1/storageclasses",
                {
                    "metadata": {"name": name, "annotations": note},
                    "provisioner": PROVISIONER,
                    "volumeBindingMode": mode,
                },
            )

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            watch = functools.partial(nursery.start_soon, self._api.observe)
            watch("/api/v1/persistentvolumeclaims", self._look_at_claims)
            watch(VOLUMES, self._look_at_volumes)
            watch(SERVICES, functools.partial(self._look_at_addresses, "/api/v1", "services"))
            watch(
                INGRESSES,
                functools.partial(
                    self._look_at_addresses, "/apis/networking.k8s.io/v1", "ingresses"
                ),
            )

    def volume(self, namespace: str, claim: str) -> Path:
        """Where the files of a claim are. Raises LookupError for one without a disk."""
        return self._directory / self._claims[namespace, claim]

    async def mounts(self, pod: Object) -> list[tuple[str, Path]]:
        """Path in the pod, and directory on this machine, of each lasting volume."""
        namespace = pod["metadata"]["namespace"]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["spec"].get("volumes") or ()
            if "persistentVolumeClaim" in volume
        }
        # Pods and claims come through watches of their own, in no order.
        while any((namespace, claim) not in self._claims for claim in claims.values()):
            await self._claims_changed.wait()
        return [
            (
                mount["mountPath"],
                self.volume(namespace, claims[mount["name"]]) / mount.get("subPath", ""),
            )
            for container in pod["spec"]["containers"]
            for mount in container.get("volumeMounts") or ()
            if mount["name"] in claims
        ]

    def _look_at_claims(self, present: dict[str, Object]) -> bool:
        for uid, claim in present.items():
            about = claim["metadata"]
            asks = (about.get("annotations") or {}).get(ASKS) == PROVISIONER
            self._claims[about["namespace"], about["name"]] = f"pvc-{uid}"
            if asks and not claim["spec"].get("volumeName"):
                self._once(f"make {uid}", self._make_volume, claim)
        self._claims_changed.set()
        self._claims_changed = trio.Event()
        return False

    def _look_at_volumes(self, present: dict[str, Object]) -> bool:
        for uid, volume in present.items():
            if volume["status"].get("phase") == "Released":
                self._once(f"drop {uid}", self._drop_volume, volume)
        return False

    def _look_at_addresses(self, base: str, kind: str, present: dict[str, Object]) -> bool:
        for uid, item in present.items():
            wants = kind == "ingresses" or item["spec"].get("type") == "LoadBalancer"
            if wants and not item["status"].get("loadBalancer"):
                about = item["metadata"]
                path = f"{base}/namespaces/{about['namespace']}/{kind}/{about['name']}/status"
                self._once(f"address {uid}", self._give_address, path)
        return False

    def _once(self, key: str, work: object, *arguments: object) -> None:
        if key not in self._under_way:
            self._under_way.add(key)
            self._nursery.start_soon(work, *arguments)

    async def _make_volume(self, claim: Object) -> None:
        about, spec = claim["metadata"], claim["spec"]
        name = f"pvc-{about['uid']}"
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        body = {
            "metadata": {
                "name": name,
                "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
            },
            "spec": {
                "accessModes": spec["accessModes"],
                "capacity": spec["resources"]["requests"],
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": about["namespace"],
                    "name": about["name"],
                    "uid": about["uid"],
                },
                "hostPath": {"path": str(directory)},
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": spec["storageClassName"],
            },
        }
        await insist(lambda: self._api.create(VOLUMES, body))

    async def _drop_volume(self, volume: Object) -> None:
        name = volume["metadata"]["name"]
        await insist(lambda: self._api.delete(f"{VOLUMES}/{name}"))
        await trio.to_thread.run_sync(shutil.rmtree, self._directory / name, True)

    async def _give_address(self, path: str) -> None:
        body = {"status": {"loadBalancer": {"ingress": [{"ip": next(self._addresses)}]}}}
        await insist(lambda: self._api.patch(path, body))
