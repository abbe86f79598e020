"""The contract of storage once more, over three control planes on one PostgreSQL."""

from __future__ import annotations

import pytest
from test_contract_storage import *  # noqa: F403
from test_several_planes import cloud as cloud
from test_several_planes import server as server

pytestmark = pytest.mark.extra


@pytest.fixture(autouse=True)
def _the_end_is_reported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another control plane hears of a transfer's end from PostgreSQL, within milliseconds, and
    not always before the answer."""
    monkeypatch.setattr(Listener, "rest_now", Listener.rest)  # noqa: F405
