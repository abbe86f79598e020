"""What is true of any disk that fails, whatever the failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from disk_cluster import DiskCluster
from limits import wait_for
from real_disks import RealDisk


def nothing(disk: RealDisk) -> None:
    """What was done to it needs no undoing."""


def attach_again(disk: RealDisk) -> None:
    """The same disk comes back, from a server that does not let go of it else."""
    disk.release()
    disk.attach()


def replace(disk: RealDisk) -> None:
    """An empty disk comes in its place."""
    disk.release()
    disk.make()


@dataclass(frozen=True)
class Failure:
    """One way for a disk to fail, and back: a row of a table."""

    name: str
    do: Callable[[RealDisk], None]
    undo: Callable[[RealDisk], None]
    #: What the disk is said to be.
    state: str = "failed"
    #: Which disk: a "mount", a "directory" below one, "cached" or "uncached" FUSE.
    kind: str = "mount"
    #: What has it used again: "retry", or "add" for one that is empty; "" if nothing has to.
    command: str = "retry"


def check(cluster: DiskCluster, failure: Failure, *, at_start: bool = False) -> None:
    """Break a disk under clients who put and get, of a server that runs or while it is
    stopped. They notice nothing. The disk is named, and no other; what it held is made
    anew; and it comes back into use without a restart."""
    server, disk = cluster.by_kind(failure.kind)
    before = cluster.reported()
    with cluster.load(failure.name):
        # Chunks that are made together are on the same servers, which may be others at first.
        wait_for(disk.replicas, "chunk there")
        if at_start:
            cluster.stop_chunkserver(server)
        failure.do(disk)
        if at_start:
            cluster.start_chunkserver(server)
            cluster.wait_live()
        processes = {name: process.pid for name, process in cluster.processes.items()}
        heard = cluster.wait_reported(disk, failure.state)
        check_named(cluster, server, disk, heard)
        cluster.wait_whole("/standing")
        if not disk.mount.is_mount():
            assert not list(disk.mount.iterdir()), "made below the mount, on another disk"
        failure.undo(disk)
        if failure.command:
            order = ("disk", failure.command, heard["server"], str(disk.path))
            wait_for(lambda: cluster.is_obeyed(*order), "use of the disk")
        cluster.wait_reported(disk, "ok")
        held = disk.replicas()
        wait_for(lambda: disk.replicas() - held, "new chunk there")
    cluster.wait_whole("/")
    cluster.check_totals()
    after = cluster.reported()
    blamed = [p for p in after if p != str(disk.path) and after[p].errors > before[p].errors]
    assert not blamed, f"errors are counted on other disks: {blamed}"
    assert {n: p.pid for n, p in cluster.processes.items() if p.poll() is None} == processes


def check_named(cluster: DiskCluster, server: str, disk: RealDisk, heard: dict[str, str]) -> None:
    """By ``status``, with what to do, by metrics, and by an event if it is not used."""
    lines = [line for line in cluster.gfs("status").splitlines() if str(disk.path) in line]
    assert [line for line in lines if line.startswith("WARNING") and "gfs " in line], lines
    metric = cluster.metric(server, "gfs_chunkserver_disk_state")
    state = heard["state"]
    assert {labels for labels, value in metric.items() if value and 'state="ok"' not in labels} == {
        f'disk="{disk.path}",state="{state}"'
    }
    if state in ("failed", "missing"):
        assert heard["reason"]

        def is_logged() -> bool:
            events = [e for e in cluster.events(server) if e.get("event") == "disk_failed"]
            order = f"gfs disk retry {heard['server']} {disk.path}"
            return any(
                (event["server"], event["disk"]) == (heard["server"], str(disk.path))
                and order in event["message"]
                for event in events
            )

        wait_for(is_logged, "event of the disk")
