"""At the moment that a write or a record is acknowledged, it is on every current replica.

A reader asks one replica; this asks all of them, straight from their disks, and as a
kill at this instant would leave them: each is opened as recovery would, on a copy. A
replica is current if it bears the version in the master's rows, or a higher one,
wherever it is: no grant, no copy and no restart may make one so that misses what is
acknowledged. And there are so many of them as the goal, unless something is wrong.
"""

from __future__ import annotations

import math

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.files import read_state
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.errors import GfsError
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk

from .files_model import FileModel
from .losses import Losses, copy_of, handle_of, journal_of, records_of, unnamed
from .metadata import Metadata, read_metadata
from .packs import bytes_of, packed_of, refused_on
from .plan import Plan
from .record import Record, Violation

#: What is not wrong any more is forgotten after so long, and after the time after which a
#: server is dead: suspicions, connections that are made again, processes that start.
CALM_SECONDS = 45.0


class Everywhere:
    def __init__(self, cluster: SimCluster, record: Record, plan: Plan, losses: Losses) -> None:
        self._cluster = cluster
        self._losses = losses
        self._record = record
        self._plan = plan
        record.look_everywhere = self.check

    def check(
        self, model: FileModel, start: int, end: int, began: float, is_new: bool = False
    ) -> None:
        """Raise Violation if a current replica lacks anything of these bytes of a file, or
        if there are fewer of them than there must be. They were written at ``began`` or later:
        a chunk that faults have lost since is excused, as of a write of two chunks between
        which the power of all machines is cut."""
        with self._record.all_shown():
            self._check(model, start, end, began, is_new)

    def _check(self, model: FileModel, start: int, end: int, began: float, is_new: bool) -> None:
        metadata = read_metadata(self._cluster.directory)
        self._record.ancestry.look(metadata)
        wanted = self._wanted(model, is_new)
        for index in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            handle = metadata.file_chunks.get((model.inode, index))
            if handle is None:
                continue  # the file is gone
            if self._losses.lost_at.get(handle, -math.inf) >= began:
                continue
            left = max(start, index * CHUNK_BYTES)
            right = min(end, (index + 1) * CHUNK_BYTES)
            holders = [
                name
                for name in self._cluster.chunkservers
                if self._has(name, model, metadata, handle, index, left, right)
            ]
            if len(holders) < wanted:
                raise Violation(
                    f"acknowledged, and chunk {handle:x} is on {', '.join(holders) or 'no server'}"
                    f" instead of {wanted} at least"
                )

    def _wanted(self, model: FileModel, is_new: bool) -> int:
        """How many servers must have what is acknowledged. A write goes on without the
        servers that it loses, in the end with one; but as long as nothing is wrong none is
        lost, and a new chunk is begun with as many as its goal."""
        calm = self._plan.master.dead_seconds + CALM_SECONDS
        if not self._record.is_calm(calm, model.began if is_new else None):
            return 1
        goals = {goal or self._plan.master.replication for goal in self._record.all_goals_of(model)}
        open_ = self._plan.chunkservers - len(self._record.ancestry.drained)
        return max(1, min(*goals, open_))

    def _has(
        self, name: str, model: FileModel, metadata: Metadata, handle: int, index: int,
        start: int, end: int,
    ) -> bool:  # fmt: skip
        """Whether a server has a current replica, which then must have these bytes; or a
        harmed one, of which nobody can tell."""
        disk = self._cluster.machine(name).disk
        paths = [path for path in self._cluster.chunk_files(name) if handle_of(path) == handle]
        for path in [*paths, *unnamed(disk, self._cluster.disks, handle)]:
            at = index * CHUNK_BYTES
            version = metadata.chunks[handle].version
            try:
                if (path in paths and disk.inode(path).harmed) or self._losses.is_torn(name, path):
                    return True
                data = _after_a_kill(disk, path, handle, version, start - at, end - at)
                if data is not None:
                    self._record.check_read(model, start, data, self._record.now)
                    return True
            except (GfsError, OSError, Violation) as error:
                raise Violation(
                    f"acknowledged, and not on {path} of {name}, version {version}: {error}"
                ) from None
        for packed in packed_of(self._cluster, name):
            if packed.record.handle != handle:
                continue
            if handle in self._losses.damaged_packs(name, packed.directory) or (
                handle in refused_on(self._cluster, name, packed.directory)
            ):
                return True
            if packed.record.version < metadata.chunks[handle].version:
                continue
            at = index * CHUNK_BYTES
            data = bytes_of(self._cluster, packed)[start - at : end - at]
            if not packed.is_whole or len(data) < end - start:
                raise Violation(f"acknowledged, and not in {packed.path} of {name}")
            self._record.check_read(model, start, data, self._record.now)
            return True
        return any(
            handle in self._losses.damaged_packs(name, directory)
            or handle in refused_on(self._cluster, name, directory)
            for directory in self._cluster.disks
        )


def _after_a_kill(
    disk: SimDisk, path: str, handle: int, version: int, start: int, end: int
) -> bytes | None:
    """Bytes of a replica; None if it is not of ``version`` at least."""
    files = copy_of(disk, path)
    records = records_of(disk, path)
    state = read_state(files, path, handle, records)
    if state is None or state.version < version:
        return None
    chunk = ChunkFile.open(files, path, handle, journal_of(files, path), records)
    try:
        if chunk.length < end:
            raise Violation(f"it has {chunk.length} bytes")
        return chunk.read_verified(start, end - start)
    finally:
        chunk.close()
