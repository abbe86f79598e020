"""Policies and grants of buckets once more, over three control planes on one PostgreSQL: what one
has stored, the others obey."""

from __future__ import annotations

import pytest
from test_s3_policies import *  # noqa: F403
from test_several_planes import cloud as cloud
from test_several_planes import server as server

pytestmark = pytest.mark.extra
