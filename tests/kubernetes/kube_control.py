"""The control plane as a process of its own, on a cluster, and its REST API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from alone import Alone
from apiserver import Identity
from checks import ok, wait_for
from compute_cloud import Computes


class Control(Alone, Computes):
    """It chooses Kubernetes itself."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        environment = {
            "GFS_COMPUTE_BACKEND": "auto",
            "GFS_COMPUTE_KUBECONFIG": str(identity.kubeconfig),
            "GFS_COMPUTE_DOMAIN": "compute.example.org",
            "GFS_QUOTA_CONTAINERS": "10",
        }
        super().__init__(directory, environment=environment)

    def create(self, **body: Any) -> str:
        """The id of a new container. A busy cluster may take longer to answer than a user waits:
        he tries again, and so do we."""
        body = {"name": "box", "ssh_key_ids": [self.first_key(self.admin)], **body}

        def ask() -> httpx.Response | None:
            answer = self.admin.post("/compute/containers", json=body)
            return answer if answer.status_code != 503 else None

        return str(ok(wait_for(ask, "answer but 503"))["id"])

    def get(self, container_id: str) -> dict[str, Any]:
        found: dict[str, Any] = ok(self.admin.get(f"/compute/containers/{container_id}"))
        return found

    def post(self, container_id: str, action: str) -> None:
        ok(self.admin.post(f"/compute/containers/{container_id}/{action}"))

    def delete(self, container_id: str) -> None:
        ok(self.admin.delete(f"/compute/containers/{container_id}"))
