"""Intents, through a death and a power cut at any disk call.

What was put and flushed is there after each start, whatever was torn: of that version
or a higher one, of that length or a smaller one, and of another boot if the power
was gone since.
"""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.disks import loading
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.intents import (
    GROWTH_BYTES,
    INCOMPLETE,
    INTENT_BYTES,
    NAME,
    Intent,
    Intents,
    boot_number,
    decode_intent,
    encode_intent,
    merged,
)
from gfs.chunkserver.files.journal import read_records
from gfs.chunkserver.replicas.store import ChunkStore
from gfs.config import ChunkserverSettings
from gfs.errors import DiskFailed
from gfs.protocol.messages import POSSIBLY_STALE_BIT
from gfs.testing import Crashed, Machine, Universe
from tests.unit.stores import load, new_disk

DIRECTORY = "/disk"
U64, U32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
HANDLES = st.integers(1, 2**64 - 1)
LASTING = st.builds(Intent, HANDLES, U32, st.integers(0, CHUNK_BYTES), U64)
LACKING_ONES = st.builds(Intent, HANDLES, st.just(0), st.just(INCOMPLETE), U64)
MARKS = LASTING | LACKING_ONES


@given(mark=MARKS)
def test_a_write_intent_record_survives_encoding(mark: Intent) -> None:
    record = encode_intent(mark)
    assert len(record) == INTENT_BYTES
    assert decode_intent(record) == mark


@given(mark=MARKS, bit=st.integers(0, 8 * INTENT_BYTES - 1))
def test_a_damaged_write_intent_record_is_invalid(mark: Intent, bit: int) -> None:
    record = bytearray(encode_intent(mark))
    record[bit // 8] ^= 1 << bit % 8
    assert decode_intent(record) is None


def test_no_write_intent_record_crosses_a_sector() -> None:
    assert 512 % INTENT_BYTES == GROWTH_BYTES % 512 == 0


@given(one=LASTING, other=MARKS)
def test_merged_write_intent_records_promise_no_more_than_either(
    one: Intent, other: Intent
) -> None:
    both = merged(one, other)
    assert both.version >= max(one.version, other.version)
    assert both.length <= min(one.length, other.length)
    assert both.boot in (0, one.boot)
    assert both.boot == 0 or one.boot == other.boot
    assert not both.is_incomplete
    assert merged(other, one)[1:] == both[1:]


@given(one=LACKING_ONES, other=LACKING_ONES)
def test_a_lacking_replica_needs_the_later_of_two_states(one: Intent, other: Intent) -> None:
    both = merged(one, other)
    assert both.is_incomplete
    assert both.boot == max(one.boot, other.boot)


class Disk:
    """The marks of one machine over its starts, and what they must say."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: Handle -> what was flushed last; and what may be there as well.
        self.safe: dict[int, Intent] = {}
        self.tried: dict[int, list[Intent]] = {}
        self.start()

    def start(self) -> None:
        self.process = self.machine.start_process()
        files = self.process.world.files
        files.make_directories(DIRECTORY)
        self.intents = Intents(files, DIRECTORY, boot_number(self.process.world.boot))
        assert self.intents.open(), "nothing was damaged"
        files.sync_directory(DIRECTORY)
        files.sync_directory("/")
        for handle, safe in self.safe.items():
            found = self.intents.get(handle)
            assert found is not None, f"the mark of {handle} is lost"
            assert found.version >= safe.version
            assert found.length <= safe.length
        for found in self.intents.all():
            boots = {mark.boot for mark in self.tried[found.handle]}
            assert found.boot in {*boots, 0}, "a mark of a boot that nobody made it in"

    def put(self, handle: int, version: int, length: int) -> None:
        self.intents.put(handle, version, length)
        known = self.intents.get(handle)
        assert known.boot == self.intents.boot
        assert known.version >= version
        assert known.length <= length
        self.tried.setdefault(handle, []).append(known)

    def remove(self, handle: int) -> None:
        self.safe.pop(handle, None)
        self.intents.remove(handle)
        assert self.intents.get(handle) is None

    def flush(self) -> None:
        self.intents.flush()
        self.safe = {mark.handle: mark for mark in self.intents.all()}
        assert all(self.intents.covers(*mark[:2]) for mark in self.safe.values()
                   if mark.boot == self.intents.boot)  # fmt: skip

    def fail(self, power: random.Random | None) -> None:
        self.process.kill()
        if power is not None:
            self.machine.disk.power_cut(power)


HANDLES = st.integers(1, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), HANDLES, st.integers(1, 5), st.integers(0, 100)),
        st.tuples(st.just("remove"), HANDLES),
        st.tuples(st.just("flush")),
        st.tuples(st.just("flush")),
        st.tuples(st.just("die in"), st.integers(1, 6)),
        st.tuples(st.just("kill"), st.booleans()),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=share(150))
@given(steps=STEPS, seed=st.integers(0, 2**32))
def test_what_was_flushed_is_there_whatever_happens(
    steps: list[tuple[object, ...]], seed: int
) -> None:
    chance = random.Random(seed)
    disk = Disk(Universe(seed).machine("server"))
    for name, *arguments in steps:
        try:
            match name:
                case "die in":
                    life = disk.process.life
                    life.light(arguments[0], life.kill)  # type: ignore[arg-type]
                case "kill":
                    disk.fail(chance if arguments[0] else None)
                    disk.start()
                case _:
                    getattr(disk, str(name))(*arguments)
        except Crashed:
            disk.fail(chance if chance.random() < 0.7 else None)
            disk.start()
    disk.process.life.light(0)
    disk.fail(chance)
    disk.start()


def test_slots_are_used_again() -> None:
    disk = Disk(Universe(1).machine("server"))
    for handle in range(1, 10_000):
        disk.put(handle, 1, 0)
        disk.flush()
        disk.remove(handle)
    assert disk.machine.disk.file_size(f"{DIRECTORY}/{NAME}") == GROWTH_BYTES


def test_a_write_intent_record_is_of_another_boot_after_a_power_cut_and_not_after_a_kill() -> None:
    disk = Disk(Universe(1).machine("server"))
    disk.put(7, 3, 100)
    assert not disk.intents.covers(7, 3)
    disk.flush()
    assert disk.intents.covers(7, 3)
    assert not disk.intents.covers(7, 4)
    disk.fail(None)
    disk.start()
    assert disk.intents.covers(7, 3)
    disk.fail(random.Random(1))
    disk.start()
    assert not disk.intents.covers(7, 3)
    mark = disk.intents.get(7)
    assert mark[:3] == (7, 3, 100)


@pytest.mark.parametrize(
    ("call", "is_written_the_next_time"),
    [("write", True), ("sync", False)],
    ids=["a full disk", "nothing is accepted after a failed sync"],
)
def test_a_flush_that_failed(call: str, is_written_the_next_time: bool) -> None:
    disk = Disk(Universe(1).machine("server"))
    disk.flush()
    disk.put(7, 3, 100)
    refused = mock.patch.object(disk.intents._file, call, side_effect=OSError(28, "refused"))
    with refused, pytest.raises(OSError, match="refused"):
        disk.intents.flush()
    assert not disk.intents.covers(7, 3)
    if is_written_the_next_time:
        disk.flush()
    else:
        with pytest.raises(DiskFailed):
            disk.intents.flush()
    assert disk.intents.covers(7, 3) == is_written_the_next_time


def open_store(machine: Machine) -> ChunkStore:
    store = ChunkStore(machine.start_process().world, ChunkserverSettings())
    load(store, new_disk(store, DIRECTORY))
    return store


def make_replica(store: ChunkStore, handle: int, version: int) -> None:
    disk = store.disks.used[0]
    path = disk.chunk_path(handle)
    file = ChunkFile.create(store.world.files, path, handle, version, disk.journal)
    file.save()
    file.close()


@pytest.mark.parametrize("damage", ["flip", "spoil"])
def test_when_a_write_intent_record_cannot_be_read_every_replica_is_possibly_stale(
    damage: str,
) -> None:
    machine = Universe(1).machine("server")
    store = open_store(machine)
    for handle in (5, 6):
        make_replica(store, handle, 1)
    store.disks.used[0].intents.put(5, 1, 0)
    store.disks.used[0].intents.flush()
    path = f"{DIRECTORY}/{NAME}"
    if damage == "flip":
        machine.disk.flip_bit(path, 9)
    else:
        machine.disk.spoil(path, 0)
    for _ in range(2):  # a second start doubts them as well
        store = open_store(machine)
        assert set(store.inventory.possibly_stale) == {5, 6}
        assert all(mark.length == CHUNK_BYTES for mark in store.inventory.possibly_stale.values())


def test_what_a_start_doubts_is_doubted_after_a_power_cut() -> None:
    machine = Universe(1).machine("server")
    store = open_store(machine)
    for handle in (5, 6):
        make_replica(store, handle, 1)

    def cut_short(*given: Any) -> Any:
        records = read_records(*given)
        records.is_whole = False
        return records

    with mock.patch.object(loading, "read_records", cut_short):
        open_store(machine)
    machine.disk.power_cut()
    assert set(open_store(machine).inventory.possibly_stale) == {5, 6}


@pytest.mark.parametrize("power", [False, True])
def test_a_replica_that_lost_a_grant_in_a_power_cut_has_its_version_nevertheless(
    power: bool,
) -> None:
    """Else, if all lost it, there would be no current replica any more."""
    machine = Universe(1).machine("server")
    store = open_store(machine)
    make_replica(store, 5, 1)
    store.disks.used[0].intents.put(5, 4, 0)
    store.disks.used[0].intents.flush()
    if power:
        machine.disk.power_cut()
    store = open_store(machine)
    assert store.inventory[5].version == (4 if power else 1)
    assert set(store.inventory.possibly_stale) == ({5} if power else set())
    length = int.from_bytes(store.inventory.pack([5])[12:16], "big")
    assert length == (POSSIBLY_STALE_BIT if power else 0)
    disk = store.disks.used[0]
    file = ChunkFile.open(store.world.files, disk.chunk_path(5), 5, disk.journal)
    assert file.version == (4 if power else 1), "its file has it too"
    file.close()
    store = open_store(machine)
    assert store.inventory[5].version == (4 if power else 1), "a second start says the same"
    assert set(store.inventory.possibly_stale) == ({5} if power else set())


def test_a_write_intent_record_without_a_replica_creates_none() -> None:
    machine = Universe(1).machine("server")
    store = open_store(machine)
    store.disks.used[0].intents.put(5, 4, 0)
    store.disks.used[0].intents.flush()
    machine.disk.power_cut()
    store = open_store(machine)
    assert not store.inventory
    assert not store.inventory.possibly_stale
