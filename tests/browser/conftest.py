"""Fixtures for tests with a browser. See :mod:`chromium`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

# Clouds, containers and what keeps processes are those of the other tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "control"))
sys.path.insert(0, str(Path(__file__).parents[1] / "kubernetes"))
sys.path.insert(0, str(Path(__file__).parents[1] / "podman"))

import browser_files
import console_page
import podman_here
import podman_image
from chromium import Chromium, Network, connected, running
from cloud import Cloud
from needs import need

# Only a cloud that asks for containers looks for what runs them.
os.environ.setdefault("GFS_COMPUTE_BACKEND", "none")


@pytest.fixture(scope="session")
def browser_works() -> None:
    need(browser_files.missing())


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    need(console_page.missing())
    with Cloud(tmp_path_factory.mktemp("cloud"), chunkservers=1) as made:
        yield made.start()


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
