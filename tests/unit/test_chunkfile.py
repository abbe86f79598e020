"""Chunk files against a plain model, through a crash at every instant.

The file system here keeps a log of every change. A crash keeps any prefix of
the log, and of the change it hits any prefix of the bytes: what a kill leaves.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB, block_sums, packet_sums, stored_bytes
from gfs.chunkserver.files import layout
from gfs.chunkserver.files.chunkfile import START_SYNC_BYTES, ChunkFile
from gfs.chunkserver.files.journal import Journal, read_records
from gfs.chunkserver.files.layout import HEAD_BYTES, State
from gfs.errors import CorruptReplica, InvalidArgument, StaleVersion
from gfs.testing import Universe

HANDLE = 0xABCDEF
DIRECTORY = ""
PATH = "/chunk"


class LoggedFile:
    def __init__(self, files: LoggedFiles, path: str) -> None:
        self.files, self.path = files, path

    @property
    def data(self) -> bytearray:
        return self.files.contents[self.path]

    def read_into(self, buffer: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data: Any, offset: int) -> None:
        self.files.do("write", self.path, bytes(data), offset)

    def size(self) -> int:
        return len(self.data)

    def truncate(self, size: int) -> None:
        self.files.do("truncate", self.path, size)

    def start_sync(self, offset: int, count: int) -> None:
        self.files.begun.append((offset, count))

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class LoggedFiles:
    """As much of a file system as a chunk file uses."""

    def __init__(self) -> None:
        self.contents: dict[str, bytearray] = {}
        self.log: list[tuple[Any, ...]] = []
        self.begun: list[tuple[int, int]] = []

    def do(self, *change: Any) -> None:
        self.log.append(change)
        self.apply(change)

    def apply(self, change: tuple[Any, ...]) -> None:
        kind, path, *rest = change
        if kind == "make":
            self.contents[path] = bytearray()
        elif kind == "unlink":
            del self.contents[path]
        elif kind == "truncate":
            content, (size,) = self.contents[path], rest
            del content[size:]
            content += bytes(size - len(content))
        else:
            data, offset = rest
            content = self.contents[path]
            if len(content) < offset:
                content += bytes(offset - len(content))
            content[offset : offset + len(data)] = data

    def crashed(self, changes: int, torn_bytes: int) -> LoggedFiles:
        """The file system as a crash after ``changes`` changes leaves it."""
        after = LoggedFiles()
        for change in self.log[:changes]:
            after.apply(change)
        if changes < len(self.log) and self.log[changes][0] == "write":
            kind, path, data, offset = self.log[changes]
            after.apply((kind, path, data[:torn_bytes], offset))
        return after

    def make_lock(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def open(self, path: str, mode: str) -> LoggedFile:
        if mode == "create" and path in self.contents:
            raise FileExistsError(path)
        if mode in ("r", "rw") and path not in self.contents:
            raise FileNotFoundError(path)
        if mode in ("create", "replace"):
            self.do("make", path)
        return LoggedFile(self, path)

    def exists(self, path: str) -> bool:
        return path in self.contents

    def unlink(self, path: str) -> None:
        self.do("unlink", path)

    def sync_directory(self, path: str) -> None:
        pass


def new_journal(files: Any) -> Journal:
    journal = Journal(files, DIRECTORY, False, 1 << 20)
    journal.open()
    return journal


def create(files: Any, version: int = 1) -> ChunkFile:
    return ChunkFile.create(files, PATH, HANDLE, version, new_journal(files))


def reopen(files: Any, handle: int = HANDLE) -> ChunkFile:
    """As a start does it."""
    records = read_records(files, DIRECTORY)
    journal = new_journal(files)
    journal.saw(records.sequence)
    return ChunkFile.open(files, PATH, handle, journal, records.take(handle))


def new_chunk() -> tuple[Any, ChunkFile]:
    files: Any = LoggedFiles()
    chunk = create(files)
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
operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "overwrite", "version", "cut", "commit", "pad"]),
        sizes,
        st.integers(0, 1 << 30),
    ),
    min_size=1,
    max_size=6,
)


def test_a_file_that_is_closed_while_it_is_made_does_not_stay_open() -> None:
    """A thread makes it, while the disk has failed and another thread closes all files."""
    files = LoggedFiles()
    chunk = create(files)
    open_file, closed = files.open, []

    class Made(LoggedFile):
        def close(self) -> None:
            closed.append(self.path)

    def open_slowly(path: str, mode: str) -> LoggedFile:
        open_file(path, mode)
        chunk.close()
        return Made(files, path)

    files.open = open_slowly  # type: ignore[method-assign]
    chunk.file  # noqa: B018 - made by this
    assert closed == [PATH]


@settings(max_examples=share(120), deadline=None)
@given(operations, st.data())
def test_every_crash_leaves_what_was_committed(
    steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    files, chunk = new_chunk()
    model = bytearray()
    # (changes in the log when it was promised, bytes that are then safe, version)
    promises = [(len(files.log), b"", 1)]
    for number, (kind, size, where) in enumerate(steps):
        if kind == "append":
            piece = pattern(number + 1, size)
            write(chunk, len(model), piece)
            model += piece
            continue  # promised only by the next commit
        if kind == "pad":
            chunk.pad(len(model) + size)
            model += bytes(size)
            continue
        if kind == "overwrite" and model:
            offset = where % len(model)
            piece = pattern(number + 1, size)
            write(chunk, offset, piece)
            model[offset : offset + size] = piece
        elif kind == "version":
            chunk.set_version(chunk.version + 1)
        elif kind == "cut" and model:
            # Only bytes that were never promised may be dropped in service.
            length = max(len(promises[-1][1]), where % (len(model) + 1))
            if length < len(model):
                chunk.cut(length)
                del model[length:]
                continue
        chunk.commit()
        promises.append((len(files.log), bytes(model), chunk.version))
    assert content(chunk) == model
    assert chunk.bad_blocks() == []

    at = data.draw(st.integers(promises[0][0], len(files.log)), label="crash after")
    torn = data.draw(st.integers(0, 70_000), label="bytes of the change hit")
    after: Any = files.crashed(at, torn)
    recovered = reopen(after)
    _, safe, version = max(p for p in promises if p[0] <= at)
    assert recovered.version >= version
    assert recovered.length >= len(safe)
    assert recovered.bad_blocks() == []
    got = content(recovered)
    later = [bytes(p[1]) for p in promises if p[0] > at]
    overwritten = {i for p in later for i in range(min(len(safe), len(p))) if p[i] != safe[i]}
    wrong = [i for i in range(len(safe)) if got[i] != safe[i] and i not in overwritten]
    assert not wrong, f"bytes {wrong[:5]} of what was promised are gone"


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
    assert ChunkFile.probe(files, PATH, HANDLE) == State(chunk._sequence, 1, *again._tail)


@given(st.integers(0, 2 * BLOCK_BYTES), sizes, st.binary(max_size=100))
@settings(max_examples=share(40), deadline=None)
def test_padding_is_zeros_whatever_lay_there(before: int, size: int, left: bytes) -> None:
    files, chunk = new_chunk()
    model = pattern(7, before)
    if model:
        write(chunk, 0, model)
    chunk.file.write(left, HEAD_BYTES + before)  # of an append that failed
    chunk.pad(before + size)
    chunk.commit()
    again = reopen(files)
    assert content(again) == model + bytes(size)
    assert again.bad_blocks() == []
    assert again.sums(0, -(-(before + size) // BLOCK_BYTES)) == block_sums(model + bytes(size))


@given(st.integers(1, 3 * BLOCK_BYTES), st.data())
@settings(max_examples=share(60), deadline=None)
def test_any_flipped_bit_is_found(length: int, data: st.DataObject) -> None:
    files, chunk = new_chunk()
    write(chunk, 0, pattern(7, length))
    chunk.commit()
    raw = files.contents[PATH]
    used = (
        [*range(32), *range(512, 552), *range(1024, 1064)]
        + list(range(4096, 4096 + length // BLOCK_BYTES * 8))
        + [HEAD_BYTES + n for n in range(length)]
    )
    at = data.draw(st.sampled_from(used), label="byte")
    raw[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    older_slot = layout.slot_offset(chunk._sequence + 1)
    if older_slot <= at < older_slot + layout.SLOT_BYTES:
        # The state before the last: damage there takes nothing away.
        assert content(reopen(files)) == pattern(7, length)
        return
    assert chunk.bad_blocks()
    try:
        damaged = reopen(files)
    except CorruptReplica:
        return
    if damaged.length < length:
        return  # the newest slot is unreadable: an older state, reported as short
    with pytest.raises(CorruptReplica):
        content(damaged)


def test_a_truncated_file_is_refused() -> None:
    files, chunk = new_chunk()
    write(chunk, 0, b"x" * 1000)
    chunk.commit()
    del files.contents[PATH][HEAD_BYTES + 999 :]
    assert chunk.bad_blocks() == [0]
    with pytest.raises(CorruptReplica, match="its state needs"):
        reopen(files)


def test_a_file_never_committed_is_nothing() -> None:
    files: Any = LoggedFiles()
    chunk = create(files)
    write(chunk, 0, b"data")
    assert ChunkFile.probe(files, PATH, HANDLE) is None


def test_the_file_of_another_chunk_is_refused() -> None:
    files, _ = new_chunk()
    with pytest.raises(CorruptReplica, match="belongs to chunk"):
        reopen(files, HANDLE + 1)


def test_writes_that_make_no_sense_are_refused() -> None:
    _, chunk = new_chunk()
    with pytest.raises(InvalidArgument, match="hole"):
        write(chunk, 1, b"x")
    chunk._tail = (CHUNK_BYTES, bytes(8))
    with pytest.raises(InvalidArgument, match="past the chunk's end"):
        write(chunk, CHUNK_BYTES, b"x")


def test_a_version_never_goes_back() -> None:
    _, chunk = new_chunk()
    chunk.set_version(5)
    with pytest.raises(StaleVersion):
        chunk.set_version(4)


def test_overwriting_a_damaged_block_is_refused() -> None:
    files, chunk = new_chunk()
    write(chunk, 0, b"a" * 100)
    chunk.commit()
    files.contents[PATH][HEAD_BYTES + 50] ^= 1
    with pytest.raises(CorruptReplica):
        write(chunk, 10, b"b")


@given(st.binary(max_size=64))
def test_random_bytes_are_no_slot(data: bytes) -> None:
    assert layout.decode_slot(data) is None


class FailingFiles(LoggedFiles):
    """Refuses the changes named in ``refused``."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[tuple[str, str]] = set()

    def do(self, *change: Any) -> None:
        if change[:2] in self.refused:
            raise OSError(5, "refused", change[1])
        super().do(*change)


def test_a_version_that_could_not_be_written_does_not_count() -> None:
    files = FailingFiles()
    chunk = create(files, 3)
    chunk.write(0, b"abc", packet_sums(0, b"abc"))
    chunk.commit()
    files.refused.add(("write", PATH))
    with pytest.raises(OSError, match="refused"):
        chunk.set_version(4)
    assert chunk.version == 3
    files.refused.clear()
    chunk.set_version(5)
    assert reopen(files).version == 5


def test_an_overwrite_that_failed_is_finished_before_anything_else() -> None:
    files = FailingFiles()
    chunk = create(files, 3)
    chunk.write(0, b"abcdef", packet_sums(0, b"abcdef"))
    chunk.commit()
    files.refused.add(("write", PATH))
    with pytest.raises(OSError, match="refused"):
        chunk.write(2, b"CD", packet_sums(2, b"CD"))
    with pytest.raises(OSError, match="refused"):
        chunk.write(6, b"ghi", packet_sums(6, b"ghi"))
    files.refused.clear()
    chunk.write(6, b"ghi", packet_sums(6, b"ghi"))
    chunk.commit()
    assert content(chunk) == b"abCDefghi"
    assert content(reopen(files)) == b"abCDefghi"


@pytest.mark.parametrize(
    ("sync", "copied", "begins"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_what_will_be_synced_goes_to_the_disk_on_the_way(
    sync: bool, copied: bool, begins: bool
) -> None:
    files: Any = LoggedFiles()
    journal = Journal(files, DIRECTORY, sync, 1 << 20)
    journal.open()
    chunk = ChunkFile.create(files, PATH, HANDLE, 1, journal, copied=copied)
    length = 2 * START_SYNC_BYTES + MIB
    for offset in range(0, length, MIB):
        write(chunk, offset, pattern(offset, MIB))
    expected = [(HEAD_BYTES, START_SYNC_BYTES), (HEAD_BYTES + START_SYNC_BYTES, START_SYNC_BYTES)]
    assert files.begun == (expected if begins else [])


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
