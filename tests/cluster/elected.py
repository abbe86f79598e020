"""Three masters that an etcd of their own elects, each a process with a state directory."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
from lifeline import Lifeline
from limits import HANG_SECONDS, wait_for
from processes import Processes, free_port, wait_until
from signals import send

import gfs
from gfs.config import ClientSettings
from gfs.errors import GfsError

NAMES = ("a", "b", "c")


class ElectionEngine(Protocol):
    #: As ``--elect`` has it.
    elect: str

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def stop(self) -> None: ...


class EtcdServer:
    """A real one, or a member of a cluster of them (``peers``: name → URL). ``tls`` is a directory
    with the certificates of the server, which its clients need, too. ``url``: for clients."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        tls: Path | None = None,
        name: str = "default",
        peers: dict[str, str] | None = None,
        url: str = "",
    ) -> None:
        self._directory = directory
        directory.mkdir()
        self._options = options
        self._tls = tls
        self.trust: ssl.SSLContext | None = None
        if tls is not None:
            self.trust = ssl.create_default_context(cafile=str(tls / "ca.pem"))
            self.trust.check_hostname = False
            self.trust.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        self._name = name
        self._peers = peers or {name: f"http://127.0.0.1:{free_port()}"}
        self.url = url or f"http{'' if tls is None else 's'}://127.0.0.1:{free_port()}"
        self.port = urlsplit(self.url).port
        self.elect = f"etcd://{self.url.partition('//')[2]}/test"
        self.begin()
        if peers is None:
            self.wait()

    @classmethod
    def three(cls, directory: Path) -> list[EtcdServer]:
        peers = {f"m{n}": f"http://127.0.0.1:{free_port()}" for n in range(3)}
        members = [cls(directory / name, name=name, peers=peers) for name in peers]
        for member in members:
            member.wait()
        return members

    def begin(self) -> None:
        client, peer = self.url, self._peers[self._name]
        options = [*self._options]
        if (tls := self._tls) is not None:
            options += [
                *("--cert-file", str(tls / "cert.pem"), "--key-file", str(tls / "key.pem")),
                *("--trusted-ca-file", str(tls / "ca.pem"), "--client-cert-auth"),
            ]
        all_peers = ",".join(f"{name}={url}" for name, url in self._peers.items())
        self.process = Lifeline(
            [
                *(shutil.which("etcd") or "etcd", "--data-dir", str(self._directory / "data")),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--name", self._name, "--initial-cluster", all_peers, "--log-level", "warn"),
                *("--unsafe-no-fsync", *options),
            ],
            log=self._directory / "log",
            directory=self._directory,
        )

    def wait(self) -> None:
        wait_for(self._answers, "etcd")

    def _answers(self) -> bool:
        with (
            suppress(OSError),
            urllib.request.urlopen(
                f"{self.url}/health", timeout=HANG_SECONDS, context=self.trust
            ) as reply,
        ):
            return bool(json.load(reply)["health"] == "true")
        return False

    def ask(self, what: str, **request: object) -> Any:
        """By its JSON gateway."""
        body = json.dumps(request).encode()
        with urllib.request.urlopen(
            f"{self.url}/v3/{what}", body, timeout=HANG_SECONDS, context=self.trust
        ) as reply:
            return json.load(reply)

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    def stop(self) -> None:
        self.process.kill()


class Elected(Processes):
    def __init__(self, directory: Path, chunkservers: int = 3, **settings: str) -> None:
        directory.mkdir(exist_ok=True)
        self.engine = self.start_engine(directory / "etcd")
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
        self.directory = directory
        super().__init__(directory, chunkservers, 3.0, **settings)

    def start_master(self) -> None:
        self.master_address = ",".join(self.addresses.values())
        for name in NAMES:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        self._start(
            name, "master", "--state", str(self.directory / name), "--address",
            self.addresses[name], "--elect", self.engine.elect,
            "--key-file", str(self.state / "cluster.key"),
        )  # fmt: skip

    def stop(self) -> None:
        super().stop()
        self.engine.stop()

    def start_engine(self, directory: Path) -> ElectionEngine:
        return EtcdServer(directory)

    def connect(self, *names: str, **settings: Any) -> Any:
        addresses = [self.addresses[name] for name in names or NAMES]
        settings = {"retry_seconds": HANG_SECONDS, **settings}
        return gfs.connect(",".join(addresses), key=self.key, settings=ClientSettings(**settings))

    async def role(self, name: str) -> str:
        """What this process answers to be now; empty: it does not answer."""
        with trio.move_on_after(10.0), suppress(GfsError):
            async with self.connect(name, retry_seconds=0.1) as fs:
                return str((await fs.status()).role)
        return ""

    async def holder(self) -> str:
        """The name of the one that serves as the master."""

        async def found() -> str:
            for name in NAMES:
                if name in self.processes and await self.role(name) == "master":
                    return name
            return ""

        return await wait_until(found, "master")

    async def wait_followed(self, count: int = 2) -> None:
        """So many shadow masters follow and count, and have everything."""

        async def is_followed() -> bool:
            async with self.connect() as fs:
                status = await fs.status()
            level = [s for s in status.shadows if s.state == "following"]
            return len(level) >= count and all(s.sequence == status.sequence for s in level)

        await wait_until(is_followed, f"{count} followers")

    def freeze(self, name: str) -> None:
        send(self.processes[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        send(self.processes[name].pid, signal.SIGCONT)
