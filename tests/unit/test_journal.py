"""The redo journal, through a death and a power cut at every disk call.

A disk of the simulator takes the calls of a few operations on the replicas of a
server, up to one at which the process dies; then, perhaps, the machine's power goes,
which loses any part of what was not synced, in units of sectors. A start must find
each replica in a state that it was in, and not in one older than was acknowledged;
a start that dies on its way as well.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from clocks import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS
from share import share

from gfs.blocks import BLOCK_BYTES, packet_sums
from gfs.chunkserver.files import bad_blocks, chunkfile, layout, read_state
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import DirtyFile, Journal, Records, read_records
from gfs.chunkserver.files.layout import Redo, State
from gfs.chunkserver.replicas.inventory import Replica
from gfs.chunkserver.replicas.open_chunks import OpenChunk
from gfs.chunkserver.replicas.store import ChunkStore, _rename
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFailed
from gfs.testing import Crashed, Machine, Process, Universe
from gfs.testing.files import SimFile, SimFileSystem
from tests.unit.stores import load, new_disk

DIRECTORY = "/disk"


@dataclass
class Model:
    """All states that a replica was ever in, and from which on it may be found in them."""

    #: (version, bytes); None: there is none.
    states: list[tuple[int, bytes] | None] = field(default_factory=lambda: [None])
    safe: int = 0

    @property
    def now(self) -> tuple[int, bytes] | None:
        return self.states[-1]

    def acknowledge(self) -> None:
        self.safe = len(self.states) - 1


class Server:
    """The replicas of one disk, without the rest of a chunkserver."""

    def __init__(self, machine: Machine, sync: bool, journal_bytes: int) -> None:
        self.process: Process = machine.start_process()
        self.files = self.process.world.files
        config = ChunkserverSettings(
            durability="fsync" if sync else "replicated",
            journal_bytes=journal_bytes,
            reserve_bytes=0,
        )
        self.store = ChunkStore(self.process.world, config)
        self.disk = new_disk(self.store, DIRECTORY)
        self.open: dict[int, ChunkFile] = {}
        #: Who is still to be saved before the full file is released; None: nobody looked.
        self.to_save: list[DirtyFile] | None = None

    def load(self) -> None:
        load(self.store, self.disk)

    @property
    def journal(self) -> Journal:
        return self.disk.journal

    def chunk(self, handle: int) -> ChunkFile:
        if handle not in self.open:
            path = self.disk.chunk_path(handle)
            if self.files.exists(path):
                found = ChunkFile.open(self.files, path, handle, self.journal)
            else:
                found = ChunkFile.create(self.files, path, handle, 1, self.journal)
            self.open[handle] = found
        return self.open[handle]

    def write(self, handle: int, offset: int, data: bytes) -> None:
        self.chunk(handle).write(offset, data, packet_sums(offset, data))

    def empty_journal(self) -> None:
        """One step of it: on a slow disk writes come between any two. That somebody has
        looked does not mean that there was a full file."""
        if self.to_save is None:
            self.to_save = self.journal.unsaved()
        elif self.to_save:
            self.to_save.pop().save()
        else:
            self.journal.release()
            self.to_save = None

    def delete(self, handle: int) -> None:
        self.chunk(handle).retire()
        del self.open[handle]
        path = self.disk.chunk_path(handle)
        tombstone = 0
        if self.journal.sync:
            tombstone = self.journal.put_tombstone(handle, self.disk.folder(handle))
            self.journal.flush()
        self.files.unlink(path)
        if self.journal.sync:
            self.journal.is_unlinked(tombstone)

    def replace(self, handle: int, version: int, data: bytes) -> None:
        """As a copy from another server would be put in its place."""
        path = self.disk.chunk_path(handle)
        new = ChunkFile.create(
            self.files, path + ".clone", handle, version, self.journal, copied=True
        )
        new.write(0, data, packet_sums(0, data))
        new.save()
        new.close()
        _rename(self.disk, path + ".clone", path)
        if handle in self.open:
            self.open.pop(handle).retire()

    def found(self, handle: int, model: Model) -> tuple[int, bytes] | None:
        if handle in self.store.inventory.bad:
            assert model.states[model.safe] is None, "a replica is taken for damaged"
            # Its first state was being written, and nobody had an answer for it.
            self.files.unlink(self.disk.chunk_path(handle))
            return None
        replica = self.store.inventory.get(handle)
        if replica is None:
            return None
        chunk = ChunkFile.open(self.files, self.disk.chunk_path(handle), handle, self.journal)
        assert (chunk.version, chunk.length) == (replica.version, replica.length)
        assert bad_blocks(chunk) == []
        return chunk.version, chunk.read_verified(0, chunk.length) if chunk.length else b""


def started(machine: Machine, sync: bool = True, journal_bytes: int = 1 << 20) -> Server:
    server = Server(machine, sync, journal_bytes)
    server.load()
    return server


def fresh(sync: bool = True, journal_bytes: int = 1 << 20) -> tuple[Machine, Server]:
    machine = Universe(1).machine("m")
    return machine, started(machine, sync, journal_bytes)


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


KINDS = [
    "append", "append", "overwrite", "overwrite", "version", "cut", "pad", "commit", "commit",
    "flush", "flush", "empty", "empty", "empty", "delete", "replace", "claim", "set aside",
]  # fmt: skip
SIZES = st.one_of(
    st.integers(1, 5000),
    st.integers(BLOCK_BYTES - 2, BLOCK_BYTES + 2),
    # Past what goes through the journal.
    st.integers(chunkfile.JOURNALED_BYTES_MAX, chunkfile.JOURNALED_BYTES_MAX + 3),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from([1, 1, 258]), SIZES, st.integers(0, 1 << 20)),
    min_size=1,
    max_size=20,
)
Step = tuple[str, int, int, int]


def change(server: Server, models: dict[int, Model], number: int, step: Step, power: bool) -> None:
    """One operation. What it makes is in the model before it begins, and acknowledged
    after it ends, if that is what its end promises."""
    kind, handle, size, where = step
    model = models[handle]
    if kind == "flush":
        for chunk in server.open.values():
            chunk.commit()
        server.journal.flush()
        for each in models.values():
            each.acknowledge()
        return
    if kind in ("claim", "empty", "set aside"):
        journal = server.journal
        {"claim": journal.claim, "set aside": journal.set_aside}.get(kind, server.empty_journal)()
        return
    version, data = model.now or (1, b"")
    piece = pattern(number, size)
    if kind == "append":
        model.states.append((version, data + piece))
        server.write(handle, len(data), piece)
        return  # in force for a crash by the next commit, at the latest
    if kind == "replace":
        model.states.append((version + 1, piece))
        server.replace(handle, version + 1, piece)
        model.acknowledge()
        return
    if model.now is None or not data:
        return
    if kind == "overwrite":
        at = where % len(data)
        model.states.append((version, data[:at] + piece + data[at + size :]))
        server.write(handle, at, piece)
    elif kind == "version":
        model.states.append((version + 1, data))
        server.chunk(handle).set_version(version + 1)
    elif kind == "pad":
        model.states.append((version, data + bytes(size)))
        server.chunk(handle).pad(len(data) + size)
        return
    elif kind == "cut":
        at = where % len(data)
        model.states.append((version, data[:at]))
        server.chunk(handle).cut(at)
        model.acknowledge()
        return
    elif kind == "commit":
        server.chunk(handle).commit()
    elif kind == "delete":
        model.states.append(None)
        server.delete(handle)
    if not power:
        model.acknowledge()


@contextmanager
def torn_writes(process: Process, count: int) -> Iterator[None]:
    """Of the write at which the process dies so many bytes were done, as a kill leaves it."""
    whole = SimFile.write

    def write(file: SimFile, data: Any, offset: int) -> None:
        if process.life._fuse == 1 and file._life is process.life:
            file._inode.write(bytes(data[:count]), offset)
        whole(file, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimFile, "write", write)
        yield


def run(server: Server, models: dict[int, Model], steps: list[Step], power: bool) -> None:
    try:
        server.load()
        for number, step in enumerate(steps):
            change(server, models, number, step, power)
    except Crashed:
        return


def die(server: Server, machine: Machine, chance: random.Random | None, power: bool) -> None:
    server.process.kill()
    if power:
        machine.disk.power_cut(chance)


@settings(max_examples=share(400), deadline=None)
@given(
    steps=STEPS,
    death=st.integers(1, 90),
    second_death=st.one_of(st.just(0), st.integers(1, 25)),
    power=st.sampled_from(["torn", "lost", "stays"]),
    sync=st.booleans(),
    journal_bytes=st.sampled_from([1024, 100_000, 1 << 20]),
    seed=st.integers(0, 1 << 20),
    torn_bytes=st.integers(0, 64) | st.integers(0, 70_000),
)
def test_a_start_after_any_death_finds_what_was_acknowledged(
    steps: list[Step],
    death: int,
    second_death: int,
    power: str,
    sync: bool,
    journal_bytes: int,
    seed: int,
    torn_bytes: int,
) -> None:
    cut = power != "stays"
    sync = sync or cut  # nothing is promised of a power cut otherwise
    chance = random.Random(seed) if power == "torn" else None
    machine = Universe(seed).machine("m")
    models = {1: Model(), 258: Model()}

    server = started(machine, sync, journal_bytes)
    server.process.life.light(death)
    server.process.life._when_burnt = server.process.kill
    with torn_writes(server.process, torn_bytes):
        run(server, models, steps, cut)
    die(server, machine, chance, cut)
    if second_death:
        again = Server(machine, sync, journal_bytes)
        again.process.life.light(second_death, again.process.kill)
        run(again, models, [], cut)
        die(again, machine, chance, cut)

    last = started(machine, sync, journal_bytes)
    assert not last.store.inventory.possibly_stale, "what a power cut tore is taken for damage"
    states = {}
    for handle, model in models.items():
        states[handle] = found = last.found(handle, model)
        allowed = model.states[model.safe :]
        assert found in allowed, (
            f"chunk {handle}: {describe(found)} was found; acknowledged was "
            f"{describe(allowed[0])}, then came {[describe(s) for s in allowed[1:]]}"
        )
    # What was found can be built on, and is found again.
    for handle, model in models.items():
        model.states.append(states[handle])
        model.acknowledge()
    for number, kind in enumerate(["append", "overwrite", "version", "commit", "flush"]):
        for handle in models:
            change(last, models, 100 + number, (kind, handle, 100, 7), cut)
    die(last, machine, chance, cut)
    server = started(machine, sync, journal_bytes)
    for handle, model in models.items():
        assert server.found(handle, model) == model.now


def describe(state: tuple[int, bytes] | None) -> str:
    if state is None:
        return "none"
    version, data = state
    return f"version {version}, {len(data)} bytes, sum {layout.block_sum(data).hex()[:6]}"


#: The old bytes are too many for the journal.
OLD, NEW = b"o" * (chunkfile.JOURNALED_BYTES_MAX + 1), b"n" * 1000


def overwritten() -> tuple[Machine, Server, str]:
    """A server with a chunk whose file has the old bytes, and the journal the new ones,
    which were acknowledged; both halves are full. And the chunk's file."""
    machine, server = fresh(journal_bytes=32_768)
    server.write(7, 0, OLD)
    server.chunk(7).save()
    server.store.inventory.put(7, Replica(0, 1, len(OLD)))
    server.write(7, 0, NEW)
    server.journal.flush()
    server.chunk(7).finish()
    while not server.journal.crowded:
        server.write(8, 0, bytes(4096))
        server.chunk(8).commit()
    server.journal.flush()
    server.disk.saving.wanted.set()
    return machine, server, server.disk.chunk_path(7)


async def is_emptied(server: Server) -> bool:
    """Whether the full half was released before long."""
    with trio.move_on_after(10):
        await server.store.durability.keep_saving(server.disk)
    return not server.journal.to_save


def started_again(server: Server, machine: Machine, power: bool) -> Server:
    die(server, machine, None, power)
    return started(machine, journal_bytes=32_768)


@pytest.mark.parametrize("power", [False, True])
@simulated(1)
async def test_what_a_disk_refuses_to_save_fails_it_and_is_done_again(power: bool) -> None:
    """The file of the replica is a good one, of the current version, with bytes that were
    overwritten: only the journal's records, which stay, have what was acknowledged."""
    machine, server, path = overwritten()
    machine.disk.fail(path)
    assert not await is_emptied(server)
    assert server.disk.down == "failed"
    assert not server.store.inventory
    machine.disk.fail(path, 0)
    for _ in range(2):
        server = started_again(server, machine, power)
        assert not server.store.inventory.bad
        assert server.chunk(7).read_verified(0, len(NEW)) == NEW


@simulated(1)
async def test_what_a_full_disk_does_not_save_is_saved_when_it_has_room() -> None:
    machine, server, path = overwritten()
    machine.disk.fail(path, errno.ENOSPC)
    assert not await is_emptied(server)
    machine.disk.fail(path, 0)
    server.disk.saving.wanted.set()
    assert await is_emptied(server)
    server = started_again(server, machine, True)
    assert server.chunk(7).read_verified(0, len(NEW)) == NEW


def test_a_replica_that_a_start_cannot_save_does_not_come_back_either() -> None:
    machine, server, path = overwritten()
    machine.disk.spoil(path, 0)
    server = started_again(server, machine, True)
    machine.disk.inode(path).unreadable.clear()
    for _ in range(2):
        assert 7 not in server.store.inventory
        assert server.store.inventory.bad[7].kind == "corrupt"
        server = started_again(server, machine, True)


@simulated(1)
async def test_the_record_of_a_lacking_replica_does_not_apply_to_its_successor() -> None:
    """It was taken back, and a power cut brought it back; nothing else on the disk shows
    how far the numbers of the states had come."""
    machine, server, path = overwritten()
    machine.disk.spoil(path, 0)
    server = started_again(server, machine, True)
    machine.disk.inode(path).unreadable.clear()
    for handle, version in ((7, 0), (8, 1)):
        await server.store.delete(handle, version)
    for _ in range(2):  # the first one still finds records of the deletions
        server = started_again(server, machine, True)
    assert not server.store.inventory
    assert not server.store.inventory.bad
    new = ChunkFile.create(server.files, path + ".clone", 7, 1, server.journal, copied=True)
    new.write(0, NEW, packet_sums(0, NEW))
    await server.store.install(server.disk, new)
    server = started_again(server, machine, True)
    assert not server.store.inventory.bad
    assert server.chunk(7).read_verified(0, len(NEW)) == NEW


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("is_evicted", [True, False])
@simulated(1)
async def test_a_replica_whose_sync_failed_never_counts_again(which: int, is_evicted: bool) -> None:
    """Not by another sync, which would say that all is well, and not by a start, to which the
    file looks good for as long as the page cache has it."""
    machine, server, path = overwritten()
    chunk = server.chunk(7)
    server.store.open_chunks.keep(OpenChunk(server.disk, chunk))
    sync, synced = chunk.file.sync, 0

    def one_fails() -> None:
        nonlocal synced
        synced += 1
        if synced != which:
            return sync()
        machine.disk.fail(path, errno.ENOSPC, ["sync"])
        try:
            sync()
        finally:
            machine.disk.fail(path, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk.file, "sync", one_fails)
        server.disk.saving.wanted.set()
        assert await is_emptied(server)
    for call in (chunk.save, chunk.commit, chunk.sync, chunk.finish):
        with pytest.raises(CorruptReplica, match="a sync of it failed"):
            call()
    with pytest.raises(CorruptReplica, match="a sync of it failed"):
        chunk.write(0, b"x", packet_sums(0, b"x"))
    assert server.store.inventory.bad[7].kind == "corrupt"
    if is_evicted:
        machine.disk.inode(path).evict()
    server = started_again(server, machine, False)
    assert 7 in server.store.inventory.bad
    assert 7 not in server.store.inventory


def new_journal(sync: bool = True, size: int = 4096) -> tuple[SimFileSystem, Journal]:
    files = Universe(0).machine("m").start_process().world.files
    files.make_directories(DIRECTORY)
    made = Journal(files, DIRECTORY, sync, size)
    made.open()
    made.start()
    return files, made  # type: ignore[return-value]


class Kept:
    sequence = 0

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.saved = 0

    def save(self) -> None:
        self.saved += 1


def redo(handle: int, base: int, data: bytes) -> Redo:
    return Redo(handle, base, 0, 1, 0, len(data), b"", data)


@pytest.mark.parametrize("sync", [True, False])
def test_no_file_is_released_that_became_full_after_the_last_look(sync: bool) -> None:
    """Whoever saves what a full file has looks, finds none, and releases what is the full
    file by then, which on a slow disk is another."""
    files, made = new_journal(sync, size=2048)
    one, two = Kept(1), Kept(2)
    made.append(redo(1, 0, bytes(1500)), 0, one)
    assert not made.to_save
    assert made.unsaved() == []
    made.append(redo(2, 0, bytes(1500)), 0, two)
    assert made.to_save
    made.release()
    assert made.unsaved() == [one]
    assert len(read_records(files, DIRECTORY).take(1)) == 1
    made.saved(one)
    made.release()
    assert not made.to_save
    # Without a promise about power cuts what was saved need not go.
    assert len(read_records(files, DIRECTORY).take(1)) == (0 if sync else 1)
    assert len(read_records(files, DIRECTORY).take(2)) == 1


@given(
    st.lists(st.binary(max_size=1500), max_size=12),
    st.integers(0, 12),
    st.integers(0, 20_000),
    st.integers(0, 7),
)
@settings(deadline=None)
def test_records_are_found_up_to_the_first_that_is_damaged(
    pieces: list[bytes], claimed: int, at: int, bit: int
) -> None:
    """And if that one was synced when the file's head was written, the damage is noticed."""
    files, made = new_journal(size=1 << 20)
    written = []
    for number, piece in enumerate(pieces, 1):
        sequence = made.append(redo(7, len(written), piece), 0, Kept(7))
        written.append(redo(7, len(written), piece)._replace(sequence=sequence))
        if number == claimed:
            made.flush()
            assert made.to_claim
            made.claim()
            assert not made.to_claim
    records = read_records(files, DIRECTORY)
    assert records.is_whole
    assert records.take(7) == written
    ends = [0]
    for record in written:
        ends.append(ends[-1] + layout.redo_bytes(record))
    if at < ends[-1]:
        files._disk.flip_bit(f"{DIRECTORY}/journal.0", 8 * (layout.JOURNAL_HEAD_BYTES + at) + bit)
        whole = sum(end <= at for end in ends[1:])
        records = read_records(files, DIRECTORY)
        assert records.take(7) == written[:whole]
        assert records.is_whole == (whole >= claimed or claimed > len(pieces))


@given(st.integers(0, 8 * 32 - 1))
def test_a_damaged_head_is_noticed(bit: int) -> None:
    files, made = new_journal()
    assert read_records(files, DIRECTORY).is_whole
    made.append(redo(7, 0, b"abc"), 0, Kept(7))
    made.flush()
    made.claim()
    files._disk.flip_bit(f"{DIRECTORY}/journal.0", bit)
    records = read_records(files, DIRECTORY)
    assert not records.is_whole
    assert records.take(7) == []


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_head_of_a_file_survives_encoding(floor: int, synced: int) -> None:
    head = layout.JournalHead(floor, synced)
    assert layout.decode_journal_head(layout.encode_journal_head(head)) == head
    assert layout.decode_journal_head(b"") is None
    assert layout.decode_journal_head(bytes(100)) is None


def test_what_is_released_and_written_over_is_not_missed() -> None:
    """A file that is used again says nothing of what was in it before."""
    files, made = new_journal(size=1000)
    for handle in range(6):
        kept = Kept(handle)
        made.append(redo(handle, 0, bytes(700)), 0, kept)
        made.flush()
        made.claim()
        for each in made.unsaved():
            made.saved(each)
        made.release()
        assert not made.to_claim
        records = read_records(files, DIRECTORY)
        assert records.is_whole
        assert list(records.by_handle) == [handle]


def test_a_part_that_cannot_be_read_is_damage_and_a_disk_that_is_away_is_not() -> None:
    files, made = new_journal(size=1 << 20)
    sequence = made.append(redo(7, 0, bytes(5000)), 0, Kept(7))
    made.append(redo(7, sequence, bytes(5000)), 0, Kept(7))
    files._disk.spoil(f"{DIRECTORY}/journal.0", layout.JOURNAL_HEAD_BYTES + 9000)
    records = read_records(files, DIRECTORY)
    assert not records.is_whole
    assert [each.sequence for each in records.take(7)] == [sequence]
    for at in range(0, files._disk.file_size(f"{DIRECTORY}/journal.0"), 512):
        files._disk.spoil(f"{DIRECTORY}/journal.0", at)
    files.open(f"{DIRECTORY}/another", "create").write(b"abc", 0)
    records = read_records(files, DIRECTORY)
    assert not records.is_whole
    assert not records.by_handle
    files._disk.fail(DIRECTORY, what=["read"])
    with pytest.raises(OSError, match="Input/output"):
        read_records(files, DIRECTORY)


def test_what_is_left_alone_is_put_where_it_belongs() -> None:
    files, made = new_journal()
    kept = Kept(1)
    made.append(redo(1, 0, b"abc"), 0, kept)
    made.flush()
    assert made.to_set_aside
    made.set_aside()
    assert not made.to_set_aside
    assert made.unsaved() == [kept]
    made.append(redo(2, 0, b"abc"), 0, Kept(2))
    made.set_aside()  # the other one is still needed
    assert made.unsaved() == [kept]
    made.saved(kept)
    made.release()
    assert set(read_records(files, DIRECTORY).by_handle) == {2}


def test_a_record_drawn_while_the_full_file_is_released_counts() -> None:
    """It may be the first one in that file, if the other becomes full meanwhile."""
    files, made = new_journal(size=1000)
    made._lock, made._flushing = threading.Lock(), threading.Lock()  # these are real threads
    one = Kept(1)
    made.append(redo(1, 0, bytes(900)), 0, one)
    made.append(redo(2, 0, bytes(900)), 0, Kept(2))
    made.flush()
    made.saved(one)
    made._other.folders.add(DIRECTORY)
    looked, drawn, go_on = threading.Event(), threading.Event(), threading.Event()
    encode = layout.encode_redo

    def slow(record: Redo) -> bytes:
        if record.handle == 3:
            drawn.set()
            go_on.wait(HANG_SECONDS)
        return encode(record)

    with pytest.MonkeyPatch.context() as patch, made._flushing:
        patch.setattr(files, "sync_directory", lambda path: looked.set())
        patch.setattr(layout, "encode_redo", slow)
        releasing = threading.Thread(target=made.release)
        appending = threading.Thread(target=made.append, args=(redo(3, 0, b"x"), 0, Kept(3)))
        releasing.start()
        assert looked.wait(HANG_SECONDS)
        appending.start()
        assert drawn.wait(HANG_SECONDS)
        made._flushing.release()
        releasing.join()
        made._flushing.acquire()
        go_on.set()
        appending.join()
    made.append(redo(4, 0, b"y"), 0, Kept(4))
    made.flush()
    assert set(read_records(files, DIRECTORY).by_handle) == {2, 3, 4}


def test_a_tombstone_stays_until_the_file_is_gone() -> None:
    files, made = new_journal()
    tombstone = made.put_tombstone(1, DIRECTORY)
    made.flush()
    made.set_aside()
    made.release()
    assert set(read_records(files, DIRECTORY).deleted) == {1}
    made.is_unlinked(tombstone)
    made.release()
    assert not read_records(files, DIRECTORY).deleted


def test_a_deleted_replica_does_not_return_when_the_record_of_that_is_damaged() -> None:
    machine, server = fresh()
    for handle in (1, 2):
        server.write(handle, 0, b"old")
        server.chunk(handle).save()
    server.delete(1)
    machine.disk.flip_bit(f"{DIRECTORY}/journal.0", 8)
    for power in (False, True):
        die(server, machine, None, power)
        server = started(machine)
        assert set(server.store.inventory) == {2}


@pytest.mark.parametrize("left", ["zeros", "nothing"])
def test_a_journal_that_reads_as_zeros_is_damaged(left: str) -> None:
    machine, server = fresh()
    server.write(1, 0, b"old")
    server.chunk(1).save()
    path = f"{DIRECTORY}/journal.1"
    size = machine.disk.file_size(path)
    machine.disk.truncate(path, 0)
    if left == "zeros":
        machine.disk.truncate(path, size)
    server.process.kill()
    server = started(machine)
    assert set(server.store.inventory.possibly_stale) == {1}


@pytest.mark.parametrize("sync", [True, False])
def test_a_start_mends_whatever_cannot_be_read(sync: bool) -> None:
    """Else every later one would doubt all replicas again."""
    machine = Universe(1).machine("m")
    path = f"{DIRECTORY}/journal.0"
    at = 0
    while not at or at < machine.disk.file_size(path):
        server = started(machine, sync, 20_000)
        assert not server.store.inventory.possibly_stale
        server.write(1, 0, pattern(at, 10_000))
        server.write(1, 0, pattern(at, 6_000))
        server.chunk(1).save()
        server.process.kill()
        machine.disk.spoil(path, at)
        server = started(machine, sync, 20_000)
        assert set(server.store.inventory.possibly_stale) == {1}
        server.disk.intents.remove(1)
        server.disk.intents.flush()
        server.process.kill()
        at += 512
    assert at > 6000


@pytest.mark.parametrize("damage", ["flip", "spoil", "head"])
def test_when_a_synced_record_is_damaged_every_replica_is_possibly_stale(damage: str) -> None:
    """A process that dies before it is saved would come back without it, and pass."""
    machine, server = fresh()
    for handle in (1, 2):
        server.write(handle, 0, b"old")
        server.chunk(handle).save()
    server.write(1, 0, b"new")
    server.journal.flush()
    server.journal.claim()
    path = f"{DIRECTORY}/journal.0"
    record = layout.JOURNAL_HEAD_BYTES + layout.redo_bytes(redo(1, 0, b"old")) + 40
    if damage == "spoil":
        machine.disk.spoil(path, record)
    else:
        machine.disk.flip_bit(path, 8 * (10 if damage == "head" else record))
    server.process.kill()
    for _ in range(2):  # a second start doubts them as well
        server = started(machine)
        assert set(server.store.inventory.possibly_stale) == {1, 2}
        server.process.kill()


@given(st.binary(max_size=300), st.binary(max_size=64), st.integers(0, 400))
def test_a_record_is_whole_or_nothing(data: bytes, sums: bytes, cut: int) -> None:
    whole = Redo(7, 1, 2, 3, 17, 17 + len(data), sums, data)
    record = layout.encode_redo(whole)
    assert layout.decode_redo(record) == whole
    assert layout.decode_redo(b"xyz" + record + b"abc", 3) == whole
    assert layout.redo_bytes(whole) == len(record)
    if cut < len(record):
        assert layout.decode_redo(record[:cut]) is None


def test_a_full_file_is_used_again_once_all_in_it_is_saved() -> None:
    files, made = new_journal(size=1000)
    kept = [Kept(handle) for handle in range(4)]
    for each in kept[:2]:
        made.append(redo(each.handle, 0, bytes(700)), 0, each)
    assert made.to_save
    assert not made.crowded
    assert made.unsaved() == [kept[0]]
    made.append(redo(2, 0, bytes(700)), 0, kept[2])
    assert made.crowded, "the second file is full, and the first one is still needed"
    made.saved(kept[0])
    made.release()
    assert not made.to_save
    made.append(redo(3, 0, bytes(700)), 0, kept[3])
    assert made.unsaved() == [kept[1], kept[2]]
    assert set(read_records(files, DIRECTORY).by_handle) == {1, 2, 3}


def test_nothing_is_accepted_after_a_sync_that_failed() -> None:
    files, made = new_journal()
    made.append(redo(1, 0, b"abc"), 0, Kept(1))
    files._disk.fail(DIRECTORY)
    with pytest.raises(OSError, match="Input/output"):
        made.flush()
    files._disk.fail(DIRECTORY, 0)
    with pytest.raises(DiskFailed):
        made.append(redo(1, 2, b"abc"), 0, Kept(1))
    with pytest.raises(DiskFailed):
        made.flush()
    assert made.synced < made.written


def test_a_deleted_replica_has_no_records() -> None:
    records = Records()
    records.add(redo(1, 0, b"a")._replace(sequence=1))
    records.add(redo(1, 0, b"")._replace(sequence=2, version=0))
    records.add(redo(1, 3, b"b")._replace(sequence=4))
    assert records.deleted == {1: 2}
    assert [each.sequence for each in records.take(1)] == [4]


def test_a_record_that_follows_from_nothing_is_damage() -> None:
    files, made = new_journal()
    path = f"{DIRECTORY}/chunk"
    chunk = ChunkFile.create(files, path, 1, 1, made)
    chunk.write(0, b"abc", packet_sums(0, b"abc"))
    chunk.save()
    missing = Redo(1, 77, 99, 1, 0, 3, layout.block_sum(b"xyz"), b"xyz")
    with pytest.raises(CorruptReplica, match="lost"):
        ChunkFile.open(files, path, 1, made, [missing])
    assert read_state(files, path, 1) == State(1, 1, 3, layout.block_sum(b"abc"))
