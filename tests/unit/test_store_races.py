"""One chunk is made, copied here, raised, deleted and read, all at once, and the server is
killed: whatever the order, its store and its disks agree on what is there afterwards,
and nothing that was acknowledged is missing.

In virtual time, where each call to a disk takes its own: seed and plan decide the order.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
from clocks import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS
from share import share

from gfs.blocks import BLOCK_BYTES, MIB, block_sums, packet_sums
from gfs.chunkserver.disks import Disk
from gfs.chunkserver.exchanges.read import read_open, read_small
from gfs.chunkserver.exchanges.write import WriteExchange
from gfs.chunkserver.files import bad_blocks
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.node.pulse import STUCK_SECONDS, Answering
from gfs.chunkserver.packs import Made, PackedFile, open_packed
from gfs.chunkserver.packs.layout import RECORD_BYTES
from gfs.chunkserver.replicas import open_chunks
from gfs.chunkserver.upkeep.drain import _move
from gfs.chunkserver.upkeep.resolve_duplicates import compare_all
from gfs.chunkserver.upkeep.scanning import look_at
from gfs.chunkserver.upkeep.scrub import Scrubber
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFull, GfsError
from gfs.io import ReadFailed
from gfs.protocol.messages import (
    Failure,
    GrantLease,
    Message,
    Packet,
    ReadChunk,
    ReplicaName,
    VerifyChunk,
    Working,
    WriteChunk,
)
from gfs.protocol.patience import PULSE_SECONDS
from gfs.testing import Universe, run_simulated
from gfs.testing.inode import Hang

HANDLES = (0x51, 0x52)
KINDS = ["upload", "install", "small", "grant", "delete", "unused", "move", "look", "read"]
#: Longer than any of what is done at once.
ROUND_MICROSECONDS = 1500


class Op(NamedTuple):
    kind: str
    handle: int
    start_us: int
    #: What it does depends on this: how long a writer pauses, what version is deleted.
    knob: int


class Round(NamedTuple):
    ops: tuple[Op, ...]
    #: "quiet", "kill" or "power"; and when.
    end: str
    end_us: int


@dataclass
class Done:
    """What was ordered of one chunk, and whether that was acknowledged."""

    kind: str
    version: int
    began: float
    ended: float = float("inf")
    acked: bool = False


@dataclass
class Known:
    """Of one chunk. Each order that makes or raises it has a version of its own."""

    version: int = 0
    done: list[Done] = field(default_factory=list)

    def draw(self) -> int:
        self.version += 1
        return self.version


def content(handle: int, version: int) -> bytes:
    """Those of every other version are small enough to be packed."""
    size = 3000 + 700 * (version % 9) if version % 2 else BLOCK_BYTES + 100 * version
    return random.Random(f"{handle}/{version}").randbytes(size)


class Packets:
    """The upload of a chunk in packets, at most two, by a client that may pause."""

    answering: Any = None

    def __init__(self, data: bytes, pause: float) -> None:
        rest = [(BLOCK_BYTES, data[BLOCK_BYTES:])] if len(data) > BLOCK_BYTES else []
        self._left = [*rest, (0, data[:BLOCK_BYTES])]
        self._pause = pause
        self._body = b""
        self._sent = 0

    @property
    def body_bytes(self) -> int:
        return len(self._body)

    def pending(self) -> int:
        return MIB * (not self._pause)

    async def receive(self) -> Message:
        await trio.sleep(self._pause)
        at, self._body = self._left.pop()
        self._sent += 1
        sums = packet_sums(at, self._body)
        return Packet(self._sent - 1, at, not self._left, sums)

    async def receive_some(self, target: memoryview, least: int) -> int:
        await trio.lowlevel.checkpoint()
        target[:] = self._body
        return len(target)

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()

    async def refuse(self, failure: Failure) -> None:
        await trio.lowlevel.checkpoint()


class Listening(Packets):
    """A client that hears whether the server still works. From the packet of that number on,
    which arrives damaged, the server's disk hangs."""

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(content(HANDLES[0], 2), 0.0)
        self.answering: Any = Answering(self)  # type: ignore[arg-type]
        self.heard: list[float] = []
        self.disk, self._number = server.machine.disk, number
        self._hang()

    def _hang(self) -> None:
        if self._sent == self._number:
            self.disk.hang("/", Hang(share=1.0, seconds=(20.0, 20.0)))

    async def receive(self) -> Message:
        self._hang()
        packet = await super().receive()
        assert isinstance(packet, Packet)
        return msgspec.structs.replace(packet, sums=bytes(8)) if packet.id == 1 else packet

    async def send(self, message: Message) -> None:
        if isinstance(message, Working):
            self.heard.append(trio.current_time())


class Server:
    def __init__(self, seed: int, durability: str, disks: int) -> None:
        self.machine = Universe(seed).machine("chunkserver")
        self.sync = durability == "fsync"
        self.disks = [f"/disk{n}" for n in range(disks)]
        self._settings = ChunkserverSettings(
            reserve_bytes=0,
            durability=durability,
            journal_bytes=32_768,
            idle_seconds=5.0,
            packed_bytes_max=BLOCK_BYTES * (seed // 4 % 2),
        )
        self.known = {handle: Known() for handle in HANDLES}

    async def start(self) -> None:
        self.process = self.machine.start_process()
        self.node = Node(self.process.world, self._settings, self.disks, bytes(32))
        await self.node.open()
        await compare_all(self.node)

    async def upload(self, handle: int, version: int, pause: float) -> bool:
        request = WriteChunk(0, version, handle, 0, "upload", [], False)
        packets = Packets(content(handle, version), pause)
        return await WriteExchange(self.node, packets, request).run()

    def made(self, handle: int, version: int) -> Made:
        data = content(handle, version)
        return Made(handle, version, memoryview(data), block_sums(data))

    async def small(self, handle: int, version: int) -> bool:
        """As the write of a new small file does."""
        store = self.node.store
        for error in (
            await store.write_new(store.disks.pick(), [self.made(handle, version)])
        ).values():
            raise error
        return True

    async def install(self, handle: int, version: int) -> bool:
        """As the copy of a chunk from another server does."""
        node = self.node
        if handle in node.cloning:
            return False
        node.cloning.add(handle)
        disk = node.store.disks.pick()
        if node.store.is_packed(len(content(handle, version))):
            try:
                await node.store.install(disk, self.made(handle, version))
            finally:
                node.cloning.discard(handle)
            return True
        path = disk.chunk_path(handle) + disk.new_half()
        data = content(handle, version)
        try:
            file = ChunkFile.create(node.world.files, path, handle, version, disk.journal, True)
            try:
                await disk.run(file.write, 0, data, packet_sums(0, data))
                await node.store.install(disk, file)
            finally:
                file.close()
        except BaseException:
            with contextlib.suppress(OSError):
                node.world.files.unlink(path)
            raise
        finally:
            node.cloning.discard(handle)
        return True

    async def grant(self, handle: int, version: int, anew: bool) -> bool:
        replica = self.node.store.inventory.get(handle)
        if anew and replica is not None:
            return False
        before = 0 if replica is None else replica.version
        await self.node.grant(GrantLease(0, handle, before, version, 0))
        return True

    async def delete(self, handle: int, version: int) -> bool:
        await self.node.store.delete(handle, version)
        return True

    async def unused(self, handle: int, version: int) -> bool:
        """As an order to delete many replicas does."""
        return not await self.node.store.delete_unused([ReplicaName(handle, version)])

    async def read(self, handle: int) -> bool:
        """As a client does."""
        replica = self.node.store.inventory.get(handle)
        if replica is None or not replica.length:
            return False
        request = ReadChunk(0, handle, replica.version, 0, replica.length)
        reply, data = read_open(self.node, request) or await read_small(self.node, request)
        if block_sums(data) == reply.sums:
            assert self.origin(handle, bytes(data)), "bytes that nobody wrote"
        else:
            assert self.node.store.inventory.get(handle) != replica, "wrong bytes"
        return True

    async def move(self, handle: int) -> bool:
        """As the draining of its disk does."""
        replica = self.node.store.inventory.get(handle)
        if replica is None or len(self.disks) < 2:
            return False
        disk = self.node.store.disks.used[replica.disk]
        disk.drain.is_wanted = True
        try:
            await _move(self.node, disk, handle)
        finally:
            disk.drain.is_wanted = False
        return True

    async def look(self, handle: int, how: int) -> bool:
        node = self.node
        match how % 3:
            case 0:
                await node.verify(VerifyChunk(id=0, handle=handle, version=0))
            case 1:
                async with node.store.open_chunks.using(handle) as chunk:
                    await trio.sleep(how / 1e6)
                    length = chunk.file.length
                    if length:
                        found = chunk.file.read_verified(0, length)
                        assert self.origin(handle, found), "bytes that nobody wrote"
            case 2:
                await look_at(node, [handle])
        return True

    async def carry_out(self, op: Op) -> None:
        handle, known = op.handle, self.known[op.handle]
        replica = self.node.store.inventory.get(handle)
        more: list[Any] = []
        match op.kind:
            case "upload":
                more = [known.draw(), op.knob / 1e6]
            case "grant":
                more = [known.draw(), op.knob % 2 == 0]
            case "install" | "small":
                more = [known.draw()]
            case "delete" if op.knob % 4 and replica is not None:
                more = [replica.version]
            case "delete":
                more = [known.version - op.knob % 3]
            case "unused":
                more = [1 if replica is None else replica.version]
            case "look":
                more = [op.knob]
        version = more[0] if more and op.kind != "look" else 0
        action = partial(getattr(self, op.kind), handle, *more)
        await trio.sleep(op.start_us / 1e6)
        kind = {"small": "install", "unused": "delete"}.get(op.kind, op.kind)
        done = Done(kind, version, trio.current_time())
        known.done.append(done)
        try:
            # An order never hangs: what it waits for has a deadline.
            with trio.fail_after(HANG_SECONDS):
                done.acked = await action() and self.process.alive
        except (GfsError, OSError):
            if op.kind == "delete" and trio.current_time() > done.began + 5:
                raise
        done.ended = trio.current_time()

    async def play(self, round_: Round) -> None:
        async def end() -> None:
            await trio.sleep(round_.end_us / 1e6)
            self.process.kill()

        async with trio.open_nursery() as nursery:
            for op in round_.ops:
                nursery.start_soon(self.carry_out, op)
            if round_.end != "quiet":
                nursery.start_soon(end)
        if round_.end == "quiet":
            self.check_quiet()
            self.process.kill()
        if round_.end == "power" and self.sync:
            self.machine.disk.power_cut(random.Random(round_.end_us))
        await self.start()
        self.check()

    def files(self, handle: int) -> list[str]:
        return [path for path in self.machine.disk.paths() if f"{handle:016x}." in path]

    def origin(self, handle: int, found: bytes) -> int:
        """The order whose bytes these are; 0 if there is none."""
        for version in range(1, self.known[handle].version + 1):
            if content(handle, version).startswith(found):
                return version
        return 0

    def check_quiet(self) -> None:
        """Nothing goes on: nothing is held, and nothing waits."""
        store = self.node.store
        assert not store.open_chunks.busy
        for disk in store.disks.used.values():
            disk.closing.close_files()
        for chunk in store.open_chunks._open.values():
            assert not chunk.users
            assert not chunk.dropped
            assert not chunk.mutex.locked()
        opened = [chunk.file for chunk in store.open_chunks._open.values()]
        made = sum(file.made for file in opened if not isinstance(file, PackedFile))
        packs = [disk.packs for disk in store.disks.used.values()]
        made += sum((p._index is not None) + (p._data is not None) for p in packs)
        assert len(self.process.life._holds_weakly) == len(self.disks) * 4 + made, (
            "a file is left open"
        )
        self.check()

    def check(self) -> None:
        store = self.node.store
        assert not store.inventory.bad
        assert store.inventory.bytes == sum(r.length for r in store.inventory.values())
        for disk in store.disks.used.values():
            assert disk.chunks == sum(r.disk == disk.index for r in store.inventory.values())
            records = {record.offset: record for record in disk.packs.all()}
            assert len(records) == len(disk.packs), "two records have one slot"
            assert all(map(disk.packs.has_on_disk, records.values()))
            assert sum(used.bit_count() for used in disk.packs._slots._used) == len(records)
            places = len(disk.packs._image) // RECORD_BYTES
            assert len(disk.packs._free) + len(records) == places
        for handle in HANDLES:
            replica = store.inventory.get(handle)
            files = self.files(handle)
            packed = [d for d in store.disks.used.values() if handle in d.packs]
            if replica is None:
                assert not files, "a file that the store knows nothing of"
                assert not packed, "a record that the store knows nothing of"
            elif packed:
                assert not files, "a file and a record"
                assert [disk.index for disk in packed] == [replica.disk]
                file = open_packed(packed[0].packs, handle, packed[0].journal)
                assert (file.version, file.length) == (replica.version, replica.length)
                assert bad_blocks(file) == []
                assert self.origin(handle, file.read_verified(0, file.length))
            else:
                assert files == [store.disks.used[replica.disk].chunk_path(handle)]
                self._check_bytes(handle)
            self._check_promises(handle, replica.version if replica else 0)

    def _check_bytes(self, handle: int) -> None:
        store = self.node.store
        replica = store.inventory[handle]
        disk = store.disks.used[replica.disk]
        chunk = store.open_chunks._open.get(handle)
        if chunk is None:
            file = ChunkFile.open(
                self.process.world.files, disk.chunk_path(handle), handle, disk.journal
            )
        else:
            file = chunk.file
            path = disk.chunk_path(handle)
            assert self.machine.disk.inode(path) is file.file._inode  # type: ignore[attr-defined]
        try:
            assert (file.version, file.length) == (replica.version, replica.length)
            assert bad_blocks(file) == []
            if file.length:
                assert self.origin(handle, file.read_verified(0, file.length))
        finally:
            if chunk is None:
                file.close()

    def _check_promises(self, handle: int, version: int) -> None:
        done = self.known[handle].done
        deletes = [d for d in done if d.kind == "delete"]
        for made in (d for d in done if d.acked and d.kind in ("upload", "install", "grant")):
            may_be_gone = any(d.version >= made.version and d.ended > made.began for d in deletes)
            assert version >= made.version or may_be_gone, f"{made} is gone"
        for gone in (d for d in deletes if d.acked and d.version):
            by = [d for d in done if d.kind != "delete" and d.version == gone.version]
            if by and by[0].ended < gone.began:
                assert version != gone.version, f"{gone} was not carried out"


def simulate(
    seed: int, durability: str, rounds: list[Round], disks: int, open_max: int = 512
) -> None:
    async def play() -> None:
        server = Server(seed, durability, disks)
        await server.start()
        for round_ in rounds:
            await server.play(round_)
        server.process.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_chunks, "OPEN_FILES_MAX", open_max)
        run_simulated(seed, play)


ops = st.builds(
    Op,
    st.sampled_from(KINDS),
    st.sampled_from(HANDLES),
    st.integers(0, ROUND_MICROSECONDS),
    st.integers(0, 500),
)
rounds = st.builds(
    Round,
    st.lists(ops, min_size=1, max_size=6).map(tuple),
    st.sampled_from(["quiet", "quiet", "kill", "power"]),
    st.integers(0, 2 * ROUND_MICROSECONDS),
)


@settings(max_examples=share(200), deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["replicated", "fsync"]),
    st.lists(rounds, min_size=1, max_size=4),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 512]),
)
def test_store_and_disks_agree_whatever_is_done_at_once(
    seed: int, durability: str, plan: list[Round], disks: int, open_max: int
) -> None:
    simulate(seed, durability, plan, disks, open_max)


@pytest.mark.parametrize("number", [0, 1], ids=["it is opened", "it is committed"])
@simulated(0)
async def test_nothing_is_heard_of_a_server_while_its_disk_hangs(number: int) -> None:
    """It said for 8 s that it worked, until the disk was given up."""

    server = Server(0, "replicated", 1)
    await server.start()
    await server.upload(HANDLES[0], 1, 0.0)
    server.process.kill()
    await server.start()
    began = trio.current_time()
    client = Listening(server, number)
    request = WriteChunk(0, 1, HANDLES[number], 0, "upload", [], False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.node.pulse.run)
        await WriteExchange(server.node, client, request).run()
        nursery.cancel_scope.cancel()
    assert trio.current_time() > began + 10
    heard = [at - began for at in client.heard if at < began + 10]
    assert heard
    assert max(heard) < STUCK_SECONDS + 2 * PULSE_SECONDS


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for n, a in enumerate(KINDS) for b in KINDS[n + 1 : -1]]
)
def test_two_at_once_of_one_chunk(one: str, other: str, durability: str) -> None:
    """Of a chunk that is there, and of one that is not."""
    for seed in range(share(40)):
        chance = random.Random(f"{seed}/{one}/{other}")

        def op(kind: str, within_us: int, chance: random.Random = chance) -> Op:
            return Op(kind, HANDLES[0], chance.randrange(within_us), chance.randrange(400))

        before = Round((op(chance.choice(["upload", "install", "small"]), 1),), "quiet", 0)
        both = Round((op(one, 500), op(other, 500)), "quiet", 0)
        simulate(seed, durability, [before, both] if seed % 2 else [both], 1 + seed // 2 % 2)


@pytest.mark.parametrize("seed", range(8))
def test_what_was_deleted_is_not_brought_back_by_a_kill_and_then_a_power_cut(seed: int) -> None:
    """The record of it in the journal was gone after the first start, and that the file
    was, was not on the disk yet."""
    rounds = [
        Round((Op("install", HANDLES[0], 0, 0),), "quiet", 0),
        Round((Op("delete", HANDLES[0], 1, 1),), "quiet", 0),
        Round((), "power", seed),
    ]
    simulate(seed, "fsync", rounds, 1)


@pytest.mark.parametrize("seed", range(8))
def test_records_from_before_two_starts_do_not_follow_new_ones(seed: int) -> None:
    """That of a deletion had the highest number of all, and was hidden by the first start;
    so the second one knew of no number as high. Behind the first new record it came to
    light, and the chunk that had been made since was deleted at the third."""
    rounds = [
        Round((Op("grant", HANDLES[0], 0, 0), Op("delete", HANDLES[0], 900, 0)), "quiet", 0),
        Round((), "quiet", 0),
        Round((Op("install", HANDLES[0], 0, 0), Op("grant", HANDLES[0], 900, 1)), "quiet", 0),
    ]
    simulate(seed, "fsync", rounds, 1)


async def packing(disks: int = 1) -> Server:
    """A server with a packed replica of version 5."""
    server = Server(4, "replicated", disks)
    await server.start()
    server.known[HANDLES[0]].version = 5
    await server.small(HANDLES[0], 5)
    return server


class EmptyFirst(Packets):
    """It pauses after an empty packet."""

    def __init__(self, data: bytes, pause: float) -> None:
        super().__init__(data, pause)
        self._left.append((0, b""))


@pytest.mark.parametrize(
    ("packets", "pause", "hops"), [(Packets, 0.0, 1), (Packets, 0.1, 2), (EmptyFirst, 0.1, 3)]
)
@simulated(0)
async def test_packets_that_have_arrived_are_written_in_one_hop(
    packets: type[Packets], pause: float, hops: int
) -> None:
    server = Server(0, "replicated", 1)
    await server.start()
    (disk,) = server.node.store.disks.used.values()
    called: list[str] = []
    run = disk.run

    async def counted(function: Any, *args: object) -> Any:
        called.append(function.__name__)
        return await run(function, *args)

    disk.run = counted  # type: ignore[method-assign]
    data = content(HANDLES[0], 2)
    request = WriteChunk(0, 2, HANDLES[0], 0, "upload", [], False)
    assert await WriteExchange(server.node, packets(data, pause), request).run()
    assert called.count("_write") == hops
    async with server.node.store.open_chunks.using(HANDLES[0]) as chunk:
        assert chunk.file.read_verified(0, len(data)) == data
    server.process.kill()


@simulated(0)
async def test_a_refused_write_unpacks_nothing() -> None:
    server = await packing()
    (disk,) = server.node.store.disks.used.values()
    for version, mode in ((3, "mutate"), (9, "mutate"), (4, "upload")):
        request = WriteChunk(0, version, HANDLES[0], 0, mode, [], False)
        assert not await WriteExchange(server.node, Packets(b"late", 0), request).run()
        assert HANDLES[0] in disk.packs


@simulated(0)
async def test_a_grant_on_a_full_disk_leaves_the_reserve_alone() -> None:
    server = await packing()
    (disk,) = server.node.store.disks.used.values()
    before = disk.space.written_bytes
    disk.space.reserve_bytes = 1 << 60
    with pytest.raises(DiskFull):
        await server.grant(HANDLES[0], 6, False)
    assert HANDLES[0] in disk.packs
    disk.space.reserve_bytes = 1
    await server.grant(HANDLES[0], 7, False)
    assert HANDLES[0] not in disk.packs
    assert disk.space.written_bytes >= before + len(content(HANDLES[0], 5))


@simulated(0)
async def test_a_drained_disk_packs_what_was_packed_only_if_that_is_wanted_still() -> None:
    server = await packing(2)
    store = server.node.store
    await server.move(HANDLES[0])
    assert sum(HANDLES[0] in disk.packs for disk in store.disks.used.values()) == 1
    store._packed_bytes_max = 0
    await server.move(HANDLES[0])
    assert not any(HANDLES[0] in disk.packs for disk in store.disks.used.values())
    server.check()


@pytest.mark.parametrize("seed", range(4))
@simulated()
async def test_a_replica_that_moves_while_it_is_verified_is_not_taken_for_damaged(
    seed: int,
) -> None:
    server = await packing(2)
    store = server.node.store
    states = []

    async def verify() -> None:
        while True:
            reply = await server.node.verify(VerifyChunk(id=0, handle=HANDLES[0], version=5))
            states.append((reply.state, reply.bad_blocks))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(verify)
        for _ in range(40):
            await server.move(HANDLES[0])
        nursery.cancel_scope.cancel()
    assert len(states) > 40
    assert states == [("good", [])] * len(states)
    assert not store.inventory.bad


@pytest.mark.parametrize("moved", [False, True])
@simulated(0)
async def test_a_file_that_is_missed_after_its_replica_was_moved_is_not_gone(
    moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await packing(2)
    store, run = server.node.store, Disk.run
    looks_wrong, looked = store.inventory.looks_wrong, 0

    async def late(disk: Disk, function: Callable[..., Any], *args: Any) -> Any:
        nonlocal looked
        if function != looks_wrong or looked:
            return await run(disk, function, *args)
        looked += 1
        if moved:
            await server.move(HANDLES[0])
        return [(HANDLES[0], False)]

    monkeypatch.setattr(Disk, "run", late)
    reply = await server.node.verify(VerifyChunk(id=0, handle=HANDLES[0], version=5))
    assert looked
    assert reply.state == ("good" if moved else "missing")
    assert (HANDLES[0] in store.inventory) == moved


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("seed", [0, 4], ids=["in a file", "packed"])
@simulated()
async def test_a_sector_that_cannot_be_read_condemns_only_the_replica_that_has_it(
    seed: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(seed, "replicated", 2)
    await server.start()
    await server.small(HANDLES[0], 5)

    async def refused(*_: object) -> list[int]:
        if moved:
            await server.move(HANDLES[0])
        raise CorruptReplica("a bad sector")

    monkeypatch.setattr(server.node, "bad_blocks", refused)
    await Scrubber(server.node)._pass(0)
    inventory = server.node.store.inventory
    assert HANDLES[0] in inventory
    assert list(inventory.bad) == [HANDLES[0]] * (not moved)


@simulated(0)
async def test_a_replica_whose_file_cannot_be_opened_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(0, "replicated", 2)
    await server.start()
    await server.small(HANDLES[0], 5)
    server.process.kill()
    await server.start()

    def refused(*_: object) -> None:
        raise ReadFailed(errno.EIO, "a bad sector")

    monkeypatch.setattr(ChunkFile, "open", refused)
    await Scrubber(server.node)._pass(0)
    assert list(server.node.store.inventory.bad) == [HANDLES[0]]
