"""The ways of bytes that are rarely taken: pauses, ended leases, odd numbers."""

from __future__ import annotations

import random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES, packet_sums
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import ChunkUnavailable
from gfs.protocol.messages import AcquireLease, Failure, LeaseReply, Packet, WriteChunk
from gfs.testing import SimCluster

from .promises import assert_sound, content
from .seeds import over_seeds


@over_seeds(1)
async def test_a_writer_that_was_away_for_long_is_told_that_its_chunks_are_gone(
    seed: int, chance: random.Random
) -> None:
    """It brings its reservation back; what it had written was collected meanwhile."""
    async with SimCluster(seed) as cluster, cluster.client("writer") as fs:
        file = await fs.open("/slow", "w")
        await file.write(content(chance, CHUNK_BYTES))
        await file.write(b"x")  # the first chunk is complete
        await trio.sleep(1)
        cluster.network.partition(["writer"], ["master"])
        await cluster.wait_until(
            lambda: not any(cluster.chunk_files(name) for name in cluster.chunkservers), 300
        )
        cluster.network.heal()
        fs._core.master.close()  # it connects anew
        await trio.sleep(20)
        with pytest.raises(ChunkUnavailable):
            await file.close()
        assert not await fs.exists("/slow")


@pytest.mark.parametrize("count", [1, 3])
@over_seeds(1)
async def test_the_end_of_a_lease_costs_no_replica(
    seed: int, chance: random.Random, count: int
) -> None:
    """The primary's count has ended, the master's has not."""
    data = bytearray(content(chance, 300_000))
    master = MasterSettings(map_bytes=1 << 30, replication=count)
    cluster = SimCluster(seed, chunkservers=count, master=master)
    async with cluster, cluster.client() as fs:
        await fs.put(bytes(data), "/file")
        async with await fs.open("/file", "r+") as file:
            for text in (b"first", b"second"):
                await file.pwrite(10, text)
                data[10 : 10 + len(text)] = text
                assert len((await fs.locate("/file")).chunks[0].replicas) == count
                await trio.sleep(57.5)
        assert await fs.get("/file") == bytes(data)
        await assert_sound(fs)


@pytest.mark.parametrize("count", [1, 3])
@over_seeds(1)
async def test_a_primary_started_again_costs_no_replica(
    seed: int, chance: random.Random, count: int
) -> None:
    """It knows of no lease; the master, which was not told of its end, of one."""
    master = MasterSettings(map_bytes=1 << 30, replication=count)
    cluster = SimCluster(seed, chunkservers=count, master=master)
    async with cluster, cluster.client() as fs:
        await fs.put(content(chance, 300_000), "/file")
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(10, b"first")
            for name in cluster.chunkservers:
                await cluster.restart(name)
            await file.pwrite(10, b"second")
            assert await file.pread(10, 6) == b"second"
        assert len((await fs.locate("/file")).chunks[0].replicas) == count
        await assert_sound(fs)


@over_seeds(1)
async def test_a_power_cut_right_after_a_grant_leaves_current_replicas(
    seed: int, chance: random.Random
) -> None:
    data = content(chance, 300_000)
    settings = ChunkserverSettings(durability="fsync")
    async with SimCluster(seed, chunkserver=settings) as cluster:
        async with cluster.client() as fs:
            entry = await fs.put(data, "/file")
            master = fs._core.master
            number = master.next_sequence()
            request = AcquireLease(0, master.id, number, entry.inode, 0, 0, [])
            await master.ask(request, LeaseReply)
        await cluster.crash_all()
        for name in cluster.chunkservers:
            cluster.machine(name).disk.power_cut()
        await cluster.start_all()
        async with cluster.client() as fs:
            assert await fs.get("/file") == data


@over_seeds(1)
async def test_a_gap_is_not_filled_over_what_others_wrote(seed: int, chance: random.Random) -> None:
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(b"", "/file")
        async with await fs.open("/file", "r+") as one, await fs.open("/file", "r+") as other:
            await other.pwrite(0, b"B" * 100)
            await one.pwrite(200, b"A")
        assert await fs.get("/file") == b"B" * 100 + bytes(100) + b"A"


@pytest.mark.parametrize(
    ("version", "handle", "start", "offset"),
    [
        (1 << 40, None, 0, 0),
        (0, None, 0, 0),
        (None, 1 << 63, 0, 1 << 63),
        (None, -77, 0, 0),
        (None, None, -5, -5),
        (None, None, 0, -65536),
    ],
)
@pytest.mark.parametrize("mode", ["upload", "mutate"])
@over_seeds(1)
async def test_numbers_that_make_no_sense_cost_one_exchange(
    seed: int, chance: random.Random, mode: str,
    version: int | None, handle: int | None, start: int, offset: int,
) -> None:  # fmt: skip
    data = content(chance, 100_000)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        (chunk,) = (await fs.locate("/file")).chunks
        connection = await fs._core.pool.acquire(chunk.replicas[0].address)
        await connection.send(
            WriteChunk(
                id=0,
                version=chunk.version if version is None else version,
                handle=chunk.handle if handle is None else handle,
                offset=start,
                mode=mode,
                chain=[],
                primary=False,
            )
        )
        body = bytes(65536)
        packet = Packet(id=0, offset=offset, last=True, sums=packet_sums(0, body))
        await connection.send(packet, body)
        with trio.move_on_after(5):
            assert isinstance(await connection.receive(), Failure)
        connection.close()
        assert await fs.get("/file") == data
        await assert_sound(fs)
