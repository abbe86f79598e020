"""Packed replicas: slots, the index, what a power cut leaves, and space that comes back."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS

from gfs.blocks import BLOCK_BYTES, KIB, PAGE_BYTES, Buffer, block_sum
from gfs.chunkserver.disks import loading
from gfs.chunkserver.files import ChunkFile, Journal, bad_blocks
from gfs.chunkserver.packs import (
    DATA_NAME,
    INDEX_NAME,
    Made,
    PackedFile,
    Packs,
    layout,
    open_packed,
    reading,
)
from gfs.chunkserver.packs.layout import RECORD_BYTES, Record
from gfs.chunkserver.packs.reading import IndexReader
from gfs.chunkserver.packs.slots import Slots
from gfs.chunkserver.replicas import ChunkStore, Replica
from gfs.chunkserver.replicas.make_many import make_all, move_out
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFailed, InvariantViolated, StaleVersion
from gfs.io import FileSystem, real_world
from gfs.testing import Process, Universe, run_simulated
from gfs.testing.files import SimFile
from tests.unit.stores import load, new_disk

DIRECTORY = "/disk"
INDEX, DATA = f"{DIRECTORY}/{INDEX_NAME}", f"{DIRECTORY}/{DATA_NAME}"


def made(handle: int, data: bytes, version: int = 1) -> Made:
    return Made(handle, version, memoryview(data), block_sum(data))


def contents(handle: int, size: int, salt: int = 0) -> bytes:
    return random.Random(f"{handle}/{salt}").randbytes(size)


class Host:
    """A machine with packed replicas on its disk, which can be started again."""

    process: Process | None = None

    def __init__(self, capacity: int = 64 << 20) -> None:
        self.machine = Universe(3).machine("m")
        self.disk = self.machine.disk
        self.disk.mount(DIRECTORY, capacity)
        self.begin()

    def begin(self) -> Packs:
        """What a start finds, after the end of the process before."""
        self.packs = Packs(self.start_process().world.files, DIRECTORY)
        self.packs.open()
        return self.packs

    def start_process(self) -> Process:
        self.end()
        self.process = self.machine.start_process()
        return self.process

    def end(self, power_cut: bool = False) -> None:
        if self.process is not None:
            self.process.kill()
        if power_cut:
            self.disk.power_cut()

    def put(self, handles: Iterable[int], size: int, salt: int = 0, sync: bool = True) -> None:
        assert self.packs.put([made(n, contents(n, size, salt)) for n in handles], sync) == {}

    def has(self, handles: Iterable[int], size: int, salt: int = 0) -> bool:
        return all(read(self.packs, n) == contents(n, size, salt) for n in handles)

    def handles(self) -> list[int]:
        return sorted(record.handle for record in self.packs.all())

    def open(self, handle: int) -> PackedFile:
        return opened(self.packs, handle)

    def record(self, handle: int) -> Record:
        record = self.packs.get(handle)
        assert record is not None
        return record

    def fill(self) -> None:
        volume = self.disk.volume(DIRECTORY)
        volume.capacity_bytes = volume.used_bytes

    @property
    def index(self) -> bytearray:
        """Of which a record is the 64 bytes from 4096 on."""
        return self.disk.inode(INDEX).data


def opened(packs: Packs, handle: int) -> PackedFile:
    file = open_packed(packs, handle, Journal(packs.files, packs.directory, False, 0))
    assert file is not None
    return file


def read(packs: Packs, handle: int) -> bytes:
    file = opened(packs, handle)
    return file.read_verified(0, file.length)


def refuse(code: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


@given(
    st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1), st.integers(0, 2**30),
    st.integers(1, BLOCK_BYTES), st.integers(0, RECORD_BYTES * 8 - 1),
)  # fmt: skip
def test_a_record_is_read_as_it_was_written_and_no_flipped_bit_is_taken_for_another(
    handle: int, version: int, slot: int, length: int, bit: int
) -> None:
    record = Record(handle, version, slot * layout.slot_bytes(length), length, b"12345678")
    content = bytearray(layout.encode_record(record))
    assert len(content) == RECORD_BYTES
    assert layout.decode_record(content) == record
    content[bit // 8] ^= 1 << bit % 8
    assert layout.decode_record(content) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "give", "release"]), st.integers(1, BLOCK_BYTES)
        ),
        max_size=300,
    )
)
def test_no_two_replicas_share_a_slot_and_only_free_pages_are_given_back(
    steps: list[tuple[str, int]],
) -> None:
    slots, taken = Slots(), dict[int, int]()
    punched: list[range] = []
    for what, number in steps:
        if what == "release":
            slots.release()
            punched = []
        elif what == "take" or not taken:
            offset, size = slots.take(number), layout.slot_bytes(number)
            assert not offset % size
            for other, length in taken.items():
                apart = offset + size <= other or other + layout.slot_bytes(length) <= offset
                assert apart
            assert not any(offset in each or each.start in range(offset, size) for each in punched)
            taken[offset] = number
        else:
            offset = sorted(taken)[number % len(taken)]
            del taken[offset]
            for start, count in slots.give([offset]):
                punched.append(range(start, start + count))
                for other, length in taken.items():
                    assert other + layout.slot_bytes(length) <= start or start + count <= other
        check_bytes(slots, taken)
    again = Slots()
    for offset, length in taken.items():
        assert again.claim(offset, length)
        assert not again.claim(offset, length)
    check_bytes(again, taken)
    again.claimed()
    for _ in range(50):
        offset = again.take(700)
        assert all(not o <= offset < o + layout.slot_bytes(n) for o, n in taken.items())


def check_bytes(slots: Slots, taken: dict[int, int]) -> None:
    assert slots.used_bytes == sum(map(layout.slot_bytes, taken.values()))
    pages: set[int] = set()
    for offset, length in taken.items():
        last = offset + layout.slot_bytes(length) - 1
        pages.update(range(offset // PAGE_BYTES, last // PAGE_BYTES + 1))
    assert slots.allocated_bytes == len(pages) * PAGE_BYTES


class Model:
    """What must, and what may, be there."""

    def __init__(self) -> None:
        #: The states that a start may find; None: no replica.
        self.may: dict[int, list[tuple[int, bytes] | None]] = {}

    def now(self, handle: int) -> tuple[int, bytes] | None:
        return self.may.get(handle, [None])[-1]

    def put(self, handle: int, state: tuple[int, bytes] | None, is_safe: bool) -> None:
        self.may[handle] = [*([] if is_safe else self.may.get(handle, [None])), state]


@pytest.mark.parametrize("seed", range(150))
def test_what_was_synced_is_there_after_a_power_cut_and_nothing_comes_back(seed: int) -> None:
    chance = random.Random(seed)
    host, model = Host(), Model()
    packs = host.packs
    for step in range(120):
        handle = chance.randrange(1, 30)
        fate = chance.random()
        if fate < 0.5:
            batch, sync = [], chance.random() < 0.6
            for other in {handle, *(chance.randrange(1, 30) for _ in range(3))}:
                now = model.now(other)
                size = chance.choice([1, 100, 512, 700, 1024, 3000, 5000, 40_000, BLOCK_BYTES])
                if now is None:
                    data = contents(other, size, step)
                    batch.append(made(other, data, step + 1))
            assert packs.put(batch, sync) == {}
            for one in batch:
                model.put(one.handle, (one.version, bytes(one.data)), sync)
        elif fate < 0.8:
            gone = [h for h in {handle, chance.randrange(1, 30)} if model.now(h) is not None]
            packs.remove(gone)
            for other in gone:
                model.put(other, None, True)
        elif fate < 0.95:
            host.disk.write_back(chance, 0.5)
        else:
            packs.confirm()
            assert not packs.to_confirm
            for states in model.may.values():
                del states[:-1]
        if chance.random() < 0.05:
            host.end()
            if chance.random() < 0.8:
                host.disk.power_cut(chance)
            else:
                for states in model.may.values():
                    del states[:-1]
            packs = host.begin()
            for other, states in model.may.items():
                record = packs.get(other)
                found = None if record is None else (record.version, read(packs, other))
                assert found in states, f"chunk {other:x}"
                model.put(other, found, False)
                model.may[other] = [found] if found is None else [None, found]
    for other in model.may:
        state = model.now(other)
        assert (other in packs) == (state is not None)
        assert state is None or read(packs, other) == state[1]


def test_a_slot_is_used_again_only_when_no_record_on_the_disk_has_it() -> None:
    host = Host()
    host.put([1], 1024)
    offset = host.record(1).offset
    host.packs.remove([1])
    host.put([2], 1024, sync=False)
    assert host.record(2).offset == offset
    host.end(power_cut=True)
    assert 1 not in host.begin()


def test_a_read_that_meets_the_deletion_gives_no_other_replicas_bytes() -> None:
    host = Host()
    host.put([1], 1024, sync=False)
    file = host.open(1)
    host.packs.remove([1])
    host.put([2], 1024, sync=False)
    with pytest.raises(StaleVersion):
        file.read_verified(0, 1024)
    assert file.read_verified_cached(0, 1024) is None
    with pytest.raises(InvariantViolated, match="packed"):
        file.set_version(2)


@pytest.mark.parametrize("size", [513, 600, 1024])
def test_a_slot_with_a_bad_sector_takes_another_replica(size: int) -> None:
    """All of it is written, so nothing of what was there is read."""
    host = Host()
    host.put([1, 2], 600)
    for inside in (0, 512):
        host.disk.spoil(DATA, host.record(1).offset + inside)
    host.packs.remove([1])
    host.put([3], size)
    assert host.has([3], size)


def test_a_replacement_that_was_cut_short_leaves_one_that_is_whole() -> None:
    host = Host()
    host.packs.put([made(1, b"old" * 100)], sync=True)
    host.disk.flip_bit(DATA, 8)
    before = host.disk.read(INDEX)
    host.packs.put([made(1, b"new" * 100)], sync=True)
    # As if it had died before the old record was cleared.
    host.index[4096 : 4096 + 64] = before[4096 : 4096 + 64]
    assert read(host.begin(), 1) == b"new" * 100
    host.put(range(2, 200), 300, sync=False)
    assert read(host.packs, 1) == b"new" * 100


@pytest.mark.parametrize("kept", [INDEX_NAME, DATA_NAME, ""])
def test_a_start_drops_records_whose_bytes_did_not_reach_the_disk_and_only_these(
    kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host()
    host.put(range(50), 700)
    host.put(range(50, 90), 700, sync=False)
    if kept:
        host.disk.inode(f"{DIRECTORY}/{kept}").sync()
    host.end(power_cut=True)
    host.begin()
    assert host.handles() == list(range(50))
    dropped = [r for r in caplog.records if r.__dict__.get("gfs_event") == "records_dropped"]
    assert len(dropped) == (kept == INDEX_NAME)
    assert all("40 small replicas" in record.getMessage() for record in dropped)
    host.put(range(50, 90), 900)
    assert host.has(range(50), 700)
    assert host.has(range(50, 90), 900)


def test_a_start_verifies_what_was_written_since_the_last_confirmation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, verified, is_lost = Host(), list[int](), IndexReader._is_lost

    def noted(reader: IndexReader, record: Record) -> bool:
        verified.append(record.handle)
        return is_lost(reader, record)

    monkeypatch.setattr(IndexReader, "_is_lost", noted)
    for first in range(0, 1200, 100):
        host.put(range(first, first + 100), 10)
    host.begin()
    assert len(verified) <= 200  # the head was written on the way
    host.begin()
    host.put(range(1200, 1250), 10, sync=False)
    host.packs.confirm()
    verified.clear()
    assert len(host.begin()) == 1250
    assert not verified
    # One that cannot be read stays: somebody gets an error when it is.
    host.begin()
    host.put([5000], 9000)
    host.disk.spoil(DATA, host.record(5000).offset)
    assert 5000 in host.begin()


def test_waiting_batches_share_a_sync_of_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    host.put([1], 1)
    synced: list[int] = []
    monkeypatch.setattr(host.packs.files, "sync_all", lambda files: synced.append(len(files)))
    host.put([2], 1, sync=False)
    host.put([3], 1, sync=False)
    host.packs.sync()
    host.packs.sync()
    assert synced == [2]


def test_nobody_waits_for_a_hole_that_is_being_punched(
    tmp_path: Path, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = Packs(files, str(tmp_path))
    packs.open()
    packs.put([made(n, contents(n, 5000)) for n in range(1, 5)], sync=True)
    places = {record.handle: record.offset for record in packs.all()}

    def punch(offset: int, count: int) -> None:
        other = threading.Thread(target=packs.put, args=([made(9, contents(9, 5000))], True))
        other.start()
        other.join(HANG_SECONDS)
        assert not other.is_alive()

    monkeypatch.setattr(packs._data.file, "punch", punch)
    packs.remove([2])
    places |= {record.handle: record.offset for record in packs.all()}
    assert places[9] // layout.FRAME_BYTES != places[2] // layout.FRAME_BYTES
    packs.put([made(n, contents(n, 5000)) for n in range(10, 20)], sync=False)
    assert places[2] in {record.offset for record in packs.all()}
    packs.close()


def test_a_damaged_record_is_a_replica_that_is_gone_and_its_neighbours_stay() -> None:
    host = Host()
    host.put(range(1, 11), 700)
    host.disk.flip_bit(INDEX, 8 * (4096 + 2 * 64 + 11))
    bad = [n for n in range(1, 11) if bad_blocks(host.open(n))]
    assert bad == [3], "the scrub sees it before a start does"
    host.begin()
    assert host.handles() == [1, 2, *range(4, 11)]
    assert host.has(range(4, 11), 700)
    host.put([3], 700)
    assert host.has([3], 700)


def test_a_page_of_records_that_cannot_be_read_takes_only_those() -> None:
    host = Host()
    host.put(range(100), 600)
    host.disk.spoil(INDEX, 4096 + 70)
    for _ in range(2):
        host.begin()
        assert host.handles() == list(range(64, 100))


def test_a_page_of_records_that_cannot_be_read_is_written_again_while_memory_has_it() -> None:
    host = Host()
    host.put(range(100), 600)
    host.disk.spoil(INDEX, 4096 + 70)
    assert bad_blocks(host.open(2)) == []
    assert len(host.begin()) == 100


def test_a_record_is_not_lost_with_a_page_that_could_not_be_read_when_it_was_written() -> None:
    host = Host()
    host.put(range(10), 600)
    host.disk.spoil(INDEX, 4096 + 70)
    host.put([10], 600)
    host.packs.remove([3])
    host.begin()
    assert host.handles() == [0, 1, 2, *range(4, 11)]


def test_bytes_that_changed_on_the_disk_are_never_taken_for_good() -> None:
    host = Host()
    host.put([1, 2], 5000)
    host.disk.flip_bit(DATA, 8 * (host.record(1).offset + 4999))
    with pytest.raises(CorruptReplica):
        read(host.packs, 1)
    assert host.has([2], 5000)


@pytest.mark.parametrize("name", [INDEX_NAME, DATA_NAME])
def test_a_missing_file_fails_the_disk_and_nothing_is_made_in_its_place(name: str) -> None:
    host = Host()
    host.put([1], 5000)
    host.disk.delete(f"{DIRECTORY}/{name}")
    with pytest.raises(OSError, match=f"{name} is gone") as caught:
        host.packs.cut_short([1])
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError, match="put it back"):
        host.begin()
    assert not host.disk.exists(f"{DIRECTORY}/{name}")


def test_a_newer_format_is_refused_and_a_damaged_head_is_written_again() -> None:
    host = Host()
    host.put([1], 4)
    host.end()
    host.disk.flip_bit(INDEX, 100)
    host.disk.fail(INDEX, what=["write"])
    with pytest.raises(OSError, match="error"):
        host.begin()
    host.disk.fail(INDEX, 0)
    assert 1 in host.begin()
    assert layout.decode_head(host.disk.read(INDEX)).disk_id == ""
    fields = b"GFSPACKS" + (2).to_bytes(4, "big") + (64).to_bytes(4, "big") + bytes(16)
    host.index[:40] = fields + block_sum(fields)
    with pytest.raises(OSError, match="newer"):
        host.begin()


@pytest.mark.parametrize(
    ("found", "former", "is_read"),
    [("me", "", True), ("", "me", True), ("other", "", False), ("other", "copied", False)],
)
def test_an_index_is_read_only_on_its_own_disk_or_a_copy_of_that(
    found: str, former: str, is_read: bool
) -> None:
    files = Host().start_process().world.files
    packs = Packs(files, DIRECTORY, "me")
    packs.open()
    packs.put([made(1, b"data")], sync=True)
    for _ in range(2):
        packs = Packs(files, DIRECTORY, found, former)
        if is_read:
            packs.open()
            assert 1 in packs
            former = ""  # its own id is in it now
        else:
            with pytest.raises(OSError, match="that of disk me, not other"):
                packs.open()


@pytest.mark.parametrize(
    ("size", "spoiled", "message"),
    [(0, 0, "is empty"), (4095, 0, "is empty"), (None, 65, "is damaged"), (None, 64, "")],
)
def test_an_index_that_has_lost_much_fails_the_disk_and_is_left_as_it_is(
    size: int | None, spoiled: int, message: str
) -> None:
    host = Host()
    host.put(range(100), 700)
    host.end()
    for n in range(spoiled):
        host.disk.flip_bit(INDEX, 8 * (4096 + n * RECORD_BYTES + 20))
    if size is not None:
        host.disk.truncate(INDEX, size)
    before = host.disk.read(INDEX), host.disk.read(DATA)
    if not message:
        assert len(host.begin()) == 100 - spoiled
        return
    with pytest.raises(OSError, match=message):
        host.begin()
    assert (host.disk.read(INDEX), host.disk.read(DATA)) == before


def test_an_index_of_zeros_beside_bytes_fails_the_disk() -> None:
    host = Host()
    host.put([1], 700)
    host.end()
    host.index[:] = bytes(len(host.index))
    with pytest.raises(OSError, match="is damaged"):
        host.begin()


@pytest.mark.parametrize("harm", ["an unreadable head", "a damaged head"])
def test_an_index_whose_replicas_were_deleted_outlives_its_head(harm: str) -> None:
    host = Host()
    host.put([1], 700)
    host.packs.remove([1])
    host.packs.sync()
    host.end()
    if harm == "an unreadable head":
        host.disk.spoil(INDEX, 464)
    else:
        host.disk.flip_bit(INDEX, 100)
    assert len(host.begin()) == 0
    host.put([2], 700)
    assert 2 in host.begin()


@pytest.mark.parametrize(
    ("what", "left"), [("no index yet", 0), ("an unreadable page", 36), ("a damaged head", 100)]
)
def test_a_full_disk_starts(what: str, left: int) -> None:
    host = Host(1 << 20)
    if what != "no index yet":
        host.put(range(100), 600)
        host.end()
    if what == "an unreadable page":
        host.disk.spoil(INDEX, 4096 + 70)
    if what == "a damaged head":
        host.disk.flip_bit(INDEX, 100)
    host.fill()
    if what == "no index yet":
        with pytest.raises(OSError, match="space"):
            host.put([1], 100)
        assert not host.disk.exists(INDEX)
    assert len(host.begin()) == left


def test_of_two_records_with_one_slot_that_holds_whose_bytes_are_there() -> None:
    """A clearing that the disk has lost: its sync failed, and that was reported to a process
    that died."""
    host = Host()
    host.put([1], 1000)
    old = bytes(host.index[4096:4160])
    host.put([9], 1000)
    host.packs.remove([1])
    host.packs._free.insert(0, host.packs._free.pop())
    host.put([2], 1000)
    assert host.record(2).offset == Record(*layout.decode_record(old) or ()).offset
    host.index[4096:4160] = old
    for _ in range(2):
        host.begin()
        assert host.handles() == [2, 9]
        assert host.has([2], 1000)


def test_a_record_that_points_into_a_neighbours_slot_takes_nothing_with_it() -> None:
    host = Host()
    host.put([1, 2], 1000)
    record = host.record(2)
    host.end()
    wrong = layout.encode_record(Record(1, 9, record.offset, 1000, record.sum))
    host.index[4096 + 128 : 4096 + 192] = wrong
    host.begin()
    host.put([5, 6], 1000)
    host.packs.remove([1])
    host.begin()
    assert host.handles() == [2, 5, 6]
    assert host.has([2, 5, 6], 1000)


def test_a_record_that_was_replaced_is_not_called_damaged(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    host.packs.put([made(1, b"old" * 100, 1)], sync=True)
    old = bytes(host.index[4096:4160])
    host.packs.put([made(1, b"new" * 100, 2)], sync=True)
    host.index[4096 + 128 : 4096 + 192] = old
    assert read(host.begin(), 1) == b"new" * 100
    assert "damaged" not in caplog.text


def test_a_start_with_many_packed_replicas_does_not_look_like_a_disk_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    server.put(range(300), 600)
    counts = dict.fromkeys((loading, reading), 0)
    for module in counts:

        def count(module: ModuleType = module) -> None:
            counts[module] += 1

        monkeypatch.setattr(module, "report_progress", count)
    server.begin()
    assert min(counts.values()) >= 300


def test_a_start_gives_back_what_is_behind_the_last_replica() -> None:
    host = Host()
    host.put(range(1, 101), 5000)
    host.packs._punch = lambda ranges: None  # type: ignore[method-assign]  # it died before
    host.packs.remove(range(2, 101))
    host.begin()
    assert host.disk.inode(DATA).stored_bytes <= 8192
    assert host.has([1], 5000)


def test_a_full_disk_refuses_new_replicas_and_deleting_makes_room() -> None:
    host = Host(400 * KIB)
    handle, failed = 0, dict[int, OSError]()
    while not failed:
        handle += 1
        failed = host.packs.put([made(handle, contents(handle, 10_000))], sync=True)
    assert failed[handle].errno == errno.ENOSPC
    assert handle not in host.packs
    assert host.has(range(1, handle), 10_000)
    host.packs.remove(range(1, 10))
    host.put(range(100, 109), 10_000, 1)
    assert host.has(range(100, 109), 10_000, 1)


def test_of_a_deletion_that_is_refused_in_the_middle_all_records_stay() -> None:
    host = Host()
    host.put(range(200), 512)
    packs, calls = host.packs, list[int]()
    write = packs._index.file.write

    def refuse_second(data: Buffer, offset: int) -> None:
        calls.append(offset)
        if len(calls) == 2:
            refuse(errno.ENOSPC)()
        write(data, offset)

    packs._index.file.write = refuse_second  # type: ignore[method-assign]
    with pytest.raises(OSError, match="space"):
        packs.remove([0, 150])
    assert all(packs.has_on_disk(record) for record in packs.all())
    assert len(host.begin()) == 200


def test_a_full_disk_refuses_records_before_bytes_are_written() -> None:
    host = Host(1 << 20)
    host.put(range(250), 512)
    host.fill()
    with pytest.raises(OSError, match="space"):
        host.put(range(300, 320), 512)
    host.packs.remove(range(100))
    host.put(range(300, 320), 512)


@pytest.mark.parametrize("name", [INDEX_NAME, DATA_NAME])
def test_nothing_is_accepted_after_a_failed_sync(name: str) -> None:
    host = Host()
    host.put([1], 5000)
    host.disk.fail(f"{DIRECTORY}/{name}", what=["sync"])
    with pytest.raises(OSError, match="error"):
        host.put([2], 5000)
    host.disk.fail(f"{DIRECTORY}/{name}", 0)
    assert host.packs.failed
    assert 2 not in host.packs
    with pytest.raises(DiskFailed):
        host.put([3], 5000, sync=False)
    if name == INDEX_NAME:
        with pytest.raises(DiskFailed):
            host.packs.remove([1])
    assert host.has([1], 5000)


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture
def files() -> FileSystem:
    return real_world().files


@pytest.mark.parametrize("base", ["/dev/shm", "tmp_path"])
def test_deleted_replicas_give_their_blocks_back(
    base: str, tmp_path: Path, files: FileSystem
) -> None:
    directory = tmp_path if base == "tmp_path" else Path(base) / f"gfs-packs-{os.getpid()}"
    directory.mkdir(exist_ok=True)
    data = directory / DATA_NAME
    packs = Packs(files, str(directory))
    packs.open()
    try:
        handles = range(1, 2001)
        packs.put([made(n, contents(n, 1000)) for n in handles], sync=True)
        full = blocks(data)
        assert 2000 * KIB <= full <= 2100 * KIB
        packs.remove(n for n in handles if n % 4)  # one of each page stays
        assert blocks(data) == full
        packs.remove(n for n in handles if n > 1000)
        assert blocks(data) <= full // 2 + 64 * KIB
        packs.put([made(5000, contents(5000, 40_000))], sync=True)
        packs.remove([5000])
        packs.remove(handles)
        assert blocks(data) == 0
        assert data.stat().st_size == 2000 * KIB, "the file keeps its size, without a block"
    finally:
        packs.close()
        if directory != tmp_path:
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()


def test_a_kilobyte_takes_a_slot_and_a_record(tmp_path: Path, files: FileSystem) -> None:
    packs = Packs(files, str(tmp_path))
    packs.open()
    for at in range(0, 4096, 64):
        packs.put([made(n, contents(n, KIB)) for n in range(at, at + 64)], sync=True)
    taken = blocks(tmp_path / DATA_NAME) + blocks(tmp_path / INDEX_NAME)
    assert taken <= 4096 * (KIB + RECORD_BYTES) + 16 * PAGE_BYTES
    packs.close()
    again = Packs(files, str(tmp_path))
    again.open()
    assert len(again) == 4096
    again.put([made(n, contents(n, KIB)) for n in range(5000, 5600)], sync=False)
    size = (tmp_path / INDEX_NAME).stat().st_size
    assert size < layout.HEAD_BYTES + 4696 * RECORD_BYTES + 32 * KIB
    assert read(again, 4095) == contents(4095, KIB)
    again.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, BLOCK_BYTES), min_size=1, max_size=40))
def test_a_batch_of_any_sizes_is_read_as_it_was_written(sizes: list[int]) -> None:
    packs = Host().packs
    packs.put([made(n, contents(n, size)) for n, size in enumerate(sizes)], sync=False)
    packs.remove(range(0, len(sizes), 2))
    packs.put([made(n, contents(n, sizes[n], 1)) for n in range(0, len(sizes), 2)], sync=False)
    for n, size in enumerate(sizes):
        assert read(packs, n) == contents(n, size, int(not n % 2))


class Server(Host):
    """One with chunk files as well."""

    def __init__(self, durability: str = "replicated") -> None:
        self.settings = ChunkserverSettings(
            durability=durability, packed_bytes_max=BLOCK_BYTES, reserve_bytes=0
        )
        super().__init__()

    def begin(self) -> Packs:
        self.store = ChunkStore(self.start_process().world, self.settings)
        self.used = new_disk(self.store, DIRECTORY)
        load(self.store, self.used)
        self.packs = self.used.packs
        return self.packs

    def both(self, packed: bytes, version: int, in_file: bytes) -> None:
        """A replica of version 3, and a chunk file: as a move-out makes it, or a grant since."""
        self.packs.put([made(7, packed, 3)], sync=True)
        assert make_all(self.used, [made(7, in_file, version)], ".clone.x") == {}

    def doubt(self, version: int) -> None:
        self.used.intents.put_unknown(7, version)
        self.used.intents.flush()

    def chunk_files(self) -> list[str]:
        return [p for p in self.disk.paths(DIRECTORY) if p.endswith(".chunk")]


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_of_a_move_out_that_was_cut_short_the_record_stays(durability: str) -> None:
    server = Server(durability)
    server.both(b"packed", 3, b"packed")
    server.begin()
    assert server.store.inventory[7] == Replica(server.used.index, 3, 6)
    assert not server.chunk_files()
    assert read(server.packs, 7) == b"packed"


@pytest.mark.parametrize(
    ("version", "in_file", "is_damaged"),
    [(3, b"packed", True), (4, b"changed since", False)],
    ids=["the record is damaged", "a record that came back is older"],
)
def test_of_a_replica_that_is_packed_as_well_the_file_stays_if_it_alone_is_good(
    version: int, in_file: bytes, is_damaged: bool
) -> None:
    server = Server()
    server.both(b"packed", version, in_file)
    if is_damaged:
        server.disk.flip_bit(DATA, 20)
    server.begin()
    assert server.store.inventory[7] == Replica(server.used.index, version, len(in_file))
    assert 7 not in server.packs
    assert len(server.chunk_files()) == 1


def test_a_deletion_takes_no_records_to_the_disk_ahead_of_their_bytes() -> None:
    host = Host()
    host.put([999], 7)
    host.put(range(60), 1000, sync=False)
    host.packs.remove([999])
    host.end(power_cut=True)
    packs = host.begin()
    assert all(packs.is_whole(record) for record in packs.all())


def test_a_damaged_chunk_file_does_not_hide_a_good_packed_replica() -> None:
    server = Server()
    server.both(b"packed", 3, b"packed")
    server.disk.flip_bit(server.chunk_files()[0], 40)
    server.begin()
    assert 7 not in server.store.inventory.bad
    assert read(server.packs, 7) == b"packed"


def test_a_note_of_a_power_cut_about_a_former_file_does_not_concern_a_packed_replica() -> None:
    server = Server()
    server.packs.put([made(7, b"packed", 3)], sync=True)
    server.doubt(9)
    server.begin()
    assert server.store.inventory[7].version == 3
    assert not server.store.inventory.possibly_stale
    assert server.used.intents.get(7) is None


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_a_possibly_stale_file_that_a_packed_copy_replaced_does_not_come_back(
    durability: str,
) -> None:
    server = Server(durability)
    assert make_all(server.used, [made(7, b"possibly stale", 5)], ".clone.x") == {}
    server.doubt(5)
    server.begin()
    assert 7 in server.store.inventory.possibly_stale

    async def replace_and_delete() -> None:
        await server.store.install(server.used, made(7, b"good", 5))
        assert 7 not in server.store.inventory.possibly_stale
        await server.store.delete(7, 5)
        await server.used.run(server.used.intents.flush)

    run_simulated(1, replace_and_delete)
    server.end(power_cut=True)
    server.begin()
    assert 7 not in server.store.inventory


def packed_on(server: Server) -> PackedFile:
    server.packs.put([made(7, contents(7, 900), 3)], sync=True)
    packed = open_packed(server.packs, 7, server.used.journal)
    assert packed is not None
    return packed


def test_a_moved_out_replica_is_a_chunk_file_and_its_record_is_gone_from_the_disk() -> None:
    server = Server()
    packed = packed_on(server)
    file = move_out(server.used, packed, ".clone.x")
    assert (file.version, file.length) == (3, 900)
    assert file.read_verified(0, 900) == contents(7, 900)
    assert not any(server.disk.inode(INDEX).on_platter()[4096:])
    assert server.disk.is_synced(server.chunk_files()[0])
    with pytest.raises(StaleVersion):
        packed.read_verified(0, 900)


@pytest.mark.parametrize(("fault", "message"), [("full", "space"), ("descriptors", "files")])
def test_a_move_out_that_fails_leaves_no_file_and_the_record(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion after that removes the record only."""
    server = Server()
    packed = packed_on(server)
    if fault == "full":
        server.fill()
    else:
        monkeypatch.setattr(ChunkFile, "open", refuse(errno.EMFILE))
    with pytest.raises(OSError, match=message):
        move_out(server.used, packed, ".clone.x")
    assert not server.chunk_files()
    assert packed.read_verified(0, 900) == contents(7, 900)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_to_punch_holes_loses_nothing(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setattr(SimFile, "punch", refuse(code))
    server.put([8, 9], 5000)
    move_out(server.used, packed_on(server), ".clone.x")
    server.packs.remove([8])
    server.begin()
    assert sorted(server.store.inventory) == [7, 9]


def test_a_file_system_that_cannot_punch_holes_uses_slots_again() -> None:
    host = Host()
    host.put(range(64), 1024, sync=False)
    host.packs._data.file.punch = refuse(errno.EOPNOTSUPP)  # type: ignore[method-assign]
    size = host.packs._slots.end
    host.packs.remove(range(64))
    host.put(range(64), 1024, 1, sync=False)
    assert host.packs._slots.end == size
    assert host.has([63], 1024, 1)
