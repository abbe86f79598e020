"""Record append where it is hard: each fault by itself, at the worst moment."""

from __future__ import annotations

import io
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.chunkserver.exchanges.append import Appends
from gfs.chunkserver.files import read_state
from gfs.client import Client
from gfs.client.append import AHEAD_BYTES_MIN, REQUESTS_MAX, Appender
from gfs.client.read import FileMap
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import Busy, GfsError, InvalidArgument, IsADirectory, NotFound
from gfs.protocol.messages import AppendRecords, Failure
from gfs.protocol.records import RECORD_BYTES_MAX
from gfs.testing import SimCluster
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Onlooker

from .losses import handle_of
from .packs import handles_on
from .promises import content, replicas, settled, wait_settled
from .seeds import over_seeds

PATH = "/log"


class Appended:
    """What was acknowledged, and all that was tried."""

    def __init__(self) -> None:
        self.at: dict[int, bytes] = {}
        self.tried: set[bytes] = set()

    async def append(self, fs: Client, data: bytes) -> int:
        self.tried.add(data)
        offset = await fs.append(PATH, data)
        assert offset not in self.at, "two records at one place"
        self.at[offset] = data
        return offset

    async def some(self, fs: Client, chance: Random, count: int, size: int = 300) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self.append, fs, chance.randbytes(16) + content(chance, size))

    async def keep_on(self, fs: Client, chance: Random) -> None:
        """Until cancelled; what fails is tried no more."""
        while True:
            try:
                await self.append(fs, chance.randbytes(chance.choice([16, 300, 70_000])))
            except GfsError:
                await trio.sleep(0.1)
            await trio.sleep(chance.choice([0, 0.01, 0.3]))

    async def check(self, fs: Client) -> None:
        found = [record async for record in fs.records(PATH, duplicates=True)]
        there = {record.offset: record.data for record in found}
        lost = {at: data for at, data in self.at.items() if there.get(at) != data}
        assert not lost, f"lost: {sorted(lost)}"
        made_up = [record for record in found if record.data not in self.tried]
        assert not made_up, f"nobody wrote {made_up[:2]}"
        names = [(r.client, r.sequence) async for r in fs.records(PATH)]
        assert len(names) == len(set(names))


async def chain(fs: Client, cluster: SimCluster) -> list[str]:
    """Machines with the last chunk, the primary first."""
    last = (await fs.locate(PATH)).chunks[-1]
    named = {r.id: r.address.partition(":")[0] for r in last.replicas}
    first = named[last.primary] if last.primary else ""
    return sorted(named.values(), key=lambda name: name != first)


@pytest.mark.parametrize(
    "victim", [0, *(pytest.param(later, marks=pytest.mark.costly) for later in (1, 2))]
)
@pytest.mark.parametrize("comes_back", [False, True])
@over_seeds(4, chunkservers=4)
async def test_any_server_of_the_chain_may_die(
    chance: Random, cluster: SimCluster, fs: Client, victim: int, comes_back: bool
) -> None:
    appended = Appended()
    await appended.some(fs, chance, 5)
    name = (await chain(fs, cluster))[victim]
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(appended.keep_on, fs, chance)
        await trio.sleep(1)
        cluster.kill_in_call(name, chance.randint(1, 12))
        await trio.sleep(0.5)
        await cluster.crash(name)
        if comes_back:
            await cluster.start(name)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    with trio.move_on_after(17):  # one is enough while the chunk is repaired
        await appended.keep_on(fs, chance)
    await appended.check(fs)
    await wait_settled(cluster, fs)


@over_seeds(4, chunkservers=3)
async def test_a_secondary_that_misses_records_is_given_up_or_brought_up(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    appended = Appended()
    await appended.some(fs, chance, 5)
    first, second, third = await chain(fs, cluster)
    cluster.network.partition([second], [first, third])
    await appended.some(fs, chance, 5, 70_000)
    cluster.network.heal()
    await appended.some(fs, chance, 5)
    await appended.check(fs)
    await cluster.wait_until(lambda: settled(fs), 60)
    for name in (first, second, third):
        others = [other for other in (first, second, third) if other != name]
        cluster.network.partition(["client0"], others)
        await appended.check(fs)
        cluster.network.heal()


@over_seeds(4, chunkservers=3, master=MasterSettings(lease_seconds=6, lease_margin_seconds=0.5))
async def test_a_primary_that_lost_the_end_misleads_no_writer(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """It is of the current version, whole by its own account, and shorter: whoever is
    primary, the others' records are there, and become its own."""
    appended = Appended()
    await appended.some(fs, chance, 3)
    victim = (await chain(fs, cluster))[chance.randrange(3)]
    cluster.machine(victim).disk.write_back(chance)
    await appended.some(fs, chance, 3, 70_000)
    await cluster.crash("master")  # it does not come to know of the new length
    await cluster.crash(victim)
    cluster.machine(victim).disk.power_cut(chance)
    cluster.begin(victim)
    await cluster.start("master")
    await appended.check(fs)
    await trio.sleep(8)
    await appended.some(fs, chance, 3)
    await appended.check(fs)
    await wait_settled(cluster, fs)


@over_seeds(4, chunkservers=4)
async def test_a_secondary_that_lost_the_end_fails_no_append(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The lease goes on, and all replicas were of one length when the primary looked."""
    appended = Appended()
    await appended.some(fs, chance, 3)
    victim = (await chain(fs, cluster))[chance.choice([1, 2])]
    cluster.machine(victim).disk.write_back(chance)
    await appended.some(fs, chance, 3, 5000)
    await cluster.crash(victim)
    cluster.machine(victim).disk.power_cut(chance)
    await cluster.start(victim)
    await trio.sleep(0.5)
    await appended.some(fs, chance, 3)
    await appended.check(fs)
    await wait_settled(cluster, fs)


@pytest.mark.costly
@over_seeds(
    3,
    chunkservers=5,
    master=MasterSettings(lease_seconds=6, lease_margin_seconds=0.5, dead_seconds=6),
)
async def test_leases_end_and_chunks_are_copied_under_appends(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    appended = Appended()
    async with cluster.client("client1") as other:
        await appended.some(fs, chance, 3)
        async with trio.open_nursery() as nursery:
            for client in (fs, fs, other, other):
                nursery.start_soon(appended.keep_on, client, chance)
            for _ in range(3):
                victim = chance.choice(await chain(fs, cluster))
                await cluster.crash(victim)
                await trio.sleep(chance.uniform(8, 15))
                await cluster.start(victim)
            nursery.cancel_scope.cancel()
        await appended.check(fs)
        await wait_settled(cluster, fs)


@over_seeds(2)
async def test_snapshots_have_what_was_acknowledged_before_them_and_nothing_after(
    chance: Random, fs: Client
) -> None:
    appended = Appended()
    await appended.some(fs, chance, 5)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(appended.keep_on, fs, chance)
        await trio.sleep(2)
        before = dict(appended.at)
        await fs.snapshot(PATH, "/copy")
        copied = [(r.offset, r.data) async for r in fs.records("/copy", duplicates=True)]
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert before.items() <= dict(copied).items()
    again = [(r.offset, r.data) async for r in fs.records("/copy", duplicates=True)]
    assert again == copied
    assert len(appended.at) > len(before)
    await appended.check(fs)
    await fs.append("/copy", b"of the copy alone")
    assert b"of the copy alone" not in [r.data async for r in fs.records(PATH)]


@over_seeds(2, chunkservers=4, chunkserver=ChunkserverSettings(reserve_bytes=1 << 20))
async def test_a_full_disk_is_passed_by(chance: Random, cluster: SimCluster, fs: Client) -> None:
    appended = Appended()
    await appended.some(fs, chance, 3)
    victim = (await chain(fs, cluster))[chance.randrange(3)]
    disk = cluster.machine(victim).disk
    space = disk.space(cluster.disks[0])
    disk.mount(cluster.disks[0], space.total_bytes - space.free_bytes + 2000)
    await appended.some(fs, chance, 5, 70_000)
    await appended.check(fs)


@over_seeds(2)
async def test_clients_that_hang_up_harm_no_others(chance: Random, fs: Client) -> None:
    appended = Appended()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(appended.some, fs, chance, 20, 100_000)
        for _ in range(10):
            data = chance.randbytes(50_000)
            appended.tried.add(data)
            with trio.move_on_after(chance.uniform(0, 0.02)):
                await fs.append(PATH, data)
    assert len(appended.at) == 20
    await appended.check(fs)


@over_seeds(1)
async def test_the_next_record_of_a_deleted_file_is_of_a_new_one(fs: Client) -> None:
    await fs.append(PATH, b"old")
    await fs.delete(PATH)
    await trio.sleep(70)
    await fs.append(PATH, b"new")
    assert [r.data async for r in fs.records(PATH)] == [b"new"]


@over_seeds(1)
async def test_no_server_is_passed_over_for_a_chunk_that_is_gone(
    cluster: SimCluster, fs: Client
) -> None:
    """Its file was deleted under an appender, and the next that was put had fewer replicas."""
    await fs.append(PATH, b"old")
    await fs.delete(PATH, now=True)
    await cluster.wait_until(
        lambda: not any(handles_on(cluster, name) for name in cluster.chunkservers), 30
    )
    await fs.append(PATH, b"new")
    assert [r.data async for r in fs.records(PATH)] == [b"new"]
    await fs.put(b"x", "/file")
    assert await replicas(fs, "/file") == 3


@over_seeds(1)
async def test_a_file_that_was_put_is_appended_to(cluster: SimCluster, fs: Client) -> None:
    """Its bytes stay, and what looks like a record in them is none."""
    await fs.append("/other", b"a record of another file")
    inner = await fs.get("/other")
    before = b"x" + inner + bytes(100_000)
    await fs.put(before, PATH)
    offset = await fs.append(PATH, b"mine")
    assert offset == len(before)
    assert (await fs.get(PATH))[:offset] == before
    assert [r.data async for r in fs.records(PATH)] == [b"mine"]
    entry = await fs.stat(PATH)
    assert entry.appended
    assert not entry.digest
    listed = {e.path: e.length for e in await fs.list("/")}
    await cluster.wait_until(lambda: _listed(fs, entry.length), 10)
    assert listed[PATH] <= entry.length


async def _listed(fs: Client, length: int) -> bool:
    return {e.path: e.length for e in await fs.list("/")}[PATH] == length


@over_seeds(1)
async def test_what_is_refused(fs: Client) -> None:
    with pytest.raises(InvalidArgument, match="quarter of a chunk"):
        await fs.append(PATH, bytes(RECORD_BYTES_MAX + 1))
    with pytest.raises(NotFound):
        await fs.append(PATH, b"x", create=False)
    await fs.mkdir("/directory")
    with pytest.raises(IsADirectory):
        await fs.append("/directory", b"x")
    with pytest.raises(NotFound):
        [r async for r in fs.records(PATH)]
    assert await fs.append_many(PATH, []) == []
    offsets = await fs.append_many(PATH, [b"first", b"", b"third"])
    assert [r.offset async for r in fs.records(PATH)] == offsets == sorted(offsets)
    assert offsets[-1] < CHUNK_BYTES
    [chunk] = (await fs.locate(PATH)).chunks
    connection = await fs._core.pool.acquire(chunk.replicas[0].address)
    await connection.send(AppendRecords(1, chunk.handle, chunk.version, 0, []))
    assert isinstance(refused := await connection.receive(), Failure)
    assert refused.code == InvalidArgument.code
    connection.close()


@pytest.mark.parametrize("trouble", ["none", "busy", "cut", "primary dies"])
@over_seeds(2, chunkservers=4)
async def test_the_next_request_is_sent_before_the_answer_and_order_is_kept(
    chance: Random, cluster: SimCluster, fs: Client, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large requests follow one another without a pause. When one fails, none after it has a
    place before it."""
    most = 0
    transmit, serve = Appender._transmit, Appends._append

    async def noted(appender: Appender, *arguments: Any, **options: Any) -> None:
        nonlocal most
        await transmit(appender, *arguments, **options)
        most = max(most, arguments[2].unanswered)

    async def at_times_busy(appends: Appends, waiting: Any) -> Any:
        if trouble == "busy" and chance.random() < 0.3:
            raise Busy("the primary is busy here")
        return await serve(appends, waiting)

    monkeypatch.setattr(Appender, "_transmit", noted)
    monkeypatch.setattr(Appends, "_append", at_times_busy)
    size = AHEAD_BYTES_MIN // 4
    data = [content(chance, size) for _ in range(60)]
    done: list[int] = []
    await fs.append(PATH, b"first")
    primary = (await chain(fs, cluster))[0]

    async def append() -> None:
        for at in range(0, len(data), 20):
            done.extend(await fs.append_many(PATH, data[at : at + 20]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append)
        for _ in range(3 if trouble in ("cut", "primary dies") else 0):
            await trio.sleep(chance.uniform(0, 0.02))
            cluster.network.cut("client0", primary)
        if trouble == "primary dies":
            cluster.kill(primary)
    if trouble == "none":
        assert most == REQUESTS_MAX
    assert done == sorted(done)
    found = [record.data async for record in fs.records(PATH)]
    assert found == [b"first", *data]


@over_seeds(4, chunkservers=3)
async def test_those_who_wait_for_each_answer_share_exchanges(
    chance: Random, cluster: SimCluster
) -> None:
    writers, rounds = 8, 20
    appended = Appended()
    async with AsyncExitStack() as clients:
        every = [await clients.enter_async_context(cluster.client()) for _ in range(writers)]
        await appended.append(every[0], b"first")

        async def write(fs: Client) -> None:
            for _ in range(rounds):
                await appended.append(fs, chance.randbytes(100))

        before = commits(cluster)
        async with trio.open_nursery() as nursery:
            for fs in every:
                nursery.start_soon(write, fs)
        assert commits(cluster) - before < 1.5 * rounds
        # Who is alone waits for the others once, and never again.
        began = trio.current_time()
        for _ in range(20):
            await appended.append(every[0], chance.randbytes(100))
        assert (trio.current_time() - began) / 20 < 0.003


def commits(cluster: SimCluster) -> int:
    """How often a replica of the only chunk was committed."""
    name = sorted(cluster.chunkservers)[0]
    (path,) = cluster.chunk_files(name)
    disk = cluster.machine(name).disk
    state = read_state(SimFileSystem(disk, Onlooker()), path, handle_of(path))
    return state.sequence


@over_seeds(1)
@pytest.mark.parametrize("to_path", [False, True])
async def test_the_reported_length_of_a_growing_source_is_what_was_stored(
    chance: Random, fs: Client, tmp_path: Path, to_path: bool
) -> None:
    first = content(chance, 3 * MIB)
    await fs.put(first, "/log")
    opened: list[FileMap] = []

    def grows(_: int) -> None:
        opened[0].entry.length += 63  # as a look does, for where the next chunk is

    open_map = FileMap.open

    async def noted(*arguments: Any, **options: Any) -> FileMap:
        opened.append(await open_map(*arguments, **options))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileMap, "open", noted)
        target: Any = str(tmp_path / "copy") if to_path else io.BytesIO()
        entry = await fs.get("/log", target, progress=grows)
    data = (tmp_path / "copy").read_bytes() if to_path else target.getvalue()
    assert data == first
    assert entry.length == len(first)


@over_seeds(8)
async def test_records_of_one_task_are_sent_once(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one may come at the instant at which the last one's request ends."""
    sent, transmit = 0, Appender._transmit

    async def counted(appender: Appender, *arguments: Any, **options: Any) -> None:
        nonlocal sent
        sent += 1
        await transmit(appender, *arguments, **options)

    monkeypatch.setattr(Appender, "_transmit", counted)
    records = [content(chance, AHEAD_BYTES_MIN) for _ in range(12)]
    for record in records:
        await fs.append(PATH, record)
    assert sent == len(records)
    assert [record.data async for record in fs.records(PATH)] == records
