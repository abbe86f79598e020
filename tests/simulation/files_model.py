"""What may be read from a file: each byte comes from a write that history allows.

A file begins with the bytes it was published with. A write in place covers a
range, begins, and perhaps ends; one that failed or was never answered may come
into force at any time, in any part, for ever. So a byte read may be that of any
write that began before the read ended, unless a later write that covered it had
been acknowledged before the read began: the rules of a regular register, byte
by byte. That is what the file system promises for writes that meet ("one of the
two, the same on all replicas" is looked at in the end, when all is quiet).

Past the bytes that the file was published with everything is zero until somebody
writes there: a write beyond the end leaves a hole below it. So a zero is what no
write put there, and nothing else; where a write was acknowledged, it is wrong.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, field

from gfs.protocol.records import MAGIC

from .log_model import LogModel

#: Before all time, and for ever.
ALWAYS = -math.inf


@dataclass
class Write:
    start: int
    data: bytes
    began: float
    acknowledged: float = math.inf
    who: str = ""

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def __str__(self) -> str:
        return (
            f"{self.who} [{self.start}, {self.end}) "
            f"began {self.began:.6f} acknowledged {self.acknowledged:.6f}"
        )


@dataclass
class FileModel:
    """One file, whatever its name. ``number`` is that of the call that made it."""

    number: int
    data: bytes
    began: float
    #: The inode, once anybody was told.
    inode: int = 0
    writes: list[Write] = field(default_factory=list)
    #: How many replicas it was made with; 0: as many as is usual.
    goal: int = 0
    #: What was acknowledged may be hidden by older bytes: see :mod:`.losses`.
    shaken: bool = False
    #: Of a file that records are appended to, and that is not written in place.
    log: LogModel | None = None

    def write(self, start: int, data: bytes, now: float, who: str) -> Write:
        """A write begins."""
        begun = Write(start, data, now, who=who)
        self.writes.append(begun)
        return begun

    def length_min(self, since: float) -> int:
        """What the length is at least for who looks from ``since`` on."""
        acked = [w.end for w in self.writes if w.acknowledged <= since]
        return max([len(self.data), *acked])

    def length_max(self, until: float) -> int:
        if self.log is not None:
            return sys.maxsize
        return max([len(self.data), *(w.end for w in self.writes if w.began <= until)])

    def objection(
        self, start: int, data: bytes, since: float, until: float, part: bool = False
    ) -> str:
        """Why ``data`` cannot have been read at ``start`` by a read that began at
        ``since``, on what was known then, and ended at ``until``; or nothing. Of a log
        it is all that was there at ``since`` from ``start`` on, unless it is ``part``."""
        if self.log is not None:
            return self._log_objection(self.log, start, data, since, part)
        end = start + len(data)
        first = Write(0, self.data, ALWAYS, ALWAYS, who="as published")
        all_ = [first, *(w for w in self.writes if w.began <= until)]
        near = [w for w in all_ if w.start < end and w.end > start]
        edges = {start, end}
        for write in near:
            edges.update(at for at in (write.start, write.end) if start < at < end)
        marks = sorted(edges)
        for left, right in itertools.pairwise(marks):
            problem = self._piece(near, left, data[left - start : right - start], since)
            if problem:
                return problem
        return ""

    def _log_objection(
        self, log: LogModel, start: int, data: bytes, since: float, part: bool
    ) -> str:
        """The same for a log: what was published stays, and records follow."""
        published = self.data[start : start + len(data)]
        if data[: len(published)] != published:
            return f"not as file {self.number} (inode {self.inode}) was published"
        if start or part:
            return "" if self.shaken else log.contradiction(start, data, since)
        if data[len(published) : len(published) + 1] not in (b"", b"\0", MAGIC[:1]):
            return f"no record begins where file {self.number} ended when it was published"
        return log.objection(data, since, self.shaken)

    def _piece(self, near: list[Write], at: int, data: bytes, since: float) -> str:
        """The same for a range within which every write is wholly there or not."""
        end = at + len(data)
        cover = [w for w in near if w.start <= at and w.end >= end]
        allowed = [w for w in cover if self.shaken or not _is_hidden(w, cover, since)]
        pieces = [w.data[at - w.start : end - w.start] for w in allowed]
        if at >= len(self.data) and (self.shaken or all(w.acknowledged > since for w in cover)):
            # A hole; or what was written past the end is lost, and the length known.
            pieces.append(bytes(len(data)))
        if data in pieces:
            return ""
        for offset, byte in enumerate(data):
            if all(piece[offset] != byte for piece in pieces):
                return _complain(self, at + offset, byte, cover, allowed)
        return ""


def _is_hidden(write: Write, cover: list[Write], since: float) -> bool:
    """Whether a later one was acknowledged before anybody could look."""
    return any(other.acknowledged <= since and write.acknowledged < other.began for other in cover)


def _complain(file: FileModel, at: int, byte: int, cover: list[Write], allowed: list[Write]) -> str:
    old = [w for w in cover if w not in allowed and w.data[at - w.start] == byte]
    what = f"byte {at} of file {file.number} (inode {file.inode}) is {byte:#04x}, "
    what += f"as an older write left it: {old[-1]}" if old else "which nobody wrote"
    known = "; ".join(f"{w.data[at - w.start]:#04x} by {w}" for w in allowed)
    return f"{what}. It may be {known or 'nothing at all'}"
