"""Fixtures for tests with a browser. See :mod:`chromium`."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# Clouds, containers and what keeps processes are those of the other tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "control"))
sys.path.insert(0, str(Path(__file__).parents[1] / "kubernetes"))
sys.path.insert(0, str(Path(__file__).parents[1] / "podman"))

import browser_files
import podman_here
import podman_image
from chromium import Chromium, Network, connected, running
from needs import need

# Only a cloud that asks for containers looks for what runs them.
os.environ.setdefault("GFS_COMPUTE_BACKEND", "none")


@pytest.fixture(scope="session")
def browser_works() -> None:
    need(browser_files.missing())


@pytest.fixture
def browser_runs(browser_works: None, tmp_path: Path) -> Iterator[tuple[str, Network]]:
    with running(tmp_path / "browser") as found:
        yield found


@pytest.fixture
async def browser(browser_runs: tuple[str, Network]) -> AsyncIterator[Chromium]:
    async with connected(*browser_runs) as made:
        yield made


@pytest.fixture
def user(browser_works: None, tmp_path: Path) -> Iterator[podman_here.User]:
    """Of a cloud with real containers."""
    need(podman_image.missing())
    with podman_here.running(tmp_path / "here") as here:
        made = here.user()
        yield made
        for container in made.client.get("/compute/containers").json()["containers"]:
            made.delete(container["id"])


class _Files(SimpleHTTPRequestHandler):
    """The page's own file, and for the rest what npm fetched."""

    def translate_path(self, path: str) -> str:
        if path == "/terminal.html":
            return str(browser_files.HERE / "terminal.html")
        return super().translate_path(path)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def pages(browser_works: None) -> Iterator[str]:
    """The address of a web server with ``terminal.html``."""
    handler = functools.partial(_Files, directory=str(browser_files.directory()))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
