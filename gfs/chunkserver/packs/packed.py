"""One packed replica, as a chunk file that cannot be changed.

All reading and verifying is the chunk file's: its :class:`File` is a window on the slot. A
write through the window is a bug of the caller, who must move the replica out first.
"""

from __future__ import annotations

from gfs.blocks import BLOCK_BYTES, Buffer
from gfs.chunkserver.files import HEAD_BYTES, NO_SUM, ChunkFile, Journal, State
from gfs.chunkserver.packs.layout import Record
from gfs.chunkserver.packs.packs import Packs
from gfs.errors import StaleVersion, invariant
from gfs.io import File

#: The number of the only state that a packed replica has: no chunk file's.
_SEQUENCE = 1 << 63


class PackedFile(ChunkFile):
    """``sequence`` never changes; ``save``, ``commit`` and ``finish`` have nothing to do."""

    def __init__(self, packs: Packs, record: Record, journal: Journal) -> None:
        handle, version, _, length, data_sum, _ = record
        is_whole = length == BLOCK_BYTES
        state = State(_SEQUENCE, version, length, NO_SUM if is_whole else data_sum)
        window = _Window(packs, record)
        super().__init__(packs.files, packs.index_path, handle, window, state, journal)
        self._sums += data_sum if is_whole else b""
        self._packs, self._record = packs, record

    def head_is_good(self) -> bool:
        return self._packs.has_on_disk(self._record)

    def sync(self) -> None:
        self._packs.sync()


def open_packed(packs: Packs, handle: int, journal: Journal) -> PackedFile | None:
    """The replica, if it is packed. Does not block."""
    record = packs.get(handle)
    return None if record is None else PackedFile(packs, record, journal)


class _Window:
    """The bytes of a slot at the place where a chunk file has them."""

    def __init__(self, packs: Packs, record: Record) -> None:
        self._packs = packs
        self._record = record

    def read_into(self, buffer: memoryview, offset: int) -> int:
        record, at = self._record, offset - HEAD_BYTES
        invariant(at >= 0, "a packed replica has no head")
        count = max(0, min(len(buffer), record.length - at))
        got = self._packs.read_into(buffer[:count], record.offset + at)
        if not self._packs.has(record):
            raise StaleVersion(f"chunk {record.handle:016x} was deleted or moved meanwhile")
        return got

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        record, at = self._record, offset - HEAD_BYTES
        return (
            at + len(buffer) <= record.length
            and self._packs.read_cached(buffer, record.offset + at)
            and self._packs.has(record)
        )

    def size(self) -> int:
        return HEAD_BYTES + self._record.length

    def close(self) -> None:
        """The pack stays open."""

    def write(self, data: Buffer, offset: int) -> None:
        self._fixed()

    def truncate(self, size: int) -> None:
        self._fixed()

    def copy_from(self, source: File, offset: int, count: int) -> None:
        self._fixed()

    def punch(self, offset: int, count: int) -> None:
        self._fixed()

    def start_sync(self, offset: int, count: int) -> None: ...

    def sync(self) -> None:
        self._packs.sync()

    def drop_cached(self) -> None: ...

    def _fixed(self) -> None:
        invariant(False, f"chunk {self._record.handle:016x} is packed: it cannot be changed")
