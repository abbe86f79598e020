"""The calls of Podman's REST API that we need, with types. They make no decisions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from control.compute.backend import LABEL_CLUSTER, LABEL_CONTAINER, BackendUnavailable
from control.compute.podman.engine.answers import Inspected, Labelled, Volume
from control.compute.podman.engine.http import SECONDS, Body, Client, Refused

Kind = Literal["containers", "volumes", "networks"]
KINDS: tuple[Kind, ...] = ("containers", "volumes", "networks")

#: For calls that start or end a container, which wait for the kernel and its processes.
LONG_SECONDS = 60.0


class _Id(msgspec.Struct, rename="pascal"):
    id: str


class _Named(Labelled, rename="pascal"):
    """An item of a list: a container ("Id"), a volume ("Name") or a network ("name")."""

    id: str = ""
    name: str = ""
    network_name: str = msgspec.field(name="name", default="")
    network_labels: dict[str, str] | None = msgspec.field(name="labels", default=None)


class Found(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str]


class _Stats(msgspec.Struct, rename="pascal"):
    mem_usage: int = 0


class _StatsReport(msgspec.Struct, rename="pascal"):
    stats: list[_Stats] | None = None


class _Removed(msgspec.Struct, rename="pascal"):
    err: str | None = None


class Execution(msgspec.Struct, rename="pascal"):
    """A command in a container. ``pid`` is the machine's; 0 before it runs."""

    running: bool = False
    exit_code: int = 0
    pid: int = 0


class Api:
    """The calls. They raise Refused and BackendUnavailable."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def image_exists(self, image: str) -> bool:
        return await self._exists(f"/images/{image}/exists")

    async def find(
        self, kind: Kind, cluster: str, container_id: str = "", seconds: float = SECONDS
    ) -> list[Found]:
        """All objects of this installation, or of one container."""
        wanted = [f"{LABEL_CLUSTER}={cluster}"]
        if container_id:
            wanted.append(f"{LABEL_CONTAINER}={container_id}")
        filters = msgspec.json.encode({"label": wanted}).decode()
        query = {"filters": filters}
        if kind == "containers":
            query["all"] = "true"
        answer = await self._client.ask("GET", f"/{kind}/json", query, seconds=seconds)
        found = []
        for one in msgspec.json.decode(answer.body, type=list[_Named] | None) or ():
            labels = one.labels or one.network_labels or {}
            same = not container_id or labels.get(LABEL_CONTAINER) == container_id
            if labels.get(LABEL_CLUSTER) == cluster and LABEL_CONTAINER in labels and same:
                found.append(Found(one.id if kind == "containers" else one.name, labels))
                if kind == "networks":
                    found[-1] = Found(one.network_name or one.name, labels)
        return found

    async def inspect(self, name: str, seconds: float = SECONDS) -> Inspected | None:
        try:
            answer = await self._client.ask("GET", f"/containers/{name}/json", seconds=seconds)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return msgspec.json.decode(answer.body, type=Inspected)

    async def create_container(self, body: dict[str, Any]) -> None:
        await self._client.ask("POST", "/containers/create", json=body, seconds=LONG_SECONDS)

    @asynccontextmanager
    async def mounted(self, name: str) -> AsyncGenerator[Path, None]:
        """The root file system of a container, as a directory of this machine."""
        answer = await self._client.ask("POST", f"/containers/{name}/mount")
        try:
            # The path alone; as JSON according to the documentation.
            yield Path(os.fsdecode(answer.body).strip().strip('"'))
        finally:
            with trio.CancelScope(shield=True):
                await self._client.ask("POST", f"/containers/{name}/unmount")

    async def start(self, name: str) -> None:
        await self._client.ask("POST", f"/containers/{name}/start", seconds=LONG_SECONDS)

    async def stop(self, name: str, seconds: int) -> None:
        """Send SIGTERM, and SIGKILL after ``seconds``. It may be gone or stopped already."""
        with _missing_is_fine():
            query = {"timeout": str(seconds)}
            await self._client.ask(
                "POST", f"/containers/{name}/stop", query, seconds=seconds + LONG_SECONDS
            )

    async def remove_container(self, name: str) -> None:
        """Remove it, with SIGKILL if it runs."""
        query = {"force": "true", "timeout": "0", "v": "true"}
        with _missing_is_fine():
            answer = await self._client.ask(
                "DELETE", f"/containers/{name}", query, seconds=LONG_SECONDS
            )
            with contextlib.suppress(msgspec.MsgspecError):
                for removed in msgspec.json.decode(answer.body or b"[]", type=list[_Removed]):
                    if removed.err:
                        raise BackendUnavailable(f"Podman does not remove it: {removed.err}")

    async def volume(self, name: str) -> Volume | None:
        try:
            answer = await self._client.ask("GET", f"/volumes/{name}/json")
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return msgspec.json.decode(answer.body, type=Volume)

    async def remove_volume(self, name: str) -> None:
        with _missing_is_fine():
            await self._client.ask(
                "DELETE", f"/volumes/{name}", {"force": "true"}, seconds=LONG_SECONDS
            )

    async def ensure_network(self, body: dict[str, Any]) -> None:
        name = body["name"]
        if await self._exists(f"/networks/{name}/exists"):
            return
        try:
            await self._client.ask("POST", "/networks/create", json=body)
        except Refused:
            if not await self._exists(f"/networks/{name}/exists"):
                raise

    async def remove_network(self, name: str) -> None:
        with _missing_is_fine():
            await self._client.ask("DELETE", f"/networks/{name}", {"force": "true"})

    async def memory_bytes(self, name: str) -> int | None:
        query = {"containers": name, "stream": "false"}
        answer = await self._client.ask("GET", "/containers/stats", query)
        report = msgspec.json.decode(answer.body, type=_StatsReport)
        return report.stats[0].mem_usage if report.stats else None

    def events(self, cluster: str, since: float) -> AbstractAsyncContextManager[Body]:
        filters = {"type": ["container"], "label": [f"{LABEL_CLUSTER}={cluster}"]}
        return self._client.stream(
            "/events",
            {
                "stream": "true",
                "since": str(int(since)),
                "filters": msgspec.json.encode(filters).decode(),
            },
        )

    def logs(self, name: str, tail: int, *, follow: bool) -> AbstractAsyncContextManager[Body]:
        return self._client.stream(
            f"/containers/{name}/logs",
            {
                "stdout": "true",
                "stderr": "true",
                "timestamps": "true",
                "tail": str(tail),
                "follow": "true" if follow else "false",
            },
            # A silent container sends nothing until it prints something.
            seconds=float("inf") if follow else LONG_SECONDS,
        )

    async def create_exec(self, name: str, command: list[str], env: list[str]) -> str:
        body = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": True,
            "Cmd": command,
            "Env": env,
        }
        answer = await self._client.ask("POST", f"/containers/{name}/exec", json=body)
        return msgspec.json.decode(answer.body, type=_Id).id

    @asynccontextmanager
    async def start_exec(
        self, exec_id: str, columns: int, rows: int, seconds: float
    ) -> AsyncGenerator[tuple[trio.SocketStream, bytes], None]:
        body = {"Detach": False, "Tty": True, "h": rows, "w": columns}
        path = f"/exec/{exec_id}/start"
        async with self._client.hijack(path, body, seconds=seconds) as attached:
            yield attached

    async def resize_exec(self, exec_id: str, columns: int, rows: int) -> None:
        query = {"h": str(rows), "w": str(columns)}
        await self._client.ask("POST", f"/exec/{exec_id}/resize", query)

    async def inspect_exec(self, exec_id: str) -> Execution | None:
        try:
            answer = await self._client.ask("GET", f"/exec/{exec_id}/json")
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return msgspec.json.decode(answer.body, type=Execution)

    async def remove_exec(self, exec_id: str) -> bool:
        """Make Podman forget a command. Returns False if it runs, since then it is not removed;
        waits if Podman is just starting it."""
        try:
            path = f"/exec/{exec_id}/remove"
            await self._client.ask("POST", path, json={"Force": False}, seconds=LONG_SECONDS)
        except Refused as refused:
            return refused.status == 404
        return True

    async def _exists(self, path: str) -> bool:
        try:
            await self._client.ask("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True


@contextlib.contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        if refused.status != 404:
            raise
