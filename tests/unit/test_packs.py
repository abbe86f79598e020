"""Packed replicas: slots, the index, what a power cut leaves, and space that comes back."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS

from gfs.blocks import BLOCK_BYTES, KIB, PAGE_BYTES, Buffer, block_sum
from gfs.chunkserver.disks import loading
from gfs.chunkserver.files import ChunkFile, Journal
from gfs.chunkserver.packs import DATA_NAME, INDEX_NAME, Made, Packs, layout, open_packed
from gfs.chunkserver.packs import packs as packs_module
from gfs.chunkserver.packs.layout import RECORD_BYTES, Record
from gfs.chunkserver.packs.slots import Slots
from gfs.chunkserver.replicas import ChunkStore, Replica
from gfs.chunkserver.replicas.make_many import make_all, move_out
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFailed, InvariantViolated, StaleVersion
from gfs.io import FileSystem, real_world
from gfs.testing import Machine, Process, Universe, run_simulated
from gfs.testing.files import SimFile
from tests.unit.stores import load, new_disk

DIRECTORY = "/disk"


def made(handle: int, data: bytes, version: int = 1) -> Made:
    return Made(handle, version, memoryview(data), block_sum(data))


def contents(handle: int, size: int, salt: int = 0) -> bytes:
    return random.Random(f"{handle}/{salt}").randbytes(size)


def machine(capacity: int = 64 << 20) -> Machine:
    found = Universe(3).machine("m")
    found.disk.mount(DIRECTORY, capacity)
    return found


RUNNING: dict[Machine, Process] = {}


def begin(host: Machine) -> Packs:
    """What a start finds, after the end of the process before."""
    end(host)
    RUNNING[host] = process = host.start_process()
    packs = Packs(process.world.files, DIRECTORY)
    packs.open()
    return packs


def end(host: Machine) -> None:
    if host in RUNNING:
        RUNNING.pop(host).kill()


def read(packs: Packs, handle: int) -> bytes:
    file = open_packed(packs, handle, Journal(packs.files, packs.directory, False, 0))
    assert file is not None
    return file.read_verified(0, file.length)


# --- the format -------------------------------------------------------------------------


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


# --- a power cut, at any moment ---------------------------------------------------------


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
    host, model = machine(), Model()
    packs = begin(host)
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
            end(host)
            if chance.random() < 0.8:
                host.disk.power_cut(chance)
            else:
                for states in model.may.values():
                    del states[:-1]
            packs = begin(host)
            for other, states in model.may.items():
                record = packs.get(other)
                found = None if record is None else (record.version, b"")
                if found is not None:
                    found = found[0], read(packs, other)
                assert found in states, f"chunk {other:x}"
                model.put(other, found, False)
                model.may[other] = [found] if found is None else [None, found]
    for other in model.may:
        state = model.now(other)
        assert (other in packs) == (state is not None)
        assert state is None or read(packs, other) == state[1]


def test_a_slot_is_used_again_only_when_no_record_on_the_disk_has_it() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 1024))], sync=True)
    offset = packs.get(1)
    assert offset is not None
    packs.remove([1])
    packs.put([made(2, contents(2, 1024))], sync=False)
    again = packs.get(2)
    assert again is not None
    assert again.offset == offset.offset
    end(host)
    host.disk.power_cut()
    assert 1 not in begin(host)


def test_a_read_that_meets_the_deletion_gives_no_other_replicas_bytes() -> None:
    packs = begin(machine())
    packs.put([made(1, contents(1, 1024))], sync=False)
    file = open_packed(packs, 1, Journal(packs.files, DIRECTORY, False, 0))
    assert file is not None
    packs.remove([1])
    packs.put([made(2, contents(2, 1024))], sync=False)
    with pytest.raises(StaleVersion):
        file.read_verified(0, 1024)
    assert file.read_verified_cached(0, 1024) is None
    with pytest.raises(InvariantViolated, match="packed"):
        file.set_version(2)


@pytest.mark.parametrize("size", [513, 600, 1024])
def test_a_slot_with_a_bad_sector_takes_another_replica(size: int) -> None:
    """All of it is written, so nothing of what was there is read."""
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 600)) for n in (1, 2)], sync=True)
    record = packs.get(1)
    assert record is not None
    for inside in (0, 512):
        host.disk.spoil(f"{DIRECTORY}/{DATA_NAME}", record.offset + inside)
    packs.remove([1])
    assert packs.put([made(3, contents(3, size))], sync=True) == {}
    assert read(packs, 3) == contents(3, size)


def test_a_replacement_that_was_cut_short_leaves_one_that_is_whole() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, b"old" * 100)], sync=True)
    host.disk.flip_bit(f"{DIRECTORY}/{DATA_NAME}", 8)
    before = host.disk.read(f"{DIRECTORY}/{INDEX_NAME}")
    packs.put([made(1, b"new" * 100)], sync=True)
    # As if it had died before the old record was cleared.
    host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").data[4096 : 4096 + 64] = before[4096 : 4096 + 64]
    end(host)
    packs = begin(host)
    assert read(packs, 1) == b"new" * 100
    assert packs.put([made(n, contents(n, 300)) for n in range(2, 200)], sync=False) == {}
    assert read(packs, 1) == b"new" * 100


def counted_sums(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many replicas a start verifies."""
    count = 0

    def is_lost(packs: Packs, record: Record) -> bool:
        nonlocal count
        count += 1
        return original(packs, record)

    original = Packs._is_lost
    monkeypatch.setattr(Packs, "_is_lost", is_lost)
    return lambda: count


@pytest.mark.parametrize("kept", [INDEX_NAME, DATA_NAME, ""])
def test_a_start_drops_records_whose_bytes_did_not_reach_the_disk_and_only_these(
    kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 700)) for n in range(50)], sync=True)
    packs.put([made(n, contents(n, 700)) for n in range(50, 90)], sync=False)
    if kept:
        host.disk.inode(f"{DIRECTORY}/{kept}").sync()
    end(host)
    host.disk.power_cut()
    packs = begin(host)
    assert sorted(record.handle for record in packs.all()) == list(range(50))
    dropped = [r for r in caplog.records if r.__dict__.get("gfs_event") == "records_dropped"]
    assert len(dropped) == (kept == INDEX_NAME)
    assert all("40 small replicas" in record.getMessage() for record in dropped)
    packs.put([made(n, contents(n, 900)) for n in range(50, 90)], sync=True)
    assert all(read(packs, n) == contents(n, 700 if n < 50 else 900) for n in range(90))


def test_a_start_verifies_what_was_written_since_the_last_confirmation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = machine()
    packs = begin(host)
    verified = counted_sums(packs, monkeypatch)
    for first in range(0, 1200, 100):
        packs.put([made(n, contents(n, 10)) for n in range(first, first + 100)], sync=True)
    begin(host)
    assert verified() <= 200  # the head was written on the way
    packs = begin(host)
    packs.put([made(n, contents(n, 10)) for n in range(1200, 1250)], sync=False)
    packs.confirm()
    before = verified()
    assert len(begin(host)) == 1250
    assert verified() == before
    # One that cannot be read stays: somebody gets an error when it is.
    packs = begin(host)
    packs.put([made(5000, contents(5000, 9000))], sync=True)
    record = packs.get(5000)
    assert record is not None
    host.disk.spoil(f"{DIRECTORY}/{DATA_NAME}", record.offset)
    assert 5000 in begin(host)


def test_waiting_batches_share_a_sync_of_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, b"1")], sync=True)
    synced: list[int] = []
    monkeypatch.setattr(packs.files, "sync_all", lambda files: synced.append(len(files)))
    packs.put([made(2, b"2")], sync=False)
    packs.put([made(3, b"3")], sync=False)
    packs.sync()
    packs.sync()
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

    assert packs._data is not None
    monkeypatch.setattr(packs._data.file, "punch", punch)
    packs.remove([2])
    places |= {record.handle: record.offset for record in packs.all()}
    assert places[9] // layout.FRAME_BYTES != places[2] // layout.FRAME_BYTES
    packs.put([made(n, contents(n, 5000)) for n in range(10, 20)], sync=False)
    assert places[2] in {record.offset for record in packs.all()}
    packs.close()


# --- damage, and disks that refuse ------------------------------------------------------


def test_a_damaged_record_is_a_replica_that_is_gone_and_its_neighbours_stay() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 700)) for n in range(1, 11)], sync=True)
    host.disk.flip_bit(f"{DIRECTORY}/{INDEX_NAME}", 8 * (4096 + 2 * 64 + 11))
    journal = Journal(packs.files, DIRECTORY, False, 0)
    bad = [n for n in range(1, 11) if open_packed(packs, n, journal).bad_blocks()]  # type: ignore[union-attr]
    assert bad == [3], "the scrub sees it before a start does"
    end(host)
    packs = begin(host)
    assert [record.handle for record in packs.all()] == [1, 2, *range(4, 11)]
    assert all(read(packs, n) == contents(n, 700) for n in range(4, 11))
    packs.put([made(3, contents(3, 700))], sync=True)
    assert read(packs, 3) == contents(3, 700)


def test_a_page_of_records_that_cannot_be_read_takes_only_those() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 600)) for n in range(100)], sync=True)
    host.disk.spoil(f"{DIRECTORY}/{INDEX_NAME}", 4096 + 70)
    end(host)
    assert [record.handle for record in begin(host).all()] == list(range(64, 100))
    end(host)
    assert len(begin(host)) == 36


def test_a_page_of_records_that_cannot_be_read_is_written_again_while_memory_has_it() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 600)) for n in range(100)], sync=True)
    host.disk.spoil(f"{DIRECTORY}/{INDEX_NAME}", 4096 + 70)
    file = open_packed(packs, 2, Journal(packs.files, DIRECTORY, False, 0))
    assert file is not None
    assert file.bad_blocks() == []
    assert len(begin(host)) == 100


def test_a_record_is_not_lost_with_a_page_that_could_not_be_read_when_it_was_written() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 600)) for n in range(10)], sync=True)
    host.disk.spoil(f"{DIRECTORY}/{INDEX_NAME}", 4096 + 70)
    packs.put([made(10, contents(10, 600))], sync=True)
    packs.remove([3])
    assert [record.handle for record in begin(host).all()] == [0, 1, 2, *range(4, 11)]


def test_bytes_that_changed_on_the_disk_are_never_taken_for_good() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 5000)), made(2, contents(2, 5000))], sync=True)
    record = packs.get(1)
    assert record is not None
    host.disk.flip_bit(f"{DIRECTORY}/{DATA_NAME}", 8 * (record.offset + 4999))
    with pytest.raises(CorruptReplica):
        read(packs, 1)
    assert read(packs, 2) == contents(2, 5000)


@pytest.mark.parametrize("name", [INDEX_NAME, DATA_NAME])
def test_a_missing_file_fails_the_disk_and_nothing_is_made_in_its_place(name: str) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 5000))], sync=True)
    host.disk.delete(f"{DIRECTORY}/{name}")
    with pytest.raises(OSError, match=f"{name} is gone") as caught:
        packs.cut_short([1])
    assert caught.value.errno == errno.ENODATA
    end(host)
    with pytest.raises(OSError, match="put it back"):
        begin(host)
    assert not host.disk.exists(f"{DIRECTORY}/{name}")


def test_a_newer_format_is_refused_and_a_damaged_head_is_written_again() -> None:
    host = machine()
    begin(host).put([made(1, b"data")], sync=True)
    path = f"{DIRECTORY}/{INDEX_NAME}"
    end(host)
    host.disk.flip_bit(path, 100)
    host.disk.fail(path, what=["write"])
    with pytest.raises(OSError, match="error"):
        begin(host)
    host.disk.fail(path, 0)
    assert 1 in begin(host)
    assert layout.decode_head(host.disk.read(path)).disk_id == ""
    fields = b"GFSPACKS" + (2).to_bytes(4, "big") + (64).to_bytes(4, "big") + bytes(16)
    host.disk.inode(path).data[:40] = fields + block_sum(fields)
    end(host)
    with pytest.raises(OSError, match="newer"):
        begin(host)


@pytest.mark.parametrize(
    ("found", "former", "is_read"),
    [("me", "", True), ("", "me", True), ("other", "", False), ("other", "copied", False)],
)
def test_an_index_is_read_only_on_its_own_disk_or_a_copy_of_that(
    found: str, former: str, is_read: bool
) -> None:
    host = machine()
    files = host.start_process().world.files
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


def spoil_records(host: Machine, count: int) -> None:
    for n in range(count):
        host.disk.flip_bit(f"{DIRECTORY}/{INDEX_NAME}", 8 * (4096 + n * RECORD_BYTES + 20))


@pytest.mark.parametrize(
    ("size", "spoiled", "message"),
    [(0, 0, "is empty"), (4095, 0, "is empty"), (None, 65, "is damaged"), (None, 64, "")],
)
def test_an_index_that_has_lost_much_fails_the_disk_and_is_left_as_it_is(
    size: int | None, spoiled: int, message: str
) -> None:
    host = machine()
    begin(host).put([made(n, contents(n, 700)) for n in range(100)], sync=True)
    end(host)
    path = f"{DIRECTORY}/{INDEX_NAME}"
    spoil_records(host, spoiled)
    if size is not None:
        host.disk.truncate(path, size)
    before = host.disk.read(path), host.disk.read(f"{DIRECTORY}/{DATA_NAME}")
    if not message:
        assert len(begin(host)) == 100 - spoiled
        return
    with pytest.raises(OSError, match=message):
        begin(host)
    assert (host.disk.read(path), host.disk.read(f"{DIRECTORY}/{DATA_NAME}")) == before


def test_an_index_of_zeros_beside_bytes_fails_the_disk() -> None:
    host = machine()
    begin(host).put([made(1, contents(1, 700))], sync=True)
    end(host)
    data = host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").data
    data[:] = bytes(len(data))
    with pytest.raises(OSError, match="is damaged"):
        begin(host)


@pytest.mark.parametrize("harm", ["an unreadable head", "a damaged head"])
def test_an_index_whose_replicas_were_deleted_outlives_its_head(harm: str) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 700))], sync=True)
    packs.remove([1])
    packs.sync()
    end(host)
    path = f"{DIRECTORY}/{INDEX_NAME}"
    if harm == "an unreadable head":
        host.disk.spoil(path, 464)
    else:
        host.disk.flip_bit(path, 100)
    packs = begin(host)
    assert len(packs) == 0
    packs.put([made(2, contents(2, 700))], sync=True)
    assert 2 in begin(host)


@pytest.mark.parametrize("what", ["no index yet", "an unreadable page", "a damaged head"])
def test_a_full_disk_starts(what: str) -> None:
    host = machine(1 << 20)
    packs = begin(host)
    path = f"{DIRECTORY}/{INDEX_NAME}"
    if what != "no index yet":
        packs.put([made(n, contents(n, 600)) for n in range(100)], sync=True)
        end(host)
    if what == "an unreadable page":
        host.disk.spoil(path, 4096 + 70)
    if what == "a damaged head":
        host.disk.flip_bit(path, 100)
    volume = host.disk.volume(DIRECTORY)
    volume.capacity_bytes = volume.used_bytes
    if what == "no index yet":
        with pytest.raises(OSError, match="space"):
            packs.put([made(1, b"x" * 100)], sync=True)
        assert not host.disk.exists(path)
    expected = {"no index yet": 0, "an unreadable page": 36, "a damaged head": 100}
    assert len(begin(host)) == expected[what]


def test_of_two_records_with_one_slot_that_holds_whose_bytes_are_there() -> None:
    """A clearing that the disk has lost: its sync failed, and that was reported to a process
    that died."""
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 1000))], sync=True)
    index = host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").data
    old = bytes(index[4096:4160])
    packs.put([made(9, contents(9, 1000))], sync=True)
    packs.remove([1])
    packs._free.insert(0, packs._free.pop())
    packs.put([made(2, contents(2, 1000))], sync=True)
    record = packs.get(2)
    assert record is not None
    assert record.offset == Record(*layout.decode_record(old) or ()).offset
    index[4096:4160] = old
    packs = begin(host)
    assert sorted(record.handle for record in packs.all()) == [2, 9]
    assert read(packs, 2) == contents(2, 1000)
    assert sorted(record.handle for record in begin(host).all()) == [2, 9]


def test_a_record_that_points_into_a_neighbours_slot_takes_nothing_with_it() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 1000)), made(2, contents(2, 1000))], sync=True)
    record = packs.get(2)
    assert record is not None
    end(host)
    wrong = layout.encode_record(Record(1, 9, record.offset, 1000, record.sum))
    host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").data[4096 + 128 : 4096 + 192] = wrong
    packs = begin(host)
    packs.put([made(n, contents(n, 1000)) for n in (5, 6)], sync=True)
    packs.remove([1])
    packs = begin(host)
    assert {r.handle: read(packs, r.handle) for r in packs.all()} == {
        n: contents(n, 1000) for n in (2, 5, 6)
    }


def test_a_record_that_was_replaced_is_not_called_damaged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, b"old" * 100, 1)], sync=True)
    index = host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").data
    old = bytes(index[4096:4160])
    packs.put([made(1, b"new" * 100, 2)], sync=True)
    index[4096 + 128 : 4096 + 192] = old
    assert read(begin(host), 1) == b"new" * 100
    assert "damaged" not in caplog.text


def test_a_start_with_many_packed_replicas_does_not_look_like_a_disk_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    server.disk.packs.put([made(n, contents(n, 600)) for n in range(300)], sync=True)
    counts = dict.fromkeys((loading, packs_module), 0)
    for module in counts:

        def count(module: ModuleType = module) -> None:
            counts[module] += 1

        monkeypatch.setattr(module, "report_progress", count)
    server.start()
    assert min(counts.values()) >= 300


def test_a_start_gives_back_what_is_behind_the_last_replica() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 5000)) for n in range(1, 101)], sync=True)
    packs._punch = lambda ranges: None  # type: ignore[method-assign]  # it died before
    packs.remove(range(2, 101))
    packs = begin(host)
    assert host.disk.inode(f"{DIRECTORY}/{DATA_NAME}").stored_bytes <= 8192
    assert read(packs, 1) == contents(1, 5000)


def test_a_full_disk_refuses_new_replicas_and_deleting_makes_room() -> None:
    host = machine(400 * KIB)
    packs = begin(host)
    handle, failed = 0, dict[int, OSError]()
    while not failed:
        handle += 1
        failed = packs.put([made(handle, contents(handle, 10_000))], sync=True)
    assert failed[handle].errno == errno.ENOSPC
    assert handle not in packs
    for other in range(1, handle):
        assert read(packs, other) == contents(other, 10_000)
    packs.remove(range(1, 10))
    fit = packs.put([made(n, contents(n, 10_000, 1)) for n in range(100, 109)], sync=True)
    assert fit == {}
    assert all(read(packs, n) == contents(n, 10_000, 1) for n in range(100, 109))


def test_of_a_deletion_that_is_refused_in_the_middle_all_records_stay() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 512)) for n in range(200)], sync=True)
    index, calls = packs._index, list[int]()
    assert index is not None
    write = index.file.write

    def refuse(data: Buffer, offset: int) -> None:
        calls.append(offset)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(data, offset)

    index.file.write = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="space"):
        packs.remove([0, 150])
    assert all(packs.has_on_disk(record) for record in packs.all())
    assert len(begin(host)) == 200


def test_a_full_disk_refuses_records_before_bytes_are_written() -> None:
    host = machine(1 << 20)
    packs = begin(host)
    packs.put([made(n, contents(n, 512)) for n in range(250)], sync=True)
    volume = host.disk.volume(DIRECTORY)
    volume.capacity_bytes = volume.used_bytes
    with pytest.raises(OSError, match="space"):
        packs.put([made(n, contents(n, 512)) for n in range(300, 320)], sync=True)
    packs.remove(range(100))
    assert packs.put([made(n, contents(n, 512)) for n in range(300, 320)], sync=True) == {}


@pytest.mark.parametrize("name", [INDEX_NAME, DATA_NAME])
def test_nothing_is_accepted_after_a_failed_sync(name: str) -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(1, contents(1, 5000))], sync=True)
    host.disk.fail(f"{DIRECTORY}/{name}", what=["sync"])
    with pytest.raises(OSError, match="error"):
        packs.put([made(2, contents(2, 5000))], sync=True)
    host.disk.fail(f"{DIRECTORY}/{name}", 0)
    assert packs.failed
    assert 2 not in packs
    with pytest.raises(DiskFailed):
        packs.put([made(3, contents(3, 5000))], sync=False)
    if name == INDEX_NAME:
        with pytest.raises(DiskFailed):
            packs.remove([1])
    assert read(packs, 1) == contents(1, 5000)


# --- a real disk ------------------------------------------------------------------------


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
    packs = begin(machine())
    packs.put([made(n, contents(n, size)) for n, size in enumerate(sizes)], sync=False)
    packs.remove(range(0, len(sizes), 2))
    packs.put([made(n, contents(n, sizes[n], 1)) for n in range(0, len(sizes), 2)], sync=False)
    for n, size in enumerate(sizes):
        assert read(packs, n) == contents(n, size, int(not n % 2))


# --- both a record and a chunk file -----------------------------------------------------


class Server:
    """One with a disk, which can be started again."""

    def __init__(self, durability: str = "replicated") -> None:
        self.host = machine()
        self.settings = ChunkserverSettings(
            durability=durability, packed_bytes_max=BLOCK_BYTES, reserve_bytes=0
        )
        self.start()

    def start(self) -> None:
        end(self.host)
        RUNNING[self.host] = process = self.host.start_process()
        self.store = ChunkStore(process.world, self.settings)
        self.disk = new_disk(self.store, DIRECTORY)
        load(self.store, self.disk)

    def file(self, handle: int, data: bytes, version: int) -> None:
        """A chunk file, as a move-out makes it, or a grant after that."""
        assert make_all(self.disk, [made(handle, data, version)], ".clone.x") == {}

    def chunk_files(self) -> list[str]:
        return [p for p in self.host.disk.paths(DIRECTORY) if p.endswith(".chunk")]


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_of_a_move_out_that_was_cut_short_the_record_stays(durability: str) -> None:
    server = Server(durability)
    server.disk.packs.put([made(7, b"packed", 3)], sync=True)
    server.file(7, b"packed", 3)
    server.start()
    assert server.store.inventory[7] == Replica(server.disk.index, 3, 6)
    assert not server.chunk_files()
    assert read(server.disk.packs, 7) == b"packed"


def test_of_a_move_out_that_was_cut_short_the_file_stays_if_it_alone_has_the_bytes() -> None:
    server = Server()
    server.disk.packs.put([made(7, contents(7, 900), 3)], sync=True)
    server.file(7, contents(7, 900), 3)
    server.host.disk.flip_bit(f"{DIRECTORY}/{DATA_NAME}", 100)
    server.start()
    assert server.store.inventory[7] == Replica(server.disk.index, 3, 900)
    assert 7 not in server.disk.packs
    assert len(server.chunk_files()) == 1


def test_a_deletion_takes_no_records_to_the_disk_ahead_of_their_bytes() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(999, b"deleted")], sync=True)
    packs.put([made(n, contents(n, 1000)) for n in range(60)], sync=False)
    packs.remove([999])
    end(host)
    host.disk.power_cut()
    packs = begin(host)
    assert all(packs.is_whole(record) for record in packs.all())


def test_a_newer_chunk_file_replaces_a_record_that_came_back() -> None:
    server = Server()
    server.disk.packs.put([made(7, b"packed", 3)], sync=True)
    server.file(7, b"changed since", 4)
    server.start()
    assert server.store.inventory[7] == Replica(server.disk.index, 4, 13)
    assert 7 not in server.disk.packs
    assert len(server.chunk_files()) == 1


def test_a_damaged_chunk_file_does_not_hide_a_good_packed_replica() -> None:
    server = Server()
    server.disk.packs.put([made(7, b"packed", 3)], sync=True)
    server.file(7, b"packed", 3)
    server.host.disk.flip_bit(server.chunk_files()[0], 40)
    server.start()
    assert 7 not in server.store.inventory.bad
    assert read(server.disk.packs, 7) == b"packed"


def test_a_note_of_a_power_cut_about_a_former_file_does_not_concern_a_packed_replica() -> None:
    server = Server()
    server.disk.packs.put([made(7, b"packed", 3)], sync=True)
    server.disk.intents.put_unknown(7, 9)
    server.disk.intents.flush()
    server.start()
    assert server.store.inventory[7].version == 3
    assert not server.store.inventory.possibly_stale
    assert server.disk.intents.get(7) is None


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_a_possibly_stale_file_that_a_packed_copy_replaced_does_not_come_back(
    durability: str,
) -> None:
    server = Server(durability)
    server.file(7, b"possibly stale", 5)
    server.disk.intents.put_unknown(7, 5)
    server.disk.intents.flush()
    server.start()
    assert 7 in server.store.inventory.possibly_stale

    async def replace_and_delete() -> None:
        await server.store.install(server.disk, made(7, b"good", 5))
        assert 7 not in server.store.inventory.possibly_stale
        await server.store.delete(7, 5)
        await server.disk.run(server.disk.intents.flush)

    run_simulated(1, replace_and_delete)
    end(server.host)
    server.host.disk.power_cut()
    server.start()
    assert 7 not in server.store.inventory


def test_a_moved_out_replica_is_a_chunk_file_and_its_record_is_gone_from_the_disk() -> None:
    server = Server()
    server.disk.packs.put([made(7, contents(7, 900), 3)], sync=True)
    packed = open_packed(server.disk.packs, 7, server.disk.journal)
    assert packed is not None
    file = move_out(server.disk, packed, ".clone.x")
    assert (file.version, file.length) == (3, 900)
    assert file.read_verified(0, 900) == contents(7, 900)
    assert not any(server.host.disk.inode(f"{DIRECTORY}/{INDEX_NAME}").on_platter()[4096:])
    assert server.host.disk.is_synced(server.chunk_files()[0])
    with pytest.raises(StaleVersion):
        packed.read_verified(0, 900)


def test_a_move_out_that_finds_the_disk_full_changes_nothing() -> None:
    server = Server()
    server.disk.packs.put([made(7, contents(7, 900), 3)], sync=True)
    volume = server.host.disk.volume(DIRECTORY)
    volume.capacity_bytes = volume.used_bytes
    packed = open_packed(server.disk.packs, 7, server.disk.journal)
    assert packed is not None
    with pytest.raises(OSError, match="space"):
        move_out(server.disk, packed, ".clone.x")
    assert not server.chunk_files()
    assert packed.read_verified(0, 900) == contents(7, 900)


def test_a_move_out_whose_file_cannot_be_opened_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deletion after that removes the record only."""
    server = Server()
    server.disk.packs.put([made(7, contents(7, 900), 3)], sync=True)
    packed = open_packed(server.disk.packs, 7, server.disk.journal)
    assert packed is not None

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ChunkFile, "open", refuse)
    with pytest.raises(OSError, match="files"):
        move_out(server.disk, packed, ".clone.x")
    assert not server.chunk_files()
    assert packed.read_verified(0, 900) == contents(7, 900)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_to_punch_holes_loses_nothing(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    server = Server()
    monkeypatch.setattr(SimFile, "punch", refuse)
    server.disk.packs.put([made(n, contents(n, 5000), 3) for n in (7, 8, 9)], sync=True)
    packed = open_packed(server.disk.packs, 7, server.disk.journal)
    assert packed is not None
    move_out(server.disk, packed, ".clone.x")
    server.disk.packs.remove([8])
    server.start()
    assert sorted(server.store.inventory) == [7, 9]


def test_a_file_system_that_cannot_punch_holes_uses_slots_again() -> None:
    host = machine()
    packs = begin(host)
    packs.put([made(n, contents(n, 1024)) for n in range(64)], sync=False)
    assert packs._data is not None

    def refuse(offset: int, count: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    packs._data.file.punch = refuse  # type: ignore[method-assign]
    size = packs._slots.end
    packs.remove(range(64))
    packs.put([made(n, contents(n, 1024, 1)) for n in range(64)], sync=False)
    assert packs._slots.end == size
    assert read(packs, 63) == contents(63, 1024, 1)
