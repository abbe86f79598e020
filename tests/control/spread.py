"""Several control planes on one PostgreSQL, behind a proxy that gives each connection to the
next of them."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from unittest import mock

import forks
import httpx
from checks import PLAIN, wait_for
from cloud import Cloud
from compute_cloud import ComputeCloud
from limits import HANG_SECONDS
from postgresql import PostgreSQL
from processes import free_port


class Proxy:
    """Passes on connections to one address after another, as they are; one that refuses is
    left out. While ``flows`` is not set nothing arrives, and nothing fails: as a network that drops
    everything."""

    def __init__(self, addresses: list[tuple[str, int]]) -> None:
        self._addresses = addresses
        self._next = itertools.count()
        self.flows = threading.Event()
        self.flows.set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._connect() as server:
            self._copy(client, server)

    def _connect(self) -> socket.socket:
        for _ in self._addresses:
            address = self._addresses[next(self._next) % len(self._addresses)]
            server = socket.socket()
            # A client that reads slowly must slow its control plane, and not fill this proxy:
            # the kernel would let a receive buffer that sizes itself grow to 32 MiB.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            server.settimeout(HANG_SECONDS)
            try:
                server.connect(address)
            except OSError:
                server.close()
            else:
                return server
        raise OSError("no control plane is there")

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        server.settimeout(None)
        others = {client: server, server: client}
        with selectors.DefaultSelector() as ready:
            for one in others:
                ready.register(one, selectors.EVENT_READ)
            while ready.get_map():
                for key, _ in ready.select():
                    one: Any = key.fileobj
                    self.flows.wait()
                    if data := one.recv(1 << 16):
                        others[one].sendall(data)
                    else:
                        ready.unregister(one)
                        others[one].shutdown(socket.SHUT_WR)


class Plane:
    """One more ``gfs control``, with a state directory of its own."""

    def __init__(self, cloud: SpreadCloud, directory: Path, **environment: str) -> None:
        self._cloud = cloud
        self._environment = environment
        self._directory = directory
        self.url, self.s3_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.process: forks.Command | None = None

    def start(self) -> None:
        cluster = self._cloud.cluster
        with open(self._directory / "control.log", "ab") as log:
            self.process = forks.Command(
                [
                    "control",
                    f"--state={self._directory / 'state'}",
                    f"--master={cluster.ready['master']['address']}",
                    f"--key-file={cluster.state / 'cluster.key'}",
                    f"--bind={self.url.removeprefix('http://')}",
                    f"--s3-bind={self.s3_url.removeprefix('http://')}",
                ],
                stdout=log.fileno(),
                stderr=log.fileno(),
                env=cluster.environment | self._environment,
            )

        def is_up() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return self.answers("/readyz")

        wait_for(is_up, "control plane")

    def answers(self, path: str) -> bool:
        with contextlib.suppress(httpx.TransportError), httpx.Client(**PLAIN) as client:
            return client.get(f"{self.url}{path}").status_code == 200
        return False

    def log(self) -> str:
        return (self._directory / "control.log").read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(HANG_SECONDS)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(HANG_SECONDS)


class SpreadCloud(Cloud):
    """A cloud with three control planes, over which the connections of all clients are spread."""

    def __init__(
        self, directory: Path, server: PostgreSQL, *arguments: str, **options: Any
    ) -> None:
        super().__init__(directory, *arguments, **options)
        self.cluster.environment["GFS_CONTROL_RECORDS"] = server.url
        self.planes: list[Plane] = []
        for number in (2, 3):
            own = directory / f"control-{number}"
            own.mkdir()
            self.planes.append(Plane(self, own))
        self._proxy: Proxy | None = None
        self._s3_proxy: Proxy | None = None

    def start(self) -> Self:
        super().start()
        for plane in self.planes:
            plane.start()
        self._proxy = _before(self.urls)
        self._s3_proxy = _before(self.s3_urls)
        return self

    @property
    def urls(self) -> list[str]:
        return [super().url, *(plane.url for plane in self.planes)]

    @property
    def url(self) -> str:
        if self._proxy is None:
            return super().url
        return f"http://127.0.0.1:{self._proxy.port}"

    @property
    def s3_urls(self) -> list[str]:
        return [*super().s3_urls, *(plane.s3_url for plane in self.planes)]

    @property
    def s3_url(self) -> str:
        if self._s3_proxy is None:
            return super().s3_url
        return f"http://127.0.0.1:{self._s3_proxy.port}"

    def stop(self) -> None:
        for proxy in (self._proxy, self._s3_proxy):
            if proxy is not None:
                proxy.close()
        for plane in self.planes:
            plane.stop()
        super().stop()


class SpreadComputeCloud(SpreadCloud, ComputeCloud):
    """The same with containers."""


def _before(urls: list[str]) -> Proxy:
    parsed = [httpx.URL(url) for url in urls]
    return Proxy([(url.host, url.port or 80) for url in parsed])


@contextlib.contextmanager
def a_connection_for_each_request() -> Iterator[None]:
    """Of all clients that are made in the block and say nothing else."""
    made = httpx.Client.__init__

    def make(self: httpx.Client, *arguments: Any, **options: Any) -> None:
        options.setdefault("limits", httpx.Limits(max_keepalive_connections=0))
        made(self, *arguments, **options)

    with mock.patch.object(httpx.Client, "__init__", make):
        yield
