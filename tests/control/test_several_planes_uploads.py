"""Buckets and multipart uploads once more, over three control planes on one PostgreSQL: what is
begun at one gets its parts at others, and is completed, listed or aborted at any."""

from __future__ import annotations

import pytest
from test_s3_buckets import *  # noqa: F403
from test_s3_uploads import *  # noqa: F403
from test_several_planes import cloud as cloud
from test_several_planes import server as server

pytestmark = pytest.mark.extra

# These have a cluster of their own.
del test_a_control_plane_killed_while_it_completes  # noqa: F821
del test_objects_expire_by_the_rules_of_their_bucket  # noqa: F821
del test_old_uploads_are_aborted  # noqa: F821
