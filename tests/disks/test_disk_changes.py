"""A server starts without one of its disks; disks come and go while one runs."""

from __future__ import annotations

import failing
import pytest
from disk_cluster import Shared
from disk_load import STANDING
from failing import Failure
from limits import wait_for
from real_disks import RealDisk

#: What is acknowledged is on the disks: with redo journals, and a sync for each write.
FSYNC = {"GFS_CHUNKSERVER_DURABILITY": "fsync"}

STARTS = [
    Failure("not-mounted", RealDisk.unmount, RealDisk.attach, "missing"),
    Failure("not-mounted-above", RealDisk.unmount, RealDisk.attach, "missing", "directory"),
    Failure("mounted-read-only", RealDisk.mount_read_only, RealDisk.mount_writable),
    Failure("a-file", RealDisk.replace_by_file, RealDisk.put_back, "missing", "directory"),
    Failure("hanging", RealDisk.hang, RealDisk.go_on, kind="uncached"),
]


@pytest.mark.parametrize("failure", STARTS, ids=lambda failure: failure.name)
def test_a_server_starts_with_a_disk_that_is(failure: Failure, shared: Shared) -> None:
    with shared.cluster(**FSYNC) as cluster:
        failing.check(cluster, failure, at_start=True)


def test_disks_are_added_drained_and_removed_under_load(shared: Shared) -> None:
    with shared.cluster(**FSYNC) as cluster:
        name, old = cluster.by_kind("mount")
        server = cluster.heard()[str(old.path)]["server"]
        new = cluster.make_disk("s1/c")
        with cluster.load("changes"):
            cluster.gfs("disk", "add", server, str(new.path))
            cluster.wait_reported(new, "ok")
            wait_for(new.replicas, "chunk on the new disk")

            cluster.gfs("disk", "remove", server, str(old.path), code=1)
            cluster.gfs("disk", "drain", server, str(old.path))
            wait_for(lambda: not old.replicas(), "empty disk")
            cluster.gfs("disk", "remove", server, str(old.path))
            wait_for(lambda: str(old.path) not in cluster.heard(), "word of the removal")
            old.release()

            # As they are now, though its command names the old disk and not the new one.
            old.attach()
            cluster.stop_chunkserver(name)
            cluster.start_chunkserver(name)
            cluster.wait_live()
            cluster.wait_reported(new, "ok")
            assert str(old.path) not in cluster.heard()

            cluster.gfs("disk", "add", server, str(old.path))
            cluster.wait_reported(old, "ok")
            wait_for(old.replicas, "chunk on the old disk")
        cluster.wait_whole("/")
        cluster.check_totals()


def test_nothing_is_made_below_a_mount_by_an_order_to_add_it(shared: Shared) -> None:
    with shared.cluster(**FSYNC) as cluster:
        _, disk = cluster.by_kind("mount")
        server = cluster.heard()[str(disk.path)]["server"]
        disk.detach()
        cluster.wait_reported(disk, "missing")
        cluster.gfs("disk", "add", server, str(disk.path), code=1)
        assert not disk.below_mount()
        disk.attach()
        cluster.gfs("disk", "retry", server, str(disk.path))
        cluster.wait_reported(disk, "ok")
        cluster.wait_whole("/")


def test_status_counts_what_fsck_counts_while_replicas_are_missing(shared: Shared) -> None:
    """A server without any disk: there is nowhere to make them anew. It uses its disks
    again by itself when they are back."""
    with shared.cluster(**FSYNC) as cluster:
        cluster.client.set_replication("/standing", len(cluster.disks), recursive=True)
        cluster.wait_whole("/")
        for disk in cluster.disks["s2"]:
            disk.detach()
        wait_for(
            lambda: cluster.client.status().totals.under_replicated == STANDING,
            "sight of the missing replicas",
        )
        cluster.check_totals()
        assert cluster.client.fsck("/standing").counts == {"below_goal": STANDING}
        for disk in cluster.disks["s2"]:
            disk.attach()
        cluster.wait_whole("/")
        cluster.client.set_replication("/standing", 3, recursive=True)
