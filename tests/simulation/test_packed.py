"""Packed replicas in a cluster: they are read, damaged, copied, changed and deleted as all."""

from __future__ import annotations

from random import Random

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, KIB
from gfs.chunkserver.packs import DATA_NAME, INDEX_NAME, layout
from gfs.chunkserver.packs.layout import Record
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.errors import DiskFailed
from gfs.testing import SimCluster

from .promises import assert_sound, content, wait_until_sound
from .seeds import over_seeds

SETTINGS = ChunkserverSettings(packed_bytes_max=BLOCK_BYTES, scan_seconds=2.0, scrub_seconds=20.0)
SIZES = [1, 100, 512, 1024, 5000, BLOCK_BYTES - 1, BLOCK_BYTES]


def packed(cluster: SimCluster, name: str) -> dict[int, Record]:
    """The records on a server's only disk."""
    disk, path = cluster.machine(name).disk, f"{cluster.disks[0]}/{INDEX_NAME}"
    content = disk.read(path)[layout.HEAD_BYTES :] if disk.exists(path) else b""
    pieces = (content[at : at + 64] for at in range(0, len(content), 64))
    records = (layout.decode_record(piece) for piece in pieces if any(piece))
    return {record.handle: record for record in records if record is not None}


def all_packed(cluster: SimCluster) -> int:
    return sum(len(packed(cluster, name)) for name in cluster.chunkservers)


def files_of(cluster: SimCluster) -> list[str]:
    return [path for name in cluster.chunkservers for path in cluster.chunk_files(name)]


async def put_some(fs: Client, chance: Random, count: int = 60) -> dict[str, bytes]:
    files = {f"/f/{n}": content(chance, SIZES[n % len(SIZES)]) for n in range(count)}
    await fs.put_many(files.items())
    return files


async def check(fs: Client, files: dict[str, bytes]) -> None:
    assert await fs.get_many(files) == list(files.values())
    for path, data in list(files.items())[:7]:
        assert await fs.get(path) == data
        async with await fs.open(path) as file:
            assert await file.pread(len(data) // 2, 9) == data[len(data) // 2 :][:9]


@pytest.mark.parametrize(
    "durability", [pytest.param("replicated", marks=pytest.mark.costly), "fsync"]
)
@over_seeds(3)
async def test_small_files_are_packed_and_outlive_kills(
    seed: int, chance: Random, durability: str
) -> None:
    settings = ChunkserverSettings(durability=durability, packed_bytes_max=BLOCK_BYTES)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        files = await put_some(fs, chance)
        assert all_packed(cluster) == 3 * len(files)
        assert not files_of(cluster)
        await check(fs, files)
        for name in cluster.chunkservers:
            await cluster.crash(name)
        if durability == "fsync":
            for name in cluster.chunkservers:
                cluster.machine(name).disk.power_cut(chance)
        await cluster.start_all()
        await check(fs, files)
        await assert_sound(fs)
        for path in files:
            await fs.delete(path, now=True)
        await trio.sleep(400)
        assert all_packed(cluster) == 0
        for name in cluster.chunkservers:
            inode = cluster.machine(name).disk.inode(f"{cluster.disks[0]}/{DATA_NAME}")
            assert inode.stored_bytes == 0


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
@over_seeds(3)
async def test_a_write_in_place_or_an_append_moves_the_replica_out_first(
    seed: int, chance: Random, durability: str
) -> None:
    settings = ChunkserverSettings(durability=durability, packed_bytes_max=BLOCK_BYTES)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        files = await put_some(fs, chance, 14)
        async with await fs.open("/f/3", "r+b") as file:
            await file.pwrite(100, b"changed")
        data = files["/f/3"]
        files["/f/3"] = data[:100] + b"changed" + data[107:]
        await fs.append("/f/5", b"record")
        await check(fs, {path: data for path, data in files.items() if path != "/f/5"})
        assert len(files_of(cluster)) == 6
        assert all_packed(cluster) == 3 * (len(files) - 2)
        snapshot = await fs.snapshot("/f", "/copy")
        assert snapshot is not None
        async with await fs.open("/f/4", "r+b") as file:
            await file.pwrite(0, b"new")
        assert await fs.get("/copy/4") == files["/f/4"]
        assert await fs.get("/f/4") == b"new" + files["/f/4"][3:]
        for name in cluster.chunkservers:
            await cluster.crash(name)
        await cluster.start_all()
        assert await fs.get("/f/3") == files["/f/3"]
        await assert_sound(fs)


@over_seeds(4, chunkserver=SETTINGS)
async def test_damage_in_the_bytes_or_in_a_record_is_repaired(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    files = await put_some(fs, chance, 21)
    name = chance.choice(cluster.chunkservers)
    disk, records = cluster.machine(name).disk, packed(cluster, name)
    first, second = list(records.values())[:2]
    data, index = (f"{cluster.disks[0]}/{each}" for each in (DATA_NAME, INDEX_NAME))
    disk.flip_bit(data, 8 * (first.offset + chance.randrange(first.length)))
    at = disk.read(index).index(layout.encode_record(second))
    disk.flip_bit(index, 8 * at + chance.randrange(512))
    await check(fs, files)
    await trio.sleep(60)
    await wait_until_sound(cluster, fs)
    assert packed(cluster, name).keys() == records.keys()
    await check(fs, files)
    await assert_sound(fs)


@over_seeds(2)
async def test_a_lost_server_is_made_good_with_packed_replicas(seed: int, chance: Random) -> None:
    made = SimCluster(seed, chunkservers=4, chunkserver=SETTINGS)
    async with made as cluster, cluster.client() as fs:
        files = await put_some(fs, chance)
        victim = cluster.chunkservers[0]
        await cluster.crash(victim)
        cluster.machine(victim).disk.wipe()
        await trio.sleep(30)
        await wait_until_sound(cluster, fs)
        assert all_packed(cluster) == 3 * len(files)
        assert not files_of(cluster)
        await check(fs, files)


@pytest.mark.costly
@over_seeds(2, chunkserver=SETTINGS, disks=2)
async def test_a_disk_is_drained_of_packed_replicas_and_a_gone_index_fails_it(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Until it is put back."""
    files = await put_some(fs, chance)
    server = (await fs.status()).servers[0]
    name = server.address.partition(":")[0]
    await fs.order_disk(server.id, server.disks[0].path, "drain")
    await trio.sleep(120)
    assert not (await fs.status()).servers[0].disks[0].chunks
    assert not files_of(cluster)
    await check(fs, files)
    disk, path = cluster.machine(name).disk, server.disks[1].path
    index = disk.read(f"{path}/{INDEX_NAME}")
    disk.delete(f"{path}/{INDEX_NAME}")
    await trio.sleep(20)
    [broken] = [s for s in (await fs.status()).servers if s.id == server.id]
    assert broken.disks[1].state == "failed"
    assert f"{INDEX_NAME} is gone" in broken.disks[1].reason
    await check(fs, files)
    with pytest.raises(DiskFailed, match=f"{INDEX_NAME} is gone"):
        await fs.order_disk(server.id, path, "retry")
    disk.open_inode(f"{path}/{INDEX_NAME}", "create").write(index, 0)
    disks = await fs.order_disk(server.id, path, "retry")
    assert [each.state for each in disks if each.path == path] == ["ok"]
    await wait_until_sound(cluster, fs)
    await check(fs, files)


@over_seeds(2)
async def test_files_of_the_former_kind_stay_and_a_switch_concerns_new_ones(
    seed: int, chance: Random
) -> None:
    before = ChunkserverSettings(packed_bytes_max=0)
    async with SimCluster(seed, chunkserver=before) as cluster, cluster.client() as fs:
        files = await put_some(fs, chance, 10)
        cluster._chunkserver_settings = SETTINGS
        for name in cluster.chunkservers:
            await cluster.crash(name)
        await cluster.start_all()
        more = {f"/g/{n}": content(chance, KIB) for n in range(10)}
        await fs.put_many(more.items())
        assert len(files_of(cluster)) == 30
        assert all_packed(cluster) == 30
        cluster._chunkserver_settings = before
        for name in cluster.chunkservers:
            await cluster.crash(name)
        await cluster.start_all()
        await check(fs, files | more)
        await fs.put(b"file", "/file")
        assert len(files_of(cluster)) == 33
