"""Machines that lose their power, with the default durability: none that comes back
shows less than was acknowledged while there is another that knows it."""

from __future__ import annotations

from random import Random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES, packet_sums
from gfs.client import Client
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import GfsError, StaleVersion
from gfs.protocol.messages import (
    Failure,
    Message,
    Packet,
    ReadChunk,
    VerifyChunk,
    VerifyReply,
    WriteChunk,
)
from gfs.testing import SimCluster
from gfs.testing.inode import Inode

from .losses import handle_of
from .packs import handles_on
from .promises import content, settled, sound
from .seeds import over_seeds

PATH = "/file"
#: A reader who gives up soon.
IMPATIENT = ClientSettings(retry_seconds=3.0)
#: The end of a lease, and then some.
LATER_SECONDS = 100.0


def write_back(cluster: SimCluster) -> None:
    """All that was written reaches the platters."""
    for name in cluster.chunkservers:
        cluster.machine(name).disk.write_back(Random(0))


async def lose_power(cluster: SimCluster, *names: str) -> None:
    """What was not synced is gone, all of it: what is left is whole, and older."""
    for name in names:
        cluster.kill(name)
    for name in names:
        await cluster.crash(name)
        cluster.machine(name).disk.power_cut()


async def lose_power_everywhere(cluster: SimCluster, fs: Client) -> None:
    await cluster.crash_all()
    await lose_power(cluster, *cluster.chunkservers)
    await cluster.start_all()
    await cluster.wait_until(lambda: settled(fs), 200)


class Work:
    """A file that is written in place, or records that are appended."""

    def __init__(self, kind: str, chance: Random) -> None:
        self.kind = kind
        self.chance = chance
        self.data = bytearray(content(chance, 200_000))
        self.records: list[bytes] = []

    async def begin(self, fs: Client) -> None:
        await fs.put(bytes(self.data), PATH)

    async def step(self, fs: Client) -> None:
        """One acknowledged write."""
        piece = self.chance.randbytes(5000)
        if self.kind == "append":
            await fs.append(PATH, piece)
            self.records.append(piece)
        else:
            offset = len(self.data) if self.kind == "extend" else 70_000
            async with await fs.open(PATH, "r+") as file:
                await file.pwrite(offset, piece)
            self.data[offset : offset + len(piece)] = piece

    async def is_there(self, fs: Client) -> bool:
        """Whether all of it is read, and nothing else."""
        if self.kind != "append":
            return await fs.get(PATH) == self.data
        found = [record.data async for record in fs.records(PATH)]
        return found == self.records and (await fs.get(PATH)).startswith(self.data)


async def written(cluster: SimCluster, fs: Client, work: Work) -> None:
    """What is under the second write is on all platters, with the version of both."""
    await work.begin(fs)
    await work.step(fs)
    write_back(cluster)
    await work.step(fs)


def inodes(cluster: SimCluster) -> dict[str, Inode]:
    return {
        name: cluster.machine(name).disk.inode(path)
        for name in cluster.chunkservers
        for path in cluster.chunk_files(name)
    }


KINDS = pytest.mark.parametrize("kind", ["write", "extend", "append"])


@KINDS
@pytest.mark.parametrize("later", [0.0, LATER_SECONDS])
@over_seeds(2, chunkserver=ChunkserverSettings(mark_seconds=1000.0))
async def test_a_machine_that_lost_its_power_shows_nothing_older(
    chance: Random, cluster: SimCluster, fs: Client, later: float, kind: str
) -> None:
    """Not even if it comes back at once and is all alone soon after."""
    work = Work(kind, chance)
    await written(cluster, fs, work)
    await trio.sleep(later)
    victim, *others = chance.sample(cluster.chunkservers, 3)
    await lose_power(cluster, victim)
    cluster.network.partition([victim], others)  # so that it gets no copy
    await cluster.start(victim)
    for name in others:
        cluster.kill(name)
    async with cluster.client("reader", IMPATIENT) as reader:
        with pytest.raises(GfsError):
            await reader.get(PATH)
    cluster.network.heal()
    for name in others:
        await cluster.restart(name)
    assert await work.is_there(fs)
    await work.step(fs)
    await cluster.wait_until(lambda: sound(fs), 200)
    assert await work.is_there(fs)
    await cluster.restart(victim)
    for name in others:
        await cluster.crash(name)
    assert await work.is_there(fs), "the one that forgot has learnt"


@over_seeds(2)
async def test_who_reads_from_where_a_file_was_is_not_shown_less(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A client uses cached locations for a while; and so does a writer."""
    work = Work("write", chance)
    await written(cluster, fs, work)
    async with await fs.open(PATH, "r+") as file:
        assert await file.pread(70_000, 5000) == work.data[70_000:75_000]
        await file.pwrite(70_000, b"third")
        work.data[70_000:70_005] = b"third"
        for name in chance.sample(cluster.chunkservers, 2):
            await lose_power(cluster, name)
            await cluster.start(name)
            assert await file.pread(70_000, 5000) == work.data[70_000:75_000]
            await file.pwrite(70_004, b"DOWN")
            work.data[70_004:70_008] = b"DOWN"
    assert await work.is_there(fs)
    await cluster.wait_until(lambda: sound(fs), 100)


@over_seeds(1)
async def test_a_replica_that_may_lack_something_takes_no_part(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Whatever location a client has cached, and even in the version that is asked for."""
    await written(cluster, fs, Work("write", chance))
    (chunk,) = (await fs.locate(PATH)).chunks
    victim, *others = chance.sample(cluster.chunkservers, 3)
    await lose_power(cluster, victim)
    cluster.network.partition([victim], others)
    await cluster.start(victim)

    async def answer(*messages: Message, body: bytes = b"") -> Message:
        connection = await fs._core.pool.acquire(cluster.address(victim))
        for message in messages[:-1]:
            await connection.send(message)
        await connection.send(messages[-1], body)
        found = await connection.receive()
        connection.close()
        return found

    handle, version = chunk.handle, chunk.version
    read = await answer(ReadChunk(0, handle, version, 0, 100))
    assert isinstance(read, Failure)
    assert read.code == StaleVersion.code
    state = await answer(VerifyChunk(0, handle, version, blocks=False))
    assert isinstance(state, VerifyReply)
    assert (state.state, state.version) == ("forgetful", version)
    write = WriteChunk(0, version, handle, 0, "mutate", [], False)
    packet = Packet(0, 0, True, packet_sums(0, b"x"))
    written_to = await answer(write, packet, body=b"x")
    assert isinstance(written_to, Failure)
    assert written_to.code == StaleVersion.code


@KINDS
@over_seeds(2)
async def test_after_a_power_cut_of_everything_files_can_be_read(
    chance: Random, cluster: SimCluster, fs: Client, kind: str
) -> None:
    """The last writes are lost on all: nothing else is, and all replicas are the same."""
    work = Work(kind, chance)
    await written(cluster, fs, work)
    await trio.sleep(3)  # the master has heard how long it is
    before, first = bytes(work.data), list(work.records)
    await work.step(fs)
    await trio.sleep(3)
    await lose_power_everywhere(cluster, fs)
    data = await fs.get(PATH)
    if kind == "append":
        found = [record.data async for record in fs.records(PATH)]
        assert found == first[: len(found)]
        assert data.startswith(work.data)
    else:
        kept = len(before) - 5000 if kind == "extend" else 70_000
        assert data[:kept] == before[:kept]
        assert not data[len(before) :].strip(b"\0")
        assert len(data) == len(work.data)
    await cluster.wait_until(lambda: sound(fs), 200)
    for name in cluster.chunkservers:
        await cluster.crash(name)
        assert await fs.get(PATH) == data
        await cluster.start(name)
    again = Work(kind, chance)
    again.data, again.records = bytearray(data), first[: len(first) if kind != "append" else 0]
    if kind != "append":
        await again.step(fs)
        assert await again.is_there(fs)


@over_seeds(2)
async def test_a_grant_that_all_lose_with_the_power_costs_nothing(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The master knows of a version that no platter has."""
    work = Work("write", chance)
    await work.begin(fs)
    before = bytes(work.data)
    write_back(cluster)
    await work.step(fs)
    await lose_power_everywhere(cluster, fs)
    assert await fs.get(PATH) in (before, bytes(work.data))


@over_seeds(2)
async def test_a_server_that_may_know_more_is_waited_for(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    work = Work("write", chance)
    await written(cluster, fs, work)
    knows, *others = chance.sample(cluster.chunkservers, 3)
    await cluster.crash(knows)
    await lose_power(cluster, *others)
    if chance.random() < 0.5:
        await cluster.restart("master")
    for name in others:
        await cluster.start(name)
    await trio.sleep(300)
    async with cluster.client("reader", IMPATIENT) as reader:
        with pytest.raises(GfsError):
            await reader.get(PATH)
    await cluster.start(knows)
    await cluster.wait_until(lambda: sound(fs), 100)
    assert await work.is_there(fs)


@over_seeds(2, master=MasterSettings(map_bytes=1 << 30, forgetful_seconds=100.0))
async def test_it_does_not_wait_without_end_and_then_it_is_too_late(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The elected replica is the file: a longer one that comes back is stale."""
    work = Work("write", chance)
    await written(cluster, fs, work)
    knew, *others = chance.sample(cluster.chunkservers, 3)
    await cluster.crash(knew)
    await lose_power(cluster, *others)
    for name in others:
        await cluster.start(name)
    await trio.sleep(150)
    data = await fs.get(PATH)
    assert data != work.data
    await cluster.start(knew)
    await cluster.wait_until(lambda: sound(fs), 100)
    for name in others:
        await cluster.crash(name)
    assert await fs.get(PATH) == data


@over_seeds(2, chunkserver=ChunkserverSettings(mark_seconds=10.0))
async def test_a_file_without_recent_writes_loses_nothing(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It was synced, and the mark taken back: nothing is copied."""
    work = Work("write", chance)
    await written(cluster, fs, work)
    await trio.sleep(30)
    before = inodes(cluster)
    for name in cluster.chunkservers:
        await lose_power(cluster, name)
        await cluster.start(name)
    await trio.sleep(20)
    assert inodes(cluster) == before
    assert await work.is_there(fs)


@over_seeds(2)
async def test_new_files_have_no_write_intent_records(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """They are told by their lengths and checksums: marks would cost a sync each."""
    for number in range(5):
        await fs.put(content(chance, 100_000), f"/{number}")
    for name in cluster.chunkservers:
        assert not cluster.machine(name).disk.read("/disk0/marks").strip(b"\0")


@over_seeds(2, chunkservers=4, chunkserver=ChunkserverSettings(mark_seconds=1000.0))
async def test_a_replica_whose_deletion_was_lost_comes_back_as_possibly_stale(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    work = Work("write", chance)
    await written(cluster, fs, work)
    await fs.set_replication(PATH, 1)
    await cluster.wait_until(lambda: len(inodes(cluster)) == 1, 300)
    (holder,) = inodes(cluster)
    for name in set(cluster.chunkservers) - {holder}:
        await lose_power(cluster, name)
    await cluster.crash(holder)
    for name in set(cluster.chunkservers) - {holder}:
        await cluster.start(name)
    assert len(inodes(cluster)) == 3, "two came back"
    async with cluster.client("reader", IMPATIENT) as reader:
        with pytest.raises(GfsError):
            await reader.get(PATH)
    await cluster.start(holder)
    assert await work.is_there(fs)


@over_seeds(1)
async def test_a_damaged_replica_is_not_elected(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Of three that forgot, one is damaged besides."""
    work = Work("write", chance)
    await written(cluster, fs, work)
    await cluster.crash_all()
    await lose_power(cluster, *cluster.chunkservers)
    victim = chance.choice(cluster.chunkservers)
    (path,) = cluster.chunk_files(victim)
    assert handle_of(path)
    cluster.machine(victim).disk.flip_bit(path, 8 * 100_000)
    await cluster.start_all()
    await cluster.wait_until(lambda: settled(fs), 200)
    data = await fs.get(PATH)
    assert data[:70_000] == work.data[:70_000]
    assert data[75_000:] == work.data[75_000:]
    await cluster.wait_until(lambda: sound(fs), 200)


@over_seeds(2)
async def test_who_lost_a_part_of_an_upload_does_not_count_as_a_holder(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It had acknowledged a chunk, lost it with the power, and is back when the file is
    published."""
    async with await fs.open(PATH, "w") as file:
        await file.write(content(chance, CHUNK_BYTES))
        await file.write(b"x")
        await file.flush()
        victim = chance.choice(cluster.chunkservers)
        await lose_power(cluster, victim)
        await cluster.start(victim)
    for chunk in (await fs.locate(PATH)).chunks:
        for replica in chunk.replicas:
            name = replica.address.partition(":")[0]
            assert chunk.handle in handles_on(cluster, name)
    await cluster.wait_until(lambda: sound(fs), 100)


async def is_unsound(fs: Client) -> bool:
    return not await sound(fs)


@pytest.mark.parametrize("restarts_first", [False, pytest.param(True, marks=pytest.mark.costly)])
@over_seeds(2, client=IMPATIENT)
async def test_a_disk_that_was_away_for_a_while_damaged_nothing(
    chance: Random, cluster: SimCluster, fs: Client, restarts_first: bool
) -> None:
    """Its replica is the only one, looks damaged meanwhile, and may lack something besides:
    it is elected when the disk is back, if need be at the next pass over all chunks."""
    data = content(chance, 200_000)
    await fs.put(data, PATH, replication=1)
    async with await fs.open(PATH, "r+") as file:
        await file.pwrite(0, data[:100])
    write_back(cluster)
    [chunk] = (await fs.locate(PATH)).chunks
    name = chunk.replicas[0].address.partition(":")[0]
    disk, [path] = cluster.machine(name).disk, cluster.chunk_files(name)
    if restarts_first:
        await lose_power(cluster, name)
        await cluster.start(name)
        disk.fail(path)
        await trio.sleep(30)
    else:
        disk.fail(path)
        await cluster.wait_until(lambda: is_unsound(fs), 60)
        await trio.sleep(5)
        await lose_power(cluster, name)
    assert not await sound(fs)
    disk.fail(path, 0)
    if not restarts_first:
        await cluster.start(name)
    await cluster.wait_until(lambda: sound(fs), 700 if restarts_first else 60, every=1)
    assert await fs.get(PATH) == data
