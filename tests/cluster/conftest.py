"""Fixtures for tests with real processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import PATIENT, Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """Clients in the process of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three chunkservers without a control plane, shared by the tests
    of a module."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.environment |= PATIENT
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters for one test, not started yet; all are stopped after it."""
    made: list[Cluster] = []

    def make(
        *arguments: str, name: str = "cluster", chunkservers: int | None = 3, control: bool = False
    ) -> Cluster:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        made.append(Cluster(directory, *arguments, chunkservers=chunkservers, control=control))
        made[-1].environment |= PATIENT
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()
