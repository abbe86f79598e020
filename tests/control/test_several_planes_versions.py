"""Versions of objects and copies once more, over three control planes on one PostgreSQL: what is
written at one is listed, copied, read and deleted at the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from postgresql import PostgreSQL
from spread import SpreadCloud, a_connection_for_each_request
from test_s3_copies import *  # noqa: F403
from test_s3_versions import *  # noqa: F403
from test_several_planes import server as server

pytestmark = pytest.mark.extra

# Its days are seconds, in a cluster of its own.
del test_rules_end_old_versions_and_markers_that_are_alone  # noqa: F821


@pytest.fixture(scope="module")
def cloud(server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadCloud]:
    with (
        SpreadCloud(tmp_path_factory.mktemp("spread"), server, "--metrics") as made,
        a_connection_for_each_request(),
    ):
        yield made.start()


@pytest.fixture(scope="module")
def metered(cloud: SpreadCloud) -> SpreadCloud:
    return cloud


@pytest.fixture
def make_cloud(cloud: SpreadCloud) -> Callable[..., SimpleNamespace]:
    """Several processes for one test: those of all planes."""
    return lambda **options: SimpleNamespace(start=lambda: cloud)
