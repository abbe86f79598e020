"""A cloud of real processes whose containers are files in a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from checks import ok, wait_for
from cloud import Cloud
from outside import World

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"


class Computes(Cloud):
    """A cloud with something that runs containers."""

    def key(self, client: httpx.Client, name: str = "laptop", line: str = ED25519) -> int:
        """The id of a new SSH key."""
        body = {"name": name, "public_key": line}
        return int(ok(client.post("/compute/ssh-keys", json=body))["id"])

    def first_key(self, client: httpx.Client) -> int:
        known = ok(client.get("/compute/ssh-keys"))["ssh_keys"]
        return int(known[0]["id"]) if known else self.key(client)

    def container(self, client: httpx.Client, **body: Any) -> dict[str, Any]:
        """A new container, with the user's first key (made if there is none)."""
        if "ssh_key_ids" not in body:
            body["ssh_key_ids"] = [self.first_key(client)]
        made: dict[str, Any] = ok(client.post("/compute/containers", json={"name": "box", **body}))
        return made

    def running(self, client: httpx.Client, **body: Any) -> dict[str, Any]:
        return self.until(client, self.container(client, **body)["id"], "running")

    def until(self, client: httpx.Client, container_id: str, status: str) -> dict[str, Any]:
        """The container, once it has this status."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = ok(client.get(f"/compute/containers/{container_id}"))
            return found if found["status"] == status else None

        return wait_for(look, f"{status} container {container_id}")


class ComputeCloud(Computes):
    """``gfs up`` on the backend ``outside``. ``world`` is what that works on."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        chunkservers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.world = World(directory / "world")
        variables = {
            "GFS_COMPUTE_BACKEND": "outside:make",
            "PYTHONPATH": str(Path(__file__).parent),
            "TEST_WORLD": str(self.world.directory),
            **(environment or {}),
        }
        super().__init__(directory, *arguments, chunkservers=chunkservers, environment=variables)

    def until_gone(self, container_id: str) -> None:
        """Until nothing of it is left in the world."""
        wait_for(lambda: self.world.thing(container_id) is None, f"end of {container_id}")
