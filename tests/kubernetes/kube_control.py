"""The control plane as a process of its own, on a cluster, and its REST API."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from apiserver import Identity
from limits import HANG_SECONDS

HERE = Path(__file__).parent
for neighbour in ("", "cluster", "control"):
    sys.path.append(str(HERE.parent / neighbour))

from checks import ok, wait_for  # noqa: E402
from harness import GFS, environment  # noqa: E402

PASSWORD = "correct horse battery staple"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC"


class Control:
    """``gfs control`` with the modules auth and compute, and nobody who starts it again."""

    def __init__(self, directory: Path, identity: Identity, backend: str = "kubernetes") -> None:
        self.directory = directory
        self.output = directory / "control.out"
        self.holds = directory / "holds"
        self.holds.mkdir()
        self._environment = environment(
            GFS_ADMIN_PASSWORD=PASSWORD,
            GFS_CONTROL_LOGIN_FAILURES="0",
            GFS_COMPUTE_BACKEND=backend,
            GFS_COMPUTE_KUBECONFIG=str(identity.kubeconfig),
            GFS_COMPUTE_DOMAIN="compute.example.org",
            PYTHONPATH=os.pathsep.join([str(HERE), *sys.path[:1]]),
            TEST_HOLDS=str(self.holds),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._token = ""

    def start(self) -> None:
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(*GFS, "control", "--state", str(self.directory / "state")),
                    *("--modules", "auth,compute", "--bind", "127.0.0.1:0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )
        wait_for(self._is_up, "server")

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.output.read_text()
        return "Stop it with" in self.output.read_text()

    @property
    def port(self) -> int:
        found = re.search(r"REST API: http://127\.0\.0\.1:(\d+)", self.output.read_text())
        assert found is not None, self.output.read_text()
        return int(found[1])

    def end(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(HANG_SECONDS)
            self._process = None

    def die(self, place: str, then: str = "") -> None:
        """Kill it when it has come to ``place``, and start it again; hold it at ``then``."""
        held = self.holds / f"held-{place}"
        wait_for(held.exists, f"call held at {place}")
        self.end()
        for file in self.holds.iterdir():
            file.unlink()
        if then:
            self.hold(then)
        self.start()

    def hold(self, place: str) -> None:
        (self.holds / f"hold-{place}").touch()

    def token(self) -> str:
        """The administrator's. It outlives the process: what it is checked with is kept."""
        if self._token:
            return self._token
        url = f"http://127.0.0.1:{self.port}/api/login"
        body = {"username": "admin", "password": PASSWORD}
        answer = httpx.post(url, json=body, timeout=HANG_SECONDS, trust_env=False)
        self._token = str(ok(answer)["token"])
        return self._token

    @contextmanager
    def client(self) -> Iterator[Client]:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.token()}"},
            timeout=HANG_SECONDS,
            trust_env=False,
        ) as http:
            yield Client(http, self)


class Client:
    """What a user does. All of it blocks."""

    def __init__(self, http: httpx.Client, control: Control) -> None:
        self.http = http
        self._control = control

    def create(self, **body: Any) -> str:
        """A new container's id. A busy cluster may take longer to answer than a user waits:
        he tries again, and so do we."""
        keys = ok(self.http.get("/compute/ssh-keys"))["ssh_keys"]
        if not keys:
            key = {"name": "laptop", "public_key": KEY}
            keys = [ok(self.http.post("/compute/ssh-keys", json=key))]
        body = {"name": "box", "ssh_key_ids": [keys[0]["id"]], "instance_type": "tiny", **body}

        def ask() -> httpx.Response | None:
            answer = self.http.post("/compute/containers", json=body)
            return answer if answer.status_code != 503 else None

        return str(ok(wait_for(ask, "answer but 503"))["id"])

    def make_room(self) -> None:
        """A test that failed may have left containers."""
        for each in ok(self.http.get("/compute/containers"))["containers"]:
            self.delete(each["id"])

    def get(self, container_id: str) -> dict[str, Any]:
        found: dict[str, Any] = ok(self.http.get(f"/compute/containers/{container_id}"))
        return found

    def post(self, container_id: str, action: str) -> None:
        ok(self.http.post(f"/compute/containers/{container_id}/{action}"))

    def delete(self, container_id: str) -> None:
        ok(self.http.delete(f"/compute/containers/{container_id}"))

    def until(self, container_id: str, status: str) -> dict[str, Any]:
        """The container, once it has this status."""

        def look() -> dict[str, Any] | None:
            found = self.get(container_id)
            return found if found["status"] == status else None

        try:
            return wait_for(look, f"{status} container")
        except AssertionError as error:
            said = self._control.output.read_text()[-3000:]
            raise AssertionError(f"{error}: {self.get(container_id)}\n{said}") from None
