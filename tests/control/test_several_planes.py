"""Three control planes on one PostgreSQL are as one for clients, whichever gets a request.

The contract's tests run here once more, with each request on a connection of its own, which
goes to the next control plane.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgresql import PostgreSQL, running
from spread import SpreadCloud, a_connection_for_each_request

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def cloud(server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadCloud]:
    with (
        SpreadCloud(tmp_path_factory.mktemp("spread"), server) as made,
        a_connection_for_each_request(),
    ):
        yield made.start()


from test_contract_auth import *  # noqa: E402, F403
