"""The format of appended records (the paper, 3.3). No I/O.

An appended record is a *frame* in a chunk; it never goes over the chunk's end::

    offset  bytes  field                                    (integers big-endian)
         0      8  magic 89 47 46 53 72 65 63 0A
         8      8  XXH3-64 of bytes 16 … 47
        16      4  offset of this frame in its chunk, u32
        20      4  length of the record, u32
        24      8  XXH3-64 of the client's id, the sequence and the record
        32      8  the client's id
        40      8  sequence, u64
        48         the record

Between frames there may be anything: padding at a chunk's end (zeros), what the
file held before it was appended to, frames that were cut off because their append
failed. A reader searches for the magic, and accepts a frame if both checksums match.

The client makes the frame except for the offset and the checksum over it, which the
primary adds when it has chosen the offset. So the frames inside a record (of a copy of
an appended file, for example) are never taken for records, not even when the record's
own frame is cut off: their offsets are those of another place.

Client id and sequence identify a record: one that was appended twice, because its
client did not get the first answer, has the same ones both times.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, Buffer, block_sum, joined_sum

MAGIC = b"\x89GFSrec\n"
#: The paper's bound: a quarter of a chunk, so that padding wastes no more than that.
RECORD_BYTES_MAX = CHUNK_BYTES // 4

_HEAD = struct.Struct(">8s8sII8s8sQ")
_PLACE = struct.Struct(">I")
FRAME_HEAD_BYTES = _HEAD.size
FRAME_BYTES_MAX = FRAME_HEAD_BYTES + RECORD_BYTES_MAX
_PLACED = 16  # the head's checksum covers the bytes from here on
_NAME = 32  # the record's checksum covers the bytes from here on
_unplaced_sum = bytes(8)


class Frame(NamedTuple):
    """One record that was found. ``offset`` is the frame's, in its chunk."""

    offset: int
    client: bytes
    sequence: int
    data: bytes


def encode_head(client: bytes, sequence: int, record: Buffer) -> bytes:
    """The head of a frame that has no offset yet; ``record`` follows it."""
    name = client + sequence.to_bytes(8, "big")
    total = joined_sum(name, record)
    return _HEAD.pack(MAGIC, _unplaced_sum, 0, len(record), total, client, sequence)


def split_frames(body: memoryview) -> list[int]:
    """Verify the frames in ``body`` and return the length of each.

    Raises ValueError, saying what is wrong.
    """
    sizes: list[int] = []
    at, end = 0, len(body)
    while at < end:
        if end - at < FRAME_HEAD_BYTES:
            raise ValueError("the last frame is cut off")
        magic, _, _, length, total, _, _ = _HEAD.unpack_from(body, at)
        size = FRAME_HEAD_BYTES + length
        if magic != MAGIC or length > RECORD_BYTES_MAX or at + size > end:
            raise ValueError(f"no frame at byte {at} of {end}")
        if block_sum(body[at + _NAME : at + size]) != total:
            raise ValueError("a record fails its checksum")
        sizes.append(size)
        at += size
    return sizes


def place(frame: memoryview, offset: int) -> None:
    """Write ``offset``, its offset in the chunk, into the frame that begins ``frame``."""
    _PLACE.pack_into(frame, _PLACED, offset)
    frame[8:16] = block_sum(frame[_PLACED:FRAME_HEAD_BYTES])


class RecordScanner:
    """Finds frames in the bytes of one chunk, which may begin anywhere and come in
    pieces of any size.

    Holds at most one frame (``FRAME_BYTES_MAX``) besides the last piece.
    """

    def __init__(self, offset: int = 0) -> None:
        self._data = bytearray()
        #: The offset in the chunk at which ``_data`` begins.
        self._offset = offset
        #: So many bytes must be held before a frame can be found.
        self._wanted = FRAME_HEAD_BYTES

    def feed(self, data: Buffer) -> list[Frame]:
        """The frames that are complete with ``data``."""
        self._data += data
        if len(self._data) < self._wanted:
            return []
        return self._scan(ended=False)

    def end(self) -> list[Frame]:
        """The frames that remain when no more bytes come: those after the head of one
        that is cut off."""
        return self._scan(ended=True)

    def _scan(self, ended: bool) -> list[Frame]:
        found: list[Frame] = []
        data = self._data
        at, self._wanted = 0, FRAME_HEAD_BYTES
        with memoryview(data) as view:
            while True:
                at = data.find(MAGIC, at)
                if at < 0:
                    # A frame may begin in the last bytes.
                    at = max(0, len(data) - len(MAGIC) + 1)
                    break
                if len(data) - at < FRAME_HEAD_BYTES:
                    if not ended:
                        break
                    at += 1
                    continue
                size = self._frame_size(view, at)
                if size and at + size > len(data) and not ended:
                    self._wanted = size
                    break
                frame = self._frame(view, at, size) if at + size <= len(data) else None
                if size and frame is not None:
                    found.append(frame)
                    at += size
                else:
                    at += 1
        del data[:at]
        self._offset += at
        return found

    def _frame_size(self, view: memoryview, at: int) -> int:
        """The size of the frame whose valid head is here, or 0 if there is none."""
        head = view[at : at + FRAME_HEAD_BYTES]
        _, head_sum, offset, length, _, _, _ = _HEAD.unpack(head)
        size = FRAME_HEAD_BYTES + int(length)
        place = self._offset + at
        if offset != place or length > RECORD_BYTES_MAX or place + size > CHUNK_BYTES:
            return 0
        return size if block_sum(head[_PLACED:]) == head_sum else 0

    def _frame(self, view: memoryview, at: int, size: int) -> Frame | None:
        if not size:
            return None
        _, _, offset, _, total, client, sequence = _HEAD.unpack_from(view, at)
        if block_sum(view[at + _NAME : at + size]) != total:
            return None
        return Frame(offset, client, sequence, bytes(view[at + FRAME_HEAD_BYTES : at + size]))


class SeenRecords:
    """The records that were seen, so that repeated ones can be dropped.

    A client numbers its records of a file without gaps, except for failed ones: so the
    numbers of each client are kept as a few ranges. Beyond ``RANGES_MAX`` ranges in
    all, those of the client whose last record was seen first are dropped.
    """

    RANGES_MAX = 100_000

    def __init__(self) -> None:
        #: Client → first and one past the last number of every range, in order.
        self._ranges: dict[bytes, list[int]] = {}
        self._count = 0

    def add(self, client: bytes, sequence: int) -> bool:
        """Whether the record was not seen before."""
        edges = self._ranges.pop(client, None)
        if edges is None:
            edges = []
        self._ranges[client] = edges
        before = len(edges)
        at = bisect_right(edges, sequence)
        if at % 2:
            return False
        joins_left = at > 0 and edges[at - 1] == sequence
        joins_right = at < before and edges[at] == sequence + 1
        if joins_left and joins_right:
            del edges[at - 1 : at + 1]
        elif joins_left:
            edges[at - 1] = sequence + 1
        elif joins_right:
            edges[at] = sequence
        else:
            edges[at:at] = (sequence, sequence + 1)
        self._count += (len(edges) - before) // 2
        while self._count > self.RANGES_MAX:
            if len(self._ranges) == 1:
                del edges[:2]
                self._count -= 1
                continue
            oldest = next(iter(self._ranges))
            self._count -= len(self._ranges.pop(oldest)) // 2
        return True
