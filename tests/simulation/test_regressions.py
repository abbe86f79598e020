"""Found by killing, cutting and damaging at random; each by itself, made small."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.copies import copy_on_write as copying
from gfs.chunkserver.files import read_state
from gfs.chunkserver.files.layout import HEAD_BYTES
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.replicas.open_chunks import OpenChunk
from gfs.client import Client, connect
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.master.tables import servers
from gfs.protocol.messages import CopyChunk, SetLength
from gfs.testing import SimCluster
from gfs.testing.cluster import MASTER_ADDRESS
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Crashed, Onlooker

from .losses import handle_of, records_of
from .packs import handles_on, packed_of
from .promises import content, sound
from .seeds import over_seeds


def holders(cluster: SimCluster) -> list[str]:
    return [name for name in cluster.chunkservers if handles_on(cluster, name)]


@pytest.mark.parametrize("size", [2000, 20_000])
@over_seeds(1, chunkservers=4)
async def test_a_replica_unreadable_at_start_is_collected(
    chance: Random, cluster: SimCluster, fs: Client, size: int
) -> None:
    """It had no version to be named by in an order to delete it, and stayed."""
    data = content(chance, 300_000)
    await fs.put(data, "/file")
    victim = chance.choice(holders(cluster))
    await cluster.crash(victim)
    cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], size)
    await trio.sleep(30)
    await cluster.start(victim)
    await cluster.wait_until(lambda: len(holders(cluster)) == 3, 100)
    assert await sound(fs)


@over_seeds(1)
async def test_a_damaged_replica_of_a_deleted_file_is_collected(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It is in no report of good replicas, and was in nobody's list of garbage."""
    await fs.put(content(chance, 300_000), "/file")
    victim = chance.choice(cluster.chunkservers)
    await cluster.crash("master")
    cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], 20_000)
    await trio.sleep(11)  # found by the scan
    for name in cluster.chunkservers:
        if name != victim:
            cluster.network.partition([victim], [name])
    await cluster.start("master")
    await fs.delete("/file", now=True)
    await cluster.wait_until(lambda: not holders(cluster), 300, every=5)


@over_seeds(1, chunkservers=4)
async def test_a_damaged_replica_that_is_also_stale_is_collected(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    await fs.put(content(chance, 300_000), "/file")
    victim = chance.choice(holders(cluster))
    cluster.network.partition([victim], [*cluster.names, "client0"])
    cluster.machine(victim).disk.truncate(cluster.chunk_files(victim)[0], 20_000)
    await trio.sleep(30)
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, b"a newer version")
    cluster.network.heal()
    await cluster.wait_until(lambda: len(holders(cluster)) == 3, 100)
    assert await sound(fs)


@pytest.mark.parametrize("length", [100, 65_536 + 100, 2_000_100])
@over_seeds(1)
async def test_a_file_is_readable_whose_writer_died_before_its_new_length_was_known(
    chance: Random, cluster: SimCluster, fs: Client, length: int
) -> None:
    """The replicas are longer than the file then; its end is inside a block."""
    data = content(chance, length)
    await fs.put(data, "/file")
    async with cluster.client("writer") as writer:
        ask = writer._core.master.ask

        async def die_first(request: object, *rest: object) -> object:
            if isinstance(request, SetLength):
                await cluster.crash("writer")
            return await ask(request, *rest)  # type: ignore[arg-type]

        writer._core.master.ask = die_first  # type: ignore[method-assign,assignment]
        async with await writer.open("/file", "r+") as file:
            await file.pwrite(length, b"not acknowledged")
    assert await fs.get("/file") == data
    async with await fs.open("/file") as file:
        assert await file.read() == data
        assert await file.pread(length - 50, CHUNK_BYTES) == data[-50:]
    assert await sound(fs)


@over_seeds(4, chunkservers=4)
async def test_stale_replicas_stay_until_enough_current_ones_are_there(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """One current replica is not enough to delete what is left of the others."""
    data = bytearray(content(chance, 300_000))
    await fs.put(bytes(data), "/file")
    behind = holders(cluster)[1:]
    for name in behind:
        cluster.network.partition([name], ["master"])
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, b"missed by two")
    data[:13] = b"missed by two"
    (chunk,) = (await fs.locate("/file")).chunks
    assert len(chunk.replicas) < 3
    cluster.network.heal()
    with trio.fail_after(60):
        while len((await fs.locate("/file")).chunks[0].replicas) < 3:
            assert len(holders(cluster)) >= 3
            await trio.sleep(0.05)
    assert await fs.get("/file") == data
    await cluster.wait_until(lambda: len(holders(cluster)) == 3, 60)
    assert await sound(fs)


@pytest.mark.parametrize("damaged", ["disk0", "disk1"])
@pytest.mark.parametrize("places", [(513, 1025), (HEAD_BYTES + 70_000,)], ids=["head", "block"])
@over_seeds(1, disks=2)
async def test_of_two_files_of_one_replica_the_better_one_is_kept(
    chance: Random, cluster: SimCluster, fs: Client, places: tuple[int, ...], damaged: str
) -> None:
    """A power cut may bring a file back that had been replaced by one on another disk
    of the same server: both were taken for the replica, and neither served. Of two that
    look alike the one on the lower disk was kept unread, and the other deleted."""
    data = content(chance, 300_000)
    await fs.put(data, "/file")
    victim = chance.choice(cluster.chunkservers)
    await cluster.crash(victim)
    disk = cluster.machine(victim).disk
    (path,) = cluster.chunk_files(victim)
    files = SimFileSystem(disk, Onlooker())
    stored = disk.read(path)
    for name in cluster.disks:
        twin = path.replace(path.split("/")[1], name.strip("/"))
        files.make_directories(twin.rpartition("/")[0])
        file = files.open(twin, "replace")
        file.write(stored, 0)
        file.close()
        if name == f"/{damaged}":
            for place in places:
                disk.flip_bit(twin, 8 * place)
    (better,) = [path for path in cluster.disks if path != f"/{damaged}"]
    whole = path.replace(path.split("/")[1], better.strip("/"))
    inode = disk.inode(whole)
    await cluster.start(victim)
    await cluster.wait_until(lambda: cluster.chunk_files(victim) == [whole], 10)
    assert disk.inode(whole) is inode, "it was deleted, and made anew"
    assert await sound(fs)
    assert await fs.get("/file") == data


@over_seeds(1, disks=2)
async def test_a_copy_replaces_an_unreadable_replica_on_another_disk(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Its file stayed, of no use to anybody, also when the chunk's file was deleted."""
    await fs.put(content(chance, 300_000), "/file")
    victim = chance.choice(cluster.chunkservers)
    await cluster.crash(victim)
    disk = cluster.machine(victim).disk
    (path,) = cluster.chunk_files(victim)
    disk.truncate(path, 20_000)
    # The copy goes to the disk with more space.
    disk.mount(path.rpartition("/chunks")[0], 1 << 30)
    await cluster.start(victim)
    await cluster.wait_until(lambda: sound(fs), 60, every=1)
    assert len(handles_on(cluster, victim)) == 1
    assert cluster.chunk_files(victim) != [path]


@over_seeds(4, chunkservers=4)
async def test_a_full_disk_keeps_nothing_of_a_chunk_it_refused(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The file was made, its head did not fit, and nobody knew of it."""
    await fs.put(b"", "/file")
    victim = chance.choice(cluster.chunkservers)
    disk = cluster.machine(victim).disk
    space = disk.space("/disk0")
    disk.mount("/disk0", space.total_bytes - space.free_bytes)
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, content(chance, 100_000))
    disk.mount("/disk0", space.total_bytes)
    await fs.delete("/file", now=True)
    await cluster.wait_until(lambda: not holders(cluster), 300, every=5)


@over_seeds(6)
async def test_a_late_packet_of_an_upload_leaves_a_copy_alone_that_came_since(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The upload had gone on without the server, which held its place and had not made
    its file: the packet removed the copy's."""
    data = content(chance, 5000)
    cluster.network.slow("chunkserver0", "chunkserver1", (0.001, 0.002), 300.0)
    await fs.put(data, "/file")
    await cluster.wait_until(lambda: sound(fs), 120, every=1)
    await trio.sleep(60)
    # One that was opened before would show nothing: look at the files themselves.
    versions = {_version(cluster, name) for name in cluster.chunkservers}
    assert len(versions) == 1
    assert await fs.get("/file") == data


def _version(cluster: SimCluster, name: str) -> int:
    """That of the only replica on a server's disks."""
    for packed in packed_of(cluster, name):
        return packed.record.version
    (path,) = cluster.chunk_files(name)
    disk = cluster.machine(name).disk
    files = SimFileSystem(disk, Onlooker())
    state = read_state(files, path, handle_of(path), records_of(disk, path))
    return state.version if state is not None else 0


@over_seeds(2, chunkservers=4, master=MasterSettings(map_bytes=1 << 28, dead_seconds=300.0))
async def test_a_damaged_replica_goes_when_a_good_one_is_live_again(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It waited for as many as there should be, and nobody looked when they were."""
    await fs.put(content(chance, 300_000), "/file")
    damaged, silent, _ = chance.sample(holders(cluster), 3)
    await cluster.crash(silent)
    await trio.sleep(10)
    (path,) = cluster.chunk_files(damaged)
    cluster.machine(damaged).disk.flip_bit(path, 8 * 100_000)
    await fs.fsck()
    await cluster.wait_until(lambda: len(holders(cluster)) == 4, 60)
    await cluster.start(silent)
    await cluster.wait_until(lambda: len(holders(cluster)) == 3, 60)
    assert await sound(fs)


@over_seeds(3, chunkservers=4)
async def test_a_server_that_lost_an_upload_while_it_was_committed_is_no_holder(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It came back, and told all it has, between the check of what is published and the end
    of the commit; then it counted as a holder, and was never asked."""
    data = content(chance, 100_000)
    file = await fs.open("/file", "w")
    await file.write(data)
    await file.flush()
    victim = chance.choice(holders(cluster))
    master = cluster.machine("master")
    usual, master.blocking_seconds = master.blocking_seconds, (3.0, 3.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.close)
        await trio.sleep(1)
        cluster.kill(victim)
        await cluster.crash(victim)
        cluster.machine(victim).disk.power_cut()
        assert not handles_on(cluster, victim)
        await cluster.start(victim)
        assert await fs.list("/") == []  # not committed yet
    master.blocking_seconds = usual
    await cluster.wait_until(lambda: len(holders(cluster)) == 3, 60)
    assert await fs.get("/file") == data
    assert await sound(fs)


@over_seeds(1, chunkservers=4)
async def test_a_dead_server_of_an_upload_that_was_given_up_is_forgotten(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replicas were put down as garbage, of a server that nobody knew any more."""
    monkeypatch.setattr(servers, "FORGET_SECONDS", 120.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin_upload, cluster)
        await cluster.wait_until(lambda: len(holders(cluster)) == 3, 60)
        victim = chance.choice(holders(cluster))
        await cluster.crash("dying")
        await cluster.crash(victim)

    async def forgotten() -> bool:
        return len((await fs.status()).servers) == 3

    async def collected() -> bool:
        return not (await fs.status()).totals.orphaned

    await cluster.wait_until(forgotten, 1000)
    await cluster.wait_until(collected, 200)
    assert await sound(fs)


async def begin_upload(cluster: SimCluster) -> None:
    with suppress(Crashed):
        async with cluster.client("dying") as fs, await fs.open("/new", "w") as file:
            await file.write(bytes(300_000))
            await file.flush()
            await trio.sleep_forever()


@over_seeds(1)
async def test_a_slow_copy_of_a_shared_chunk_is_waited_for(
    chance: Random, cluster: SimCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that knows other masters went to them after 10 s, found none, and came back:
    each time the copy began anew."""
    copy = copying._copy

    async def slow(node: Node, chunk: OpenChunk, order: CopyChunk) -> None:
        await node.world.clock.sleep(12)
        await copy(node, chunk, order)

    monkeypatch.setattr(copying, "_copy", slow)
    data = bytearray(content(chance, 1000))
    process = cluster.universe.machine("c").start_process()
    addresses = [MASTER_ADDRESS, "shadow:9400"]
    async with connect(addresses, key=cluster.key, world=process.world) as fs:
        await fs.put(bytes(data), "/file")
        await fs.snapshot("/file", "/copy")
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(0, b"new")
        assert await fs.get("/copy") == data
        data[:3] = b"new"
        assert await fs.get("/file") == data
    process.kill()


@over_seeds(2, chunkserver=ChunkserverSettings(durability="fsync"))
async def test_a_grant_that_a_disk_could_not_sync_makes_no_replica_current(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Its record was in the page cache, and a restart trusted it."""
    await fs.put(b"old", "/file")
    victim = chance.choice(holders(cluster))
    cluster.machine(victim).disk.fail(cluster.disks[0], what=["sync"])
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, b"new")
    versions = {name: _version(cluster, name) for name in cluster.chunkservers}
    assert all(versions.values())
    assert versions.pop(victim) < min(versions.values())


@pytest.mark.parametrize("how", ["append", "write"])
@over_seeds(1)
async def test_the_only_replica_is_written_again_when_its_server_is_back(
    cluster: SimCluster, fs: Client, how: str
) -> None:
    """A client went on to exclude it as the one that had failed, for good."""
    await fs.put(b"", "/file", replication=1)
    first = await fs.append("/file", b"record")
    (holder,) = holders(cluster)
    async with await fs.open("/file", "r+") as file:
        await cluster.crash(holder)
        with trio.fail_after(13):
            async with trio.open_nursery() as nursery:
                if how == "append":
                    nursery.start_soon(fs.append, "/file", b"another")
                else:
                    nursery.start_soon(file.pwrite, first, b"another")
                await trio.sleep(3)
                await cluster.start(holder)
    assert b"another" in await fs.get("/file")
