"""Fixtures for tests on disks that fail. See :mod:`real_disks` and :mod:`disk_cluster`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The processes are those of the cluster's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

import real_disks
from disk_cluster import Shared
from needs import need


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    need(real_disks.missing())
    made = Shared(tmp_path_factory)
    yield made
    made.close()
