"""Fixtures for tests of the control plane."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

# The harness of real processes is shared with the tests of the file system.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from cloud import Cloud, repeated
from compute_cloud import ComputeCloud
from http_served import make_certificate

# What runs containers is a matter of the tests that need some: no process of another
# looks for a cluster or for Podman when it starts.
os.environ.setdefault("GFS_COMPUTE_BACKEND", "none")


@pytest.fixture(autouse=True)
def held(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test fails if a request that was served in its own process kept the event loop to
    itself. (Tests' own code runs on that loop, too, in tasks that are no requests. What
    they leave is not collected meanwhile: that can take as long, and is nobody's request.)
    Once is nothing, on a machine that has too much to do."""
    told: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        told.append(record.getMessage())
        return True

    logger = logging.getLogger("control.app.loop")
    logger.addFilter(note)
    gc.disable()
    yield
    gc.enable()
    logger.removeFilter(note)
    if request.node.get_closest_marker("holds_the_loop") is None:
        ours = [
            line for line in told if not line.startswith("the task ") or "task control." in line
        ]
        assert repeated(ours) == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Three chunkservers and the REST API, shared by all tests that one process runs.

    Users and namespaces are the tests' own: :meth:`Cloud.make_user` gives names
    that nobody else has. Whoever kills processes makes a cloud of his own.
    """
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="session")
def computing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    """A cloud with containers that do what its ``world`` says, shared as the one above."""
    made = ComputeCloud(tmp_path_factory.mktemp("computing"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def make_cloud(tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    """Makes clouds for one test, not started yet; all are stopped after it."""
    made: list[Cloud] = []

    def make(
        *arguments: str,
        name: str = "cloud",
        chunkservers: int = 3,
        environment: Mapping[str, str] | None = None,
    ) -> Cloud:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        made.append(
            Cloud(directory, *arguments, chunkservers=chunkservers, environment=environment)
        )
        return made[-1]

    yield make
    for cloud in made:
        cloud.stop()
