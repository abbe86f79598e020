"""Fixtures for tests of what reads and writes through fsspec, on a cluster of processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from harness import Cluster

from gfs.fsspec import GfsFileSystem


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def options(cluster: Cluster) -> dict[str, str]:
    """What pandas and others call ``storage_options``."""
    return {"key": str(cluster.state / "cluster.key")}


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    return f"gfs://{cluster.ready['master']['address']}"


@pytest.fixture(scope="module")
def fs(options: dict[str, str], url: str) -> Iterator[GfsFileSystem]:
    made = GfsFileSystem(url.removeprefix("gfs://"), **options)
    yield made
    made.close()
