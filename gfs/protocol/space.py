"""The room that chunkservers have: of each file system once, however many disks and servers are on
it (``gfs up`` has all of them on one)."""

from __future__ import annotations

from collections.abc import Iterable

from gfs.protocol.messages import Disk, ServerStatus


def space_of(servers: Iterable[ServerStatus]) -> tuple[int, int]:
    """All bytes of the file systems that their disks are on, and the free bytes of these.

    Two disks are on the same one if they are on one machine and have one device, or, of servers
    that do not report it, one mount point. Failed and missing disks count nothing.
    """
    found: dict[tuple[str, int | str], Disk] = {}
    for server in servers:
        machine = server.address.rpartition(":")[0]
        for disk in server.disks:
            if disk.total_bytes:
                found[machine, disk.device or disk.mount or disk.path] = disk
    disks = found.values()
    return sum(disk.total_bytes for disk in disks), sum(disk.free_bytes for disk in disks)


def cluster_space(servers: Iterable[ServerStatus]) -> tuple[int, int]:
    """The same of all servers of a cluster: nothing can be stored on those that are dead or
    stopped, and their machines may be gone, so these count nothing."""
    return space_of(server for server in servers if server.state in ("live", "silent"))
