"""Which files are copies that snapshots made, of what, and when: by the master's log.

A snapshot shows "one instant during the call", and its caller may never be told that it
was made, or be told late. So the log is looked at when a snapshot begins and ends, and
often in between: a copy was made after the last look that did not find it finished, and
before the first that did. What the copy must show follows from that: see
:meth:`.record.Record.model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from gfs.master.metadata.operations import (
    ChunkAdded,
    ChunkReplaced,
    SnapshotBegun,
    SnapshotCopied,
    SnapshotFinished,
)
from gfs.master.metadata.rows import KIND_DIRECTORY

from .metadata import Metadata


@dataclass(frozen=True)
class Origin:
    """The file ``source`` as it was at an instant from ``after`` to ``before``."""

    source: int
    after: float
    before: float


class Ancestry:
    def __init__(self, read: Callable[[], Metadata] | None = None) -> None:
        self._read = read
        self._sequence = 0
        self._looked = -math.inf
        #: Copies that are being made, by the first inode of each: (copy, source).
        self._making: dict[int, list[tuple[int, int]]] = {}
        #: Of each copied inode the first of its snapshot.
        self._first: dict[int, int] = {}
        #: By inode, the files that snapshots made.
        self.origins: dict[int, Origin] = {}
        #: Files that got chunks of their own to be written.
        self.written: set[int] = set()

    def look(self, metadata: Metadata | None = None) -> None:
        """Take in what the master has committed by now."""
        if metadata is None:
            if self._read is None:
                return
            metadata = self._read()
        now = trio.current_time()
        for operation in metadata.operations(self._sequence):
            if isinstance(operation, SnapshotBegun):
                self._first[operation.copy] = operation.copy
                self._making[operation.copy] = [(operation.copy, operation.source)]
            elif isinstance(operation, SnapshotCopied):
                for piece in operation.pieces:
                    if piece.parent:
                        first = self._first[piece.copy] = self._first[piece.parent]
                        self._making[first].append((piece.copy, piece.source))
            elif isinstance(operation, SnapshotFinished):
                for copy, source in self._making.pop(operation.copy):
                    row = metadata.inodes.get(copy)
                    if row is None or row.kind != KIND_DIRECTORY:
                        self.origins[copy] = Origin(source, self._looked, now)
            elif isinstance(operation, (ChunkAdded, ChunkReplaced)):
                self.written.add(operation.inode)
        self._sequence, self._looked = metadata.state.sequence, now

    def root(self, inode: int) -> int:
        """The file that it is a copy of, which is no copy; itself if it is none."""
        while inode in self.origins:
            inode = self.origins[inode].source
        return inode
