"""Compute, as its users meet it: through the REST API and its WebSockets.

    python -m bench.compute                        # all that this machine can run
    python -m bench.compute --backend kubernetes   # or podman, or records

Kubernetes is the one of tests/kubernetes: the real API server, controllers and
scheduler, with a stand-in for the nodes that is ready at once; so what is measured is
ours and the API server's, and no starting of containers. Podman's containers are real.

- *create → running*: from the request until ``/compute/ws`` says ``running``; one after
  the other.
- *keystroke*: from a key sent over the terminal's WebSocket until the shell's echo is
  there; typing and deleting one character at a time at the prompt of an idle shell.
- *watch lag*: from the change of a container, made behind the module's back, until
  ``/compute/ws`` reports it. In Kubernetes the change is a write of the pod's status, timed
  from its request on; in Podman it is the death of the container's first process.
- *records*: what the control process takes of memory with 1000 containers in its records
  over what it takes with none, after an administrator has listed them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from bench import cluster
from bench.memory import resident
from control.compute.rows import COMPUTE, Container, Rule, add_event, containers
from control.records import Records, Txn

TESTS = Path(__file__).parents[1] / "tests"
ROUNDS = 20
KEYS = 500
RECORDS = 1000
#: Of one user.
CONTAINERS = 10
#: Of anything that is sure to come.
SECONDS = 120.0
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"


@dataclass(frozen=True)
class Api:
    """A logged-in user."""

    url: str
    token: str

    def call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.load(response)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        return await trio.to_thread.run_sync(self.call, method, path, body)

    def socket(self, path: str) -> Any:
        address = self.url.replace("http://", "ws://")
        return open_websocket_url(f"{address}{path}?token={self.token}")


def log_in(servers: cluster.Running) -> Api:
    who = {"username": "admin", "password": cluster.PASSWORD}
    return Api(servers.url, str(Api(servers.url, "").call("POST", "/api/login", who)["token"]))


class Reports:
    """What ``/compute/ws`` says of one's containers."""

    def __init__(self, api: Api, socket: WebSocketConnection) -> None:
        self._api = api
        self._socket = socket

    async def until(self, container: str, status: str) -> float:
        """When the message came that it has this status; "deleted" is one."""
        with trio.fail_after(SECONDS):
            while True:
                message = json.loads(await self._socket.get_message())
                now = time.perf_counter()
                data = message["data"]
                if message["type"] == "containers" or data["container_id"] != container:
                    continue
                said = data.get("status", "deleted")
                if said == status:
                    return now
                if said == "failed":
                    shown = await self._api.ask("GET", f"/compute/containers/{container}")
                    raise RuntimeError(f"container {container}: {shown.get('reason', said)}")


@asynccontextmanager
async def listening(api: Api) -> AsyncIterator[Reports]:
    async with api.socket("/compute/ws") as socket:
        await socket.get_message()
        yield Reports(api, socket)


# --- what is measured ----------------------------------------------------------------


async def create(api: Api, reported: Reports, key: int) -> tuple[str, float]:
    """A new container that runs, and the milliseconds until it did."""
    began = time.perf_counter()
    body = {"name": "bench", "ssh_key_ids": [key]}
    made = await api.ask("POST", "/compute/containers", body)
    return made["id"], 1000 * (await reported.until(made["id"], "running") - began)


async def delete(api: Api, reported: Reports, container: str) -> None:
    await api.ask("DELETE", f"/compute/containers/{container}")
    await reported.until(container, "deleted")


async def creations(api: Api, reported: Reports, key: int) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        container, milliseconds = await create(api, reported, key)
        taken.append(milliseconds)
        await delete(api, reported, container)
    return taken


async def keystrokes(api: Api, container: str) -> list[float]:
    taken = []
    async with api.socket(f"/compute/containers/{container}/terminal") as socket:
        # The prompt is there when this is answered, and says nothing more.
        await socket.send_message("PS1='rea''dy> '\n")
        await _until(socket, b"ready> ")
        for number in range(KEYS):
            # The shell puts out the letter, or takes it back.
            typed, echo = ("x", b"x") if number % 2 == 0 else ("\x7f", b"\b")
            began = time.perf_counter()
            await socket.send_message(typed)
            await _until(socket, echo)
            taken.append(1000 * (time.perf_counter() - began))
        await socket.send_message("exit\n")
        await _until(socket, b"exit")
    return taken


async def _until(socket: WebSocketConnection, sign: bytes) -> None:
    seen = b""
    with trio.fail_after(SECONDS):
        while sign not in seen:
            data = await socket.get_message()
            seen += data if isinstance(data, bytes) else data.encode()


class World(Protocol):
    """What runs containers, seen from behind the module's back."""

    #: Of a control plane that uses it.
    environment: dict[str, str]

    def hurt(self, container: str) -> float:
        """Let a running container run no more; returns when that was."""

    def heal(self, container: str) -> None:
        """It runs again, unless it does so by itself."""

    def is_gone(self, container: str) -> bool:
        """Whether nothing is left of a deleted one: nobody comes back for it later."""


async def lags(api: Api, reported: Reports, container: str, world: World) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        began = await trio.to_thread.run_sync(world.hurt, container)
        taken.append(1000 * (await reported.until(container, "initializing") - began))
        await trio.to_thread.run_sync(world.heal, container)
        await reported.until(container, "running")
        # A run that has died too often is given up: the next one is new.
        await api.ask("POST", f"/compute/containers/{container}/stop")
        await reported.until(container, "stopped")
        await api.ask("POST", f"/compute/containers/{container}/start")
        await reported.until(container, "running")
    return taken


async def measure(api: Api, world: World) -> None:
    line = {"name": "bench", "public_key": KEY}
    key = (await api.ask("POST", "/compute/ssh-keys", line))["id"]
    async with listening(api) as reported:
        show("create → running", await creations(api, reported, key), "ms", 95)
        container, _ = await create(api, reported, key)
        show("keystroke", await keystrokes(api, container), "ms", 99)
        show("watch lag", await lags(api, reported, container, world), "ms", 99)
        await delete(api, reported, container)
    with trio.fail_after(SECONDS):
        while not await trio.to_thread.run_sync(world.is_gone, container):  # noqa: ASYNC110
            await trio.sleep(0.05)


def show(name: str, taken: list[float], unit: str, high: int) -> None:
    ordered = sorted(taken)
    # The smallest that so many in a hundred do not exceed.
    percentile = ordered[-(-len(ordered) * high // 100) - 1]
    print(
        f"  {name:<18} median {statistics.median(ordered):7.1f} {unit}, {high} % within "
        f"{percentile:7.1f} {unit} (of {len(ordered)}; {ordered[0]:.1f} to {ordered[-1]:.1f})",
        flush=True,
    )


# --- on what -------------------------------------------------------------------------


class InKubernetes:
    def __init__(self, kubeconfig: Path, client: Any) -> None:
        self.environment = {
            "GFS_COMPUTE_BACKEND": "kubernetes",
            "GFS_COMPUTE_KUBECONFIG": str(kubeconfig),
        }
        self._client = client

    def hurt(self, container: str) -> float:
        return self._write(container, {"waiting": {"reason": "ContainerCreating"}})

    def heal(self, container: str) -> None:
        self._write(container, {"running": {"startedAt": "2026-01-01T00:00:00Z"}})

    def is_gone(self, container: str) -> bool:
        return True  # the cluster ends, too

    def _write(self, container: str, state: object) -> float:
        label = f"gfs.control/container={container}"
        listed = self._client.get("/api/v1/pods", params={"labelSelector": label}).json()
        (pod,) = (pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"])
        statuses = [{**each, "state": state} for each in pod["status"]["containerStatuses"]]
        about = pod["metadata"]
        path = f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}/status"
        began = time.perf_counter()
        self._client.patch(
            path,
            content=json.dumps({"status": {"containerStatuses": statuses}}),
            headers={"Content-Type": "application/merge-patch+json"},
        ).raise_for_status()
        return began


@contextmanager
def kubernetes() -> Iterator[World]:
    sys.path.insert(0, str(TESTS / "kubernetes"))
    import binaries
    import kube_here

    if reason := binaries.missing():
        raise SystemExit(f"kubernetes: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="gfs-bench-") as directory,
        kube_here.running(Path(directory)) as here,
        here.admin.client() as client,
    ):
        yield InKubernetes(here.admin.kubeconfig, client)


class InPodman:
    def __init__(self, command: Callable[..., Any], runtime: str, image: str) -> None:
        self.environment = {
            "GFS_COMPUTE_BACKEND": "podman",
            "GFS_COMPUTE_PODMAN_RUNTIME": runtime,
            "GFS_COMPUTE_IMAGE": image,
        }
        self._podman = command

    def hurt(self, container: str) -> float:
        label = f"label=gfs.control/container={container}"
        name = self._podman("ps", "--quiet", "--filter", label).stdout.strip()
        pid = int(self._podman("inspect", "--format", "{{.State.Pid}}", name).stdout)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        return began

    def heal(self, container: str) -> None:
        """Podman starts it again."""

    def is_gone(self, container: str) -> bool:
        label = f"label=gfs.control/container={container}"
        return not any(
            self._podman(*listing, "--quiet", "--filter", label).stdout.strip()
            for listing in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        )


@contextmanager
def podman() -> Iterator[World]:
    sys.path.insert(0, str(TESTS / "podman"))
    import podman_image

    if reason := podman_image.missing():
        raise SystemExit(f"podman: {reason}")
    yield InPodman(podman_image.podman, podman_image.RUNTIME, podman_image.image())


WORLDS = {"kubernetes": kubernetes, "podman": podman}


# --- memory --------------------------------------------------------------------------


async def records(api: Api, servers: cluster.Running) -> None:
    """The rows are written into the records of the running control plane."""
    path = "/compute/admin/containers"
    await api.ask("GET", path)
    before = resident(servers.control)
    opened = Records.open(servers.state / "control" / "records", [COMPUTE], sync=False)
    try:
        await opened.write(_fill)
    finally:
        opened.close()
    listed = len(await api.ask("GET", path))
    if listed != RECORDS:
        raise RuntimeError(f"{listed} containers are listed")
    after = resident(servers.control)
    print(
        f"  {RECORDS} containers in the records: the control process has {after:.1f} MiB, "
        f"{before:.1f} with none",
        flush=True,
    )


def _fill(txn: Txn) -> None:
    for number in range(RECORDS):
        row = Container(
            id=secrets.token_hex(4),
            user_id=f"u{number // CONTAINERS:05d}",
            name=f"container {number}",
            instance_type="nano",
            memory_mb=512,
            storage_gb=5,
            ssh_keys=(KEY,),
            ssh_enabled=True,
            mount_paths=("/root", "/srv/data"),
            rules=(Rule(number + 1, 8080, 80, 0),),
            created_at=int(time.time()),
            serial=number + 1,
            applied=1,
            status="running",
            external_ip="192.0.2.7",
            seen=True,
        )
        containers.insert(txn, row)
        add_event(txn, row, "status")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compute", description=__doc__)
    parser.add_argument("--backend", choices=[*WORLDS, "records"], help="only this one")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    names = [arguments.backend] if arguments.backend else [*WORLDS, "records"]
    with cluster.interrupted_cleanly():
        for name in names:
            print(f"{name}: {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
            run(name, arguments.dir)


def run(name: str, folder: str | None) -> None:
    if name == "records":
        environment = {"GFS_COMPUTE_BACKEND": "none"}
        with cluster.running(folder=folder, environment=environment) as servers:
            trio.run(records, log_in(servers), servers)
        return
    with (
        WORLDS[name]() as world,
        cluster.running(folder=folder, environment=world.environment) as servers,
    ):
        trio.run(measure, log_in(servers), world)


if __name__ == "__main__":
    main()
