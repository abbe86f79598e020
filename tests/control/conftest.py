"""Fixtures for tests of the control plane."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

# The harness of real processes is shared with the tests of the file system, and certificates.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from auth_server import Server
from auth_server import running as serving
from checks import anonymous, unique
from cloud import Cloud
from compute_cloud import ComputeCloud
from computing import Computing
from computing import computing as in_process
from harness import Cluster
from holds import holds
from http_served import make_certificate
from postgresql import PostgreSQL, running
from s3_client import S3Client, client_of, new_key
from storage_people import Who, all_of_them

# What runs containers is a matter of the tests that need some: no process of another
# looks for a cluster or for Podman when it starts.
os.environ.setdefault("GFS_COMPUTE_BACKEND", "none")

#: How long the kernel has in virtual time to bring what was sent to the other end.
IDLE_SECONDS = 0.05


@pytest.fixture(autouse=True)
def nothing_holds_the_loop() -> Iterator[None]:
    """A request that holds the event loop fails the test during which it does so."""
    yield
    for cloud in Cloud.started:
        cloud.read_log()
    found = holds.take()
    assert not found, "\n".join(found)


@pytest.fixture(autouse=True)
def garbage_stays() -> Iterator[None]:
    """What a test leaves is not collected while a test runs: Trio warns of the asynchronous
    generators in it, and so would fail the test that happens to run then."""
    gc.disable()
    yield
    gc.enable()


def _run_in_virtual_time(*arguments: Any, **options: Any) -> Any:
    options["clock"] = MockClock(autojump_threshold=IDLE_SECONDS)
    return trio.run(*arguments, **options)


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """For tests of sockets in one process: the clock stands while anybody has something to do,
    and jumps to the next deadline when all wait. So limits have the length that users get, and
    :data:`~limits.HANG_SECONDS` ends a test as soon as nothing is left that could."""
    if request.node.get_closest_marker("trio") is not None:
        mark = pytest.mark.trio(run=_run_in_virtual_time)
        request.node.add_marker(mark, append=False)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with running() as server:
        yield server


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    """Three chunkservers, the REST API, and containers that do what its ``world`` says, shared
    by all tests that one process runs.

    Users and namespaces are the tests' own: :meth:`Cloud.make_user` gives names
    that nobody else has. Whoever kills processes makes a cloud of his own.
    """
    with ComputeCloud(tmp_path_factory.mktemp("cloud"), chunkservers=3) as made:
        yield made.start()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Without a control plane: that is in the test's own process."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="session")
def computing(cloud: ComputeCloud) -> ComputeCloud:
    return cloud


@pytest.fixture
def make_cloud(tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    """Makes clouds for one test, not started yet; all are stopped after it."""
    made: list[Cloud] = []

    def make(*arguments: str, **options: Any) -> Cloud:
        directory = tmp_path / "cloud"
        directory.mkdir(exist_ok=True)
        made.append(Cloud(directory, *arguments, **options))
        return made[-1]

    yield make
    for cloud in made:
        cloud.stop()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The module ``auth`` in this process, in a directory of its own."""
    async with serving(tmp_path) as made:
        yield made


@pytest.fixture
async def ada(server: Server) -> dict[str, Any]:
    """A user and her session."""
    return await server.new_user("ada")


@pytest.fixture
async def c(tmp_path: Path) -> AsyncIterator[Computing]:
    """The module ``compute`` as well, with a world that does what the test says."""
    async with in_process(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def owner(cloud: Cloud) -> Who:
    """A user: a client of the REST API, and the id."""
    return cloud.make_user()


@pytest.fixture(scope="module")
def other(cloud: Cloud) -> Who:
    """Another one."""
    return cloud.make_user()


@pytest.fixture
def nobody(cloud: Cloud) -> Iterator[httpx.Client]:
    with anonymous(cloud.url) as client:
        yield client


@pytest.fixture(scope="module")
def people(cloud: Cloud, owner: Who, other: Who) -> Iterator[dict[str, httpx.Client]]:
    with all_of_them(cloud, owner, other) as made:
        yield made


@pytest.fixture(scope="module")
def s3(cloud: Cloud, owner: tuple[httpx.Client, str]) -> Iterator[S3Client]:
    """The same user's client of S3."""
    key = new_key(*owner)
    with client_of(cloud, key) as made:
        yield made


@pytest.fixture
def bucket(s3: S3Client) -> str:
    name = unique("bucket")
    s3.put(name)
    return name
