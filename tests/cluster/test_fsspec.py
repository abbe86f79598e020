"""``gfs://`` for fsspec: its own tests of any file system, on real processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from fsspec.tests import abstract
from harness import Cluster

from gfs.fsspec import GfsFileSystem

_numbers = itertools.count()


@pytest.fixture(scope="module")
def gfs_fs(cluster: Cluster) -> Iterator[GfsFileSystem]:
    fs = GfsFileSystem(state=cluster.state, skip_instance_cache=True)
    yield fs
    fs.close()


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, gfs_fs: GfsFileSystem) -> GfsFileSystem:
        return gfs_fs

    @pytest.fixture
    def fs_path(self, gfs_fs: GfsFileSystem) -> str:
        return f"/abstract/{next(_numbers)}"


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass
