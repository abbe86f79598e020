"""The ways of bytes: the ordinary one, and those that are rarely taken: pauses, ended
leases, odd numbers."""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from unittest import mock

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, KIB, MIB, packet_sums
from gfs.chunkserver.disks.disk import Space
from gfs.chunkserver.files.layout import HEAD_BYTES, recover_state
from gfs.chunkserver.node import throttle
from gfs.client import Client
from gfs.client.append import Appender
from gfs.client.core import SUSPECT_SECONDS
from gfs.client.files import NewFile
from gfs.client.mutate import _lease, _send_all
from gfs.client.upload import ChainBroken, ChainWriter, OutPacket
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import ChunkUnavailable, DiskFull, NotEnoughChunkservers
from gfs.protocol.messages import (
    AcquireLease,
    Failure,
    LeaseReply,
    Packet,
    ServerAddress,
    WriteChunk,
)
from gfs.testing import SimCluster

from .packs import handles_on
from .promises import (
    STALL_SECONDS,
    assert_sound,
    content,
    is_dead,
    noted,
    replicas,
    wait_for_goal,
)
from .seeds import over_seeds


@contextmanager
def counted(cluster: SimCluster) -> Iterator[Counter[tuple[str, str]]]:
    """The bytes that leave meanwhile, by (from, to)."""
    sent: Counter[tuple[str, str]] = Counter()
    trace, add = cluster.network.trace, cluster.network.trace.add

    def note(event: str) -> None:
        match event.split():
            case [source, ">", target, count, _]:
                sent[source, target] += int(count)
        add(event)

    trace.add = note  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        trace.add = add  # type: ignore[method-assign]


@contextmanager
def asked_of_master() -> Iterator[Counter[str]]:
    """How often the master is asked for what, meanwhile."""
    asked: Counter[str] = Counter()

    class Requests(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "gfs_event", "") == "request":
                asked[record.__dict__["gfs_fields"]["operation"]] += 1

    handler, logger = Requests(), logging.getLogger("gfs.metrics")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield asked
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@over_seeds(2, chunkservers=4, user="user")
async def test_bytes_never_pass_through_the_master(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 8 * MIB)

    async def moves(work: Callable[[], Awaitable[object]], count: int) -> None:
        with counted(cluster) as sent:
            await work()
        masters = sum(sent[pair] for pair in sent if "master" in pair)
        assert sum(sent.values()) - masters >= count
        assert masters < BLOCK_BYTES

    async def lose_a_server() -> None:
        holders = [name for name in cluster.chunkservers if handles_on(cluster, name)]
        assert len(holders) == 3
        await cluster.crash(holders[0])
        rest = [name for name in cluster.chunkservers if name != holders[0]]
        await cluster.wait_until(lambda: all(map(partial(handles_on, cluster), rest)), 60)
        await trio.sleep(2)
        assert await replicas(fs, "/file", without=holders[:1]) == 3

    async def overwrite() -> None:
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(123_456, data[: 4 * MIB])

    await moves(lambda: fs.put(data, "/file"), 3 * len(data))
    await moves(lambda: fs.get("/file"), len(data))
    await moves(lose_a_server, len(data))
    await moves(overwrite, 3 * 4 * MIB)
    await moves(lambda: fs.append("/log", data[: 4 * MIB]), 3 * 4 * MIB)


@over_seeds(1)
async def test_a_server_that_failed_is_tried_last(fs: Client) -> None:
    servers = [ServerAddress(f"server{n}", f"10.0.0.{n}:1", "") for n in range(3)]
    core = fs._core
    assert core.in_order(servers) == servers
    core.suspect("server0")
    assert core.in_order(servers) == [*servers[1:], servers[0]]
    await trio.sleep(SUSPECT_SECONDS + 1)
    assert core.in_order(servers) == servers


@over_seeds(1, client=ClientSettings(retry_seconds=20.0))
async def test_a_write_for_which_there_are_no_servers_is_given_up(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    for name in cluster.chunkservers:
        cluster.kill(name)
    await trio.sleep(120)
    with trio.fail_after(60), pytest.raises(NotEnoughChunkservers):
        await fs.put(content(chance, 2 * MIB), "/file")


@over_seeds(1, client=ClientSettings(retry_seconds=5.0))
async def test_an_append_to_full_disks_says_so(fs: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    full = mock.AsyncMock(side_effect=DiskFull("no space is left"))
    monkeypatch.setattr(Appender, "_transmit", full)
    with pytest.raises(DiskFull):
        await fs.append("/log", b"record")
    assert full.await_count > 2


@over_seeds(1)
async def test_no_client_is_counted_when_all_is_done(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies would give way to it for as long as the server runs."""
    made = noted(monkeypatch, throttle.Throttle)
    small, large = content(chance, 1000), content(chance, 2 * MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        for data, path in ((small, "/small"), (large, "/large")):
            await fs.put(data, path)
            await fs.append("/log", data)
        await trio.sleep(60)
        assert [each.active for each in made] == [0] * 3
        for name in cluster.chunkservers:
            await cluster.restart(name)  # then what is read is not in memory
        for path in ("/small", "/large", "/log"):
            await fs.get(path)
        await trio.sleep(60)
        assert [each.active for each in made[3:]] == [0] * 3
        assert fs._core.buffers.in_use == 0


@over_seeds(1, client=ClientSettings(retry_seconds=5.0))
async def test_a_disk_that_is_full_to_its_reserve_takes_no_overwrite(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(chance, 2 * MIB)
    await fs.put(data, "/file")
    monkeypatch.setattr(Space, "has_room", lambda space, reserve: False)
    async with await fs.open("/file", "r+") as file:
        with pytest.raises(ChunkUnavailable, match="full to its reserve"):
            await file.pwrite(0, bytes(MIB))


@pytest.mark.parametrize(
    "size", [0, 1, *(at + n for at in (BLOCK_BYTES, MIB) for n in (-1, 0, 1)), 3 * MIB + 17]
)
@over_seeds(1)
async def test_every_kind_of_source_and_target(
    chance: Random, fs: Client, size: int, tmp_path: Path
) -> None:
    """Their progress adds up to the length."""
    data = content(chance, size)
    (tmp_path / "source").write_bytes(data)

    async def pieces() -> AsyncIterator[bytes]:
        yield data[: size // 2]
        await trio.lowlevel.checkpoint()
        yield data[size // 2 :]

    local, target, sink = tmp_path / "source", tmp_path / "target", io.BytesIO()
    sources = [data, bytearray(data), local, str(local), io.BytesIO(data), pieces()]
    for number, source in enumerate(sources):
        steps: list[int] = []
        entry = await fs.put(source, f"/file-{number}", progress=steps.append)  # type: ignore[arg-type]
        assert sum(steps) == entry.length == size
        assert await fs.get(f"/file-{number}") == data
    for to in (None, target, sink):
        steps = []
        found = await fs.get("/file-0", to, progress=steps.append)  # type: ignore[call-overload]
        assert found == (data if to is None else await fs.stat("/file-0"))
        assert sum(steps) == size
    assert target.read_bytes() == sink.getvalue() == data
    assert sorted(os.listdir(tmp_path)) == ["source", "target"], "no parts are left"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@over_seeds(1)
async def test_bytes_are_sent_from_where_they_are_and_what_may_change_is_copied(
    chance: Random, fs: Client, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either takes a buffer of the client's, so that as many wait as its memory allows."""
    sent: list[tuple[object, bool]] = []
    transmit = ChainWriter.transmit

    async def noted(self: ChainWriter, packet: OutPacket) -> None:
        sent.append((packet.data.obj, packet.pooled is not None))
        await transmit(self, packet)

    monkeypatch.setattr(ChainWriter, "transmit", noted)
    data = content(chance, 2 * MIB + 5)
    await fs.put(kind(data), "/file")
    assert [one is data for one, _ in sent] == [kind is bytes, kind is bytes, False]
    assert all(is_pooled for _, is_pooled in sent)
    assert await fs.get("/file") == data


@over_seeds(1)
async def test_the_locations_of_many_chunks_are_asked_for_at_once_and_remembered(
    seed: int, chance: Random
) -> None:
    master = MasterSettings(map_bytes=1 << 30, replication=1)
    client = ClientSettings(location_seconds=60.0)
    cluster = SimCluster(seed, chunkservers=2, master=master, client=client)
    async with cluster, cluster.client() as fs:
        await fs.put(bytes(3 * CHUNK_BYTES + 10), "/file")
        with asked_of_master() as asked:
            async with await fs.open("/file") as file:
                for _ in range(2):
                    for index in range(4):
                        assert await file.pread(index * CHUNK_BYTES, 10) == bytes(10)
                    assert asked["Locate"] == 1
                    await trio.sleep(client.location_seconds / 2)
                await trio.sleep(1)  # now they may be old
                for index in range(4):
                    assert await file.pread(index * CHUNK_BYTES, 10) == bytes(10)
                assert asked["Locate"] == 2


@pytest.mark.parametrize("restarts", [False, True], ids=["", "and the master was restarted"])
@pytest.mark.parametrize(
    "away", [0.0, *(pytest.param(away, marks=pytest.mark.costly) for away in (1.0, 20.0))]
)
@over_seeds(1, user="writer")
async def test_a_writer_that_was_away_for_long_gets_the_error_that_its_chunks_are_gone(
    chance: Random, cluster: SimCluster, fs: Client, restarts: bool, away: float
) -> None:
    """It brings its reservation back; what it had written was collected meanwhile."""
    file = await fs.open("/slow", "w")
    await file.write(content(chance, CHUNK_BYTES))
    await file.write(b"x")  # the first chunk is complete
    await trio.sleep(1)
    cluster.network.partition(["writer"], ["master"])
    if restarts:
        await cluster.restart("master")
    await cluster.wait_until(
        lambda: not any(handles_on(cluster, name) for name in cluster.chunkservers), 300
    )
    cluster.network.heal()
    fs._core.master.close()  # it connects anew
    await trio.sleep(away)
    with pytest.raises(ChunkUnavailable):
        await file.close()
    assert not await fs.exists("/slow")


@over_seeds(1, client=ClientSettings(retry_seconds=20.0), user="writer")
async def test_a_write_in_place_that_reaches_no_replica_is_given_up(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The master has live chunkservers to name, whatever this client says of them."""
    await fs.put(content(chance, 1000), "/file")
    async with await fs.open("/file", "r+") as file:
        cluster.network.partition(["writer"], list(cluster.chunkservers))
        with trio.fail_after(120), pytest.raises(ChunkUnavailable, match="keeps failing"):
            await file.pwrite(0, b"x")


@over_seeds(
    1,
    chunkservers=4,
    chunkserver=ChunkserverSettings(background_bytes_per_second=128 * KIB),
)
async def test_a_copy_gives_way_to_clients(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paced by the server that makes it, which takes another one's reads and no more."""
    monkeypatch.setattr(throttle, "BUSY_SECONDS", 1e6)
    for number in range(8):  # each server is a client's
        await fs.put(content(chance, 1000), f"/{number}")
    await fs.put(content(chance, 4 * MIB), "/file")
    replica = (await fs.locate("/file")).chunks[0].replicas[0]
    lost = replica.address.partition(":")[0]
    began = trio.current_time()
    await cluster.crash(lost)
    await wait_for_goal(cluster, fs, "/file", 3, [lost], 120)
    assert trio.current_time() - began > 31


@pytest.mark.parametrize("how", ["its lease ends", "it is started again"])
@pytest.mark.parametrize("count", [1, 3])
@over_seeds(1)
async def test_a_primary_that_has_no_lease_any_more_costs_no_replica(
    seed: int, chance: Random, count: int, how: str
) -> None:
    """The primary's count has ended, or it knows of no lease; the master's has not, since it was
    not told of the end."""
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
                if how == "its lease ends":
                    await trio.sleep(57.5)
                else:
                    for name in cluster.chunkservers:
                        await cluster.restart(name)
        assert await fs.get("/file") == bytes(data)
        await assert_sound(fs)


@over_seeds(1, chunkserver=ChunkserverSettings(durability="fsync"))
async def test_a_power_cut_right_after_a_grant_leaves_current_replicas(
    chance: Random, cluster: SimCluster
) -> None:
    data = content(chance, 300_000)
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


#: What each of two writers writes, a piece at a time: disjoint, in any order, most of it
#: beyond the end that there is then, in chunks that may have to be made.
SIDE_BY_SIDE = {
    "near": (range(0, 20 * 4096, 4096), [15 * MIB]),
    "in a block": (range(0, 2000, 100), [3000, 2500]),
    "over chunks": ([0, MIB, CHUNK_BYTES - 2048], [2 * CHUNK_BYTES + 5000, CHUNK_BYTES + 70_000]),
}


@pytest.mark.parametrize("where", SIDE_BY_SIDE)
@over_seeds(10)
async def test_writers_side_by_side_keep_what_the_other_wrote(
    seed: int, chance: Random, where: str
) -> None:
    """How checkpoints are written. Zeros are where nobody wrote, and nowhere else."""
    expected, end = bytearray(3 * CHUNK_BYTES), 0
    fault = chance.choice(["none", "crash", "power cut", "cut off", "silence"])
    settings = ChunkserverSettings(durability=chance.choice(["replicated", "fsync"]))
    cluster = SimCluster(seed, chunkservers=4, chunkserver=settings)

    async def write(fs: Client, offsets: Iterable[int]) -> None:
        nonlocal end
        async with await fs.open("/file", "r+") as file:
            for offset in offsets:
                data = content(chance, 4096 if where != "in a block" else 90)
                await file.pwrite(offset, data)
                expected[offset : offset + len(data)] = data
                end = max(end, offset + len(data))
                await trio.sleep(chance.choice([0, 0.001]))

    async def harm() -> None:
        name = chance.choice(cluster.chunkservers)
        await trio.sleep(chance.uniform(0, 0.1))
        if fault == "crash":  # and gone
            await cluster.crash(name)
        elif fault == "power cut":
            await cluster.crash(name)
            cluster.machine(name).disk.power_cut()
            await cluster.start(name)
        elif fault == "cut off":
            cluster.network.cut(name)
        elif fault == "silence":
            cluster.network.partition([name], {*cluster.names, "one", "two"} - {name})
            await trio.sleep(20)
            cluster.network.heal()

    async with cluster, cluster.client("one") as one, cluster.client("two") as two:
        await one.put(b"", "/file")
        async with trio.open_nursery() as nursery:
            for fs, offsets in zip((one, two), SIDE_BY_SIDE[where], strict=True):
                nursery.start_soon(write, fs, chance.sample(list(offsets), len(list(offsets))))
            nursery.start_soon(harm)
        assert await two.get("/file") == bytes(expected[:end])


@pytest.mark.parametrize("allowed", [0, 999, 1000, 5000])
@over_seeds(1)
async def test_no_more_is_filled_with_zeros_than_the_writer_allows(
    chance: Random, fs: Client, allowed: int
) -> None:
    """What was acknowledged, and is lost by all replicas, must not become zeros."""
    data = content(chance, 100_000)
    entry = await fs.put(data, "/file")
    writer, held = await _lease(fs._core, entry.inode, 0, 0, "")
    assert held == len(data)
    work = _send_all(writer, len(data) + 1000, memoryview(b"after"), allowed)
    if allowed < 1000:
        with pytest.raises(ChainBroken, match="has 100000 bytes here"):
            await work
        assert await fs.get("/file") == data
    else:
        await work
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(101_005, b".")
        assert await fs.get("/file") == data + bytes(1000) + b"after."
    writer.abandon()
    await assert_sound(fs)


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
    chance: Random,
    fs: Client,
    mode: str,
    version: int | None,
    handle: int | None,
    start: int,
    offset: int,
) -> None:
    data = content(chance, 100_000)
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


@pytest.mark.costly
@pytest.mark.parametrize("chunks", [1, 3])
@over_seeds(1)
async def test_who_reads_a_file_that_is_replaced_reads_it_to_its_end(
    chance: Random, cluster: SimCluster, fs: Client, chunks: int
) -> None:
    """And then it goes."""
    old = chance.randbytes(CHUNK_BYTES * (chunks - 1) + 300_000)
    await fs.put(old, "/file")
    file = await fs.open("/file")
    assert await file.read(100_000) == old[:100_000]
    await fs.put(b"new", "/file", overwrite=True)
    await trio.sleep(5 if chunks == 1 else 300)
    assert await file.read() == old[100_000:]
    await file.close()
    assert await fs.get("/file") == b"new"
    await cluster.wait_until(
        lambda: all(len(handles_on(cluster, name)) <= 1 for name in cluster.chunkservers), 900
    )
    await assert_sound(fs)


@pytest.mark.parametrize("how", ["put", "append"])
@over_seeds(3)
async def test_a_new_chunk_has_all_its_replicas_as_soon_as_enough_servers_are_live(
    chance: Random, cluster: SimCluster, fs: Client, how: str
) -> None:
    """One of them is live, and has not told yet what it holds."""
    late = chance.choice(cluster.chunkservers)
    await cluster.crash(late)
    await cluster.wait_until(partial(live, fs, 2))
    cluster.network.slow("master", late, (0.1, 0.3), 1e9)
    cluster.begin(late)
    await cluster.wait_until(partial(live, fs, 3), every=0.001)
    assert not cluster.node(late).ready.is_set(), "it has told all already"
    if how == "put":
        await fs.put(content(chance, 300_000), "/file")
    else:
        await fs.append("/file", b"record")
    assert await replicas(fs, "/file") == 3


@over_seeds(4)
async def test_who_lacks_the_end_of_a_full_chunk_gets_it(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A record that did not fit made one server fill the chunk, and all were killed before
    the others did. They have done it before anybody is told that the chunk is full."""
    record = bytes(200_000)
    await fs.put(content(chance, CHUNK_BYTES - 100_000), "/log")
    (chunk,) = (await fs.locate("/log")).chunks
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.append, "/log", record)
        await cluster.wait_until(
            lambda: CHUNK_BYTES in lengths(cluster, chunk.handle), every=0.00005
        )
        await cluster.crash_all()
        nursery.cancel_scope.cancel()
    assert len(set(lengths(cluster, chunk.handle))) > 1, "all of them had filled it"
    await cluster.start_all()

    async def all_reported() -> bool:
        return [server.chunks for server in (await fs.status()).servers] == [1] * 3

    await cluster.wait_until(all_reported)
    async with cluster.client("another") as other:
        await other.append("/log", record)
    assert lengths(cluster, chunk.handle) == [CHUNK_BYTES] * 3
    assert len((await fs.locate("/log")).chunks) == 2
    await assert_sound(fs)


def lengths(cluster: SimCluster, handle: int) -> list[int]:
    """Of all replicas of a chunk, as their files say."""
    found = []
    for name in cluster.chunkservers:
        for path in cluster.chunk_files(name):
            if path.endswith(f"{handle:016x}.chunk"):
                data = cluster.machine(name).disk.inode(path).data
                found.append(recover_state(data[:HEAD_BYTES], handle, len(data)).length)
    return found


async def live(fs: Client, count: int) -> bool:
    return sum(server.state == "live" for server in (await fs.status()).servers) == count


async def nothing(cluster: SimCluster) -> None:
    pass


async def a_server_connects_anew(cluster: SimCluster) -> None:
    cluster.network.cut("master", Random(cluster.seed).choice(cluster.chunkservers))


async def all_servers_connect_anew(cluster: SimCluster) -> None:
    cluster.network.cut("master")


async def the_master_is_started_again(cluster: SimCluster) -> None:
    await cluster.restart("master")


@pytest.mark.parametrize(
    "meanwhile",
    [nothing, a_server_connects_anew, all_servers_connect_anew, the_master_is_started_again],
)
@over_seeds(8)
async def test_a_writer_that_pauses_loses_no_replica(
    seed: int, chance: Random, meanwhile: Callable[[SimCluster], Awaitable[None]]
) -> None:
    """The servers end an exchange in which nothing moves, each by its own count, and
    hang up a second later: at any of these moments the next packet may come."""
    settings = ChunkserverSettings(
        idle_seconds=1.0, durability=chance.choice(["replicated", "fsync"])
    )
    data = content(chance, chance.choice([700, 300_000, 3 * MIB]))
    step = -(-len(data) // 5)
    cluster = SimCluster(seed, chunkserver=settings)
    async with cluster, cluster.client() as fs:
        async with await fs.open("/file", "w") as file:
            for at in range(0, len(data), step):
                await file.write(data[at : at + step])
                if not at or chance.random() < 0.8:
                    await file.flush()
                near = chance.choice([1.0, 2.0]) + chance.uniform(-0.002, 0.004)
                await trio.sleep(chance.choice([near, chance.uniform(0.1, 3.0)]))
                await meanwhile(cluster)
        assert await replicas(fs, "/file") == 3
        (chunk,) = (await fs.locate("/file")).chunks
        assert chunk.version > 1, "the exchange was not interrupted at all"
        assert await fs.get("/file") == data


@pytest.mark.parametrize(
    "meanwhile", [nothing, all_servers_connect_anew, the_master_is_started_again]
)
@over_seeds(8)
async def test_a_death_costs_a_writer_one_replica_whoever_has_just_come_back(
    chance: Random,
    cluster: SimCluster,
    fs: Client,
    meanwhile: Callable[[SimCluster], Awaitable[None]],
) -> None:
    """Of the two that are left the master does not know yet that they are there."""
    data = content(chance, 300_000)
    async with await fs.open("/file", "w") as file:
        await file.write(data[:100_000])
        await file.flush()
        await cluster.crash(chance.choice(cluster.chunkservers))
        await meanwhile(cluster)
        began = trio.current_time()
        await file.write(data[100_000:])
        await file.flush()
        assert trio.current_time() - began < STALL_SECONDS
    assert await replicas(fs, "/file") == 2
    assert await fs.get("/file") == data


async def write_until_one_server_is_left(
    chance: Random, cluster: SimCluster, file: NewFile, data: bytes
) -> str:
    """Write half of the bytes while one server after the other dies; returns the last one."""
    names = chance.sample(cluster.chunkservers, 3)
    piece = len(data) // 6
    for at, name in enumerate(names):
        await file.write(data[at * piece : (at + 1) * piece])
        await file.flush()
        if name != names[-1]:
            await cluster.crash(name)
    return names[-1]


async def dies(cluster: SimCluster, name: str) -> None:
    await cluster.crash(name)
    await trio.sleep(1)
    await cluster.start(name)


async def is_stopped(cluster: SimCluster, name: str) -> None:
    await cluster.stop(name)
    await trio.sleep(1)
    await cluster.start(name)


async def dies_for_long(cluster: SimCluster, name: str) -> None:
    """The master gives its reservation up, and a new one knows of none."""
    await cluster.crash(name)
    await trio.sleep(8)
    await cluster.restart("master")
    await trio.sleep(8)
    await cluster.start(name)


async def is_cut_off(cluster: SimCluster, name: str) -> None:
    cluster.network.partition([name], ["writer", "master"])
    await trio.sleep(6)
    cluster.network.heal()


@pytest.mark.parametrize("what", [dies, is_stopped, dies_for_long, is_cut_off])
@over_seeds(4, user="writer")
async def test_an_upload_goes_on_when_the_last_server_with_its_bytes_is_back(
    chance: Random,
    cluster: SimCluster,
    fs: Client,
    what: Callable[[SimCluster, str], Awaitable[None]],
) -> None:
    data = content(chance, 6 * 300_000)
    async with fs.create("/file") as file:
        last = await write_until_one_server_is_left(chance, cluster, file, data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(what, cluster, last)
            await trio.sleep(0.5)
            await file.write(data[len(data) // 2 :])
            await file.flush()
    assert await fs.get("/file") == data


@over_seeds(1, user="writer")
async def test_a_file_is_published_when_the_server_of_a_complete_chunk_is_back(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, CHUNK_BYTES + 1)
    async with fs.create("/file", replication=1) as file:
        await file.write(data)  # the first chunk is complete, and nothing of the second was sent
        await trio.sleep(1)
        [first] = [name for name in cluster.chunkservers if handles_on(cluster, name)]
        await cluster.crash(first)
        await cluster.wait_until(lambda: is_dead(fs, first), 60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.close)
            await trio.sleep(2)
            await cluster.start(first)
    assert await fs.get("/file") == data


@pytest.mark.parametrize("is_back", [False, True])
@over_seeds(2, client=ClientSettings(retry_seconds=20.0), user="writer")
async def test_an_upload_whose_servers_have_lost_its_bytes_ends(
    chance: Random, cluster: SimCluster, fs: Client, is_back: bool
) -> None:
    """At once if they say so, and else when it has waited for them."""
    file = fs.create("/file")
    await file.write(content(chance, 300_000))
    await file.flush()
    for name in cluster.chunkservers:
        cluster.kill(name)
    for name in cluster.chunkservers if is_back else []:
        await cluster.restart(name)
    began = trio.current_time()
    await file.write(b"more")
    with pytest.raises(ChunkUnavailable, match="the first 300000 bytes of a chunk are gone"):
        await file.flush()
    waited = trio.current_time() - began
    assert waited < STALL_SECONDS if is_back else 19 <= waited <= 20 + STALL_SECONDS
    await file.abort()


@pytest.mark.parametrize("old", [2 * MIB + 1, 2 * MIB, 2 * MIB + 100_000])
@over_seeds(1)
async def test_a_file_that_grew_is_read_as_it_was_opened(
    chance: Random, cluster: SimCluster, fs: Client, old: int
) -> None:
    """What was its last block is a part of one by now, and the reader knows it."""
    data = content(chance, old)
    async with cluster.client() as other:
        await fs.put(data, "/file")
        async with await fs.open("/file") as file, await other.open("/file", "r+") as writer:
            await writer.pwrite(old, content(chance, 1000))
            await trio.sleep(fs._core.settings.location_seconds + 1)
            assert await file.pread(0, 100) == data[:100]  # the locations are asked for again
            assert file.entry.length == old + 1000
            for start in (0, 1, 65_536):
                assert await file.pread(start, old) == data[start:]
                await file.seek(start)
                assert await file.read() == data[start:]


@pytest.mark.parametrize("how", ["read", "stream"])
@over_seeds(2, chunkservers=3, user="reader")
async def test_what_was_read_ahead_is_used_no_longer_than_locations(
    chance: Random, cluster: SimCluster, fs: Client, how: str
) -> None:
    """A reader takes his time, and others write, which whoever he asked first has missed."""
    size = 6 * MIB
    data = bytearray(content(chance, size))
    async with cluster.client("writer") as other:
        await fs.put(bytes(data), "/file")
        file = await fs.open("/file")
        pieces = file.stream()
        asked = 100 if how == "read" else MIB
        with counted(cluster) as sent:
            first = await file.read(asked) if how == "read" else bytes(await anext(pieces))
        assert first == data[:asked]
        # Whoever it is from is not there when all is written anew.
        source = max(cluster.chunkservers, key=lambda name: sent[name, "reader"])
        others = [name for name in [*cluster.names, "writer"] if name != source]
        cluster.network.partition([source], others)
        new = content(chance, size)
        async with await other.open("/file", "r+") as writer:
            await writer.pwrite(0, new)
        await trio.sleep(fs._core.settings.location_seconds + 1)
        rest = await file.read() if how == "read" else b"".join([bytes(p) async for p in pieces])
        assert rest == new[asked:]
        await pieces.aclose()
        await file.close()
