"""Fixtures for tests of ``gfs mount`` with real tools, on a cluster of processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from harness import PATIENT, Cluster
from mounts import Mount, mounted, need_mounts
from processes import free_port

from gfs.client.sync import SyncClient


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_mounts()
    # At the same address when it is started again.
    made = Cluster(tmp_path_factory.mktemp("cluster"), "--port", str(free_port()))
    made.environment |= PATIENT
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def environment(cluster: Cluster) -> dict[str, str]:
    """In which ``gfs`` finds the cluster."""
    return {**cluster.environment, "GFS_STATE": str(cluster.state)}


@pytest.fixture(autouse=True)
def no_bug(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Is reported by any mount, those that are shared included."""
    yield
    shared = tmp_path_factory.getbasetemp().glob("mounts*/*.out")
    for output in (*tmp_path.glob("*.out"), *shared):
        assert "bug" not in output.read_text(), output.read_text()


@pytest.fixture(scope="module")
def one(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that the tests of a module share; each works in a directory of its own."""
    with mounted(tmp_path_factory.mktemp("mounts") / "one", environment) as made:
        yield made


@pytest.fixture(scope="module")
def two(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Another machine's, as far as anybody can see."""
    with mounted(tmp_path_factory.mktemp("mounts") / "two", environment) as made:
        yield made


@pytest.fixture
def here(one: Mount, request: pytest.FixtureRequest) -> Path:
    made = one.path / str(request.node.name).replace("/", "-")
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[SyncClient]:
    made = SyncClient(cluster.ready["master"]["address"], key=cluster.state / "cluster.key")
    yield made
    made.close()
