"""The contract of storage, and what all routes have in common, once more, over three control
planes on one PostgreSQL."""

from __future__ import annotations

import pytest
from test_contract_common import *  # noqa: F403
from test_contract_storage import *  # noqa: F403
from test_several_planes import cloud as cloud
from test_several_planes import server as server

pytestmark = pytest.mark.extra
