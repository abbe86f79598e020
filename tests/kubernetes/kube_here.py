"""The cluster that a test session has: see :mod:`apiserver`, :mod:`kubelet`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apiserver import Identity, Server
from kubelet import Kubelet


@dataclass
class Kubernetes:
    server: Server
    kubelet: Kubelet

    @property
    def admin(self) -> Identity:
        return self.server.admin


@contextmanager
def running(directory: Path) -> Iterator[Kubernetes]:
    """A cluster with nodes, in a directory of its own. Nothing runs after it, and what
    is left there are logs."""
    server = Server(directory)
    try:
        server.start()
        kubelet = Kubelet(server)
        kubelet.start()
        try:
            yield Kubernetes(server, kubelet)
        finally:
            # With the API server up, its end is orderly.
            server.ensure_up()
            kubelet.stop()
    finally:
        server.stop()
