"""Damage on a disk: never a wrong byte to a reader, and repaired."""

from __future__ import annotations

import errno
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB, block_sums
from gfs.chunkserver.files import read_state
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.layout import HEAD_BYTES
from gfs.chunkserver.packs import DATA_NAME
from gfs.chunkserver.upkeep import Scrubber
from gfs.cli.disks import emptied
from gfs.cli.drain import is_stuck
from gfs.cli.progress import Progress
from gfs.client import Client
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import CorruptReplica, DiskFull, GfsError, InvalidArgument
from gfs.master.tables import Clone
from gfs.master.upkeep.copies import Copies
from gfs.protocol.messages import SMALL_REPLICA_BYTES_MAX, ServerStatus
from gfs.testing import SimCluster
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Life

from .losses import handle_of, journal_of
from .packs import handles_on, packed_of
from .promises import (
    REPAIR_SECONDS,
    assert_sound,
    content,
    is_dead,
    settled,
    sound,
    wait_for_goal,
    wait_until_sound,
)
from .seeds import over_seeds


def harm(cluster: SimCluster, server: str, path: str, how: str, chance: Random) -> None:
    disk = cluster.machine(server).disk
    size = len(disk.read(path))
    if how == "flip":
        disk.flip_bit(path, chance.randrange(8 * size))
    elif how == "flip in the head":
        disk.flip_bit(path, chance.randrange(8 * min(size, 16 * 1024)))
    elif how == "truncate":
        disk.truncate(path, chance.randrange(size))
    elif how == "spoil":
        disk.spoil(path, chance.randrange(size))
    else:
        disk.delete(path)


HARMS = ["flip", "flip in the head", "truncate", "delete"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("restarted", [False, True])
# test_packed damages the others
@over_seeds(3, chunkserver=ChunkserverSettings(packed_bytes_max=0))
async def test_a_damaged_replica_is_never_served_and_is_repaired(
    chance: Random, cluster: SimCluster, fs: Client, how: str, restarted: bool
) -> None:
    """One good one is enough."""
    data = content(chance, chance.choice([100, 65_536, 300_000, 2 * MIB + 17]))
    await fs.put(data, "/file")
    for victim in chance.sample(cluster.chunkservers, chance.choice([1, 2])):
        if restarted:
            await cluster.crash(victim)
        (path,) = cluster.chunk_files(victim)
        harm(cluster, victim, path, how, chance)
        if restarted:
            await cluster.start(victim)

    async def read() -> None:
        assert await fs.get("/file") == data
        start = chance.randrange(len(data))
        length = chance.randint(1, 1000)
        async with await fs.open("/file") as file:
            assert await file.pread(start, length) == data[start : start + length]

    for _ in range(10):
        await read()
    await fs.fsck()

    async def repaired() -> bool:
        await read()
        return await sound(fs)

    await cluster.wait_until(repaired, 2 * REPAIR_SECONDS, every=0.5)
    await wait_for_goal(cluster, fs, "/file", 3)
    for server in cluster.chunkservers:
        await cluster.restart(server)
    assert await fs.get("/file") == data
    await assert_sound(fs)


@pytest.mark.parametrize("how", [*HARMS, "spoil"])
@over_seeds(1, chunkserver=ChunkserverSettings(scan_seconds=5, scrub_seconds=60))
async def test_damage_is_found_and_repaired_without_a_reader(
    chance: Random, cluster: SimCluster, fs: Client, how: str
) -> None:
    data = content(chance, 300_000)
    await fs.put(data, "/file")
    victim = chance.choice(cluster.chunkservers)
    disk = cluster.machine(victim).disk
    (path,) = cluster.chunk_files(victim)
    before = disk.read(path)
    harm(cluster, victim, path, how, chance)

    def whole() -> bool:
        files = cluster.chunk_files(victim)
        return (
            bool(files)
            and not disk.inode(files[0]).unreadable
            and disk.read(files[0])[-len(data) :] == before[-len(data) :]
        )

    await cluster.wait_until(whole, 150, "repaired", every=1)
    await wait_for_goal(cluster, fs, "/file", 3)
    await assert_sound(fs)


@over_seeds(2, client=ClientSettings(retry_seconds=5))
async def test_no_good_replica_is_an_error_and_never_wrong_bytes(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 200_000)
    await fs.put(data, "/file")
    for server in cluster.chunkservers:
        (path,) = cluster.chunk_files(server)
        cluster.machine(server).disk.flip_bit(path, 8 * (16 * 1024 + 70_000))
    async with await fs.open("/file") as file:
        assert await file.pread(0, 1000) == data[:1000]
        with pytest.raises(GfsError) as caught:
            await fs.get("/file")
        assert caught.value.code in ("chunk_unavailable", "corrupt_replica")
        # Nobody threw the last copies away: most of the bytes are still there,
        # and can be read.
        await trio.sleep(200)
        assert [len(handles_on(cluster, s)) for s in cluster.chunkservers] == [1, 1, 1]
        for start in (0, 2 * BLOCK_BYTES):
            end = start + BLOCK_BYTES
            assert await file.pread(start, BLOCK_BYTES) == data[start:end]
        with pytest.raises(GfsError):
            await file.pread(BLOCK_BYTES, 10)
    totals = (await fs.status()).totals
    assert (totals.lost, totals.beyond_repair, totals.salvages) == (1, 1, 0)
    assert (totals.corrupt, totals.corrupt_kept) == (3, 3)
    report = await fs.fsck()
    details = {kind: [p.detail for p in report.problems if p.kind == kind and p.path]
               for kind in report.counts}  # fmt: skip
    assert details["lost"] == ["blocks 1: damaged in every replica"]
    assert details["corrupt"] == ["blocks 1; kept, because nothing better is left"] * 3
    others = {p.detail for p in report.problems if not p.path}
    assert others == {"kept: its chunk has too few good replicas"}


@over_seeds(1)
async def test_partial_waits_once_for_a_file_of_which_many_chunks_are_lost(
    seed: int, chance: Random, tmp_path: Path
) -> None:
    settings = ClientSettings(retry_seconds=10)
    async with SimCluster(seed) as cluster, cluster.client(settings=settings) as fs:
        await fs.put(b"x", "/file", replication=1)
        async with await fs.open("/file", "r+") as file:
            for index in range(1, 6):
                await file.pwrite(index * CHUNK_BYTES, b"x")
        for server in cluster.chunkservers:
            await cluster.crash(server)
        since = trio.current_time()
        rescued = await fs.get("/file", tmp_path / "file", partial=True)
        assert rescued.holes == [(0, 5 * CHUNK_BYTES + 1)]
        assert trio.current_time() - since < 2 * settings.retry_seconds


@over_seeds(2)
async def test_many_files_wait_once_for_chunkservers_that_are_away(
    seed: int, chance: Random
) -> None:
    settings = ClientSettings(retry_seconds=10)
    async with SimCluster(seed) as cluster, cluster.client(settings=settings) as fs:
        sizes = [100, 3 * BLOCK_BYTES, 1_000_000]
        files = {f"/{n}": content(chance, sizes[n % 3]) for n in range(60)}
        await fs.put_many(files.items())
        for n in range(60, 80):
            await fs.append(f"/{n}", b"a record")
            files[f"/{n}"] = await fs.get(f"/{n}")
        for server in cluster.chunkservers:
            await cluster.crash(server)
        for found in (
            lambda: fs.get_many(files),
            lambda: fs.get_ranges((path, 10, 90) for path in files),
        ):
            since = trio.current_time()
            codes = {each.code for each in await found() if isinstance(each, GfsError)}
            assert codes == {"chunk_unavailable"}
            assert trio.current_time() - since < 2 * settings.retry_seconds
        # The next call waits again.
        async with trio.open_nursery() as nursery:
            for server in cluster.chunkservers:
                nursery.start_soon(cluster.start, server)
            assert await fs.get_many(files) == list(files.values())


@over_seeds(2)
async def test_all_say_at_once_what_is_lost(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Also of a master that has just begun: what damaged replica there is, it was told."""
    await fs.put(content(chance, 200_000), "/file", replication=1)
    [server] = [s for s in cluster.chunkservers if cluster.chunk_files(s)]
    harm_block(cluster, server, 1, "flip")
    assert (await fs.fsck()).counts["lost"] == 1
    for _ in range(100):
        totals = (await fs.status()).totals
        assert (totals.lost, totals.unlocated, totals.beyond_repair) == (1, 0, 1)
        await trio.sleep(1)


def harm_block(cluster: SimCluster, server: str, block: int, how: str) -> None:
    """In the middle of a block of the one chunk there is."""
    (path,) = cluster.chunk_files(server)
    at = HEAD_BYTES + block * BLOCK_BYTES + BLOCK_BYTES // 2
    disk = cluster.machine(server).disk
    if how == "flip":
        disk.flip_bit(path, 8 * at)
    else:
        disk.spoil(path, at)


async def all_found(cluster: SimCluster, fs: Client, count: int) -> None:
    """Every damaged replica is known to be."""
    await fs.fsck()

    async def found() -> bool:
        return (await fs.status()).totals.corruptions >= count

    await cluster.wait_until(found, 30, "all damage is found")


@pytest.mark.parametrize("how", ["flip", "spoil"])
@pytest.mark.parametrize("servers", [3, 4])
@over_seeds(3)
async def test_damage_in_another_place_of_each_replica_is_repaired(
    seed: int, chance: Random, how: str, servers: int
) -> None:
    """No replica is whole, and the chunk is: each block is good somewhere."""
    data = content(chance, chance.choice([200_000, 2 * MIB + 17]))
    async with SimCluster(seed, chunkservers=servers) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        holders = [name for name in cluster.chunkservers if handles_on(cluster, name)]
        blocks = chance.sample(range(len(data) // BLOCK_BYTES), 3)
        for server, block in zip(holders, blocks, strict=True):
            harm_block(cluster, server, block, how)
        await all_found(cluster, fs, 3)

        async def repaired() -> bool:
            # Readers find the good blocks meanwhile.
            start = chance.randrange(len(data) - 1000)
            async with await fs.open("/file") as file:
                assert await file.pread(start, 1000) == data[start : start + 1000]
            assert await fs.get("/file") == data
            return await settled(fs)

        await cluster.wait_until(repaired, REPAIR_SECONDS, every=0.5)
        await wait_for_goal(cluster, fs, "/file", 3)
        for server in cluster.chunkservers:
            await cluster.restart(server)
        assert await fs.get("/file") == data
        await assert_sound(fs)


async def no_scrub(_: Scrubber) -> None:
    await trio.sleep_forever()


def spoil_small(cluster: SimCluster, server: str) -> None:
    """A sector of the one replica there is on a server, in a file of its own or packed."""
    disk = cluster.machine(server).disk
    places = [(path, HEAD_BYTES) for path in cluster.chunk_files(server)]
    for packed in packed_of(cluster, server):
        places.append((f"{packed.directory}/{DATA_NAME}", packed.record.offset))
    ((path, offset),) = places
    disk.inode(path).evict()
    disk.spoil(path, offset + 10_000)


@pytest.mark.parametrize("packed_bytes_max", [0, BLOCK_BYTES])
@pytest.mark.parametrize("start", [0, 1000])
@over_seeds(2)
async def test_a_bad_sector_of_a_small_replica_is_found_by_a_read(
    seed: int,
    chance: Random,
    start: int,
    packed_bytes_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the whole of it, or of a piece; and not by the scrubber days later."""
    monkeypatch.setattr(Scrubber, "run", no_scrub)
    settings = ChunkserverSettings(packed_bytes_max=packed_bytes_max)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        data = content(chance, 20_000)
        await fs.put(data, "/file")
        spoil_small(cluster, chance.choice(cluster.chunkservers))

        async def is_found() -> bool:
            async with await fs.open("/file") as file:
                assert await file.pread(start, len(data)) == data[start:]
            return (await fs.status()).totals.corruptions == 1

        await cluster.wait_until(is_found, 30, every=0.2)
        await wait_until_sound(cluster, fs)
        assert [len(handles_on(cluster, name)) for name in cluster.chunkservers] == [1, 1, 1]


@pytest.mark.parametrize("packed_bytes_max", [0, BLOCK_BYTES])
@over_seeds(2)
async def test_a_bad_sector_of_the_last_small_replica_is_found_by_a_copy(
    seed: int, chance: Random, packed_bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as lost then, and is not copied again and again."""
    copies = 0

    async def copy(upkeep: Copies, order: list[Clone]) -> None:
        nonlocal copies
        copies += 1
        await make(upkeep, order)

    make = Copies._copy
    monkeypatch.setattr(Copies, "_copy", copy)
    monkeypatch.setattr(Scrubber, "run", no_scrub)
    settings = ChunkserverSettings(packed_bytes_max=packed_bytes_max)
    one = MasterSettings(map_bytes=1 << 28, replication=1, dead_seconds=6)
    async with (
        SimCluster(seed, chunkserver=settings, master=one) as cluster,
        cluster.client() as fs,
    ):
        await fs.put(content(chance, 20_000), "/file")
        (holder,) = (name for name in cluster.chunkservers if handles_on(cluster, name))
        spoil_small(cluster, holder)
        await fs.set_replication("/file", 3)

        async def is_lost() -> bool:
            totals = (await fs.status()).totals
            return (totals.corrupt, totals.lost, totals.beyond_repair) == (1, 1, 1)

        await cluster.wait_until(is_lost, 60)
        before = copies
        await trio.sleep(120)
        assert await is_lost()
        assert copies - before <= 3  # salvage is tried again, more and more rarely


@pytest.mark.parametrize("how", ["flip", "spoil"])
@pytest.mark.parametrize("replication", [1, 3])
@over_seeds(2)
async def test_damage_is_found_by_a_write_and_by_an_append(
    seed: int, chance: Random, how: str, replication: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside which it is. The last replica counts as lost then, as for a read; of several it is
    made anew."""
    monkeypatch.setattr(Scrubber, "run", no_scrub)
    settings = ChunkserverSettings(packed_bytes_max=0)
    goal = MasterSettings(map_bytes=1 << 28, replication=replication)
    async with (
        SimCluster(seed, chunkserver=settings, master=goal) as cluster,
        cluster.client(settings=ClientSettings(retry_seconds=5)) as fs,
    ):
        data = content(chance, 20_000)
        for number, path in enumerate(("/written", "/appended"), 1):
            await fs.put(data, path)
            handle = (await fs.locate(path)).chunks[0].handle
            holders = [name for name in cluster.chunkservers if handle in handles_on(cluster, name)]
            victim = chance.choice(holders)
            disk = cluster.machine(victim).disk
            (at,) = (each for each in cluster.chunk_files(victim) if f"{handle:016x}" in each)
            disk.inode(at).evict()
            harm_at = HEAD_BYTES + 10_000
            disk.flip_bit(at, 8 * harm_at) if how == "flip" else disk.spoil(at, harm_at)
            with suppress(GfsError) if replication == 1 else nullcontext():
                if path == "/appended":
                    await fs.append(path, b"a record")
                else:
                    async with await fs.open(path, "r+") as file:
                        await file.pwrite(1000, b"changed")

            async def is_told(count: int = number) -> bool:
                totals = (await fs.status()).totals
                return (totals.corrupt, totals.lost, totals.beyond_repair) == (count,) * 3

            if replication == 1:
                await cluster.wait_until(is_told, 30)
        if replication == 3:
            await wait_until_sound(cluster, fs)


@over_seeds(2)
async def test_what_one_server_alone_has_is_waited_for(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It is away when the others' damage is found, and its replica is damaged, too."""
    data = content(chance, 300_000)
    await fs.put(data, "/file")
    one, two, three = chance.sample(cluster.chunkservers, 3)
    for server, block in ((one, 0), (two, 0), (three, 2)):
        harm_block(cluster, server, block, "flip")
    await cluster.crash(three)
    await cluster.wait_until(lambda: is_dead(fs, three), 60)
    await all_found(cluster, fs, 2)

    async def given_up() -> bool:
        return (await fs.status()).totals.beyond_repair == 1

    await cluster.wait_until(given_up, 60)
    await cluster.start(three)
    await wait_until_sound(cluster, fs, 60)
    assert await fs.get("/file") == data


@over_seeds(2)
async def test_an_old_replica_has_blocks_that_are_of_use(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It missed a write elsewhere in the chunk, and has what both current ones lack."""
    data = bytearray(content(chance, 3 * BLOCK_BYTES))
    await fs.put(bytes(data), "/file")
    one, two, three = chance.sample(cluster.chunkservers, 3)
    await cluster.crash(three)
    piece = content(chance, 1000)
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(100, piece)
    data[100:1100] = piece
    harm_block(cluster, one, 1, "flip")
    harm_block(cluster, two, 1, "flip")
    await all_found(cluster, fs, 2)
    await cluster.start(three)
    await wait_until_sound(cluster, fs, 60)
    assert await fs.get("/file") == bytes(data)


@over_seeds(10)
async def test_a_server_dies_while_a_chunk_is_put_together(seed: int, chance: Random) -> None:
    data = content(chance, 8 * MIB)
    servers = chance.choice([3, 4])
    async with SimCluster(seed, chunkservers=servers) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        holders = [name for name in cluster.chunkservers if handles_on(cluster, name)]
        for server, block in zip(holders, chance.sample(range(128), 3), strict=True):
            harm_block(cluster, server, block, "flip")
        await fs.fsck()

        async def begun() -> bool:
            return (await fs.status()).totals.corruptions == 3

        await cluster.wait_until(begun, 30, every=0.01)
        await trio.sleep(chance.random() * 0.3)
        victim = chance.choice(cluster.chunkservers)
        await cluster.crash(victim)
        await trio.sleep(chance.choice([0, 30]))
        await cluster.start(victim)
        await wait_until_sound(cluster, fs, 90)
        assert await fs.get("/file") == data


def put_in_place(cluster: SimCluster, server: str, data: bytes) -> None:
    """Whole by its checksums, of the same version, and other bytes: as it is after a
    writer died on the way."""
    (path,) = cluster.chunk_files(server)
    disk, handle = cluster.machine(server).disk, handle_of(path)
    files = SimFileSystem(disk, Life("a writer"))
    state = read_state(files, path, handle)
    assert state is not None
    disk.delete(path)
    file = ChunkFile.create(
        files, path, handle, state.version, journal_of(files, path), copied=True
    )
    file.write(0, data, block_sums(data))
    file.save()
    file.close()


@over_seeds(5, chunkservers=2, master=MasterSettings(replication=2))
async def test_replicas_that_differ_are_not_mixed(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A writer died after its first two blocks were at one replica: that has them both,
    or neither, when it is made good with blocks of the other."""
    old = content(chance, 3 * BLOCK_BYTES)
    new = content(chance, 2 * BLOCK_BYTES) + old[2 * BLOCK_BYTES :]
    await fs.put(old, "/file")
    one, two = chance.sample(cluster.chunkservers, 2)
    await cluster.crash(two)
    put_in_place(cluster, two, new)
    harm_block(cluster, one, 1, "flip")
    harm_block(cluster, two, 2, "flip")
    await cluster.start(two)
    await all_found(cluster, fs, 2)
    await wait_until_sound(cluster, fs)
    # The old one's second block is good nowhere.
    assert await fs.get("/file") == new


@over_seeds(2, chunkservers=4)
async def test_the_remains_of_a_lost_chunk_keep_a_drain_from_ending(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    await fs.put(content(chance, 200_000), "/file")
    await fs.put(content(chance, 200_000), "/other")
    locations = (await fs.locate("/file")).chunks[0]
    name = f"{locations.handle:016x}.chunk"
    for replica in locations.replicas:
        host = replica.address.partition(":")[0]
        [path] = [each for each in cluster.chunk_files(host) if each.endswith(name)]
        cluster.machine(host).disk.flip_bit(path, 8 * (HEAD_BYTES + 1))
    await all_found(cluster, fs, 3)
    victim = chance.choice(locations.replicas).id
    await fs.drain(victim)

    async def drained() -> ServerStatus:
        [server] = [s for s in (await fs.status()).servers if s.id == victim]
        return server

    async def stuck() -> bool:
        return is_stuck(await drained())

    await cluster.wait_until(stuck, 60)
    await trio.sleep(30)
    server = await drained()
    assert (server.drain, server.drain_chunks, server.drain_lost) == ("draining", 1, 1)
    await fs.delete("/file", now=True)

    async def ended() -> bool:
        return (await drained()).drain == "drained"

    await cluster.wait_until(ended, 60)


@over_seeds(
    2,
    chunkservers=4,
    disks=2,
    master=MasterSettings(map_bytes=1 << 28, replication=1, dead_seconds=6),
)
async def test_a_disk_whose_last_replicas_are_damaged_is_drained_to_an_end(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Which says what is left, and what can be done. A damaged one of which there is a good one
    is replaced elsewhere, and keeps nobody waiting."""
    files = {f"/{n}": content(chance, 200_000) for n in range(24)}
    for path, data in files.items():
        await fs.put(data, path)
    victim = cluster.chunkservers[0]
    server = next(s.id for s in (await fs.status()).servers if s.address.startswith(victim))
    there = {int(path.rpartition("/")[2][:16], 16): path for path in cluster.chunk_files(victim)}
    there = {handle: path for handle, path in there.items() if path.startswith("/disk0/")}
    names = {(await fs.locate(path)).chunks[0].handle: path for path in files}
    lost, mended = chance.sample(sorted(there), 2)
    await fs.set_replication(names[mended], 3)
    await wait_for_goal(cluster, fs, names[mended], 3)
    for handle in (lost, mended):
        cluster.machine(victim).disk.flip_bit(there[handle], 8 * (HEAD_BYTES + 1))
    await fs.order_disk(server, "/disk0", "drain")
    progress = Progress()
    with pytest.raises(CorruptReplica) as ended, trio.fail_after(300):
        await emptied(fs, server, "/disk0", progress)
    assert (progress.total, progress.done) == (len(there), len(there) - 1)
    reason = str(ended.value)
    assert "1 damaged replica left, and no good one anywhere" in reason
    assert f"{names[lost]} chunk 0." in reason
    assert f"gfs disk remove --give-up-damaged {server} /disk0" in reason
    assert await fs.get(names[mended]) == files[names[mended]]
    with pytest.raises(InvalidArgument, match="--give-up-damaged"):
        await fs.order_disk(server, "/disk0", "remove")
    disks = await fs.order_disk(server, "/disk0", "remove-damaged")
    assert [disk.path for disk in disks] == ["/disk1"]
    await cluster.restart(victim)
    del files[names[lost]]
    for path, data in files.items():
        assert await fs.get(path) == data
    await trio.sleep(60)
    totals = (await fs.status()).totals
    assert (totals.lost, totals.corrupt, totals.under_replicated) == (1, 0, 0)


@over_seeds(1, disks=2)
async def test_a_disk_is_not_removed_with_good_replicas(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The other disks have no room for them."""
    for n in range(8):
        await fs.put(content(chance, 200_000), f"/{n}")
    victim = cluster.chunkservers[0]
    server, machine = cluster.address(victim), cluster.machine(victim).disk
    machine.mount("/disk1", 1)
    await trio.sleep(5)
    for order in ("remove-damaged", "drain", "remove-damaged"):
        if order == "drain":
            await fs.order_disk(server, "/disk0", order)
            continue
        with pytest.raises(InvalidArgument, match="run gfs disk drain first"):
            await fs.order_disk(server, "/disk0", order)


@over_seeds(
    2, chunkserver=ChunkserverSettings(reserve_bytes=0), client=ClientSettings(retry_seconds=3)
)
async def test_a_full_disk_is_an_error_and_damages_nothing(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 3 * MIB)
    await fs.put(data, "/file")
    for server in cluster.chunkservers:
        disk = cluster.machine(server).disk
        used = disk.space("/disk0").total_bytes - disk.space("/disk0").free_bytes
        disk.mount("/disk0", used + 2 * MIB)
    with pytest.raises(GfsError) as caught:
        await fs.put(data, "/second")
    assert caught.value.code in ("disk_full", "not_enough_chunkservers")
    assert not await fs.exists("/second")
    assert await fs.get("/file") == data
    for server in cluster.chunkservers:
        cluster.machine(server).disk.mount("/disk0", 1 << 40)
    await trio.sleep(30)
    await fs.put(data, "/second")
    assert await fs.get("/second") == data
    await assert_sound(fs)


@over_seeds(3, chunkserver=ChunkserverSettings(reserve_bytes=0))
async def test_a_write_to_full_disks_ends(chance: Random, cluster: SimCluster, fs: Client) -> None:
    """They are not said to be full before a write has failed, and right after that they are
    measured again."""
    data = content(chance, MIB)
    for server in cluster.chunkservers:
        cluster.machine(server).disk.mount("/disk0", 2 * MIB - 1)
    await fs.put(data, "/file")
    with trio.fail_after(60), pytest.raises(DiskFull, match="no chunkserver has room"):
        await fs.put(data, "/second")
    assert await fs.get("/file") == data


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
@over_seeds(2)
async def test_what_a_disk_refuses_to_delete_is_deleted_later(
    seed: int, chance: Random, durability: str
) -> None:
    """It is told again, though its server wanted to forget it."""
    settings = ChunkserverSettings(durability=durability)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        await fs.put(content(chance, 300_000), "/file")
        victim = chance.choice(cluster.chunkservers)
        disk = cluster.machine(victim).disk
        disk.fail("/disk0/chunks", what=["write", "sync"])
        await fs.delete("/file", now=True)
        others = [name for name in cluster.chunkservers if name != victim]
        await cluster.wait_until(lambda: not any(map(partial(handles_on, cluster), others)), 200)
        await trio.sleep(10)
        assert handles_on(cluster, victim)
        disk.fail("/disk0/chunks", 0)
        await cluster.wait_until(lambda: not handles_on(cluster, victim), 300)


@over_seeds(3, disks=2)
async def test_what_a_disk_refuses_to_delete_is_deleted_later_if_another_disk_has_it_too(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 300_000)
    await fs.put(data, "/file")
    victim = chance.choice(cluster.chunkservers)
    disk = cluster.machine(victim).disk
    (path,) = cluster.chunk_files(victim)
    disk.flip_bit(path, 8 * (HEAD_BYTES + 100))
    # Not an error that fails the whole disk.
    disk.fail(f"/{path.split('/')[1]}/chunks", errno.ENOSPC, what=["write", "sync"])
    await fs.fsck()
    await cluster.wait_until(lambda: len(handles_on(cluster, victim)) == 2, 300)
    await wait_for_goal(cluster, fs, "/file", 3)
    disk.fail(f"/{path.split('/')[1]}/chunks", 0)
    await cluster.wait_until(lambda: path not in cluster.chunk_files(victim), 100)
    assert len(handles_on(cluster, victim)) == 1
    await assert_sound(fs)


@over_seeds(6, chunkservers=4)
async def test_of_many_small_replicas_copied_together_each_is_verified(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Some are damaged or gone at the source, or on the edge between small and large; and
    all processes are killed when that is done."""
    count = 120
    sizes = [0, 1, 1000, 70_000, SMALL_REPLICA_BYTES_MAX, SMALL_REPLICA_BYTES_MAX + 1]
    data = {f"/d/{n}": content(chance, chance.choice(sizes)) for n in range(count)}
    async with trio.open_nursery() as nursery:
        for path, of_file in data.items():
            nursery.start_soon(fs.put, of_file, path)
    victim, other = chance.sample(cluster.chunkservers, 2)
    files = cluster.chunk_files(other)
    for path in chance.sample(files, min(5, len(files))):
        harm(cluster, other, path, chance.choice(HARMS), chance)
    cluster.kill(victim)
    await cluster.wait_until(lambda: settled_after_loss(fs, count), 120.0)
    for path, of_file in data.items():
        assert await fs.get(path) == of_file
    await cluster.crash_all()
    await cluster.start_all()
    await cluster.wait_until(lambda: sound(fs), 120.0)


async def settled_after_loss(fs: Client, count: int) -> bool:
    status = await fs.status()
    dead = [server for server in status.servers if server.state == "dead"]
    live = sum(server.chunks for server in status.servers if server.state == "live")
    return bool(dead) and live >= 3 * (await fs.status()).totals.chunks and await settled(fs)
