"""Which slots of ``packs.data`` are used. Pure: no file is touched.

The file consists of frames of 64 KiB. A frame has slots of one size for as long as one of them
is used; an empty one may get another size. Frames with a free slot are filled before a
free frame is begun, that first in which none was freed for the longest. There is no compaction.

Sketch: a frame costs some 50 bytes; 10^6 replicas of 1 KiB are 15,625 frames.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from gfs.blocks import PAGE_BYTES, SLOT_BYTES_MIN
from gfs.chunkserver.packs.layout import FRAME_BYTES

#: The sizes of slots: 512 << 0 … 7.
_KINDS = (FRAME_BYTES // SLOT_BYTES_MIN).bit_length()
_EMPTY = 0xFF


def _kind(length: int) -> int:
    return max(0, (length - 1).bit_length() - SLOT_BYTES_MIN.bit_length() + 1)


def _count(kind: int) -> int:
    return FRAME_BYTES // SLOT_BYTES_MIN >> kind


def _pages(frame: int) -> range:
    return range(frame * FRAME_BYTES // PAGE_BYTES, (frame + 1) * FRAME_BYTES // PAGE_BYTES)


class Slots:
    def __init__(self) -> None:
        #: By frame: the kind of its slots, and a bit for each that is used.
        self._kinds = bytearray()
        self._used: list[int] = []
        #: Empty frames, a heap; by kind, the frames with used and free slots.
        self._empty: list[int] = []
        self._partial: list[dict[int, None]] = [{} for _ in range(_KINDS)]
        #: Frames with freed slots, of which none is taken before :meth:`release`.
        self._held: set[int] = set()
        #: Bytes of the used slots, and of the pages that have one.
        self.used_bytes = self.allocated_bytes = 0

    @property
    def end(self) -> int:
        """Where the last frame ends."""
        return len(self._kinds) * FRAME_BYTES

    def take(self, length: int) -> int:
        """The offset of a free slot for so many bytes, which is used from now on."""
        kind = _kind(length)
        partial = self._partial[kind]
        if partial:
            frame = next(iter(partial))
        else:
            frame = heapq.heappop(self._empty) if self._empty else self._add_frame()
            self._kinds[frame] = kind
            partial[frame] = None
        used = self._used[frame]
        bit = ~used & (used + 1)
        used = self._use(frame, bit, kind)
        if used + 1 == 1 << _count(kind):
            del partial[frame]
        return frame * FRAME_BYTES + (bit.bit_length() - 1) * (SLOT_BYTES_MIN << kind)

    def _use(self, frame: int, bit: int, kind: int) -> int:
        used, size = self._used[frame], SLOT_BYTES_MIN << kind
        self.used_bytes += size
        page = (frame * FRAME_BYTES + (bit.bit_length() - 1) * size) // PAGE_BYTES
        if size >= PAGE_BYTES or not self._is_used(page, used, kind):
            self.allocated_bytes += max(size, PAGE_BYTES)
        self._used[frame] = used | bit
        return used | bit

    def _add_frame(self) -> int:
        self._kinds.append(_EMPTY)
        self._used.append(0)
        return len(self._used) - 1

    def give(self, offsets: Iterable[int]) -> list[tuple[int, int]]:
        """Free the slots at these offsets. Returns the pages that no slot uses any more, as
        (offset, count of bytes). Of these frames no slot is taken before :meth:`release`."""
        pages: set[int] = set()
        for offset in offsets:
            frame, inside = divmod(offset, FRAME_BYTES)
            kind = self._kinds[frame]
            bit = 1 << inside // (SLOT_BYTES_MIN << kind)
            used = self._used[frame] = self._used[frame] & ~bit
            first = offset // PAGE_BYTES
            self._partial[kind].pop(frame, None)
            self._held.add(frame)
            last = (offset + (SLOT_BYTES_MIN << kind) - 1) // PAGE_BYTES
            unused = [p for p in range(first, last + 1) if not self._is_used(p, used, kind)]
            self.used_bytes -= SLOT_BYTES_MIN << kind
            self.allocated_bytes -= len(unused) * PAGE_BYTES
            pages.update(unused if used else _pages(frame))
        return _runs(sorted(pages))

    def release(self) -> None:
        """All slots that were freed may be taken again."""
        for frame in sorted(self._held):
            if self._used[frame]:
                self._partial[self._kinds[frame]][frame] = None
            else:
                self._kinds[frame] = _EMPTY
                heapq.heappush(self._empty, frame)
        self._held.clear()

    def _is_used(self, page: int, used: int, kind: int) -> bool:
        size = SLOT_BYTES_MIN << kind
        start = page * PAGE_BYTES % FRAME_BYTES
        first, last = start // size, (start + PAGE_BYTES - 1) // size
        return bool(used >> first & (1 << last - first + 1) - 1)

    # --- at a start -------------------------------------------------------------------

    def claim(self, offset: int, length: int) -> bool:
        """Note that a record has this slot. False if that cannot be: another one has it, or
        its frame is of another size. :meth:`claimed` must follow."""
        frame, inside = divmod(offset, FRAME_BYTES)
        kind = _kind(length)
        while frame >= len(self._kinds):
            self._add_frame()
        if self._kinds[frame] == _EMPTY:
            self._kinds[frame] = kind
        bit = 1 << inside // (SLOT_BYTES_MIN << kind)
        if self._kinds[frame] != kind or self._used[frame] & bit:
            return False
        self._use(frame, bit, kind)
        return True

    def claimed(self) -> list[tuple[int, int]]:
        """All records are claimed. Returns the pages that no slot uses."""
        pages: list[int] = []
        self._empty, self._partial = [], [{} for _ in range(_KINDS)]
        self._held.clear()
        for frame, (kind, used) in enumerate(zip(self._kinds, self._used, strict=True)):
            if kind == _EMPTY:
                self._empty.append(frame)
                pages += _pages(frame)
            elif used + 1 != 1 << _count(kind):
                self._partial[kind][frame] = None
                pages += [page for page in _pages(frame) if not self._is_used(page, used, kind)]
        return _runs(pages)


def _runs(pages: list[int]) -> list[tuple[int, int]]:
    """Sorted pages as ranges of bytes."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and page * PAGE_BYTES == runs[-1][0] + runs[-1][1]:
            runs[-1] = runs[-1][0], runs[-1][1] + PAGE_BYTES
        else:
            runs.append((page * PAGE_BYTES, PAGE_BYTES))
    return runs
