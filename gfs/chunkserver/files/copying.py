"""Copies of whole chunk files on one machine, and the verification that ends them, and that the
scrub does. All of it blocks."""

from __future__ import annotations

from gfs.blocks import BLOCK_BYTES, Buffer, block_count, block_sum
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.layout import HEAD_BYTES
from gfs.chunkserver.files.progress import report_progress
from gfs.errors import CorruptReplica

#: How much verification reads at a time.
VERIFY_BYTES = 1024 * 1024
#: How much is copied in one system call, or in one call to a disk.
COPY_BYTES = 4 * 1024 * 1024


def copy_from(target: ChunkFile, source: ChunkFile) -> None:
    """Copy the bytes of ``source``, which is on the same disk, and its sums into
    the new, empty ``target``, and verify every block. It must be saved afterwards.

    Raises CorruptReplica if a block fails its sum.
    """
    for at in range(0, source.length, COPY_BYTES):
        report_progress()
        count = min(COPY_BYTES, source.length - at)
        target.file.copy_from(source.file, HEAD_BYTES + at, count)
    has_all_of(target, source)


def read_unverified(source: ChunkFile, offset: int, count: int) -> bytearray:
    """Read the bytes at ``offset``, unverified, for a copy on another disk."""
    data = bytearray(count)
    del data[source.read_at(memoryview(data), offset) :]
    return data


def put_unverified(target: ChunkFile, offset: int, data: Buffer) -> None:
    """Write a part of a copy, which is not read before :func:`has_all_of`."""
    target.file.write(data, HEAD_BYTES + offset)


def has_all_of(target: ChunkFile, source: ChunkFile) -> None:
    """Complete a copy of ``source``, whose bytes it has: take the sums and
    verify every block. Raises CorruptReplica if one fails its sum."""
    target.take_sums(source)
    bad = bad_blocks(target)
    if bad:
        raise CorruptReplica(f"chunk {source.handle:016x}: block {bad[0]} cannot be copied")


def finish_copy(target: ChunkFile) -> None:
    """Write all of the state into a new file with a temporary name, in any order,
    and start the write-back. It must be synced before it gets its name."""
    target.commit()
    target.file.start_sync(0, HEAD_BYTES + target.length)


def bad_blocks(file: ChunkFile, first: int = 0, count: int | None = None) -> list[int]:
    """The blocks whose bytes on the disk fail their sums.

    ``count`` blocks from ``first``, or all. What the file's own head says
    on the disk is checked too (with block 0), so that damage there is found
    before a restart needs it.
    """
    if not file.made:
        return []
    total = block_count(file.length)
    end = total if count is None else min(first + count, total)
    bad: set[int] = set()
    if first == 0 and not file.head_is_good():
        bad.add(0)
    buffer = memoryview(bytearray(min(VERIFY_BYTES, max(1, (end - first)) * BLOCK_BYTES)))
    step = len(buffer) // BLOCK_BYTES
    for at in range(first, end, step):
        report_progress()
        start = at * BLOCK_BYTES
        want = min(len(buffer), file.length - start, (end - at) * BLOCK_BYTES)
        got = file.read_at(buffer[:want], start)
        for index in range(block_count(want)):
            begin = index * BLOCK_BYTES
            block = buffer[begin : min(begin + BLOCK_BYTES, want)]
            if begin + len(block) > got or block_sum(block) != file.sums(at + index, 1):
                bad.add(at + index)
    return sorted(bad)
