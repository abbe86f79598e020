"""A whole cloud of real processes, for tests: ``gfs up`` with its control plane."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx
from checks import PLAIN
from harness import Cluster
from holds import holds
from limits import HANG_SECONDS

PASSWORD = "correct horse battery staple"
PATIENCE = [
    f"GFS_CONTROL_{name}_SECONDS" for name in ("HEADER", "BODY_STALL", "SEND_STALL", "KEEP_ALIVE")
]


class Cloud:
    """``gfs up`` on ports of its own, and clients of its REST API.

    ``cluster`` is the harness of the processes: ``kill("control")``, ``pid(…)``,
    ``wait_restarted(…)``, ``gfs(…)``. ``start`` and ``stop`` may be called again
    and again on the same state.
    """

    #: All that run.
    started: ClassVar[set[Cloud]] = set()

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        chunkservers: int = 3,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if chunkservers == 1:
            arguments = ("--replication", "1", *arguments)
        self.cluster = Cluster(directory, *arguments, chunkservers=chunkservers, control=True)
        self.cluster.environment |= {
            "GFS_ADMIN_PASSWORD": PASSWORD,
            # Tests of wrong passwords come from one address; one of them tests the limit.
            "GFS_CONTROL_LOGIN_FAILURES": "0",
            # Each user costs two hashes. Tests of hashing have the default.
            "GFS_CONTROL_PASSWORD_MEMORY_MIB": "8",
            "GFS_CONTROL_PASSWORD_PASSES": "1",
            # Many tests share a user, each with storage namespaces of its own.
            "GFS_QUOTA_NAMESPACES": "10000",
            "GFS_S3_DOMAIN": "s3.example.org",
            # A client that the machine keeps waiting is no slow client.
            **dict.fromkeys(PATIENCE, str(HANG_SECONDS)),
            **(environment or {}),
        }
        self._clients: list[httpx.Client] = []
        self._admin: httpx.Client | None = None

    def __enter__(self) -> Self:
        """What is started in the block is stopped after it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        Cloud.started.add(self)
        self.cluster.start()
        return self

    @property
    def s3_urls(self) -> list[str]:
        """Of each control plane itself."""
        return [str(self.cluster.ready["control"]["s3"])]

    @property
    def s3_url(self) -> str:
        return self.s3_urls[0]

    def stop(self) -> None:
        self.forget()
        self.cluster.stop()
        self.read_log()
        Cloud.started.discard(self)

    def read_log(self) -> None:
        """Look whether a request held the event loop."""
        holds.read(self.cluster.state / "log" / "control.log")

    def forget(self) -> None:
        """Close every client that was made here."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._admin = None

    @property
    def url(self) -> str:
        return str(self.cluster.ready["control"]["storage"])

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """A client with ``token`` as its bearer; anonymous without one."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        made = httpx.Client(
            base_url=self.url, headers=headers, timeout=HANG_SECONDS, **PLAIN, **options
        )
        self._clients.append(made)
        return made

    def token(self, username: str, password: str = PASSWORD) -> str:
        """Of a fresh session."""
        with httpx.Client(base_url=self.url, timeout=HANG_SECONDS, **PLAIN) as client:
            answer = client.post(
                "/api/login", json={"username": username, "password": password}
            ).raise_for_status()
        return str(answer.json()["token"])

    def login(self, username: str, password: str = PASSWORD) -> httpx.Client:
        return self.client(self.token(username, password))

    @property
    def admin(self) -> httpx.Client:
        """The administrator's. Made once."""
        if self._admin is None:
            self._admin = self.login("admin")
        return self._admin

    def make_user(self, name: str | None = None) -> tuple[httpx.Client, str]:
        """A new user's client and id; his name is ``name`` or one that nobody has."""
        username = name or f"user-{secrets.token_hex(6)}"
        made = self.admin.post(
            "/admin/users", json={"username": username, "password": PASSWORD}
        ).raise_for_status()
        return self.login(username), str(made.json()["id"])
