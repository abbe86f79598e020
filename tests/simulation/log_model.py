"""What may be read from a file that records are appended to.

Every append that began may be there, once, often or not at all, for ever; one that was
acknowledged is at the offset that was told, whole. Anything else that looks like a
record was never written, and is the one thing that must not be seen. What lies between
records is not looked at.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from gfs.blocks import CHUNK_BYTES
from gfs.client import Record
from gfs.protocol.records import FRAME_HEAD_BYTES, RecordScanner


@dataclass
class Append:
    data: bytes
    who: str
    began: float
    acknowledged: float = math.inf
    offset: int = -1

    def __str__(self) -> str:
        return (
            f"{self.who}'s record of {len(self.data)} bytes, began {self.began:.6f}, "
            f"acknowledged {self.acknowledged:.6f} at {self.offset}"
        )


@dataclass
class LogModel:
    #: Of all logs together: nobody is told which file an append that fails was to.
    begun: dict[bytes, Append]
    acknowledged: list[Append] = field(default_factory=list)
    #: None that began later is in it: it is a copy that was made by then.
    until: float = math.inf

    def objection(self, data: bytes, since: float, shaken: bool) -> str:
        """Why ``data`` cannot be all of the file, for one who opened it at ``since``."""
        return self.objection_to(records_in(data), since, shaken)

    def objection_to(
        self,
        found: Iterable[Record],
        since: float,
        shaken: bool,
        start: int = 0,
        end: int = sys.maxsize,
        once: bool = False,
    ) -> str:
        """The same for the records from ``start`` up to ``end``, with all that are there
        twice; or ``once``, where each is the first time."""
        there: dict[int, bytes] = {}
        first: dict[bytes, int] = {}
        for record in found:
            if once and record.data in first:
                return f"at {first[record.data]} and given again: {record.data[:40]!r}"
            first.setdefault(record.data, record.offset)
            append = self.begun.get(record.data)
            if append is None:
                return f"a record at {record.offset} that nobody wrote: {record.data[:40]!r}"
            if append.began > self.until:
                return f"at {record.offset} though the copy was made before: {append}"
            there[record.offset] = record.data
        for append in self.acknowledged:
            if append.acknowledged > since or not start <= append.offset < end or shaken:
                continue
            if once and first.get(append.data, append.offset + 1) <= append.offset:
                continue
            if there.get(append.offset) != append.data:
                return f"not there: {append}"
        return ""

    def contradiction(self, start: int, data: bytes, since: float) -> str:
        """Why ``data`` cannot have been read at ``start`` of the file."""
        for append in self.acknowledged:
            if append.acknowledged > since:
                continue
            first = append.offset + FRAME_HEAD_BYTES
            left, right = max(start, first), min(start + len(data), first + len(append.data))
            if left < right and (
                data[left - start : right - start] != append.data[left - first : right - first]
            ):
                return f"bytes {left} to {right} are not those of {append}"
        return ""


def records_in(data: bytes, start: int = 0) -> list[Record]:
    """All records in bytes of a file that begin with a chunk at ``start``, duplicates
    included."""
    found = []
    for at in range(0, len(data), CHUNK_BYTES):
        scanner = RecordScanner()
        for frame in scanner.feed(data[at : at + CHUNK_BYTES]) + scanner.end():
            offset = start + at + frame.offset
            found.append(Record(offset, frame.data, frame.client.hex(), frame.sequence))
    return found
