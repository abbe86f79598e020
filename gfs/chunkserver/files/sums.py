"""The checksums of a replica in memory: a table of those of its whole blocks, and a *tail*, which
is its length with the sum of the last block if that is partial."""

from __future__ import annotations

from gfs.blocks import BLOCK_BYTES, SUM_BYTES, block_count, block_sum
from gfs.chunkserver.files.layout import HEAD_BYTES, whole_blocks
from gfs.errors import CorruptReplica, StaleVersion, invariant
from gfs.io import File

Tail = tuple[int, bytes]


def sums_of(handle: int, sums: bytearray, tail: Tail, first: int, count: int) -> bytes:
    """Those of ``count`` blocks from block ``first``."""
    length, tail_sum = tail
    whole = whole_blocks(length)
    end = first + count
    found = bytes(sums[first * SUM_BYTES : min(end, whole) * SUM_BYTES])
    if end > whole:
        found += tail_sum
    if len(found) != count * SUM_BYTES:
        # A thread is cutting the replica: its writer continues from there.
        raise StaleVersion(f"chunk {handle:016x} became shorter meanwhile")
    return found


def blocks_around(
    handle: int, tail: Tail, offset: int, length: int
) -> tuple[int, bytearray, slice, Tail]:
    """The blocks around a range: the first one, a buffer for all, the place of the
    range in it, and the tail that they are verified with."""
    invariant(0 <= offset < offset + length, "a range has a length")
    if offset + length > tail[0]:
        raise StaleVersion(f"chunk {handle:016x} has {tail[0]} bytes here")
    first = offset // BLOCK_BYTES
    end = min(-(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES, tail[0])
    start = first * BLOCK_BYTES
    return first, bytearray(end - start), slice(offset - start, offset - start + length), tail


def read_blocks(
    file: File, handle: int, sums: bytearray, tail: Tail, first: int, target: memoryview
) -> None:
    """Fill ``target`` from block ``first``, to a block's end or that of ``tail``. Raises
    CorruptReplica."""
    got = file.read_into(target, HEAD_BYTES + first * BLOCK_BYTES)
    if got < len(target):
        raise CorruptReplica(f"chunk {handle:016x}: the file was cut short")
    bad = first_bad(handle, sums, tail, first, target)
    if bad is not None:
        raise CorruptReplica(f"chunk {handle:016x}: block {bad} fails its checksum")


def first_bad(
    handle: int, table: bytearray, tail: Tail, first: int, data: memoryview
) -> int | None:
    """Which of the blocks in ``data``, from block ``first``, fails its checksum."""
    count = block_count(len(data))
    sums = sums_of(handle, table, tail, first, count)
    for index in range(count):
        at = index * BLOCK_BYTES
        expected = sums[index * SUM_BYTES : (index + 1) * SUM_BYTES]
        if block_sum(data[at : at + BLOCK_BYTES]) != expected:
            return first + index
    return None


def sums_after(
    file: File | None,
    handle: int,
    table: bytearray,
    tail: Tail,
    offset: int,
    data: memoryview,
    sums: bytes,
) -> bytes:
    """Sums of all blocks that ``data`` touches, as they are after the write; ``sums`` are those
    of the data alone. ``file`` is read for what else is in the first and in the last of them."""
    end = offset + len(data)
    first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
    head = offset % BLOCK_BYTES
    rest = end % BLOCK_BYTES if end < tail[0] else 0
    if not head and not rest:
        return sums
    invariant(file is not None, "what is written into is in a file")
    assert file is not None

    def merged(block: int) -> bytes:
        start = block * BLOCK_BYTES
        old_end = min(start + BLOCK_BYTES, tail[0])
        new_end = min(start + BLOCK_BYTES, max(tail[0], end))
        content = bytearray(new_end - start)
        if old_end > start:
            old = memoryview(content)[: old_end - start]
            read_blocks(file, handle, table, tail, block, old)
        begin, stop = max(start, offset), min(new_end, end)
        content[begin - start : stop - start] = data[begin - offset : stop - offset]
        return block_sum(content)

    out = bytearray(sums)
    if head:
        out[:SUM_BYTES] = merged(first)
    if rest and (last > first or not head):
        out[-SUM_BYTES:] = merged(last)
    return bytes(out)
