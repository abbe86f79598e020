"""What ``status`` says, held against what is so.

What is so is counted here: servers by whether their processes run, disks from the bytes
of their files, replicas from the chunk files, files and trash from the rows of inodes.
Nothing is asked of the master or of a chunkserver, so nothing in their memory can hide what
they do not see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gfs.chunkserver.packs import DATA_NAME
from gfs.config import ChunkserverSettings
from gfs.master.metadata.rows import KIND_DIRECTORY, KIND_FILE, ROOT_INODE
from gfs.protocol.messages import ClusterTotals, Disk, StatusReply
from gfs.testing import SimCluster

from .losses import Losses, handle_of
from .metadata import Metadata
from .packs import packed_on

#: While nothing changes: heartbeats come, disks are looked at, notes are written back.
CURRENT_SECONDS = 30.0
#: Not 0 only where chunks were lost, or wait for a disk. What the master counts of these depends
#: on what it was told of their remains: of each at most one chunk, or a replica on each server.
LOST_CHUNKS = ("under_replicated", "lost", "beyond_repair")
LOST_REPLICAS = ("corrupt", "stale", "corrupt_kept")
#: All totals that are looked at.
COUNTED = (
    *LOST_CHUNKS, *LOST_REPLICAS, "files", "directories", "bytes", "chunks", "trash_rows",
    "trash_files", "trash_bytes", "replaced_files", "replaced_bytes", "orphaned",
    "repairs_active", "repairs_queued", "moves_active", "moves_queued",
)  # fmt: skip


@dataclass
class Truth:
    cluster: SimCluster
    settings: ChunkserverSettings
    losses: Losses
    #: (Server, directory) of disks that may be given up, and that are.
    down: Collection[tuple[str, str]] = ()
    #: (Address, directory) of disks that may be draining.
    draining: Collection[tuple[str, str]] = ()
    #: (Server, path) of unreadable replicas that must be kept for now.
    remains: Collection[tuple[str, str]] = ()
    #: Chunks whose only current replicas are on disks that are down; and those of them of which
    #: no other disk has one that might be current.
    away: Collection[int] = ()
    gone: Collection[int] = ()

    def differences(self, metadata: Metadata, status: StatusReply) -> list[str]:
        """What ``status`` says that is not so, of a cluster at rest."""
        cluster = self.cluster
        told = {server.address.partition(":")[0]: server for server in status.servers}
        states = {name: server.state for name, server in told.items()}
        running = {
            name: "live" if cluster.node(name).running else "dead" for name in cluster.chunkservers
        }
        if states != running or len(status.servers) != len(told):
            return [f"the servers are {states}, and should be {running}"]
        found = []
        for name, server in told.items():
            used = [path for path in cluster.disks if (name, path) not in self.down]
            least, most = self._replicas(name, used)
            if not least <= server.chunks <= most:
                found.append(f"{name} has {server.chunks} replicas, and {most} chunk files")
            if sorted(disk.path for disk in server.disks) != sorted(cluster.disks):
                found.append(f"the disks of {name} are {server.disks}")
            for disk in server.disks:
                found += self._of_disk(name, disk)
        return [*found, *self._of_totals(metadata, status.totals)]

    def _replicas(self, name: str, disks: list[str]) -> tuple[int, int]:
        """The fewest and the most that there are: of a chunk that is lost, or waits for a disk,
        there may be remains that nobody can tell what they are."""
        paths = [
            path
            for path in self.cluster.chunk_files(name)
            if any(path.startswith(f"{disk}/") for disk in disks)
        ]
        for disk in disks:
            packed = {each.record.handle for each in packed_on(self.cluster, name, disk)}
            packed |= self.losses.damaged_packs(name, disk)
            paths += [f"{disk}/{DATA_NAME}/{handle:016x}" for handle in packed]
        kept = sum(
            handle_of(path) in self.losses.handles or (name, path) in self.remains for path in paths
        )
        return len(paths) - kept, len(paths)

    def _of_disk(self, name: str, disk: Disk) -> Iterator[str]:
        there = self.cluster.machine(name).disk
        if (name, disk.path) in self.down:
            so: dict[str, object] = {"total_bytes": 0, "free_bytes": 0, "chunks": 0}
        else:
            used = sum(there.inode(path).stored_bytes for path in there.paths(disk.path))
            total = there.space(disk.path).total_bytes
            free = max(0, total - used - self.settings.reserve_bytes)
            state = "ok" if free else "full"
            if (self.cluster.address(name), disk.path) in self.draining:
                state = disk.state if disk.state == "draining" else state
            so = {"total_bytes": total, "free_bytes": free, "state": state}
            least, most = self._replicas(name, [disk.path])
            if not least <= disk.chunks <= most:
                yield f"{disk.path} of {name} has {disk.chunks} replicas, and {most} chunk files"
        for what, value in so.items():
            if getattr(disk, what) != value:
                told = getattr(disk, what)
                yield f"{disk.path} of {name}: {what} is {told}, and should be {value}"

    def _of_totals(self, metadata: Metadata, totals: ClusterTotals) -> Iterator[str]:
        listed = {int.from_bytes(key[-8:], "big") for key in metadata.rows["trash_paths"]}
        live, trash = _counts(metadata, {ROOT_INODE}), _counts(metadata, listed)
        replaced = _counts(metadata, metadata.replaced())
        least = {
            **dict.fromkeys(COUNTED, 0),
            "files": live[0],
            "directories": live[1] - 1,
            "bytes": live[2],
            "chunks": len(metadata.chunks),
            "trash_rows": len(listed),
            "trash_files": trash[0],
            "trash_bytes": trash[2],
            "replaced_files": replaced[0],
            "replaced_bytes": replaced[2],
            "lost": len(metadata.chunks.keys() & self.gone),
        }
        most = dict(least)
        excused = len(metadata.chunks.keys() & {*self.losses.handles, *self.away})
        most |= dict.fromkeys(LOST_CHUNKS, excused)
        most |= dict.fromkeys(LOST_REPLICAS, excused * len(self.cluster.chunkservers))
        for what, few in least.items():
            if not few <= getattr(totals, what) <= most[what]:
                so = f"{few}" if few == most[what] else f"{few} to {most[what]}"
                yield f"{what} is {getattr(totals, what)}, and should be {so}"


def _counts(metadata: Metadata, roots: set[int]) -> tuple[int, int, int]:
    """Files, directories and bytes at and below these inodes."""
    rows = [metadata.inodes[inode] for inode in metadata.below(roots)]
    files = [row for row in rows if row.kind == KIND_FILE]
    directories = sum(row.kind == KIND_DIRECTORY for row in rows)
    return len(files), directories, sum(row.length for row in files)
