"""A disk of a running server fails. See :func:`failing.check`."""

from __future__ import annotations

import failing
import pytest
from disk_cluster import Shared
from failing import Failure, attach_again, nothing, replace
from real_disks import RealDisk

FAILURES = [
    Failure("shut-down", RealDisk.shut_down, attach_again),
    Failure("device-gone", RealDisk.lose_device, replace, command="add"),
    Failure("read-only", RealDisk.find_error, attach_again),
    pytest.param(
        Failure("unmounted", RealDisk.detach, RealDisk.attach, "missing"), marks=pytest.mark.smoke
    ),
    Failure("unmounted-above", RealDisk.detach, RealDisk.attach, "missing", "directory"),
    Failure("emptied", RealDisk.empty, nothing, "missing", command="add"),
    Failure("a-file", RealDisk.replace_by_file, RealDisk.put_back, "missing", "directory"),
    Failure("full", RealDisk.fill, RealDisk.make_room, "full", command=""),
    Failure("frozen", RealDisk.freeze, RealDisk.thaw),
    Failure("hanging", RealDisk.hang, RealDisk.go_on, kind="uncached"),
    Failure("hanging-cached", RealDisk.hang, RealDisk.go_on, kind="cached"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_a_disk_that_is(failure: Failure, shared: Shared) -> None:
    with shared.cluster() as cluster:
        failing.check(cluster, failure)
