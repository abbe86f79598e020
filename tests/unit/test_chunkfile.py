"""Chunk files, alone on a simulated disk. What a kill leaves, at any instant, is shown by
``tests/unit/test_journal.py``.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB, block_sums, packet_sums, stored_bytes
from gfs.chunkserver.files import bad_blocks, layout, read_state
from gfs.chunkserver.files.chunkfile import START_SYNC_BYTES, ChunkFile
from gfs.chunkserver.files.journal import Journal, read_records
from gfs.chunkserver.files.layout import HEAD_BYTES, State
from gfs.errors import CorruptReplica, InvalidArgument, StaleVersion
from gfs.testing import Universe
from gfs.testing.files import SimFile, SimFileSystem

HANDLE = 0xABCDEF
DIRECTORY = "/"
PATH = "/chunk"


def new_files() -> SimFileSystem:
    return Universe(0).machine("m").start_process().world.files  # type: ignore[return-value]


def raw(files: SimFileSystem) -> bytearray:
    """What is on the disk, to be damaged."""
    return files._disk.inode(PATH).data


def new_journal(files: SimFileSystem) -> Journal:
    journal = Journal(files, DIRECTORY, False, 1 << 20)
    journal.open()
    return journal


def create(files: SimFileSystem, version: int = 1) -> ChunkFile:
    return ChunkFile.create(files, PATH, HANDLE, version, new_journal(files))


def reopen(files: SimFileSystem, handle: int = HANDLE) -> ChunkFile:
    """As a start does it."""
    records = read_records(files, DIRECTORY)
    journal = new_journal(files)
    journal.saw(records.sequence)
    return ChunkFile.open(files, PATH, handle, journal, records.take(handle))


def new_chunk(data: bytes = b"", version: int = 1) -> tuple[SimFileSystem, ChunkFile]:
    files = new_files()
    chunk = create(files, version)
    if data:
        write(chunk, 0, data)
    chunk.commit()
    return files, chunk


def write(chunk: ChunkFile, offset: int, data: bytes) -> None:
    chunk.write(offset, data, packet_sums(offset, data))


def content(chunk: ChunkFile) -> bytes:
    return chunk.read_verified(0, chunk.length) if chunk.length else b""


def pattern(seed: int, length: int) -> bytes:
    return (seed.to_bytes(4, "big") * (length // 4 + 1))[:length]


#: Lengths and offsets around the block boundary, where the cases are.
sizes = st.one_of(
    st.integers(1, 3000),
    st.integers(BLOCK_BYTES - 3, BLOCK_BYTES + 3),
    st.integers(2 * BLOCK_BYTES - 2, 2 * BLOCK_BYTES + 2),
)


def test_a_file_that_is_closed_while_it_is_made_does_not_stay_open() -> None:
    """A thread makes it, while the disk has failed and another thread closes all files."""
    files = new_files()
    chunk = create(files)
    open_file, made = files.open, []

    def open_slowly(path: str, mode: str) -> SimFile:
        made.append(open_file(path, mode))
        chunk.close()
        return made[0]

    files.open = open_slowly  # type: ignore[method-assign]
    chunk.file  # noqa: B018 - made by this
    assert not made[0]._open


@given(st.lists(sizes, min_size=1, max_size=5))
@settings(max_examples=share(40), deadline=None)
def test_reopening_changes_nothing(lengths: list[int]) -> None:
    files, chunk = new_chunk()
    model = b""
    for number, length in enumerate(lengths):
        piece = pattern(number, length)
        write(chunk, len(model), piece)
        model += piece
    chunk.commit()
    again = reopen(files)
    assert (again.length, again.version, content(again)) == (len(model), 1, model)
    assert again.sums(0, -(-len(model) // BLOCK_BYTES)) == block_sums(model)
    assert read_state(files, PATH, HANDLE) == State(chunk.sequence, 1, *again._tail)


@given(st.integers(0, 2 * BLOCK_BYTES), sizes, st.binary(max_size=100))
@settings(max_examples=share(40), deadline=None)
def test_padding_is_zeros_whatever_lay_there(before: int, size: int, left: bytes) -> None:
    model = pattern(7, before)
    files, chunk = new_chunk(model)
    chunk.file.write(left, HEAD_BYTES + before)  # of an append that failed
    chunk.pad(before + size)
    chunk.commit()
    again = reopen(files)
    assert content(again) == model + bytes(size)
    assert bad_blocks(again) == []
    assert again.sums(0, -(-(before + size) // BLOCK_BYTES)) == block_sums(model + bytes(size))


@given(st.integers(1, 3 * BLOCK_BYTES), st.data())
@settings(max_examples=share(60), deadline=None)
def test_any_flipped_bit_is_found(length: int, data: st.DataObject) -> None:
    files, chunk = new_chunk(pattern(7, length))
    used = (
        [*range(32), *range(512, 552), *range(1024, 1064)]
        + list(range(4096, 4096 + length // BLOCK_BYTES * 8))
        + [HEAD_BYTES + n for n in range(length)]
    )
    at = data.draw(st.sampled_from(used), label="byte")
    raw(files)[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    older_slot = layout.slot_offset(chunk.sequence + 1)
    if older_slot <= at < older_slot + layout.SLOT_BYTES:
        # The state before the last: damage there takes nothing away.
        assert content(reopen(files)) == pattern(7, length)
        return
    assert bad_blocks(chunk)
    try:
        damaged = reopen(files)
    except CorruptReplica:
        return
    if damaged.length < length:
        return  # the newest slot is unreadable: an older state, reported as short
    with pytest.raises(CorruptReplica):
        content(damaged)


def test_a_truncated_file_is_refused() -> None:
    files, chunk = new_chunk(b"x" * 1000)
    del raw(files)[HEAD_BYTES + 999 :]
    assert bad_blocks(chunk) == [0]
    with pytest.raises(CorruptReplica, match="its state needs"):
        reopen(files)


def test_a_file_never_committed_is_nothing() -> None:
    files = new_files()
    write(create(files), 0, b"data")
    assert read_state(files, PATH, HANDLE) is None


def test_the_file_of_another_chunk_is_refused() -> None:
    files, _ = new_chunk()
    with pytest.raises(CorruptReplica, match="belongs to chunk"):
        reopen(files, HANDLE + 1)


def test_what_makes_no_sense_is_refused() -> None:
    files, chunk = new_chunk(b"a" * 100, version=5)
    with pytest.raises(StaleVersion):
        chunk.set_version(4)
    with pytest.raises(InvalidArgument, match="hole"):
        write(chunk, 101, b"x")
    raw(files)[HEAD_BYTES + 50] ^= 1
    with pytest.raises(CorruptReplica):
        write(chunk, 10, b"b")  # over a damaged block
    chunk._tail = (CHUNK_BYTES, bytes(8))
    with pytest.raises(InvalidArgument, match="past the chunk's end"):
        write(chunk, CHUNK_BYTES, b"x")


@given(st.binary(max_size=64))
def test_random_bytes_are_no_slot(data: bytes) -> None:
    assert layout.decode_slot(data) is None


def test_a_version_that_could_not_be_written_does_not_count() -> None:
    files, chunk = new_chunk(b"abc", version=3)
    files._disk.fail(PATH)
    with pytest.raises(OSError, match="error"):
        chunk.set_version(4)
    assert chunk.version == 3
    files._disk.fail(PATH, 0)
    chunk.set_version(5)
    assert reopen(files).version == 5


def test_an_overwrite_that_failed_is_finished_before_anything_else() -> None:
    files, chunk = new_chunk(b"abcdef", version=3)
    files._disk.fail(PATH, what=["write"])
    for offset, data in ((2, b"CD"), (6, b"ghi")):
        with pytest.raises(OSError, match="error"):
            write(chunk, offset, data)
    files._disk.fail(PATH, 0)
    write(chunk, 6, b"ghi")
    chunk.commit()
    assert content(chunk) == b"abCDefghi"
    assert content(reopen(files)) == b"abCDefghi"


@pytest.mark.parametrize(
    ("sync", "copied", "begins"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_what_will_be_synced_goes_to_the_disk_on_the_way(
    sync: bool, copied: bool, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(SimFile, "start_sync", lambda file, *place: begun.append(place))
    files = new_files()
    journal = Journal(files, DIRECTORY, sync, 1 << 20)
    journal.open()
    chunk = ChunkFile.create(files, PATH, HANDLE, 1, journal, copied=copied)
    length = 2 * START_SYNC_BYTES + MIB
    for offset in range(0, length, MIB):
        write(chunk, offset, pattern(offset, MIB))
    expected = [(HEAD_BYTES, START_SYNC_BYTES), (HEAD_BYTES + START_SYNC_BYTES, START_SYNC_BYTES)]
    assert begun == (expected if begins else [])


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("length", [1, 4096, 4097, BLOCK_BYTES, 513 * BLOCK_BYTES])
def test_a_replica_takes_the_space_that_is_counted_for_it_and_its_state_fits(
    sync: bool, length: int
) -> None:
    machine = Universe(1).machine("m")
    disk, files = machine.disk, machine.start_process().world.files
    disk.mount("/disk", CHUNK_BYTES)
    journal = Journal(files, "/", sync, 1 << 20)
    journal.open()
    chunk = ChunkFile.create(files, "/disk/chunk", HANDLE, 1, journal)
    for offset in range(0, length, MIB):
        write(chunk, offset, bytes(min(MIB, length - offset)))
    chunk.commit()
    taken = disk.volume("/disk").used_bytes
    assert taken == stored_bytes(length)
    disk.mount("/disk", taken)
    chunk.save()
    assert disk.volume("/disk").used_bytes == taken
    assert ChunkFile.open(files, "/disk/chunk", HANDLE, journal).length == length
