"""The WebSockets of compute, as their users see them."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sockets
import trio
from limits import HANG_SECONDS
from podman_here import User

_NUMBERS = itertools.count(1)


class Shell:
    """A terminal that somebody types into."""

    def __init__(self, client: sockets.Client) -> None:
        self.client = client
        #: What was printed and not looked at yet.
        self.printed = bytearray()

    async def run(self, command: str) -> str:
        """What ``command`` prints, with what the terminal makes of it around that."""
        number = next(_NUMBERS)
        # What is typed is echoed, so the sign that it has ended is not in it.
        await self.client.send(f"{command}; echo E''ND-{number}-\n")
        return await self.until(f"END-{number}-")

    async def until(self, sign: str) -> str:
        """Everything up to ``sign``."""
        wanted, looked_at = sign.encode(), 0
        with trio.fail_after(HANG_SECONDS):
            while (at := self.printed.find(wanted, looked_at)) < 0:
                looked_at = max(0, len(self.printed) - len(wanted))
                data = await self.client.receive()
                assert isinstance(data, bytes), (data, self.client.close_code, self.printed[-500:])
                self.printed += data
        before = self.printed[:at].decode(errors="replace")
        del self.printed[: at + len(wanted)]
        return before


def prints(output: str, line: str) -> bool:
    """Whether it has this line, typed by nobody."""
    return re.search(rf"[\r\n]{re.escape(line)}\r\n", output) is not None


@asynccontextmanager
async def shell(user: User, container: str) -> AsyncIterator[Shell]:
    path = f"/compute/containers/{container}/terminal"
    async with sockets.websocket(user.here.port, path, user.token) as client:
        yield Shell(client)


class Reports:
    """What ``/compute/ws`` sends."""

    def __init__(self, client: sockets.Client) -> None:
        self._client = client
        self._last: dict[str, str] = {}
        self.external_ips: dict[str, str] = {}

    async def statuses(self, container: str, last: str) -> list[str]:
        """The next ones of a container, up to ``last``; each once, although more is said of it."""
        found: list[str] = []
        with trio.fail_after(HANG_SECONDS):
            while last not in found:
                data = await self._next("container_status")
                if data["container_id"] == container:
                    if self._last.get(container) != data["status"]:
                        found.append(data["status"])
                    self._last[container] = data["status"]
                    if "external_ip" in data:
                        self.external_ips[container] = data["external_ip"]
        return found

    async def deleted(self, container: str) -> None:
        with trio.fail_after(HANG_SECONDS):
            while (await self._next("container_deleted"))["container_id"] != container:
                pass

    async def _next(self, kind: str) -> dict[str, Any]:
        while True:
            message = await self._client.json()
            if message["type"] == kind:
                data: dict[str, Any] = message["data"]
                return data


@asynccontextmanager
async def listening(user: User) -> AsyncIterator[Reports]:
    async with sockets.websocket(user.here.port, "/compute/ws", user.token) as client:
        assert (await client.json())["type"] == "containers"
        yield Reports(client)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
