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

import msgspec
import trio

from gfs.master.metadata.operations import (
    ChunkAdded,
    ChunkReplaced,
    DrainSet,
    LogRecord,
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


@dataclass(frozen=True)
class Seen:
    """A row of the log, and when it came: between two looks."""

    row: bytes
    after: float
    before: float


class Ancestry:
    def __init__(self, read: Callable[[], Metadata] | None = None) -> None:
        self._read = read
        self._log: list[Seen] = []
        self._looked = -math.inf
        #: Copies that are being made, by the first inode of each: (copy, source).
        self._making: dict[int, list[tuple[int, int]]] = {}
        #: Of each copied inode the first of its snapshot.
        self._first: dict[int, int] = {}
        #: By inode, the files that snapshots made.
        self.origins: dict[int, Origin] = {}
        #: Files that got chunks of their own to be written.
        self.written: set[int] = set()
        #: Servers that somebody began to empty.
        self.drained: set[str] = set()

    def look(self, metadata: Metadata | None = None) -> None:
        """Take in what the master has committed by now."""
        if metadata is None:
            if self._read is None:
                return
            metadata = self._read()
        log, now = metadata.rows["operation_log"], trio.current_time()

        def is_there(number: int) -> bool:
            return log.get(number.to_bytes(8, "big")) == self._log[number - 1].row

        kept = len(self._log)
        while kept and not is_there(kept):
            kept -= 1
        if kept < len(self._log):
            # Another master was elected, which lacks what was acknowledged to nobody.
            known, self._log = self._log[:kept], []
            for each in (self._making, self._first, self.origins, self.written):
                each.clear()
            self._take_in(known, metadata)
        numbers = range(kept + 1, metadata.state.sequence + 1)
        rows = [log[number.to_bytes(8, "big")] for number in numbers]
        self._take_in([Seen(row, self._looked, now) for row in rows], metadata)
        self._looked = now

    def _take_in(self, rows: list[Seen], metadata: Metadata) -> None:
        self._log += rows
        for seen in rows:
            operation = msgspec.msgpack.decode(seen.row, type=LogRecord).operation
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
                        self.origins[copy] = Origin(source, seen.after, seen.before)
            elif isinstance(operation, (ChunkAdded, ChunkReplaced)):
                self.written.add(operation.inode)
            elif isinstance(operation, DrainSet):
                self.drained.add(operation.server)

    def root(self, inode: int) -> int:
        """The file that it is a copy of, which is no copy; itself if it is none."""
        while inode in self.origins:
            inode = self.origins[inode].source
        return inode
